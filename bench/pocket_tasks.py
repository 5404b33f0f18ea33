"""Rows of pocket's kept-back tasks, drawn anew for studies: not those that the quality table is tested on."""

from __future__ import annotations

from pathlib import Path

from lorahub_edge.benchmark.trial import TaskRows
from lorahub_edge.pocket import heldout
from lorahub_edge.pocket.make import EXAMPLES_PER_TASK, TEST_ROWS_PER_TASK, write_rows

ROWS_SEED = {"development": 1, "held-out": 2}  # the package's own held-out rows are those of seed 1


def write_tasks(folder: Path, kind: str) -> list[TaskRows]:
    """Write both files of each task of a kind into a folder."""
    tasks = []
    for task in heldout.DEVELOPMENT if kind == "development" else heldout.HELDOUT:
        rows = heldout.heldout_rows(task, EXAMPLES_PER_TASK + TEST_ROWS_PER_TASK, seed=ROWS_SEED[kind])
        paths = [folder / f"{task.name}.{part}.jsonl" for part in ("examples", "test")]
        write_rows(paths[0], rows[:EXAMPLES_PER_TASK])
        write_rows(paths[1], rows[EXAMPLES_PER_TASK:])
        tasks.append(TaskRows(task.name, *map(str, paths)))
    return tasks
