"""Large blocks of CPU memory, laid on huge pages where the system has them.

A kernel that streams hundreds of megabytes through one core spends a third of its time on address translation with
ordinary pages (docs/log.md). Linux gives huge pages to whoever asks; elsewhere this is plain memory.
"""

import contextlib
import ctypes
import math
import mmap

import torch

# Below this an array is not worth a mapping of its own.
_LARGE_BYTES = 4 << 20


def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A CPU tensor of zeros.

    Args:
        shape: any.
        dtype: any.
    """
    n_bytes = math.prod(shape) * dtype.itemsize
    if n_bytes < _LARGE_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(shape, dtype=dtype)
    mapping = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel built without huge pages: as good as any other memory
        mapping.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(mapping, dtype=dtype).view(shape)


def give_back() -> None:
    """Hand freed memory back to the system: the C library keeps it for later, after a model has gone nearly all of it.

    Without effect where the C library has no such call.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
