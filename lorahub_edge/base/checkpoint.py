"""Read a checkpoint one tensor at a time: safetensors, or .bin (weights only, never a free pickle).

Knows files and tensor names; knows nothing of layers or quantisation.
"""

from __future__ import annotations

import warnings
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from lorahub_edge.errors import UnsupportedFormat, refused_as
from lorahub_edge.sources import read_json

FLOATS = ("F64", "F32", "F16", "BF16")
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int8: "I8",
    torch.uint8: "U8",
}


class Checkpoint(ABC):
    """A folder's tensors by name.

    Attributes:
        files: the files that hold the tensors.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self.files = tuple(files)

    @abstractmethod
    def names(self) -> set[str]:
        """All tensor names."""

    @abstractmethod
    def describe(self, name: str) -> tuple[tuple[int, ...], str]:
        """Shape and dtype of a tensor, not read yet; dtypes are spelled as in safetensors ("F32", "I8")."""

    @abstractmethod
    def read(self, name: str) -> torch.Tensor:
        """One tensor, on the CPU, in the dtype of the file (GGUF: float32)."""


class SafetensorsCheckpoint(Checkpoint):
    """One or more .safetensors files. Each read maps the file anew, so that pages already used do not stay resident."""

    def __init__(self, files: Iterable[Path]) -> None:
        super().__init__(files)
        self._file_of: dict[str, Path] = {}
        self._descriptions: dict[str, tuple[tuple[int, ...], str]] = {}
        for path in self.files:
            with _open_safetensors(path) as handle:
                for name in handle.keys():  # noqa: SIM118
                    part = handle.get_slice(name)
                    self._file_of[name] = path
                    self._descriptions[name] = tuple(part.get_shape()), part.get_dtype()

    def names(self) -> set[str]:
        return set(self._file_of)

    def describe(self, name: str) -> tuple[tuple[int, ...], str]:
        return self._descriptions[name]

    def read(self, name: str) -> torch.Tensor:
        with _open_safetensors(self._file_of[name]) as handle:
            tensor: torch.Tensor = handle.get_tensor(name)
            return tensor


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UnsupportedFormat(f"{path}: not a whole safetensors file ({error}); copy it again") from error


class TensorCheckpoint(Checkpoint):
    """Tensors that are mapped already."""

    def __init__(self, files: Iterable[Path], tensors: dict[str, torch.Tensor]) -> None:
        super().__init__(files)
        self._tensors = tensors

    def names(self) -> set[str]:
        return set(self._tensors)

    def describe(self, name: str) -> tuple[tuple[int, ...], str]:
        tensor = self._tensors[name]
        return tuple(tensor.shape), _DTYPES.get(tensor.dtype, str(tensor.dtype))

    def read(self, name: str) -> torch.Tensor:
        return self._tensors[name]


def map_safetensors(path: Path) -> Checkpoint:
    """One .safetensors file whose tensors are used where they lie: one mapping for all of them."""
    return TensorCheckpoint([path], load_file(path))


def open_bin(files: Sequence[Path]) -> Checkpoint:
    """One or more torch files, read without executing anything in them and memory-mapped where the file allows."""
    tensors: dict[str, torch.Tensor] = {}
    for path in files:
        tensors.update(load_bin(path))
    return TensorCheckpoint(files, tensors)


def load_bin(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a torch file. Only tensors and plain containers are accepted: nothing in the file is run.

    Raises:
        UnsupportedFormat: the file is broken or holds anything else (for instance a malicious pickle).
    """
    with refused_as(
        f"{path}: refused, since it is not a plain file of tensors",
        "nothing in it was executed; use a safetensors file",
    ):
        content = _load_tensors_only(path)
    if not isinstance(content, dict):
        raise UnsupportedFormat(f"{path}: expected a dictionary of tensors, received {type(content).__name__}")
    for name, value in content.items():
        if not (isinstance(name, str) and _is_plain(value)):
            raise UnsupportedFormat(f"{path}: expected plain tensors by name, but {str(name)[:80]!r} is none")
    return content


def _is_plain(value: Any) -> bool:
    """Whether all elements of a tensor are there: not sparse, not on "meta", not one element expanded to billions."""
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided or value.device.type != "cpu":
        return False
    return not value.is_quantized and value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _load_tensors_only(path: Path) -> Any:
    is_zip = zipfile.is_zipfile(path)
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("it is compressed, which torch never does")
    with warnings.catch_warnings():
        # torch warns of unusual pickles before it refuses them
        warnings.filterwarnings("ignore", message="Detected pickle protocol")
        # the format from before torch 1.6 is no zip file and cannot be memory-mapped
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)


def open_shards(index: Path) -> list[Path]:
    """The files that an index names.

    Raises:
        UnsupportedFormat: it is broken, or names a file that is not beside it.
    """
    content = read_json(index)
    try:
        names = sorted(set(content["weight_map"].values()))
        missing = [n for n in names if Path(n).name != n or not (index.parent / n).is_file()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnsupportedFormat(f"{index}: expected an object with 'weight_map'") from error
    if missing:
        raise UnsupportedFormat(f"{index} names {missing[0]}, which is not in the folder; download the base again")
    return [index.parent / n for n in names]
