"""The catalogue's file: opened, checked against our own schema, and every failure of SQLite as one line.

A stranger may have written it. Only tables that are word for word ours are worked with; triggers, views and other
tables are refused before a row is read, no extension is loaded, and no SQL in the file is trusted.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from lorahub_edge.errors import InvalidInput, LorahubEdgeError, UnsupportedFormat, first_line

SCHEMA_VERSION = 1
_APPLICATION_ID = 0x4C454443  # "LEDC"
_MAGIC = b"SQLite format 3\0"
_MAX_BYTES = 4 << 30
_WAIT_S = 60

SEARCHED = ("name", "base", "tags", "words")
INDEX = "modules_text"
_TABLE = """CREATE TABLE modules (
  id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, asked TEXT NOT NULL UNIQUE, spec TEXT NOT NULL,
  folder TEXT NOT NULL, revision TEXT, files TEXT NOT NULL, base TEXT, rank REAL NOT NULL, alpha REAL NOT NULL,
  targets TEXT NOT NULL, weights TEXT NOT NULL, licence TEXT, tags TEXT NOT NULL, card TEXT NOT NULL,
  words TEXT NOT NULL, added TEXT NOT NULL)"""
_INDEX_TABLE = f"CREATE VIRTUAL TABLE {INDEX} USING fts5({', '.join(SEARCHED)}, content='modules', content_rowid='id')"
# What FTS5 keeps its index in; their text differs between versions of SQLite.
_SHADOWS = {f"{INDEX}_{part}" for part in ("data", "idx", "docsize", "config")}


def is_there(path: Path) -> bool:
    """Whether there is anything but an empty file."""
    return os.path.lexists(path) and not (path.is_file() and path.stat().st_size == 0)


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A checked catalogue to read from.

    Raises:
        InvalidInput: there is none. UnsupportedFormat: it is no catalogue, or a newer one. LorahubEdgeError: SQLite
            cannot read it.
    """
    if not is_there(path):
        raise InvalidInput(f"catalogue {path} does not exist; lorahub-edge hub add makes it")
    with _errors(path), _opened(path, "rw") as connection:  # rw: what a killed process began is rolled back
        _check(connection, path)
        yield connection


@contextmanager
def writing(path: Path) -> Iterator[sqlite3.Connection]:
    """One transaction on a checked catalogue, which is made if there is none; other writers wait for it.

    Raises:
        UnsupportedFormat: see `reading`. LorahubEdgeError: it cannot be written; nothing of the transaction is kept.
    """
    with _errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _opened(path, "rwc") as connection:
            connection.execute("BEGIN IMMEDIATE")
            if not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
                _create(connection)
            _check(connection, path)
            yield connection
            connection.execute("COMMIT")


@contextmanager
def _opened(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    if os.path.lexists(path):
        _check_file(path)
    address = f"file:{quote(os.fsencode(path.absolute()))}?mode={mode}"
    with closing(sqlite3.connect(address, uri=True, timeout=_WAIT_S, isolation_level=None)) as connection:
        connection.text_factory = lambda content: content.decode("utf-8", "replace")
        for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "temp_store = MEMORY"):
            connection.execute(f"PRAGMA {pragma}")
        yield connection


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise UnsupportedFormat(f"catalogue {path} is no file; name another")
    if path.stat().st_size > _MAX_BYTES:
        raise UnsupportedFormat(f"catalogue {path}: expected at most {_MAX_BYTES >> 30} GiB")
    with open(path, "rb") as file:
        if file.read(len(_MAGIC)) not in (_MAGIC, b""):
            raise UnsupportedFormat(f"catalogue {path} is no SQLite file; expected one that lorahub-edge hub add made")


def _create(connection: sqlite3.Connection) -> None:
    connection.execute(_TABLE)
    if _has_fts5(connection):
        connection.execute(_INDEX_TABLE)
    connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _check(connection: sqlite3.Connection, path: Path) -> None:
    kind, version = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
    if kind == _APPLICATION_ID and version > SCHEMA_VERSION:
        raise UnsupportedFormat(
            f"catalogue {path}: schema {version}, made by a newer lorahub-edge; this one reads {SCHEMA_VERSION}"
        )
    rows = connection.execute("SELECT type, name, sql FROM sqlite_master").fetchmany(100)
    ours = {("table", "modules", _TABLE), ("table", INDEX, _INDEX_TABLE)}
    parts = {row for row in rows if row[1] in _SHADOWS and row[0] == "table" and "VIRTUAL" not in row[2]}
    automatic = {row for row in rows if row[0] == "index" and row[2] is None}
    is_ours = ("table", "modules", _TABLE) in rows and not set(rows) - ours - parts - automatic
    if (kind, version) != (_APPLICATION_ID, SCHEMA_VERSION) or not is_ours:
        raise UnsupportedFormat(f"catalogue {path} is another program's SQLite file; name another")
    if ("table", INDEX, _INDEX_TABLE) in rows and not _has_fts5(connection):
        raise UnsupportedFormat(f"catalogue {path} needs a SQLite with FTS5; this Python has none")


def _has_fts5(connection: sqlite3.Connection) -> bool:
    return ("fts5",) in connection.execute("SELECT name FROM pragma_module_list").fetchall()


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:  # locked, read-only, full, no such folder
        raise LorahubEdgeError(
            f"catalogue {path}: cannot be read or written ({first_line(error)}); name another with --catalogue"
        ) from error
    except sqlite3.Error as error:
        raise UnsupportedFormat(
            f"catalogue {path}: damaged ({first_line(error)}); remove it and add its modules again"
        ) from error
    except OSError as error:
        raise LorahubEdgeError(f"catalogue {path}: cannot be read or written ({first_line(error)})") from error
