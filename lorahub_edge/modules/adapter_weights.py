"""adapter_model.safetensors or .bin: names, shapes and values of a module's tensors. Files come from strangers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lorahub_edge.base.checkpoint import load_bin
from lorahub_edge.errors import UnsupportedFormat, refused_as

PREFIX = "base_model.model."

# "….q.lora_A.weight"; some tools keep PEFT's adapter name: "….q.lora_A.default.weight"
_KEY = re.compile(r"(?P<target>.+)\.lora_(?P<factor>[AB])(\.(?P<adapter>[^.]+))?\.weight")
_MAX_TENSORS = 100_000
_DTYPES = {"F64", "F32", "F16", "BF16", "torch.float64", "torch.float32", "torch.float16", "torch.bfloat16"}


@dataclass(frozen=True)
class Header:
    """What is known of a tensor without its values."""

    shape: tuple[int, ...]
    dtype: str


def headers_of(path: Path) -> dict[str, Header]:
    """Tensor name -> shape and type."""
    if path.suffix == ".bin":  # memory-mapped: nothing is read but names and shapes
        tensors = load_bin(path)
        if sum(t.nbytes for t in tensors.values()) > path.stat().st_size:
            raise UnsupportedFormat(f"{path}: its tensors are larger than the file, since they share values")
        return {name: Header(tuple(t.shape), str(t.dtype)) for name, t in tensors.items()}
    with (
        refused_as(f"{path}: not a whole safetensors file", "copy it again"),
        safe_open(path, framework="pt") as handle,
    ):
        names = list(handle.keys())
        if len(names) > _MAX_TENSORS:
            raise UnsupportedFormat(f"{path}: {len(names)} tensors; expected a module's, at most {_MAX_TENSORS}")
        slices = {name: handle.get_slice(name) for name in names}
        return {name: Header(tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}


def tensors_of(path: Path) -> Mapping[str, torch.Tensor]:
    if path.suffix == ".bin":
        return load_bin(path)
    with refused_as(f"{path}: not a whole safetensors file", "copy it again"):
        return load_file(path)


def factor_keys(headers: Mapping[str, Header], where: str) -> dict[str, tuple[str, str]]:
    """Target -> the names of its A and its B, targets in order.

    Raises:
        UnsupportedFormat: other tensors, a factor without the other, a factor twice, or two adapters.
    """
    found: dict[str, dict[str, str]] = {}
    matches = {key: _key_parts(key, header, where) for key, header in headers.items()}
    adapters = {match["adapter"] or "one without a name" for match in matches.values()}
    if len(adapters) > 1:
        names = ", ".join(sorted(adapters))
        raise UnsupportedFormat(f"{where}: holds {len(adapters)} adapters ({names}); save each in a folder of its own")
    if not adapters:
        raise UnsupportedFormat(f"{where}: holds no LoRA factors")
    for key, match in matches.items():
        pair = found.setdefault(match["target"].removeprefix(PREFIX), {})
        if (other := pair.setdefault(match["factor"], key)) != key:
            raise UnsupportedFormat(f"{where}: {other} and {key} are the same factor; keep one of them")
    for target, pair in found.items():
        if set(pair) != {"A", "B"}:
            raise UnsupportedFormat(f"{where}: target {target} has lora_{min(pair)} only; expected lora_A and lora_B")
    return {target: (pair["A"], pair["B"]) for target, pair in sorted(found.items())}


def _key_parts(key: str, header: Header, where: str) -> re.Match[str]:
    match = _KEY.fullmatch(key)
    if match is None or len(header.shape) != 2 or header.dtype not in _DTYPES:
        raise UnsupportedFormat(
            f"{where}: tensor {key} {header.shape} of {header.dtype} is not a LoRA factor of a linear layer; "
            "only modules made of such factors can be composed"
        )
    return match
