"""Whether an installed wheel has native kernels that compute: cibuildwheel runs it in an environment of each wheel.

It needs the wheel and NumPy, no torch.
"""

import platform
import sys
from pathlib import Path

import numpy as np

import lorahub_edge
from lorahub_edge import _native

# what the wheels' compilers must know; the machine at hand may run less
WIDEST = {"x86_64": b"avxvnni", "aarch64": b"i8mm", "arm64": b"i8mm"}


def check_build() -> None:
    """Exit with the reason if this is no wheel, or one by a compiler that is too old."""
    here, widest = Path(lorahub_edge.__file__).parent, WIDEST[platform.machine()]
    if here.parent == Path(__file__).resolve().parents[1]:
        sys.exit(f"{here}: expected an installed package, received the source tree")
    if widest not in Path(_native.__file__).read_bytes():
        sys.exit(f"{_native.__file__}: expected kernels for {widest.decode()}, found none; use a newer compiler")


def check_kernels() -> None:
    """Exit with the reason if they give a wrong result."""
    stack, out = np.arange(6, dtype=np.float32).reshape(1, 2, 3), np.full((1, 3), np.nan, np.float32)
    _native.compose_factors(stack, np.array([[2, 10]], np.float32), None, out, 1)
    if not np.array_equal(out, [[30, 42, 54]]):
        sys.exit(f"compose_factors: expected [[30 42 54]], received {out}")


if __name__ == "__main__":
    check_build()
    check_kernels()
    sys.stdout.write(f"{_native.__file__}: {_native.active_isa()} of {', '.join(_native.runnable_isas())}\n")
