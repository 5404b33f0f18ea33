"""Write an ONNX file whose big tensors are made one at a time: it is never whole in memory.

A protobuf message is its fields one after the other, each with its length in front. So the small graph is serialised as
usual, and the big tensors' fields are written behind it, into the same message.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray

# Protobuf ends at 2 GiB; beyond this many bytes the tensors go to a file of their own.
INLINE_LIMIT_BYTES = 2_000_000_000
_ALIGNMENT_BYTES = 4096

_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_RAW_DATA = 7, 5, 9
_ITEM_BYTES: dict[int, int] = {
    onnx.TensorProto.INT8: 1,
    onnx.TensorProto.UINT8: 1,
    onnx.TensorProto.FLOAT16: 2,
    onnx.TensorProto.FLOAT: 4,
}


@dataclass(frozen=True)
class BigTensor:
    """An initialiser that is made when it is written.

    Attributes:
        name: in the graph.
        data_type: of onnx.TensorProto.
        dims: shape.
        make: gives the values, of that type and shape.
    """

    name: str
    data_type: int
    dims: tuple[int, ...]
    make: Callable[[], NDArray[Any]]

    @property
    def n_bytes(self) -> int:
        """Size of the values."""
        return int(np.prod(self.dims, dtype=np.int64)) * _ITEM_BYTES[self.data_type]


def write_model(
    path: Path, model: Any, tensors: Sequence[BigTensor], *, inline_limit_bytes: int = INLINE_LIMIT_BYTES
) -> list[Path]:
    """Write a model and its big tensors.

    Args:
        path: the .onnx file.
        model: onnx.ModelProto without the big tensors.
        tensors: further initialisers.
        inline_limit_bytes: if the tensors are larger, they go to `<path>_data`.

    Returns:
        The files written.
    """
    if sum(t.n_bytes for t in tensors) > inline_limit_bytes:
        data = path.with_name(path.name + "_data")
        with open(data, "wb") as file:
            for tensor in tensors:
                model.graph.initializer.append(_external(file, tensor, data.name))
        path.write_bytes(model.SerializeToString())
        return [path, data]
    graph = model.graph.SerializeToString()
    outer = onnx.ModelProto()
    outer.CopyFrom(model)
    outer.ClearField("graph")
    headers = [_field(_TENSOR_RAW_DATA, t.n_bytes, _header(t)) for t in tensors]
    starts = [_field(_GRAPH_INITIALIZER, len(h) + t.n_bytes) + h for h, t in zip(headers, tensors, strict=True)]
    length = len(graph) + sum(len(s) + t.n_bytes for s, t in zip(starts, tensors, strict=True))
    with open(path, "wb") as file:
        file.write(outer.SerializeToString() + _field(_MODEL_GRAPH, length) + graph)
        for start, tensor in zip(starts, tensors, strict=True):
            file.write(start)
            _write_values(file, tensor)
    return [path]


def _header(tensor: BigTensor) -> bytes:
    """All of a TensorProto but its values."""
    proto = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    return bytes(proto.SerializeToString())


def _external(file: BinaryIO, tensor: BigTensor, location: str) -> Any:
    file.write(b"\0" * (-file.tell() % _ALIGNMENT_BYTES))
    proto = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    proto.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", file.tell()), ("length", tensor.n_bytes)):
        entry = proto.external_data.add()
        entry.key, entry.value = key, str(value)
    _write_values(file, tensor)
    return proto


def _write_values(file: BinaryIO, tensor: BigTensor) -> None:
    values = np.ascontiguousarray(tensor.make())
    if values.nbytes != tensor.n_bytes or values.shape != tensor.dims:
        raise ValueError(f"{tensor.name}: expected {tensor.dims} of {tensor.n_bytes} bytes, received {values.shape}")
    file.write(values.data.cast("B"))


def _field(number: int, length: int, before: bytes = b"") -> bytes:
    """A length-delimited protobuf field's start, behind `before`."""
    return before + _varint(number << 3 | 2) + _varint(length)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
