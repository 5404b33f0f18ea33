"""What a run cost: seconds by stage and peak memory, as the manifest records them; and sizes as people write them."""

from __future__ import annotations

import importlib
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lorahub_edge.errors import InvalidInput

_PACKAGES = ("lorahub-edge", "torch", "transformers", "peft", "nevergrad", "bitsandbytes", "safetensors", "numpy")

_STATUS = Path("/proc/self/status")  # on Linux


class Stopwatch:
    """Seconds by stage; stages of one name add up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._started = time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a with block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def total_s(self) -> float:
        """Seconds since the stopwatch was made."""
        return time.perf_counter() - self._started

    def as_record(self) -> dict[str, float]:
        """Stage -> seconds, rounded to a millisecond, with the total."""
        return {f"{name}_s": round(s, 3) for name, s in [*self.seconds.items(), ("total", self.total_s())]}


def wait_for_gpu() -> None:
    """Return when all that was launched is computed, so that a clock may be read; at once without a GPU."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory() -> dict[str, int]:
    """Peak memory of this process in bytes: the high-water mark of resident memory, as "VmHWM_bytes" on any system.

    Linux also tells what is resident now, split into anonymous and file-backed pages (mapped checkpoints). CUDA:
    torch's two peaks, which exclude the driver's own context.
    """
    import torch

    record: dict[str, int] = {}
    if _STATUS.exists():
        # getrusage's ru_maxrss is inherited across exec, so it may be a parent's
        fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
        for field in ("VmHWM", "RssAnon", "RssFile"):
            if field in fields:
                record[f"{field}_bytes"] = int(fields[field].split()[0]) * 1024
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        record["VmHWM_bytes"] = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if torch.cuda.is_available():
        record["cuda_max_allocated_bytes"] = torch.cuda.max_memory_allocated()
        record["cuda_max_reserved_bytes"] = torch.cuda.max_memory_reserved()
    return record


def resident_bytes() -> int:
    """What this process has in memory now, files it has mapped included."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def format_bytes(n_bytes: float) -> str:
    """For people: "1.46 GB", "812 MB"."""
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"


def versions(*more: str) -> dict[str, str]:
    """Python's and the versions of the packages that a run depends on, and of more."""
    found = {"python": platform.python_version()}
    for package in (*_PACKAGES, *more):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """What the numbers were measured on; where torch is installed, with its threads and its GPU."""
    record: dict[str, Any] = {
        "system": platform.platform(terse=True),
        "cpu": _cpu_name(),
        "cpus": os.cpu_count(),
    }
    if (torch := torch_or_none()) is not None:
        record["threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            record["gpu"] = torch.cuda.get_device_name()
    return record


def torch_or_none() -> Any:
    """The module torch, or None in a plain install."""
    try:
        return importlib.import_module("torch")
    except ModuleNotFoundError as error:
        if error.name != "torch":  # it is there and broken
            raise
        return None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?) ?(?P<unit>[kmg]i?)?b?", re.IGNORECASE)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def parse_bytes(text: str) -> int:
    """A size such as "5GiB", "1.5 GB" or "800M" in bytes.

    Raises:
        InvalidInput: no number, an unknown unit, or less than one byte.
    """
    match = _SIZE.fullmatch(text.strip())
    n_bytes = int(float(match["number"]) * _UNITS[(match["unit"] or "").lower()]) if match else 0
    if n_bytes < 1:
        raise InvalidInput(f"expected a size such as 5GiB, 1.5GB or 800MB, received '{text}'")
    return n_bytes
