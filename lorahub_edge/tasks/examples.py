"""Examples of a task: from a file or from Python rows, by the same checks; and the draw among them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from lorahub_edge.errors import InvalidInput
from lorahub_edge.tasks.files import read_rows
from lorahub_edge.tasks.rows import named_columns, question_and_answer


@dataclass(frozen=True)
class Example:
    """One question and its answer, as text."""

    input: str
    target: str


# An example, (input, target), or columns as a file's row has them.
Row: TypeAlias = "Example | Mapping[str, Any] | tuple[str, str]"


def load_examples(path: str | Path, *, split: str | None = None) -> list[Example]:
    """Read all examples of a file.

    Args:
        path: CSV or JSON of any of the layouts in docs/format.md; see `read_rows` and `question_and_answer`.
        split: if rows have a "split" column, keep only these ("train", "test"); rows without one are kept.

    Raises:
        InvalidInput: no such file, no examples, or a row that cannot be used; names the file and the line or row.
    """
    path = Path(path)
    examples = []
    has_rows = False
    for where, columns in read_rows(path):
        has_rows = True
        if split is None or columns.get("split", split) == split:
            examples.append(Example(*question_and_answer(columns, where)))
    if not examples:
        of_split = f" of split '{split}'" if has_rows else ""
        raise InvalidInput(f"example file {path} has no examples{of_split}; expected at least one")
    return examples


def has_own_split(path: str | Path) -> bool:
    """Whether a file says of its rows which are to train on and which to test on: "split" is "train" and "test".

    Raises:
        InvalidInput: see `read_rows`.
    """
    return {"train", "test"} <= {str(columns.get("split")) for _, columns in read_rows(Path(path))}


def to_examples(rows: Iterable[Row], name: str = "examples") -> list[Example]:
    """Examples from Python rows, with the checks that rows of a file go through.

    Args:
        rows: examples, pairs, or mappings with any of the columns in docs/format.md.
        name: of the parameter, for messages.

    Raises:
        InvalidInput: none, or one that cannot be used; names its number.
    """
    if isinstance(rows, (str, bytes, Mapping)) or not isinstance(rows, Iterable):
        raise InvalidInput(
            f"{name}: expected a file or a list of rows, received {type(rows).__name__}; a row is (input, target) or "
            '{"input": ..., "target": ...}'
        )
    examples = [_to_example(row, f"{name}, example {number}") for number, row in enumerate(rows, start=1)]
    if not examples:
        raise InvalidInput(f"{name}: no examples were given; expected at least one")
    return examples


def _to_example(row: Row, where: str) -> Example:
    columns: Any = row
    if isinstance(row, Example):
        columns = {"input": row.input, "target": row.target}
    elif isinstance(row, (tuple, list)) and len(row) == 2:
        columns = {"input": row[0], "target": row[1]}
    if not isinstance(columns, Mapping):
        raise InvalidInput(
            f"{where}: expected an Example, (input, target) or a mapping with columns, received {row!r:.80}"
        )
    return Example(*question_and_answer(named_columns(columns, where), where))


def draw_examples(examples: Sequence[Example], n: int, seed: int) -> list[Example]:
    """The first n after a shuffle, LoRAHub's draw: random.seed(seed), shuffle, first n. All if there are fewer."""
    shuffled = list(examples)
    random.Random(seed).shuffle(shuffled)
    return shuffled[:n]


def examples_text(examples: Sequence[Example]) -> str:
    """Examples as JSONL, the form in which they travel from folder to folder."""
    return "".join(json.dumps({"input": e.input, "target": e.target}) + "\n" for e in examples)
