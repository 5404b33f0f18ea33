"""load_stack: the stack from its modules or, once made, from the cache; in memory or as a mapping of the file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lorahub_edge.base import Base
from lorahub_edge.cache import Cache, Entry, key_of
from lorahub_edge.errors import InvalidInput
from lorahub_edge.kernels import memory
from lorahub_edge.modules.files import LoraModule, ModuleFolder
from lorahub_edge.modules.layout import BLOCK, STACK_DTYPES, StackLayout
from lorahub_edge.modules.stack import ModuleStack

MAPPINGS = ("resident", "mmap")
_VALUES, _SCALES = "values.bin", "scales.bin"


def load_stack(
    modules: Sequence[LoraModule | ModuleFolder],
    base: Base,
    *,
    layout: StackLayout | None = None,
    dtype: str = "fp32",
    mapping: str = "resident",
    cache: Cache | None = None,
) -> ModuleStack:
    """Build a stack, or take it from the cache.

    Args:
        modules: at least one; only those on disk are kept in the cache.
        base: whose layers they change.
        layout: where their factors lie, if that was decided before.
        dtype: see `ModuleStack.build`.
        mapping: "resident" holds it in memory; "mmap" leaves it in the cache's file, whose pages the system may take
            back and read again.
        cache: keeps a large stack, so that the next start need not read the modules.

    Raises:
        InvalidInput: "mmap" without a cache, for modules in memory, or for another device than the CPU.
        IncompatibleModules, UnsupportedFormat: see `ModuleStack.build`.
    """
    if mapping == "mmap" and not can_map(modules, base.device, cache):
        raise InvalidInput("a stack can be mapped from the cache only: expected modules on disk, a cache, and the CPU")
    folders = [m for m in modules if isinstance(m, ModuleFolder)]
    n_bytes = sum(path.stat().st_size for m in folders for path in m.files)
    in_memory = len(folders) < len(modules)
    if cache is None or in_memory or (n_bytes < cache.min_bytes and mapping == "resident"):
        return ModuleStack.build(modules, base, layout=layout, dtype=dtype)
    key = _key(folders, base, dtype, cache)
    entry = cache.open(key)
    if entry is None:
        stack = ModuleStack.build(modules, base, layout=layout, dtype=dtype)
        cache.store(key, lambda folder: _write(stack, folder))
        entry = cache.open(key) if mapping == "mmap" else None
        if entry is None:
            return stack
    return _read(entry, dtype, mapping).to(base.device)


def can_map(modules: Sequence[LoraModule | ModuleFolder], device: torch.device, cache: Cache | None) -> bool:
    """Whether a stack of these modules can be mapped from the cache."""
    on_disk = all(isinstance(m, ModuleFolder) for m in modules)
    return cache is not None and on_disk and device.type == "cpu"


def _key(modules: Sequence[ModuleFolder], base: Base, dtype: str, cache: Cache) -> str:
    return key_of(
        "stack",
        modules=[[m.name, cache.sha256_files(m.files)] for m in modules],
        linears=base.linear_shapes(),
        dtype=dtype,
        block=BLOCK,
    )


def _write(stack: ModuleStack, folder: Path) -> dict[str, Any]:
    for name, tensor in ((_VALUES, stack.values), (_SCALES, stack.scales)):
        if tensor is not None:
            tensor.cpu().flatten().view(torch.uint8).numpy().tofile(folder / name)
    return stack.layout.as_record()


def _read(entry: Entry, dtype: str, mapping: str) -> ModuleStack:
    layout = StackLayout.from_record(entry.record)
    shape = (layout.n_blocks, len(layout.names), BLOCK)
    values = _tensor(entry.folder / _VALUES, shape, STACK_DTYPES[dtype], mapping)
    scales = _tensor(entry.folder / _SCALES, shape[:2], torch.float32, mapping) if dtype == "int8" else None
    return ModuleStack(layout, values, scales)


def _tensor(path: Path, shape: tuple[int, ...], dtype: torch.dtype, mapping: str) -> torch.Tensor:
    if mapping == "mmap":
        return torch.from_file(str(path), shared=False, size=math.prod(shape), dtype=dtype).view(shape)
    tensor = memory.zeros(shape, dtype)
    with open(path, "rb") as file:
        file.readinto(memoryview(tensor.flatten().view(torch.uint8).numpy()))  # type: ignore[arg-type]
    return tensor
