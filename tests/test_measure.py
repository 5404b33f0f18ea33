"""Memory is measured on any system, so a limit on it never goes unchecked."""

import mmap
from pathlib import Path

import pytest

from lorahub_edge import measure


@pytest.mark.parametrize("has_proc", [True, False])
def test_memory_is_known_with_and_without_proc(monkeypatch, has_proc):
    if not has_proc:
        monkeypatch.setattr(measure, "_STATUS", Path("/no/such/file"))
    n_bytes = 40_000_000
    # pages of its own: an allocator may hand out what the process held before, and then nothing grows
    with mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        before = measure.resident_bytes()
        for _ in range(40):
            block.write(b"1" * (n_bytes // 40))
        grown = measure.resident_bytes() - before
        assert n_bytes - 5_000_000 < grown < n_bytes + 20_000_000
        assert measure.peak_memory()["VmHWM_bytes"] >= before + n_bytes - 5_000_000
