"""Read examples of a task: JSONL, BBH json, CSV."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorahub_edge.errors import InvalidInput

# (key of the input, key of the answer): ours, LoRAHub's files, LoRAHub's Python API, FLAN's files
KEY_PAIRS = (("input", "target"), ("context", "completion"), ("input", "output"), ("inputs", "targets"))


@dataclass(frozen=True)
class Example:
    """One question and its answer, as text."""

    input: str
    target: str


def load_examples(path: str | Path, *, split: str | None = None) -> list[Example]:
    """Read all examples of a file.

    Args:
        path: *.csv with a header; *.json with {"examples": [...]} (BIG-Bench Hard) or a list; anything else JSONL.
            Rows carry one of the key pairs input/target, context/completion, input/output, inputs/targets.
        split: if rows have a "split" field, keep only these ("train", "test"); rows without one are kept.

    Raises:
        InvalidInput: no such file, no examples, or a row that cannot be used; names the file and the line or row.
    """
    path = Path(path)
    readers = {".csv": _csv_rows, ".json": _json_rows}
    try:
        rows = list(readers.get(path.suffix.lower(), _jsonl_rows)(path))
    except FileNotFoundError as error:
        raise InvalidInput(f"example file {path} was not found") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"example file {path}: not UTF-8 text ({error})") from error
    except OSError as error:
        raise InvalidInput(f"example file {path}: cannot be read ({error.strerror or error})") from error
    kept = [(where, row) for where, row in rows if split is None or row.get("split", split) == split]
    examples = [_example(row, where) for where, row in kept]
    if not examples:
        of_split = f" of split '{split}'" if rows else ""
        raise InvalidInput(f"example file {path} has no examples{of_split}; expected at least one")
    return examples


def draw_examples(examples: Sequence[Example], n: int, seed: int) -> list[Example]:
    """The first n after a shuffle, LoRAHub's draw: random.seed(seed), shuffle, first n. All if there are fewer."""
    shuffled = list(examples)
    random.Random(seed).shuffle(shuffled)
    return shuffled[:n]


def examples_text(examples: Sequence[Example]) -> str:
    """Examples as JSONL, the form in which they travel from folder to folder."""
    return "".join(json.dumps({"input": e.input, "target": e.target}) + "\n" for e in examples)


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                where = f"{path}:{number}"
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise InvalidInput(f"{where}: not JSON ({error}); expected one JSON object per line") from error
                yield where, _object(row, where)


def _json_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path}: not JSON ({error})") from error
    rows = content.get("examples") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise InvalidInput(f'{path}: expected {{"examples": [...]}} or a list of objects')
    for number, row in enumerate(rows, start=1):
        yield f"{path}, example {number}", _object(row, f"{path}, example {number}")


def _csv_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        try:
            for row in reader:
                if None in row:
                    raise InvalidInput(f"{path}:{reader.line_num}: more cells than the header; quote cells with commas")
                yield f"{path}:{reader.line_num}", row
        except csv.Error as error:
            raise InvalidInput(f"{path}:{reader.line_num}: not CSV ({error})") from error


def _object(row: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise InvalidInput(f"{where}: expected a JSON object, received {type(row).__name__}")
    return row


def _check_text(key: str, value: Any, where: str) -> None:
    if not isinstance(value, str):
        raise InvalidInput(f"{where}: '{key}' is {type(value).__name__}; expected text")
    if not value.strip():
        raise InvalidInput(f"{where}: '{key}' is empty")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise InvalidInput(f"{where}: '{key}' has half of a surrogate pair, which is no text")


def _example(row: Mapping[str, Any], where: str) -> Example:
    for input_key, target_key in KEY_PAIRS:
        if input_key in row and target_key in row:
            values = row[input_key], row[target_key]
            for key, value in zip((input_key, target_key), values, strict=True):
                _check_text(key, value, where)
            return Example(*values)
    expected = ", ".join("/".join(pair) for pair in KEY_PAIRS)
    received = ", ".join(map(str, row)) or "none"
    raise InvalidInput(f"{where}: expected keys {expected}; received {received}")
