"""Weights: a base's tensors in the layouts that ONNX operators want, each made only when it is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto

from lorahub_edge.base import Base, Int8Embedding, Int8Linear, Int8Weight
from lorahub_edge.exporting.onnx_file import BigTensor

_FLOAT_TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16}


class Weights:
    """The weights of a base by module path.

    Args:
        base: int8 or float.
        precision: "int8", "fp32" or "fp16".
    """

    def __init__(self, base: Base, precision: str) -> None:
        self._base = base
        self.embedding = base.family.embedding
        self.embedding_form = "int8_embedding" if precision == "int8" else precision

    def shape(self, path: str) -> tuple[int, int]:
        """(out_features, in_features)."""
        weight: Any = self._base.model.get_submodule(path).weight
        return int(weight.shape[0]), int(weight.shape[1])

    def bias(self, path: str) -> NDArray[np.float32] | None:
        """float32 (out_features,), or None."""
        bias: Any = getattr(self._base.model.get_submodule(path), "bias", None)
        return None if bias is None else _array(bias.float())

    def codes(self, path: str) -> BigTensor:
        """int8 (out_features, in_features)."""
        return self._tensor(path, "codes", TensorProto.INT8, self.shape(path), lambda: _array(self._int8(path).codes))

    def codes_transposed(self, *paths: str) -> BigTensor:
        """int8 (in_features, sum of out_features): what MatMulInteger reads; several layers side by side."""
        shape = (self.shape(paths[0])[1], sum(self.shape(path)[0] for path in paths))
        make = lambda: _array(torch.cat([self._int8(path).codes for path in paths]).t())  # noqa: E731
        return self._tensor(_together(paths), "codes_t", TensorProto.INT8, shape, make)

    def row_scale(self, *paths: str) -> BigTensor:
        """float32 (sum of out_features,)."""
        shape = (sum(self.shape(path)[0] for path in paths),)
        make = lambda: _array(torch.cat([self._int8(path).row_scale for path in paths]))  # noqa: E731
        return self._tensor(_together(paths), "row_scale", TensorProto.FLOAT, shape, make)

    def rows(self, path: str, form: str) -> BigTensor:
        """float (out_features, in_features)."""
        return self._tensor(
            path, form, _FLOAT_TYPES[form], self.shape(path), lambda: _array(_as(self._float(path), form))
        )

    def float_transposed(self, path: str, form: str) -> BigTensor:
        """float (in_features, out_features)."""
        shape = self.shape(path)[::-1]
        return self._tensor(
            path, f"{form}_t", _FLOAT_TYPES[form], shape, lambda: _array(_as(self._float(path), form).t())
        )

    def _tensor(
        self, path: str, kind: str, data_type: int, dims: tuple[int, ...], make: Callable[[], NDArray[Any]]
    ) -> BigTensor:
        return BigTensor(f"{path}.{kind}", data_type, dims, make)

    def _int8(self, path: str) -> Int8Weight:
        layer = self._base.model.get_submodule(path)
        if not isinstance(layer, (Int8Linear, Int8Embedding)):
            raise TypeError(f"export: {path} is {type(layer).__name__}, expected an int8 layer")
        return layer.int8_weight

    def _float(self, path: str) -> torch.Tensor:
        weight = self._base.model.get_submodule(path).weight
        assert isinstance(weight, torch.Tensor)
        return weight.detach()


def _together(paths: Sequence[str]) -> str:
    """ "a.q", "a.k" -> "a.q+k"."""
    return "+".join([paths[0], *(path.rpartition(".")[2] for path in paths[1:])])


def _as(weight: torch.Tensor, form: str) -> torch.Tensor:
    return weight.to(torch.float16 if form == "fp16" else torch.float32)


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())
