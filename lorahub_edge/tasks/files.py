"""What an example file holds, whatever its format: bytes -> text -> rows, each with its place."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from lorahub_edge.errors import InvalidInput
from lorahub_edge.tasks.rows import ANSWERS, named_columns

TABLES = (".csv", ".tsv")
SUFFIXES = (".jsonl", ".json", *TABLES)  # each also with .gz behind it
MAX_BYTES = 64 << 20  # of text, once it is unpacked: a JSON text takes up to 25 times as much as Python objects
_LISTS = ("examples", "instances", "data")  # where a JSON object has its rows: BIG-bench, SuperNI, many others
_GZIP = b"\x1f\x8b"
_NO_TEXT = {  # first bytes -> what it is
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"PK\x03\x04": "an .xlsx sheet or a zip archive",
    b"\xd0\xcf\x11\xe0": "an .xls sheet",
    b"BZh": "packed with bzip2",
    b"\xfd7zXZ": "packed with xz",
    b"\x28\xb5\x2f\xfd": "packed with zstd",
}
_SPACE = re.compile(r"[ \t\r\n]*")


def is_row_file(path: Path) -> bool:
    """Whether a name is that of an example file."""
    return path.name.lower().removesuffix(".gz").endswith(SUFFIXES)


def task_name(path: str | Path) -> str:
    """The name of the task in a file: the file's name without the endings that say only how it is written."""
    name = Path(path).name
    for endings in ((".gz",), (*SUFFIXES, ".txt")):
        if (stem := Path(name).stem) and Path(name).suffix.lower() in endings:
            name = stem
    return name


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a file as columns, each with its file and line or number.

    Args:
        path: *.csv and *.tsv have a header, their cells are separated by whatever it has most of; anything else is
            JSON: one object after another, one list of them, or an object with such a list. May be gzip-packed.

    Raises:
        InvalidInput: not a file, not such a one, or more than MAX_BYTES of text.
    """
    text = _text(path)
    is_table = path.name.lower().removesuffix(".gz").endswith(TABLES)
    for where, row in _table_rows(text, path) if is_table else _json_rows(text, path):
        yield where, named_columns(row, where)


def _text(path: Path) -> str:
    content = _content(path)
    if len(content) > MAX_BYTES:
        raise InvalidInput(f"example file {path}: expected at most {MAX_BYTES >> 20} MiB of text; give fewer rows")
    for start, kind in _NO_TEXT.items():
        if content.startswith(start):
            raise InvalidInput(
                f"example file {path} is {kind}, which is not read; save its rows as CSV or JSON lines "
                "(pandas: to_json('rows.jsonl', orient='records', lines=True))"
            )
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        kind = "UTF-16" if is_utf16 else "UTF-8"
        raise InvalidInput(f"example file {path}: not {kind} text ({error}); save it as UTF-8") from error


def _content(path: Path) -> bytes:
    """A file's bytes, unpacked; one more than may be if there are more."""
    try:
        if path.exists() and not path.is_file():
            raise InvalidInput(f"example file {path} is a folder or no plain file; give a file of rows")
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if content.startswith(_GZIP) and len(content) <= MAX_BYTES:
            with gzip.open(io.BytesIO(content)) as packed:
                content = packed.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise InvalidInput(f"example file {path} was not found") from error
    except (OSError, EOFError, zlib.error, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise InvalidInput(f"example file {path}: cannot be read ({reason})") from error
    return content


def _table_rows(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    match = re.search(r"\S[^\r\n]*", text)
    first = match.group() if match else ""
    is_tsv = path.name.lower().removesuffix(".gz").endswith(".tsv")
    delimiter = "\t" if is_tsv else max(",;\t|", key=first.count)
    blanks = first.partition(delimiter)[2].startswith(" ")
    # strict: an open quotation mark must not swallow the rows behind it
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=blanks, strict=True)
    header: list[str] = []
    try:
        for cells in reader:
            where = f"{path}:{reader.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) > len(header) > 0:
                raise InvalidInput(f"{where}: more cells than the header; quote cells with '{delimiter}' in them")
            if header:
                yield where, {name: cell for name, cell in zip_longest(header, cells) if name.strip()}
            elif len(set(cells)) < len(cells) and _twice(cells):
                raise InvalidInput(f"{where}: the column '{_twice(cells)}' is there twice; rename one")
            header = header or cells
    except csv.Error as error:
        raise InvalidInput(
            f"{path}:{reader.line_num}: not CSV ({error}); put cells with quotation marks or line breaks in quotes, "
            "with marks in them doubled, or use JSON lines"
        ) from error


def _json_rows(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    values = _json_values(text, path)
    first, second = next(values, None), next(values, None)
    if first is not None and second is None:
        yield from _document(*first, path)
    else:
        yield from chain(filter(None, (first, second)), values)


def _json_values(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    """One JSON value after another, however they are spread over lines."""
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    place, counted, line = 0, 0, 1
    while (place := _end_of_space(text, place)) < len(text):
        line, counted = line + text.count("\n", counted, place), place
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            raise InvalidInput(
                f"{path}:{line}: not JSON ({error}); expected one JSON object per line, or .csv for tables"
            ) from error
        yield f"{path}:{line}", value


def _document(where: str, value: Any, path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of a file with one JSON value: a list, an object with a list in it, or one row.

    What else stands beside such a list holds for every row of it, such as the definition of a SuperNI task.
    """
    shared: dict[str, Any] = {}
    rows = value
    if isinstance(value, dict):
        columns = named_columns(value, where)
        name = next((name for name in _LISTS if isinstance(columns.get(name), list)), None)
        if name is None or not columns.keys().isdisjoint(ANSWERS):
            yield where, value
            return
        rows = columns.pop(name)
        shared = columns
    if not isinstance(rows, list):
        raise InvalidInput(f'{where}: expected objects, a list of them or {{"examples": [...]}}, received {rows!r:.40}')
    for number, row in enumerate(rows, start=1):
        place = f"{path}, example {number}"
        yield place, {**shared, **named_columns(row, place)}


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"the key '{_twice([key for key, _ in pairs])}' is there twice")
    return found


def _twice(names: list[str]) -> str:
    """The first name that is there more than once; blank ones do not count."""
    return next((name for name in names if name.strip() and names.count(name) > 1), "")


def _end_of_space(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    return match.end() if match else place
