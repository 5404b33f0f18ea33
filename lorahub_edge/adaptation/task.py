"""What a run learns from and is tested on: examples drawn from a file or handed over, with where they came from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from lorahub_edge import pocket
from lorahub_edge.errors import InvalidInput
from lorahub_edge.sources import sha256_file
from lorahub_edge.tasks import Example, draw_examples, load_examples

# A file, the name of an embedded task, or the examples themselves.
Examples: TypeAlias = "str | Path | Iterable[Example | Mapping[str, str] | tuple[str, str]]"


@dataclass(frozen=True)
class Task:
    """A drawn task.

    Attributes:
        name: the example file's stem, or "examples".
        examples: what the search sees.
        test: what the result is scored on; none of them is among `examples`.
        record: for the manifest: files, hashes, counts, seed.
    """

    name: str
    examples: tuple[Example, ...]
    test: tuple[Example, ...]
    record: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"Task({self.name}, {len(self.examples)} examples, {len(self.test)} to test)"


def load_task(
    examples: Examples | None, test: Examples | None, *, n_examples: int, example_seed: int, n_test: int | None
) -> Task:
    """Draw the examples and set the test rows apart.

    Args:
        examples: None is the embedded default task, with its own test rows.
        test: None for no test.
        n_examples: drawn as LoRAHub does; a source with fewer gives all it has.
        example_seed: of the draw.
        n_test: at most so many test rows, drawn with the same seed; None for all, in order.

    Raises:
        InvalidInput: see `load_examples`; n_examples or n_test below 1; a test set that holds nothing but the examples.
    """
    for name, value in (("n_examples", n_examples), ("n_test", n_test)):
        if value is not None and value < 1:
            raise InvalidInput(f"{name}: expected at least 1, received {value}")
    if examples is None:
        examples = f"pocket/{pocket.DEFAULT_TASK}"
        test = test if test is not None else examples
    pool, pool_path = _read(examples, "examples")
    drawn = draw_examples(pool, n_examples, example_seed)
    record: dict[str, Any] = {"examples": _record(pool_path, len(pool)), "example_seed": example_seed}
    rows: list[Example] = []
    if test is not None:
        all_rows, test_path = _read(test, "test")
        seen = {e.input for e in drawn}
        ordered = draw_examples(all_rows, len(all_rows), example_seed) if n_test else all_rows
        rows = [e for e in ordered if e.input not in seen][:n_test]
        if not rows:
            raise InvalidInput(f"test {test_path or ''}: has nothing but the {len(drawn)} examples; add other rows")
        n_shared = sum(e.input in seen for e in all_rows)
        record["test"] = {**_record(test_path, len(all_rows)), "used": len(rows), "left_out_as_examples": n_shared}
    record["examples"]["used"] = len(drawn)
    name = pool_path.name.split(".")[0] if pool_path else "examples"
    return Task(name, tuple(drawn), tuple(rows), record)


def as_examples(source: Examples) -> list[Example]:
    """Read or convert examples; see `Examples`."""
    return _read(source, "test")[0]


def _read(source: Examples, part: str) -> tuple[list[Example], Path | None]:
    if isinstance(source, (str, Path)):
        path = _embedded(str(source), part) or Path(source).expanduser()
        return load_examples(path), path
    rows = [_convert(row, number) for number, row in enumerate(source, start=1)]
    if not rows:
        raise InvalidInput(f"{part}: no examples were given; expected at least one")
    return rows, None


def _embedded(name: str, part: str) -> Path | None:
    prefix, _, task = name.partition("/")
    return pocket.task_file(task, part) if prefix == "pocket" and task in pocket.heldout_names() else None


def _convert(row: Example | Mapping[str, str] | tuple[str, str], number: int) -> Example:
    if isinstance(row, Example):
        return row
    if isinstance(row, Mapping) and {"input", "target"} <= set(row):
        return Example(str(row["input"]), str(row["target"]))
    if isinstance(row, tuple) and len(row) == 2:
        return Example(str(row[0]), str(row[1]))
    raise InvalidInput(
        f"example {number}: expected an Example, (input, target) or a mapping with both, received {row!r}"
    )


def _record(path: Path | None, n_rows: int) -> dict[str, Any]:
    if path is None:
        return {"rows": n_rows}
    return {"path": str(path), "sha256": sha256_file(path), "rows": n_rows}
