"""inject_delta of many layers: on CUDA in one launch, from a table that is written once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lorahub_edge.kernels.checks import expect
from lorahub_edge.kernels.inject_delta import inject_into
from lorahub_edge.kernels.injected import NEAREST, Injected, Rounding, checked_result, report_rows, result_for
from lorahub_edge.kernels.routes import need_native

_OP = "inject_layers"


@dataclass(frozen=True)
class LayerToInject:
    """One layer; see `inject_delta`.

    Attributes:
        codes: int8 (out_features, in_features).
        row_scale: float32 (out_features,).
        A: float32 (rank, in_features).
        B: float32 (out_features, rank).
        scaling: of the delta.
        out: int8 (out_features, in_features), float32 or bfloat16: where the new values go.
    """

    codes: torch.Tensor
    row_scale: torch.Tensor
    A: torch.Tensor
    B: torch.Tensor
    scaling: float
    out: torch.Tensor


class InjectLayers:
    """`inject_delta` of many layers, again and again from the same places: only the values of A and B change.

    Args:
        layers: on one device, with one dtype of `out`.
        rounding: of int8 values.

    Attributes:
        results: of each layer, in the same tensors every time.

    Raises:
        ValueError, TypeError, KernelUnavailable: see `inject_delta`; also for layers on several devices.
    """

    def __init__(self, layers: Sequence[LayerToInject], *, rounding: Rounding = NEAREST) -> None:
        self._layers = list(layers)
        self._rounding = rounding
        devices = {layer.codes.device for layer in layers}
        expect(len(devices) <= 1, _OP, "layers on one device", f"{len(devices)} devices")
        self.results = [
            result_for(_OP, layer.codes, layer.row_scale, layer.A, layer.B, layer.out.dtype, layer.out)
            for layer in layers
        ]
        self._device = devices.pop() if devices else torch.device("cpu")
        if self._device.type != "cpu":
            native = need_native(_OP, self._device, None)
            arrays = [_arrays(layer, result) for layer, result in zip(self._layers, self.results, strict=True)]
            self._table = native.module.InjectTable(arrays, rounding.kind, rounding.seed)
            self._place = torch.frombuffer(bytearray(self._table.bytes), dtype=torch.int8).to(self._device)

    def inject(self) -> list[Injected]:
        """Write all layers with their deltas added; on CUDA one launch, in the caller's stream.

        Raises:
            ValueError: on the CPU, for values that are not finite; see `inject_delta`.
        """
        if self._device.type == "cpu":
            for layer, result in zip(self._layers, self.results, strict=True):
                parts = (layer.codes, layer.row_scale, layer.A, layer.B, layer.scaling)
                inject_into(result, *parts, self._rounding, None)
                checked_result(result)
        elif self._layers:
            native = need_native(_OP, self._device, None)
            native.module.inject_layers(self._table, self._place, native.where)
        return self.results


def _arrays(layer: LayerToInject, result: Injected) -> tuple[object, ...]:
    inputs = (layer.codes, layer.row_scale, layer.A.detach(), layer.B.detach())
    return (*inputs, result.values, result.row_scale, report_rows(result), layer.scaling)
