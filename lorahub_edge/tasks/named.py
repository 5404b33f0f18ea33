"""Examples as callers name them: a file, an embedded task, or the rows themselves; and where they are from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

from lorahub_edge import pocket
from lorahub_edge.sources import local_path, sha256_file
from lorahub_edge.tasks.examples import Example, Row, load_examples, to_examples

# A file, the name of an embedded task, or the examples themselves; see `to_examples`.
Examples: TypeAlias = "str | Path | Iterable[Row]"


def as_examples(source: Examples) -> list[Example]:
    """Read or convert examples; see `Examples`."""
    return read_test(source)[0]


def read_test(source: Examples) -> tuple[list[Example], dict[str, Any]]:
    """Test rows, and the record of where they came from."""
    rows, path = read_examples(source, "test")
    return rows, origin_record(path, len(rows))


def read_examples(source: Examples, part: str, split: str | None = None) -> tuple[list[Example], Path | None]:
    """Rows, and the file they are from.

    Args:
        source: see `Examples`.
        part: "examples" or "test": which file of an embedded task, and for messages.
        split: see `load_examples`.
    """
    if not isinstance(source, (str, Path)):
        return to_examples(source, part), None
    path = _embedded(str(source), part) or local_path(source)
    return load_examples(path, split=split), path


def origin_record(path: Path | None, n_rows: int) -> dict[str, Any]:
    """Where rows came from: their number; path and SHA-256 of a file."""
    if path is None:
        return {"rows": n_rows}
    return {"path": str(path), "sha256": sha256_file(path), "rows": n_rows}


def _embedded(name: str, part: str) -> Path | None:
    prefix, _, task = name.partition("/")
    return pocket.task_file(task, part) if prefix == "pocket" and task in pocket.heldout_names() else None
