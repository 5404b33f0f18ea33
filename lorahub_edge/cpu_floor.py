"""The oldest CPU that the dependencies run on, asked before any of them is imported.

Our own kernels begin with SSE2, which every x86-64 has, and with NEON, which every ARM64 has. The wheels of NumPy and
onnxruntime are compiled for x86-64-v2: on an older CPU they end the process by an illegal instruction, without a word.
"""

from __future__ import annotations

import functools
from pathlib import Path

from lorahub_edge.errors import LorahubEdgeError

CPUINFO = Path("/proc/cpuinfo")  # on Linux; only x86 has a line "flags" there
_X86_64_V2 = ("ssse3", "sse4_1", "sse4_2", "popcnt")


@functools.cache
def missing_features(cpuinfo: Path) -> tuple[str, ...]:
    """What an x86-64 CPU lacks of x86-64-v2, as the kernel names it; empty where nothing is known."""
    try:
        with cpuinfo.open() as lines:
            flags = next((line for line in lines if line.startswith("flags")), None)
    except OSError:
        return ()
    return () if flags is None else tuple(name for name in _X86_64_V2 if name not in flags.split())


def need_cpu() -> None:
    """Return if the dependencies run on this CPU.

    Raises:
        LorahubEdgeError: they would end the process.
    """
    if missing := missing_features(CPUINFO):
        raise LorahubEdgeError(
            "this CPU: expected x86-64-v2, which the packages of NumPy and onnxruntime are compiled for, received one "
            f"without {', '.join(missing)}; use a newer CPU"
        )
