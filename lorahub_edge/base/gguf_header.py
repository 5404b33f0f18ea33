"""The header of a GGUF file: metadata, and where each tensor lies. Knows nothing of what they mean (see gguf.py).

Bounds come first: a count or length that the file cannot hold is an error before it costs memory.
"""

from __future__ import annotations

import functools
import math
import mmap
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorahub_edge.base.files import PART_OF_SEVERAL
from lorahub_edge.errors import UnsupportedFormat

# A vocabulary of 262,144 tokens has three arrays of that length, and one of merges. Readers of other libraries, which
# see the file after this one, spend some hundred bytes per element.
_MAX_ELEMENTS = 1 << 21
_MAX_ENTRIES = 1 << 16
_MAX_DIMENSIONS = 4
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_FLOAT32, _STRING, _ARRAY = 6, 8, 9


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies.

    Attributes:
        shape: in torch's order.
        kind: ggml's type.
        start, end: of its bytes in the file.
    """

    shape: tuple[int, ...]
    kind: Any
    start: int
    end: int


@dataclass(frozen=True)
class GgufHeader:
    """All of a GGUF file but the values of its tensors.

    Attributes:
        path: the file.
        metadata: key -> number, text or list.
        tensors: llama.cpp's name -> where it lies.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]

    @classmethod
    def read(cls, path: Path) -> GgufHeader:
        """Parse a file.

        Raises:
            UnsupportedFormat: it is broken, cut short, or one part of several.
        """
        if PART_OF_SEVERAL.search(path.name):
            raise UnsupportedFormat(f"{path}: one part of several; join them with `llama-gguf-split --merge` first")
        try:
            with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                metadata, tensors = _parse(_Cursor(data), len(data))
        except (ValueError, OSError, struct.error) as error:
            raise UnsupportedFormat(f"{path}: not a whole GGUF file ({error}); copy it again") from error
        return cls(path, metadata, tensors)

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the family."""
        return str(self.metadata.get("general.architecture"))

    def values(self, name: str) -> np.ndarray[Any, Any]:
        """A tensor's values, dequantised to float32."""
        from gguf import dequantize, quant_shape_to_byte_shape

        tensor = self.tensors[name]
        stored = np.memmap(self.path, np.uint8, "r")[tensor.start : tensor.end]
        return dequantize(stored.reshape(quant_shape_to_byte_shape(tensor.shape, tensor.kind)), tensor.kind)


class _Cursor:
    """Reads one value after the other; past the end of the data is a struct.error or ValueError."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.position = 0
        self.n_elements = 0

    def take(self, code: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{code}", self.data, self.position)
        self.position += struct.calcsize(f"<{code}")
        return values

    def one(self, code: str) -> Any:
        return self.take(code)[0]

    def count(self, limit: int, what: str) -> int:
        number = int(self.one("Q"))
        if number > limit:
            raise ValueError(f"it claims {number} {what}")
        return number

    def text(self) -> str:
        length = self.count(len(self.data) - self.position, "bytes of text")
        start, self.position = self.position, self.position + length
        return self.data[start : self.position].decode()

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            element = self.one("I")
            count = self.count(_MAX_ELEMENTS - self.n_elements, "array elements")
            self.n_elements += count
            if element == _STRING:
                return [self.text() for _ in range(count)]
            return list(self.take(f"{count}{_scalar(element)}"))
        value = self.one(_scalar(kind))
        # 1e-05 for 9.999999747378752e-06: as the config that was converted had it
        return float(str(np.float32(value))) if kind == _FLOAT32 else value


def _scalar(kind: int) -> str:
    if kind not in _SCALARS:
        raise ValueError(f"a value of unknown type {kind}")
    return _SCALARS[kind]


def _parse(cursor: _Cursor, size: int) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    if cursor.data[:4] != b"GGUF":
        raise ValueError("it does not start with GGUF")
    version = cursor.take("4sI")[1]
    if version not in (2, 3):
        raise ValueError(f"version {version}, expected 2 or 3")
    n_tensors, n_values = (cursor.count(_MAX_ENTRIES, what) for what in ("tensors", "metadata values"))
    metadata = dict(_unique((cursor.text(), cursor.value(cursor.one("I"))) for _ in range(n_values)))
    table = dict(_unique((cursor.text(), _tensor_info(cursor)) for _ in range(n_tensors)))
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"general.alignment {alignment}")
    first = -(-cursor.position // alignment) * alignment
    tensors = {name: _placed(name, info, first) for name, info in table.items()}
    for name, tensor in tensors.items():
        if tensor.end > size:
            raise ValueError(f"tensor {name} ends at byte {tensor.end} of {size}")
    return metadata, tensors


def _unique(pairs: Iterable[tuple[str, Any]]) -> Iterable[tuple[str, Any]]:
    seen: set[str] = set()
    for name, value in pairs:
        if name in seen:
            raise ValueError(f"'{name}' is there twice")
        seen.add(name)
        yield name, value


def _tensor_info(cursor: _Cursor) -> tuple[tuple[int, ...], int, int]:
    n_dimensions = cursor.one("I")
    if not 1 <= n_dimensions <= _MAX_DIMENSIONS:
        raise ValueError(f"a tensor of {n_dimensions} dimensions")
    shape = tuple(reversed(cursor.take(f"{n_dimensions}Q")))
    kind, offset = cursor.take("IQ")
    return shape, kind, offset


def _placed(name: str, info: tuple[tuple[int, ...], int, int], first: int) -> GgufTensor:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    shape, kind, offset = info
    ggml_type = GGMLQuantizationType(kind)
    block, block_bytes = GGML_QUANT_SIZES[ggml_type]
    if not _is_readable(ggml_type):
        raise ValueError(f"tensor {name} is of type {ggml_type.name}, which the package gguf does not dequantise")
    if shape[-1] % block:
        raise ValueError(f"tensor {name} has rows of {shape[-1]}, which blocks of {block} do not fill")
    start = first + offset
    return GgufTensor(shape, ggml_type, start, start + math.prod(shape) // block * block_bytes)


@functools.cache
def _is_readable(ggml_type: Any) -> bool:
    from gguf import GGML_QUANT_SIZES, dequantize

    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[ggml_type][1]), np.uint8), ggml_type)
    except NotImplementedError:
        return False
    return True
