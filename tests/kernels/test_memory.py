"""Memory that was freed goes back to the system when asked."""

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, gc, pathlib
from lorahub_edge.kernels import memory
def resident_mb():
    return int(pathlib.Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) // 1024
blocks = [bytearray(100_000) for _ in range(2000)]  # too small for mappings of their own
del blocks[:-1]                                     # and the last one keeps the heap's end where it is
before = resident_mb()
memory.give_back()
print(before - resident_mb())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
@pytest.mark.skipif("LORAHUB_EDGE_SANITIZED" in os.environ, reason="the sanitizer brings an allocator of its own")
def test_freed_memory_goes_back():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 150, "of 200 MB"
