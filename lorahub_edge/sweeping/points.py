"""Points of a sweep, known by their content: a point whose key has a finished run folder is done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lorahub_edge.adaptation.presets import preset_by_name
from lorahub_edge.adaptation.settings import RunSettings
from lorahub_edge.adaptation.task import Task, load_task
from lorahub_edge.benchmark.trial import TaskRows, find_tasks
from lorahub_edge.cache import Cache, content_hashes
from lorahub_edge.modules import ModuleFolder
from lorahub_edge.sweeping.file import SweepFile

_MAX_TASK_CHARACTERS = 80  # of a folder's name, which has 255 bytes
_KEY_CHARACTERS = 12


@dataclass(frozen=True)
class Point:
    """One task with one seed, pool and preset.

    Attributes:
        rows: the task.
        pool: its name.
        preset, seed: see `adapt`.
    """

    rows: TaskRows
    pool: str
    preset: str
    seed: int

    @property
    def name(self) -> str:
        """For people; unique in a sweep."""
        return f"{self.rows.name}{self._rest}"

    @property
    def _rest(self) -> str:
        return f"--{self.pool}--{self.preset}--{self.seed}"

    def folder_name(self, key: str) -> str:
        """Of its run folder: another content is another folder, so neither is ever in the other's way."""
        return f"{self.rows.name[:_MAX_TASK_CHARACTERS]}{self._rest}--{key}"

    def load_task(self, file: SweepFile) -> Task:
        """Draw its examples and its test rows. Raises: see `load_task`."""
        rows = self.rows
        return replace(
            load_task(rows.examples, rows.test, by_split=rows.by_split, **file.draw(self.seed)), name=rows.name
        )


def points_of(file: SweepFile) -> Iterator[Point]:
    """All points, tasks outermost, so that a table fills row by row. Raises: see `find_tasks`."""
    for rows in find_tasks(file.tasks):
        for seed in file.seeds:
            for pool in file.pools:
                for preset in file.presets:
                    yield Point(rows, pool, preset, seed)


def module_hashes(modules: Sequence[ModuleFolder], cache: Cache | None) -> list[Any]:
    """What a pool holds: names and hashes, in order."""
    return [[module.name, content_hashes(module.files, cache)] for module in modules]


def key_of(task: Task, settings: RunSettings, base: Mapping[str, str], modules: Sequence[Any]) -> str:
    """A hash of all that a point's numbers are asked of.

    Left out is where it is computed: memory, workers, versions of the libraries. The run's manifest has them.

    Args:
        task, settings: of the point; the device is "cpu" or "cuda".
        base: file name -> SHA-256.
        modules: see `module_hashes`.
    """
    asked = {name: value for name, value in asdict(settings).items() if name != "max_memory"}
    parts = {
        "base": base,
        "modules": modules,
        "examples": [[e.input, e.target] for e in task.examples],
        "test": [[e.input, e.target] for e in task.test],
        "settings": asked,
        "preset": asdict(preset_by_name(settings.preset)),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:_KEY_CHARACTERS]
