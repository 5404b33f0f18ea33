"""What is known of a point before it is computed: whether it is done, and what it needs in memory. Reads no weights."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from lorahub_edge.adaptation.memory_plan import MemoryExceeded, MemoryPlan, choose_plan
from lorahub_edge.adaptation.prefilter import choose_unread
from lorahub_edge.adaptation.run_folder import is_finished
from lorahub_edge.adaptation.settings import RunSettings
from lorahub_edge.adaptation.stages import Found, Opened, encode, open_inputs, plan_memory
from lorahub_edge.adaptation.task import Task
from lorahub_edge.base import open_base
from lorahub_edge.cache import Cache, content_hashes
from lorahub_edge.measure import Stopwatch
from lorahub_edge.modules import find_modules
from lorahub_edge.sweeping.file import SweepFile
from lorahub_edge.sweeping.points import Point, key_of, module_hashes

T = TypeVar("T")


@dataclass(frozen=True)
class Prepared:
    """A point that can be computed, or was.

    Attributes:
        point, key: see `Point`, `key_of`.
        folder: its run folder.
        plans: all that it may do with memory, see `memory_plans`; none of a point that is done.
    """

    point: Point
    key: str
    folder: Path
    plans: Sequence[MemoryPlan] = ()

    @property
    def is_done(self) -> bool:
        """Whether a finished run is there."""
        return not self.plans

    @property
    def needed_bytes(self) -> int:
        """By the most frugal plan."""
        return min(plan.needed_bytes for plan in self.plans)

    def plan_for(self, budget: int | None) -> MemoryPlan:
        """The plan that gives up least within a budget; see `choose_plan`."""
        return choose_plan([replace(plan, budget_bytes=budget) for plan in self.plans])


class Preparer:
    """Prepares points; what several of them share is opened once, and fails for all of them.

    Args:
        file: of the sweep; its device is "cpu" or "cuda".
        cache: see `adapt`.
        is_shared: whether several workers compute: then a stack that can be mapped is mapped, and its pages shared.
    """

    def __init__(self, file: SweepFile, cache: Cache | None, *, is_shared: bool) -> None:
        self._file, self._cache, self._is_shared = file, cache, is_shared
        settings = file.run_settings(file.presets[0], file.seeds[0])
        self._base = open_base(file.base, precision=settings.precision, device=settings.device)
        self._base_hashes = content_hashes(self._base.weight_files, cache)
        self._known: dict[Hashable, tuple[Any, Exception | None]] = {}

    def prepare(self, point: Point, runs: Path) -> Prepared:
        """See `Prepared`. Raises whatever is wrong with the point's task or pool."""
        file = self._file
        settings = file.run_settings(point.preset, point.seed)
        task: Task = self._once(("task", point.rows.name, point.seed), lambda: point.load_task(file))
        opened, hashes = self._once(("pool", point.pool), lambda: self._open(point.pool))
        key = key_of(task, settings, self._base_hashes, hashes)
        folder = runs / point.folder_name(key)
        if is_finished(folder):
            return Prepared(point, key, folder)
        shared_by = (point.rows.name, point.seed, point.pool, settings.chosen_composition)
        plans = self._once(("plans", *shared_by), lambda: self._plans(opened, task, settings))
        return Prepared(point, key, folder, plans)

    def _open(self, pool: str) -> tuple[Opened, list[Any]]:
        modules = find_modules(self._file.pools[pool], bases=self._base.source.names)
        return open_inputs(Found(self._base, modules, ()), Stopwatch()), module_hashes(modules, self._cache)

    def _plans(self, pool: Opened, task: Task, settings: RunSettings) -> Sequence[MemoryPlan]:
        found, _ = choose_unread(Found(pool.base, pool.modules, pool.specs), task, settings)
        opened = pool.only([pool.modules.index(module) for module in found.modules])
        plans = plan_memory(opened, encode(opened, task, settings), settings, self._cache)
        mapped = [plan for plan in plans if plan.mapping == "mmap"]
        return mapped if self._is_shared and mapped else plans

    def _once(self, what: Hashable, make: Callable[[], T]) -> T:
        if what not in self._known:
            try:
                self._known[what] = (make(), None)
            except Exception as error:
                self._known[what] = (None, error)
        made, failure = self._known[what]
        if failure is not None:
            raise failure
        return made  # type: ignore[no-any-return]


def within(budget: int | None, points: Sequence[Prepared], n_workers: int) -> tuple[int, int | None]:
    """How many workers a budget has room for, and the bytes of each.

    Raises:
        MemoryExceeded: it has no room for any point; says what would help.
    """
    if budget is None or not points:
        return n_workers, None
    needs = [point.needed_bytes for point in points]
    if not (fitting := [need for need in needs if need <= budget]):
        smallest = points[needs.index(min(needs))]
        raise MemoryExceeded(f"max_memory: no point fits; {smallest.point.name} {smallest.plan_for(budget).headline()}")
    n = min(n_workers, budget // max(fitting))
    return n, budget // n
