"""Measured points beside each other: which belong together, how sure a difference is, which tasks can show one."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from lorahub_edge.benchmark.methods import CEILING, FLOOR, METHODS
from lorahub_edge.benchmark.records import Record

# By how many points of exact match a task's own module must beat the best constant answer for the task to count.
HEADROOM = 10.0


@dataclass(frozen=True)
class Point:
    """One method on one draw of one task.

    Attributes:
        draw: of the examples.
        pool: the modules' hash; None where they do not matter.
        metrics: what came out.
    """

    draw: int
    pool: str | None
    metrics: Mapping[str, Any]

    @property
    def score(self) -> float:
        """Exact match in %."""
        return float(self.metrics["exact_match"])

    def is_beside(self, other: Point) -> bool:
        """Whether another method's point on this task had the same examples, and the same modules if it had any."""
        return self.draw == other.draw and (None in (self.pool, other.pool) or self.pool == other.pool)


# (task, method) -> its points, in the order measured.
Cells: TypeAlias = Mapping[tuple[str, str], Sequence[Point]]


def cells_of(records: Sequence[Record]) -> Cells:
    """The records of one pool and protocol, by task and method."""
    cells: dict[tuple[str, str], list[Point]] = {}
    for record in {r["key"]: r for r in records}.values():
        setup = record["setup"]
        point = Point(setup["example_seed"], setup.get("modules_sha256"), record["metrics"])
        cells.setdefault((setup["task"], setup["method"]["name"]), []).append(point)
    return cells


def names_in(cells: Cells) -> tuple[list[str], list[str]]:
    """Tasks in the order measured; methods in the tables' order, others behind them in the order measured."""
    tasks = list(dict.fromkeys(task for task, _ in cells))
    present = list(dict.fromkeys(method for _, method in cells))
    known = [name for name in METHODS if name in present]
    return tasks, [*known, *(name for name in present if name not in METHODS)]


def scores(cells: Cells, task: str, method: str) -> list[float]:
    """The exact matches of one cell, one per seed."""
    return [point.score for point in cells.get((task, method), ())]


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean of values that were drawn apart: s / sqrt(n); None for fewer than two."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None


def differences(cells: Cells, tasks: Sequence[str], method: str, reference: str) -> list[float]:
    """Exact match of a method less that of another, on each (task, draw) that both have."""
    return [
        ours.score - theirs.score
        for task in tasks
        for ours in cells.get((task, method), ())
        for theirs in cells.get((task, reference), ())
        if ours.is_beside(theirs)
    ]


@dataclass(frozen=True)
class Headroom:
    """What the own modules of tasks say about the tasks.

    Attributes:
        counted: tasks whose own module beats the best constant answer by HEADROOM points, in the mean of the draws.
        others: the tasks on which no method could show much -> why, with their numbers.
    """

    counted: tuple[str, ...]
    others: Mapping[str, str]


def headroom(cells: Cells) -> Headroom:
    """Which tasks count. All do where no own module was measured, since nothing is known then."""
    tasks, methods = names_in(cells)
    others = {task: why for task in tasks if (why := _why_not(cells, task))} if CEILING in methods else {}
    return Headroom(tuple(task for task in tasks if task not in others), others)


def _why_not(cells: Cells, task: str) -> str:
    own, constant = scores(cells, task, CEILING), scores(cells, task, FLOOR)
    if not own or not constant:
        return "no own module"
    reached, floor = statistics.fmean(own), statistics.fmean(constant)
    return "" if reached - floor >= HEADROOM else f"own module {reached:.1f}, best constant answer {floor:.1f}"
