"""The public sweep(): points, what each needs, who computes them, and the table at the end."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from lorahub_edge.adaptation.entry import chosen_cache
from lorahub_edge.adaptation.settings import check_numbers
from lorahub_edge.base.open import need_device, resolve_device
from lorahub_edge.cache import Cache
from lorahub_edge.errors import LorahubEdgeError, OutputExists
from lorahub_edge.json_text import to_json
from lorahub_edge.measure import parse_bytes
from lorahub_edge.outputs import claimed, is_vacant, whole_folder, write_errors, write_text
from lorahub_edge.scheduling import Crew, Workers, carry_out, reason_of
from lorahub_edge.sources import local_path, record_of
from lorahub_edge.sweeping.file import SweepFile, read_sweep
from lorahub_edge.sweeping.page import page_html
from lorahub_edge.sweeping.point import RUNS, SWEEP, SWEEP_FORMAT, Unit, run_point
from lorahub_edge.sweeping.points import Point, points_of
from lorahub_edge.sweeping.prepare import Prepared, Preparer, within
from lorahub_edge.sweeping.table import Row, Swept, row_of
from lorahub_edge.sweeping.tally import Event, Tally

TABLE, PAGE = "table.json", "table.html"

OnEvent = Callable[[Event], None]


def sweep(
    what: str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    *,
    workers: int | None = None,
    ray: str | None = None,
    threads: int | None = None,
    num_gpus: float = 0.0,
    max_memory: int | str | None = None,
    cache: Cache | bool = True,
    on_event: OnEvent = lambda event: None,
) -> Swept:
    """Adapt a base to every task with every seed, pool of modules and preset.

    A point is known by its content: base, modules, drawn rows and settings. A second start with the same `out` computes
    only what has no finished run folder, and goes on in those that were begun. A point that fails is a row with its
    reason, and is tried again at the next start.

    Args:
        what: a TOML file or its content, see docs/scale.md.
        out: the sweep's folder; default is the file's place without its ending.
        workers: processes that compute points; None is this process alone or, with `ray`, as many as the cluster has
            room for.
        ray: "local", "auto" or HOST:PORT computes on a Ray cluster.
        threads: of each worker; None shares the cores out. Numbers depend on it by float rounding.
        num_gpus: of each worker on Ray, or a part of one.
        max_memory: of all workers together; fewer are started if that is too little for all. Stacks then give up
            precision as `adapt` does it.
        cache: see `adapt`. With more than one worker they share the modules' stack through it.
        on_event: told of every point that begins or ends.

    Returns:
        The rows, the failures, and where table and page are.

    Raises:
        InvalidInput: the file, or one of the settings.
        OutputExists: `out` is no sweep's folder, or another process computes there.
        MemoryExceeded: no point fits `max_memory`.
        KeyboardInterrupt: what is done stays; the same call goes on.
    """
    file = read_sweep(what)
    budget = parse_bytes(max_memory) if isinstance(max_memory, str) else max_memory
    check_numbers(max_memory=budget)
    asked = Workers(workers, ray, threads, num_gpus)
    points = list(points_of(file))
    folder = _place(what, out)
    with _claimed(folder, file) as mark, asked.opened() as crew, _threads(crew.threads):
        settings = {**file.settings, "device": _device(str(file.settings.get("device", "auto")), crew, num_gpus)}
        on_device = replace(file, settings=settings)
        return _Sweep(on_device, points, folder, mark, crew, budget, chosen_cache(cache), on_event).run()


class _Sweep:
    def __init__(
        self,
        file: SweepFile,
        points: list[Point],
        folder: Path,
        mark: str,
        crew: Crew,
        budget: int | None,
        cache: Cache | None,
        on_event: OnEvent,
    ) -> None:
        self._file, self._folder, self._mark, self._crew, self._cache = file, folder, mark, crew, cache
        self._budget, self._points, self._on_event = budget, points, on_event
        self._tally = Tally(len(points))
        self._failures: dict[str, str] = {}
        self._places: dict[str, Path] = {}

    def run(self) -> Swept:
        """Prepare, compute, and write table and page."""
        units, n_workers, memory = self._units()
        steps = carry_out(run_point, units, lambda: self._crew.start(memory), n_workers=n_workers)
        try:
            for step in steps:
                self._note_step(units[step.place], step.kind, step.result, step.error)
        finally:
            steps.close()
        swept = Swept(self._folder, tuple(self._rows()), self._failures)
        write_text(self._folder / TABLE, to_json(swept.report()) + "\n")
        write_text(self._folder / PAGE, page_html(swept))
        return swept

    def _rows(self) -> Iterator[Row]:
        for point in self._points:
            if point.name in self._places:
                try:
                    yield row_of(point, self._places[point.name])
                except (LorahubEdgeError, KeyError, TypeError) as error:  # somebody changed the run folder
                    self._failures[point.name] = reason_of(error)

    def _units(self) -> tuple[list[Unit], int, int | None]:
        """What is left to compute, how many workers have room for it, and the bytes that each may take."""
        preparer = Preparer(self._file, self._cache, is_shared=self._crew.n > 1)
        prepared: list[Prepared] = []
        for point in self._points:
            try:
                ready = preparer.prepare(point, self._folder / RUNS)
            except Exception as error:  # a stranger's file: whatever it raises is this point's failure
                self._fail(point, reason_of(error))
                continue
            if ready.is_done:
                self._places[point.name] = ready.folder
                self._tell("known", point)
            else:
                prepared.append(ready)
        n_workers, memory = within(self._budget, prepared, self._crew.n)
        units = []
        for ready in prepared:
            plan = ready.plan_for(memory)
            if not plan.fits:
                self._fail(ready.point, f"max_memory: the run {plan.headline()}")
                continue
            units.append(Unit(ready.point, self._file, ready.key, plan, self._folder, self._mark, self._cache))
        return units, n_workers, memory

    def _note_step(self, unit: Unit, kind: str, files: Mapping[str, bytes] | None, error: Exception | None) -> None:
        if kind != "ended":
            self._tell(kind, unit.point)
            return
        if error is None and files is not None:
            try:
                _write_files(unit.folder, files)
            except Exception as not_written:
                error = not_written
        if error is not None:
            self._fail(unit.point, reason_of(error))
        else:
            self._places[unit.point.name] = unit.folder
            self._tell("done", unit.point)

    def _fail(self, point: Point, reason: str) -> None:
        self._failures[point.name] = reason
        self._tell("failed", point, reason)

    def _tell(self, kind: str, point: Point, reason: str | None = None) -> None:
        self._on_event(self._tally.note(kind, point.name, reason))


def _place(what: str | Path | Mapping[str, Any], out: str | Path | None) -> Path:
    if out is not None:
        return local_path(out).absolute()
    if isinstance(what, Mapping):
        raise TypeError("sweep: expected out, a folder, since the sweep is no file")
    return local_path(what).absolute().with_suffix("")


@contextmanager
def _claimed(folder: Path, file: SweepFile) -> Iterator[str]:
    """Hold the sweep's folder, as the only one who computes there; yields its mark."""
    record = record_of(folder / SWEEP, SWEEP_FORMAT)
    if record is None and not is_vacant(folder):
        raise OutputExists(f"output {folder} exists and is no sweep of lorahub-edge; name a new folder (--out)")
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with claimed(folder, folder):
        mark = str((record or {}).get("mark") or secrets.token_hex(8))
        write_text(folder / SWEEP, to_json({"format": SWEEP_FORMAT, "mark": mark, **asdict(file)}) + "\n")
        yield mark


def _device(device: str, crew: Crew, num_gpus: float) -> str:
    """Where points are computed, by name: what "auto" means on this machine says nothing of a cluster."""
    if crew.on_ray:
        return ("cuda" if num_gpus else "cpu") if device == "auto" else device
    resolved = resolve_device(device)
    need_device(resolved)
    return resolved.type


@contextmanager
def _threads(n: int | None) -> Iterator[None]:
    """Give torch the threads of a worker, which plans depend on, for the length of a block."""
    before = torch.get_num_threads()
    torch.set_num_threads(n or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the run folder of a worker that cannot reach this one."""
    with whole_folder(folder) as partial:
        for name, content in files.items():
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
