"""Read a checkpoint one tensor at a time: safetensors, .bin (weights only, never a free pickle), GGUF.

Knows files and tensor names; knows nothing of layers or quantisation.
"""

from __future__ import annotations

import json
import pickle
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from lorahub_edge.errors import InvalidInput, UnsupportedFormat, first_line


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
    def read(self, name: str) -> torch.Tensor:
        """One tensor, on the CPU, in the dtype of the file (GGUF: float32)."""


class SafetensorsCheckpoint(Checkpoint):
    """One or more .safetensors files. Each read maps the file anew, so that pages already used do not stay resident."""

    def __init__(self, files: Iterable[Path]) -> None:
        super().__init__(files)
        self._file_of: dict[str, Path] = {}
        for path in self.files:
            with _open_safetensors(path) as handle:
                self._file_of.update(dict.fromkeys(handle.keys(), path))

    def names(self) -> set[str]:
        return set(self._file_of)

    def read(self, name: str) -> torch.Tensor:
        with _open_safetensors(self._file_of[name]) as handle:
            tensor: torch.Tensor = handle.get_tensor(name)
            return tensor


class MappedCheckpoint(Checkpoint):
    """One .safetensors file whose tensors are used where they lie: one mapping for all of them."""

    def __init__(self, path: Path) -> None:
        super().__init__([path])
        self._tensors: dict[str, torch.Tensor] = load_file(path)

    def names(self) -> set[str]:
        return set(self._tensors)

    def read(self, name: str) -> torch.Tensor:
        return self._tensors[name]


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UnsupportedFormat(f"{path}: not a whole safetensors file ({error}); copy it again") from error


class BinCheckpoint(Checkpoint):
    """One or more torch files, read without executing anything in them and memory-mapped where the file allows."""

    def __init__(self, files: Iterable[Path]) -> None:
        super().__init__(files)
        self._tensors: dict[str, torch.Tensor] = {}
        for path in self.files:
            self._tensors.update(load_bin(path))

    def names(self) -> set[str]:
        return set(self._tensors)

    def read(self, name: str) -> torch.Tensor:
        return self._tensors[name]


class GgufCheckpoint(Checkpoint):
    """A GGUF file; tensors are dequantised when read and renamed to transformers' names."""

    def __init__(self, path: Path, model: torch.nn.Module) -> None:
        from gguf import GGUFReader
        from transformers import modeling_gguf_pytorch_utils as gguf_utils

        super().__init__([path])
        try:
            reader = GGUFReader(path)
        except (ValueError, OSError, IndexError) as error:
            raise UnsupportedFormat(f"{path}: not a whole GGUF file ({error})") from error
        config = model.config.to_dict()  # type: ignore[operator,union-attr]
        processor_class = gguf_utils.TENSOR_PROCESSORS.get(config["model_type"], gguf_utils.TensorProcessor)
        self._processor: Any = processor_class(config=config)  # type: ignore[no-untyped-call]
        new_name = gguf_utils.get_gguf_hf_weights_map(model, self._processor)
        self._tensors = {new_name[t.name]: t for t in reader.tensors if t.name in new_name}

    def names(self) -> set[str]:
        return set(self._tensors)

    def read(self, name: str) -> torch.Tensor:
        from gguf import dequantize

        tensor = self._tensors[name]
        values = dequantize(tensor.data, tensor.tensor_type)
        return torch.from_numpy(self._processor.process(weights=values, name=tensor.name).weights.copy())


def load_bin(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a torch file. Only tensors and plain containers are accepted: nothing in the file is run.

    Raises:
        UnsupportedFormat: the file is broken or holds anything else (for instance a malicious pickle).
    """
    try:
        content = _load_tensors_only(path)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        reason = first_line(error)
        raise UnsupportedFormat(
            f"{path}: refused, since it is not a plain file of tensors ({reason}); "
            "nothing in it was executed; use a safetensors file"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise UnsupportedFormat(f"{path}: expected a dictionary of tensors, received {type(content).__name__}")
    return content


def _load_tensors_only(path: Path) -> Any:
    with warnings.catch_warnings():
        # torch warns of unusual pickles before it refuses them
        warnings.filterwarnings("ignore", message="Detected pickle protocol")
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format from before torch 1.6 cannot be memory-mapped
            return torch.load(path, map_location="cpu", weights_only=True)


def gguf_file(folder: Path) -> Path | None:
    """The folder's GGUF file, or None.

    Raises:
        InvalidInput: there are several, so the choice is the user's.
    """
    found = sorted(folder.glob("*.gguf"))
    if len(found) > 1:
        names = ", ".join(p.name for p in found)
        raise InvalidInput(f"base folder {folder} has {len(found)} GGUF files ({names}); keep one per folder")
    return found[0] if found else None


def open_checkpoint(folder: Path, model: torch.nn.Module) -> Checkpoint:
    """Open the folder's weights: safetensors before .bin before GGUF.

    Args:
        folder: a transformers folder.
        model: the empty model, which GGUF's tensor names are mapped through.

    Raises:
        UnsupportedFormat: no weights, or broken ones.
    """
    for stem, suffix, kind in (
        ("model", "safetensors", SafetensorsCheckpoint),
        ("pytorch_model", "bin", BinCheckpoint),
    ):
        index = folder / f"{stem}.{suffix}.index.json"
        if index.is_file():
            return kind(_shards(index))
        if (folder / f"{stem}.{suffix}").is_file():
            return kind([folder / f"{stem}.{suffix}"])
    if path := gguf_file(folder):
        return GgufCheckpoint(path, model)
    raise UnsupportedFormat(
        f"base folder {folder} has no weights; expected model.safetensors, pytorch_model.bin or one *.gguf file"
    )


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnsupportedFormat(f"{index}: expected an object with 'weight_map'") from error
    missing = [n for n in names if not (index.parent / n).is_file() or Path(n).name != n]
    if missing:
        raise UnsupportedFormat(f"{index} names {missing[0]}, which is not in the folder; download the base again")
    return [index.parent / n for n in names]


def choose_base_files(names: Iterable[str]) -> list[str]:
    """Of a Hub repository's files, those that a base needs: one weight format, the configs, the tokenizer."""
    top = [n for n in names if "/" not in n]
    weights = next(
        (found for suffix in (".safetensors", ".bin", ".gguf") if (found := [n for n in top if n.endswith(suffix)])), []
    )
    side_files = [n for n in top if n.endswith((".json", ".model", ".txt", ".jinja", ".md")) or n == "LICENSE"]
    return weights + side_files
