"""What a stretch of work used: seconds, processor seconds, the peak of memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from lorahub_edge.measure import peak_memory, wait_for_gpu

_CLEAR_PEAK = "5"  # Linux: starts VmHWM anew (proc(5), clear_refs)


@dataclass
class Usage:
    """Filled when the block ends.

    Attributes:
        seconds: of the clock on the wall.
        cpu_seconds: of all threads of this process together; what other programs do does not count.
        peak_memory_bytes: the process's resident memory at its highest inside the block, all that was loaded before
            included; None where the system cannot start its mark anew.
        cuda_peak_bytes: torch's peak of allocated GPU memory inside the block, or None.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_memory_bytes: int | None = None
    cuda_peak_bytes: int | None = None


@contextmanager
def measured() -> Iterator[Usage]:
    """Measure a with block; blocks do not nest, since a peak has one mark per process."""
    usage = Usage()
    has_mark = _start_peak_anew()
    wall, cpu = time.perf_counter(), time.process_time()
    yield usage
    wait_for_gpu()
    usage.seconds = round(time.perf_counter() - wall, 4)
    usage.cpu_seconds = round(time.process_time() - cpu, 4)
    peaks = peak_memory()
    usage.peak_memory_bytes = peaks.get("VmHWM_bytes") if has_mark else None
    usage.cuda_peak_bytes = peaks.get("cuda_max_allocated_bytes")


def _start_peak_anew() -> bool:
    wait_for_gpu()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text(_CLEAR_PEAK)
    except OSError:
        return False
    return True
