"""The emulated extension in this process: loaded, in the place of lorahub_edge._native_cuda, asked what it saw."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType

from tests.cuda_on_cpu import device

# Environment variables by which a process learns what to load: the two libraries that build.py made, and the seed.
MODULE = "CUDA_ON_CPU_MODULE"
TORCH_DEVICE = "CUDA_ON_CPU_TORCH_DEVICE"
SEED = "CUDA_ON_CPU_SEED"
SHARE = "CUDA_ON_CPU_SHARE"  # of the tests, 0 to 1

_NAME = "lorahub_edge._native_cuda"


@dataclass(frozen=True)
class Counts:
    """How often something happened so far; native/machine.h has the same fields in the same order."""

    launches: int
    blocks: int
    barriers: int
    accesses: int
    complaints: int

    def __str__(self) -> str:
        return ", ".join(f"{getattr(self, field.name):,} {field.name}" for field in fields(self))


class Emulator:
    """The extension module and the emulator in it.

    Attributes:
        kind: of the build.
        module: the extension module.
    """

    def __init__(self, path: Path) -> None:
        self.kind = path.parent.name
        self.module = _imported(path)
        self._library = ctypes.CDLL(str(path))
        self._library.cuda_on_cpu_counts.restype = ctypes.POINTER(ctypes.c_long * len(fields(Counts)))
        self._library.cuda_on_cpu_seed.argtypes = (ctypes.c_uint,)

    def counts(self) -> Counts:
        """What happened so far."""
        return Counts(*self._library.cuda_on_cpu_counts().contents)

    def seed(self, seed: int) -> None:
        """Draw the order of blocks and threads, and the sizes of grids, from this seed; 0: everything in order."""
        self._library.cuda_on_cpu_seed(seed)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """While this lasts, torch has a device "cuda:0" and the emulator computes for it; in this thread."""
        ctypes.CDLL(os.environ[TORCH_DEVICE])
        before = sys.modules.get(_NAME)
        sys.modules[_NAME] = self.module
        try:
            with device.pretended():
                yield
        finally:
            if before is None:
                del sys.modules[_NAME]
            else:
                sys.modules[_NAME] = before


def load_from_environment() -> Emulator:
    """The emulator that the environment names."""
    found = Emulator(Path(os.environ[MODULE]))
    found.seed(int(os.environ[SEED]))
    return found


def _imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.name.partition(".")[0], path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cpu_extension() -> ModuleType:
    """lorahub_edge._native alone: the package around it takes seconds to import."""
    package = importlib.util.find_spec("lorahub_edge")
    assert package is not None
    for folder in package.submodule_search_locations or ():
        for path in Path(folder).glob("_native.*.so"):
            return _imported(path)
    raise FileNotFoundError("expected lorahub_edge with its native extension, found none: install the package")
