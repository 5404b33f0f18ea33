"""What is measured on: a pool of modules on a base, tasks, a protocol; a trial is one draw of one task."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lorahub_edge import pocket
from lorahub_edge.adaptation import AdaptedModel
from lorahub_edge.adaptation.task import Task, load_task
from lorahub_edge.base import Base, load_base
from lorahub_edge.errors import InvalidInput
from lorahub_edge.modules import LoraModule, ModuleFolder, ModuleStack
from lorahub_edge.sources import local_path, sha256_files
from lorahub_edge.tasks import EncodedExample, PromptFormat, has_own_split, is_row_file, task_name

EXAMPLE_FILE, TEST_FILE = "example.jsonl", "zero_shot.jsonl"  # of a task's folder as LoRAHub released it


@dataclass(frozen=True)
class Pool:
    """A base and the modules that a search may use, loaded once for many trials.

    Attributes:
        base: frozen.
        modules: what may be composed.
        left_out: a module of the pool that may not, since it was trained on the task at hand.
    """

    base: Base
    modules: Sequence[LoraModule | ModuleFolder]
    left_out: LoraModule | ModuleFolder | None = None

    @cached_property
    def stack(self) -> ModuleStack:
        """The modules laid out for the base.

        Raises:
            IncompatibleModules: a module for another base.
        """
        return ModuleStack.build(self.modules, self.base)

    def at(self, precision: str | None) -> Pool:
        """The same pool with its base in another precision, ready to be used; itself if that is the one it has."""
        if precision in (None, self.base.precision):
            return self
        base = load_base(self.base.source.spec, precision=str(precision), device=self.base.device.type)
        return replace(self, base=base).ready()

    def without(self, module: LoraModule | ModuleFolder | None) -> Pool:
        """The pool with a task's own module left out; itself if that is none of its modules.

        Raises:
            InvalidInput: it has no other.
        """
        others = [m for m in self.modules if module is None or m.name != module.name]
        if len(others) == len(self.modules):
            return self
        if not others:
            raise InvalidInput(f"modules: '{self.modules[0].name}' is the only one and is left out; give others too")
        return replace(self, modules=others, left_out=module)

    def ready(self) -> Pool:
        """Itself, with the modules laid out."""
        _ = self.stack
        return self

    def base_record(self) -> dict[str, Any]:
        """Names and hashes, no places."""
        files = {Path(name).name: digest for name, digest in sha256_files(self.base.weight_files).items()}
        return {"base": files, "precision": self.base.precision, "device": self.base.device.type}

    def modules_record(self) -> dict[str, Any]:
        """Names, and one hash over all files: those of the whole pool, so that its tasks can be found by it."""
        names = [m.name for m in self.modules]
        left_out = {} if self.left_out is None else {"left_out": self.left_out.name}
        whole = [*self.modules, *([] if self.left_out is None else [self.left_out])]
        return {"modules": names, "modules_sha256": modules_sha256(whole), **left_out}

    def __repr__(self) -> str:
        return f"Pool({self.base!r}, {len(self.modules)} modules)"


def modules_sha256(modules: Sequence[LoraModule | ModuleFolder]) -> str:
    """One hash over the names and files of modules, in whatever order."""
    digests = {m.name: sha256_files(m.files) for m in modules}
    return hashlib.sha256(repr(sorted(digests.items())).encode()).hexdigest()


@dataclass(frozen=True)
class TaskRows:
    """Where a task's rows come from.

    Attributes:
        name: of the task.
        examples, test: what the examples are drawn from and what is tested on, as `adapt` takes them.
        own_module: a module that was trained on this very task. It is the task's ceiling and in no pool of it.
    """

    name: str
    examples: str
    test: str
    own_module: LoraModule | ModuleFolder | None = None

    @cached_property
    def by_split(self) -> bool:
        """Whether the rows' own "split" decides which are examples and which are tested; see `load_task`.

        Raises:
            InvalidInput: the file cannot be read.
        """
        path = local_path(self.examples)
        return self.examples == self.test and path.is_file() and has_own_split(path)


@dataclass(frozen=True)
class Protocol:
    """How every point of a bench is measured.

    Attributes:
        bench: the bench's name, part of every key.
        prompt: see `PromptFormat.for_base`.
        n_examples: what a method may learn from.
        n_test: at most so many other rows; None for all.
        max_new_tokens: answers are cut here; None for adapt's own rule.
        batch_size: inputs answered together; part of no key.
    """

    bench: str
    prompt: str = "auto"
    n_examples: int = 5
    n_test: int | None = None
    max_new_tokens: int | None = None
    batch_size: int = 16

    def record(self) -> dict[str, Any]:
        """What decides the outcome."""
        return {name: value for name, value in vars(self).items() if name not in ("bench", "batch_size")}


@dataclass(frozen=True)
class Trial:
    """One draw of one task, ready for any method.

    Attributes:
        pool: base and modules.
        rows: where the task came from.
        task: the drawn examples and the test rows.
        example_seed: of the draw.
        seed: of whatever a method draws itself.
        prompt, encoded, max_new_tokens: as `adapt` has them.
    """

    pool: Pool
    rows: TaskRows
    task: Task
    example_seed: int
    seed: int
    prompt: PromptFormat
    encoded: Sequence[EncodedExample]
    max_new_tokens: int

    @classmethod
    def of(cls, pool: Pool, rows: TaskRows, protocol: Protocol, *, example_seed: int, seed: int) -> Trial:
        """Draw and tokenise.

        Raises:
            InvalidInput: see `load_task` and `PromptFormat.for_base`.
        """
        task = load_task(
            rows.examples,
            rows.test,
            n_examples=protocol.n_examples,
            example_seed=example_seed,
            n_test=protocol.n_test,
            by_split=rows.by_split,
        )
        prompt = PromptFormat.for_base(pool.base, template=protocol.prompt)
        encoded = prompt.encode_all(task.examples)
        max_new_tokens = protocol.max_new_tokens or 2 * max(len(e.target_ids) for e in encoded) + 8
        return cls(pool, rows, replace(task, name=rows.name), example_seed, seed, prompt, encoded, max_new_tokens)

    def model(self, coefficients: npt.NDArray[np.float64], *, stack: ModuleStack | None = None) -> AdaptedModel:
        """The base with modules at these coefficients (n_modules,)."""
        chosen = self.pool.stack if stack is None else stack
        return AdaptedModel(self.pool.base, chosen, torch.tensor(coefficients), self.prompt, self.max_new_tokens)

    def record(self) -> dict[str, Any]:
        """Task, draw and files by hash."""
        record: Mapping[str, Any] = self.task.record
        hashes = {part: record[part].get("sha256") for part in ("examples", "test")}
        split = {"by_split": True} if self.rows.by_split else {}  # part of the key: one file can be read either way
        return {"task": self.rows.name, "task_sha256": hashes, **split, "example_seed": self.example_seed}

    def __repr__(self) -> str:
        return f"Trial({self.task!r}, draw {self.example_seed}, seed {self.seed})"


def find_tasks(specs: Sequence[str]) -> list[TaskRows]:
    """Tasks by what a user names, in order.

    Args:
        specs: "pocket" (all embedded held-out tasks) or "pocket/TASK"; a file of rows. If its rows are of both splits
            ("split" is "train" or "test"), the examples come from the first and the test rows from the second; else
            some of all rows become the examples and the rest the test. A folder with example.jsonl and
            zero_shot.jsonl, as LoRAHub released its tasks; a folder of such files or folders, taken in name order.

    Raises:
        InvalidInput: nothing of that name, two tasks of one name, or a file that cannot be read.
    """
    tasks = [task for spec in specs for task in _tasks_of(spec)]
    names = [task.name for task in tasks]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise InvalidInput(f"tasks: the name '{twice[0]}' occurs twice; give each task once")
    if not tasks:
        raise InvalidInput("tasks: none were given; expected pocket, files or folders of rows")
    return tasks


def with_own_modules(
    tasks: Sequence[TaskRows],
    modules: Sequence[LoraModule | ModuleFolder],
    ceilings: Sequence[LoraModule | ModuleFolder],
) -> list[TaskRows]:
    """The tasks with the modules that have their names: of the pool or, if it has none, of `ceilings`."""
    named = {m.name: m for m in (*ceilings, *modules)}
    return [replace(task, own_module=named.get(task.name)) for task in tasks]


def _tasks_of(spec: str) -> list[TaskRows]:
    if spec == "pocket":
        return [TaskRows(name, f"pocket/{name}", f"pocket/{name}") for name in pocket.heldout_names()]
    prefix, _, name = spec.partition("/")
    if prefix == "pocket" and name in pocket.heldout_names():
        return [TaskRows(name, spec, spec)]
    path = local_path(spec)
    if not path.exists():
        raise InvalidInput(
            f"task '{spec}' was not found; expected pocket, pocket/TASK with TASK one of "
            f"{', '.join(pocket.heldout_names())}, or a file or folder of rows"
        )
    if path.is_file() or _is_released(path):
        return [_task_at(path)]
    found = [_task_at(child) for child in sorted(path.iterdir()) if is_row_file(child) or _is_released(child)]
    if not found:
        raise InvalidInput(
            f"tasks {path}: expected {EXAMPLE_FILE} and {TEST_FILE}, or such folders, or .jsonl, "
            ".json, .csv or .tsv files; found none"
        )
    return found


def _is_released(path: Path) -> bool:
    return (path / EXAMPLE_FILE).is_file() and (path / TEST_FILE).is_file()


def _task_at(path: Path) -> TaskRows:
    """A released task's folder, or a file of rows."""
    if path.is_dir():
        return TaskRows(path.name, str(path / EXAMPLE_FILE), str(path / TEST_FILE))
    return TaskRows(task_name(path), str(path), str(path))
