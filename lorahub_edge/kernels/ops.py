"""The numeric kernels as the rest of the package calls them.

Each op has a file of its own in this folder, where its arguments are checked, once, for every route. Knows nothing of
LoRA modules, models or files.
"""

from lorahub_edge.kernels.attention import attention
from lorahub_edge.kernels.compose_factors import compose_factors
from lorahub_edge.kernels.gated_activation import Activation, Gate, gated_activation
from lorahub_edge.kernels.inject_delta import inject_delta, inject_delta_from_stack
from lorahub_edge.kernels.inject_layers import InjectLayers, LayerToInject
from lorahub_edge.kernels.injected import NEAREST, Injected, InjectReport, Rounding
from lorahub_edge.kernels.int8_epilogue import SidePath, int8_epilogue
from lorahub_edge.kernels.int8_linear import int8_linear
from lorahub_edge.kernels.int8_rows import dequantize_rows, quantize_activations, quantize_rows
from lorahub_edge.kernels.routes import has_fast_int8, has_wide_floats, isa, route

__all__ = [
    "NEAREST",
    "Activation",
    "Gate",
    "InjectLayers",
    "InjectReport",
    "Injected",
    "LayerToInject",
    "Rounding",
    "SidePath",
    "attention",
    "compose_factors",
    "dequantize_rows",
    "gated_activation",
    "has_fast_int8",
    "has_wide_floats",
    "inject_delta",
    "inject_delta_from_stack",
    "int8_epilogue",
    "int8_linear",
    "isa",
    "quantize_activations",
    "quantize_rows",
    "route",
]
