"""Memory is measured on any system, so a limit on it never goes unchecked."""

from pathlib import Path

import numpy as np
import pytest

from lorahub_edge import measure


@pytest.mark.parametrize("has_proc", [True, False])
def test_memory_is_known_with_and_without_proc(monkeypatch, has_proc):
    if not has_proc:
        monkeypatch.setattr(measure, "_STATUS", Path("/no/such/file"))
    before = measure.resident_bytes()
    block = np.ones(40_000_000, np.uint8)
    assert 35_000_000 < measure.resident_bytes() - before < 60_000_000
    assert measure.peak_memory()["VmHWM_bytes"] >= before + len(block) - 5_000_000
