"""What a run learns from and is tested on: examples drawn from a file or handed over, with where they came from."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorahub_edge import pocket
from lorahub_edge.adaptation.settings import check_numbers
from lorahub_edge.errors import InvalidInput, LorahubEdgeWarning
from lorahub_edge.tasks import Example, Examples, draw_examples, origin_record, read_examples, task_name


class TaskWarning(LorahubEdgeWarning):
    """There are fewer rows than were asked for, or some of the examples ask the same."""


@dataclass(frozen=True)
class Task:
    """A drawn task.

    Attributes:
        name: see `task_name`; "examples" for Python rows.
        examples: what the search sees.
        test: what the result is scored on; none of them is among `examples`.
        record: for the manifest: files, hashes, counts (rows, asked for, used, repeated, left out), seed.
    """

    name: str
    examples: tuple[Example, ...]
    test: tuple[Example, ...]
    record: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"Task({self.name}, {len(self.examples)} examples, {len(self.test)} to test)"


def load_task(
    examples: Examples | None,
    test: Examples | None,
    *,
    n_examples: int,
    example_seed: int,
    n_test: int | None,
    by_split: bool = False,
) -> Task:
    """Draw the examples and set the test rows apart.

    Args:
        examples: None is the embedded default task, with its own test rows.
        test: None for no test.
        n_examples: drawn as LoRAHub does; a source with fewer gives all it has, with a TaskWarning.
        example_seed: of the draw.
        n_test: at most so many test rows, drawn with the same seed; None for all, in order. Fewer as above.
        by_split: whether rows of a file whose "split" is not "train" are no examples, and those of which it is not
            "test" no test rows. If not, all rows are taken.

    Raises:
        InvalidInput: see `load_examples`; a number out of range; a test set that holds nothing but the examples.
    """
    check_numbers(n_examples=n_examples, n_test=n_test, example_seed=example_seed)
    if examples is None:
        examples = f"pocket/{pocket.DEFAULT_TASK}"
        test = test if test is not None else examples
    pool, pool_path = read_examples(examples, "examples", "train" if by_split else None)
    drawn = draw_examples(pool, n_examples, example_seed)
    counts = {"asked": n_examples, "used": len(drawn), "repeated": len(drawn) - len({e.input for e in drawn})}
    record: dict[str, Any] = {"examples": origin_record(pool_path, len(pool)) | counts, "example_seed": example_seed}
    rows: list[Example] = []
    if test is not None:
        all_rows, test_path = read_examples(test, "test", "test" if by_split else None)
        seen = {e.input for e in drawn}
        others = [e for e in all_rows if e.input not in seen]
        if not others:
            raise InvalidInput(f"test {test_path or ''}: has nothing but the {len(drawn)} examples; add other rows")
        rows = draw_examples(all_rows, len(all_rows), example_seed) if n_test else all_rows
        rows = [e for e in rows if e.input not in seen][:n_test]
        record["test"] = origin_record(test_path, len(all_rows)) | {
            "asked": n_test,
            "used": len(rows),
            "left_out_as_examples": len(all_rows) - len(others),
        }
    _warn(record)
    name = task_name(examples) if isinstance(examples, (str, Path)) else "examples"
    return Task(name, tuple(drawn), tuple(rows), record)


def _warn(record: Mapping[str, Any]) -> None:
    """Say what a user who asked for so many rows would not expect."""
    examples, test = record["examples"], record.get("test")
    notes = []
    if examples["used"] < (asked := examples["asked"]):
        notes.append(f"asked for {asked} examples, {_place(examples)} has {examples['used']}; all are used")
    if test is not None and test["used"] < (test["asked"] or 0):
        besides = " besides the examples" if test["left_out_as_examples"] else ""
        notes.append(f"asked for {test['asked']} test rows, {_place(test)} has {test['used']}{besides}; all are used")
    if n_repeated := examples["repeated"]:
        notes.append(f"{n_repeated} of {examples['used']} drawn examples repeat the input of another")
    for note in notes:
        warnings.warn(note, TaskWarning, stacklevel=4)


def _place(part: Mapping[str, Any]) -> str:
    return str(part.get("path", "the list"))
