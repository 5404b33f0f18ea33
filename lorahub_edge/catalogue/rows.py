"""Entries as rows of the catalogue's tables. All SQL on rows is here; texts reach it as parameters only."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorahub_edge.catalogue.database import INDEX, SEARCHED
from lorahub_edge.catalogue.entry import Entry, FileRecord
from lorahub_edge.errors import printable, refused_as

_COLUMNS = tuple(field.name for field in dataclasses.fields(Entry))
_JSON, _NUMBERS = ("files", "targets", "tags"), ("rank", "alpha")
_TEXTS = ("card", "words")
_SELECT = f"SELECT {', '.join(f'modules.{name}' for name in _COLUMNS)} FROM modules"
_WITHOUT_TEXTS = f"SELECT {', '.join('NULL' if n in _TEXTS else f'modules.{n}' for n in _COLUMNS)} FROM modules"
_SEARCHED = ", ".join(SEARCHED)


def entries_with(connection: sqlite3.Connection, words: Sequence[str], *, with_texts: bool) -> Iterator[Entry]:
    """Entries that hold all words, by name without words.

    By the index: beginnings of words, best match first. In a catalogue that has no index: any part of the text.

    Args:
        words: none for all entries.
        with_texts: whether they have their cards and words, which may take a hundred kilobytes each.
    """
    select = _SELECT if with_texts else _WITHOUT_TEXTS
    words = [printable(word) for word in words]  # SQLite takes neither NUL nor half a character
    if not words:
        rows = connection.execute(f"{select} ORDER BY name")
    elif _has_index(connection):
        match = " ".join(f'"{word.replace(chr(34), chr(34) * 2)}"*' for word in words)
        join = f"JOIN {INDEX} ON {INDEX}.rowid = modules.id WHERE {INDEX} MATCH ? ORDER BY bm25({INDEX}), modules.name"
        rows = connection.execute(f"{select} {join}", [match])
    else:
        text = " || ' ' || ".join(f"coalesce({name}, '')" for name in SEARCHED)
        like = " AND ".join([f"{text} LIKE ? ESCAPE '!'"] * len(words))
        rows = connection.execute(f"{select} WHERE {like} ORDER BY name", [_like(word) for word in words])
    return map(_entry, rows)


def entry_named(connection: sqlite3.Connection, name: str) -> Entry | None:
    """The entry of a name, or None."""
    row = connection.execute(f"{_SELECT} WHERE name = ?", [name]).fetchone()
    return None if row is None else _entry(row)


def insert(connection: sqlite3.Connection, entry: Entry) -> Entry:
    """Add an entry under its name, or a longer one if another module has that; returns it as it is named."""
    names = (entry.name, f"{entry.folder.parent.name}/{entry.name}", entry.asked)
    taken = "SELECT 1 FROM modules WHERE name = ?"
    entry = replace(entry, name=next(n for n in names if not connection.execute(taken, [n]).fetchone()))
    files = {name: dataclasses.astuple(record) for name, record in entry.files.items()}
    values = {**vars(entry), "folder": str(entry.folder), "files": files}
    values |= {name: json.dumps(values[name]) for name in _JSON}
    places = ", ".join("?" * len(_COLUMNS))
    connection.execute(f"INSERT INTO modules ({', '.join(_COLUMNS)}) VALUES ({places})", [values[c] for c in _COLUMNS])
    if _has_index(connection):
        texts = f"SELECT id, {_SEARCHED} FROM modules WHERE asked = ?"
        connection.execute(f"INSERT INTO {INDEX} (rowid, {_SEARCHED}) {texts}", [entry.asked])
    return entry


def delete(connection: sqlite3.Connection, asked: str) -> bool:
    """Whether there was such an entry."""
    if _has_index(connection):  # it keeps no text of its own, and is told what is taken out
        texts = f"SELECT 'delete', id, {_SEARCHED} FROM modules WHERE asked = ?"
        connection.execute(f"INSERT INTO {INDEX} ({INDEX}, rowid, {_SEARCHED}) {texts}", [asked])
    return connection.execute("DELETE FROM modules WHERE asked = ?", [asked]).rowcount > 0


def _has_index(connection: sqlite3.Connection) -> bool:
    """Whether the catalogue was made where SQLite has FTS5; else its texts are searched row by row."""
    return bool(connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", [INDEX]).fetchone())


def _like(word: str) -> str:
    for special in "!%_":
        word = word.replace(special, f"!{special}")
    return f"%{word}%"


def _entry(row: Sequence[Any]) -> Entry:
    values = dict(zip(_COLUMNS, row, strict=True))
    with refused_as(f"module {str(values['name'])[:80]} of the catalogue is damaged", "add it again"):
        files = json.loads(values["files"])
        values["files"] = {_file_name(name): FileRecord(str(h), int(n), int(t)) for name, (h, n, t) in files.items()}
        values |= {name: tuple(map(str, json.loads(values[name]))) for name in ("targets", "tags")}
        values |= {name: float(values[name]) for name in _NUMBERS}
        values |= {name: values[name] or "" for name in _TEXTS}
        texts = [name for name in _COLUMNS if name not in (*_JSON, *_NUMBERS) and values[name] is not None]
        return Entry(**{**values, **{name: str(values[name]) for name in texts}, "folder": Path(values["folder"])})


def _file_name(name: str) -> str:
    if Path(name).name != name:
        raise ValueError(f"'{name}' is no name of a file")
    return name
