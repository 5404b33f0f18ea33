"""run_point: one point of a sweep, carried out by a worker that holds the base for many of them."""

from __future__ import annotations

import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lorahub_edge.adaptation.entry import run_task
from lorahub_edge.adaptation.memory_plan import MemoryPlan
from lorahub_edge.adaptation.progress import OnProgress, Progress
from lorahub_edge.adaptation.run import RunNotWritten
from lorahub_edge.adaptation.run_folder import UNFINISHED, RunFolder
from lorahub_edge.base import load_base
from lorahub_edge.cache import Cache, content_hashes
from lorahub_edge.errors import InvalidInput, LorahubEdgeError
from lorahub_edge.modules import find_modules
from lorahub_edge.outputs import locked
from lorahub_edge.scheduling.units import Held
from lorahub_edge.sources import record_of
from lorahub_edge.sweeping.file import SweepFile
from lorahub_edge.sweeping.points import Point, key_of, module_hashes

SWEEP, SWEEP_FORMAT, RUNS = "sweep.json", "lorahub-edge-sweep/1", "runs"

# A worker of a driver that was killed ends within moments; until then it holds its run folder.
_WAIT_S = 30.0


@dataclass(frozen=True)
class Unit:
    """A point, as it travels to a worker.

    Attributes:
        point, file: what to compute.
        key: what the driver saw; see `key_of`.
        plan: what the worker may do with memory.
        out: the sweep's folder.
        mark: its own, in SWEEP: a folder of that name on another machine has another.
        cache: of this machine.
    """

    point: Point
    file: SweepFile
    key: str
    plan: MemoryPlan
    out: Path
    mark: str
    cache: Cache | None

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.out / RUNS / self.point.folder_name(self.key)


def run_point(unit: Unit, held: Held) -> dict[str, bytes] | None:
    """Carry out a point and write its run folder, or go on with one that an earlier start has begun.

    Returns:
        None where the sweep's folder is in reach; else the run folder's files, for the driver to write.

    Raises:
        LorahubEdgeError: the point failed, or its inputs are no longer what the driver saw.
        KeyboardInterrupt: in this process; what was computed is kept.
    """
    if (record_of(unit.out / SWEEP, SWEEP_FORMAT) or {}).get("mark") == unit.mark:
        _wait_until_free(unit.folder)
        _run_into(unit, held, unit.folder)
        return None
    with tempfile.TemporaryDirectory(prefix="lorahub-edge-") as place:
        folder = Path(place) / unit.folder.name
        _run_into(unit, held, folder)
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _run_into(unit: Unit, held: Held, folder: Path) -> None:
    point, file, cache = unit.point, unit.file, unit.cache
    settings = file.run_settings(point.preset, point.seed)
    if "base" not in held:  # a worker serves one sweep
        held["base"] = load_base(file.base, precision=settings.precision, device=settings.device, cache=cache)
        held["base hashes"] = content_hashes(held["base"].weight_files, cache)
    if (pool := f"pool {point.pool}") not in held:
        held[pool] = find_modules(file.pools[point.pool], bases=held["base"].source.names)
    task = point.load_task(file)
    if key_of(task, settings, held["base hashes"], module_hashes(held[pool], cache)) != unit.key:
        raise InvalidInput(
            "base, modules or task are not what they were when the sweep began; start it again, and see that all "
            "machines have the same"
        )
    with _interrupted_between_steps() as on_progress, RunFolder(folder, overwrite=True) as target:
        try:
            run_task(held["base"], held[pool], task, settings, cache, on_progress, folder=target, plan=unit.plan)
        except RunNotWritten as error:  # without the run, which holds the base
            raise LorahubEdgeError(str(error)) from None


def _wait_until_free(folder: Path) -> None:
    unfinished = folder.with_name(folder.name + UNFINISHED)
    ends = time.monotonic() + _WAIT_S
    while time.monotonic() < ends:
        with suppress(FileNotFoundError):
            try:
                with locked(unfinished):
                    return
            except BlockingIOError:
                time.sleep(0.1)
                continue
        return


class _Interrupted(Exception):
    """Ends a run as an error does, which keeps its journals: after Ctrl-C `adapt` would call what it has a result."""


@contextmanager
def _interrupted_between_steps() -> Iterator[OnProgress]:
    """Ctrl-C ends the point at the next step that it tells of."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda progress: None
        return
    noted: list[int] = []

    def check(progress: Progress) -> None:
        if noted:
            raise _Interrupted

    signal.signal(signal.SIGINT, lambda number, frame: noted.append(number))
    try:
        yield check
    except _Interrupted:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if noted:
        raise KeyboardInterrupt
