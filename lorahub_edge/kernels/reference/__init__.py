"""NumPy twins of the kernels: the specification, the fallback, and the other side of the tests.

Each function has the arguments of its namesake in `ops`, as NumPy arrays, and favours plainness over speed. Nothing
here knows of torch or of the native extension, and nothing is checked: `ops` does that.
"""

from lorahub_edge.kernels.reference.factors import (
    MAX_CODE,
    Codes,
    Float32,
    compose_factors,
    dequantize_rows,
    inject_delta,
    quantize_rows,
    uniform,
)
from lorahub_edge.kernels.reference.layers import attention, gated_activation, int8_epilogue, int8_linear

__all__ = [
    "MAX_CODE",
    "Codes",
    "Float32",
    "attention",
    "compose_factors",
    "dequantize_rows",
    "gated_activation",
    "inject_delta",
    "int8_epilogue",
    "int8_linear",
    "quantize_rows",
    "uniform",
]
