"""What came of a sweep: rows read from the run folders, tables of them, files for people and programs."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from lorahub_edge.adaptation.controls import (
    ADAPTED,
    BEST_MEAN,
    BEST_SINGLE,
    CONSTANT_ANSWER,
    RANDOM_NULL,
    UNIFORM_MEAN,
    ZERO_SHOT,
)
from lorahub_edge.adaptation.run_folder import MANIFEST, REPORT_JSON
from lorahub_edge.benchmark.points import standard_error
from lorahub_edge.benchmark.summary import with_error
from lorahub_edge.sources import read_json
from lorahub_edge.sweeping.points import Point

TABLE_FORMAT = "lorahub-edge-sweep-table/1"

COLUMNS = (CONSTANT_ANSWER, ZERO_SHOT, BEST_SINGLE, UNIFORM_MEAN, BEST_MEAN, RANDOM_NULL, ADAPTED)
WITH_ERROR = (RANDOM_NULL, ADAPTED)  # where a terminal has room for it
MEAN = "mean of the tasks"

# A point's numbers, as plain data.
Row: TypeAlias = "Mapping[str, Any]"


def row_of(point: Point, folder: Path) -> Row:
    """A point's row, from its run folder.

    Raises:
        UnsupportedFormat: a file of it cannot be read.
    """
    report, manifest = read_json(folder / REPORT_JSON), read_json(folder / MANIFEST)
    search = report["search"]
    return {
        "task": point.rows.name,
        "pool": point.pool,
        "preset": point.preset,
        "seed": point.seed,
        "results": {
            row["name"]: {name: row[name] for name in ("loss", "exact_match", "strict_match")}
            for row in report["table"]
        },
        "coefficients": report["coefficients"],
        "evaluations": search["evaluations"],
        "optimizer": search["resolved_optimizer"],
        "costs": {
            "seconds": report["timings"]["total_s"],
            "peak_memory_bytes": report["peak_memory"].get("VmHWM_bytes"),
            "evaluations_of_earlier_starts": search["evaluations_of_earlier_starts"],
            "memory_plan": {name: manifest["memory_plan"][name] for name in ("stack_dtype", "mapping")},
        },
        "folder": folder.name,
    }


@dataclass(frozen=True)
class Cell:
    """Exact matches of one column on one task, over seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float | None:
        """None without a value."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def standard_error(self) -> float | None:
        """Of the mean; None for fewer than two values."""
        return standard_error(self.values)

    @property
    def mean_text(self) -> str:
        """The mean for people."""
        return "-" if self.mean is None else f"{self.mean:.1f}"

    def __str__(self) -> str:
        return with_error(self.values) if self.values else self.mean_text


@dataclass(frozen=True)
class Table:
    """All tasks with one pool and preset.

    Attributes:
        pool, preset: which.
        rows: task -> column -> cell; the last is the mean of the tasks, whose error is that of the tasks' means.
    """

    pool: str
    preset: str
    rows: Mapping[str, Mapping[str, Cell]]


@dataclass(frozen=True)
class Swept:
    """A finished sweep.

    Attributes:
        folder: the sweep's.
        rows: of all points that are done, in order of the file.
        failures: name of a point -> why it failed.
    """

    folder: Path
    rows: Sequence[Row]
    failures: Mapping[str, str]

    def tables(self) -> Iterator[Table]:
        """One for each pool and preset."""
        for pool, preset in dict.fromkeys((row["pool"], row["preset"]) for row in self.rows):
            own = [row for row in self.rows if (row["pool"], row["preset"]) == (pool, preset)]
            tasks = {
                task: {column: _cell([row for row in own if row["task"] == task], column) for column in COLUMNS}
                for task in dict.fromkeys(row["task"] for row in own)
            }
            means = {
                column: Cell(tuple(mean for cells in tasks.values() if (mean := cells[column].mean) is not None))
                for column in COLUMNS
            }
            yield Table(pool, preset, {**tasks, **({MEAN: means} if len(tasks) > 1 else {})})

    def report(self) -> dict[str, Any]:
        """The same as plain data, as table.json and `--json` have it."""
        tables = [
            {
                "pool": table.pool,
                "preset": table.preset,
                "rows": {
                    task: {
                        column: {"mean": cell.mean, "standard_error": cell.standard_error, "n": len(cell.values)}
                        for column, cell in cells.items()
                    }
                    for task, cells in table.rows.items()
                },
            }
            for table in self.tables()
        ]
        return {"format": TABLE_FORMAT, "tables": tables, "failures": dict(self.failures), "points": list(self.rows)}

    def __repr__(self) -> str:
        return f"Swept({len(self.rows)} points, {len(self.failures)} failures, {self.folder})"


def _cell(rows: Sequence[Row], column: str) -> Cell:
    found = [row["results"].get(column, {}).get("exact_match") for row in rows]
    return Cell(tuple(value for value in found if value is not None))
