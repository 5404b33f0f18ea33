"""Memory-mapped files kept between starts: what is slow to make from a checkpoint and always comes out the same.

An entry is a folder named by the hash of everything that went into it, so it can never be stale. It is written under a
name of its own and renamed when whole, so that starts at the same time cannot harm each other; the checksums of its
files are compared each time it is opened, and a broken entry is dropped and made again. The folder may be deleted at
any time, also while a process has an entry mapped.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorahub_edge.errors import LorahubEdgeError, LorahubEdgeWarning, OutputExists, first_line
from lorahub_edge.outputs import remove, remove_dead_partials, whole_folder, write_text
from lorahub_edge.sources import sha256_file, sha256_files

_FORMAT = 2
_RECORD = "entry.json"
_CHUNK_BYTES = 1 << 20
_ENV_FOLDER = "LORAHUB_EDGE_CACHE"
_ENV_BYTES = "LORAHUB_EDGE_CACHE_BYTES"
_DEFAULT_BYTES = 20 * 10**9
# Below this reading a file again is as fast as finding what is remembered of it.
_MIN_HASHED_BYTES = 4 << 20


class CacheWarning(LorahubEdgeWarning):
    """The cache could not be used as it should; the result is the same, only later."""


@dataclass(frozen=True)
class Entry:
    """A whole, checked entry.

    Attributes:
        folder: with the files that were stored.
        record: what was stored beside them.
    """

    folder: Path
    record: Mapping[str, Any]


@dataclass(frozen=True)
class Cache:
    """A folder of entries.

    Attributes:
        folder: made when first needed.
        max_bytes: the entries used longest ago are deleted above this.
        min_bytes: who fills the cache leaves out what is made from less than this: it is as fast to make as to find.
    """

    folder: Path
    max_bytes: int = _DEFAULT_BYTES
    min_bytes: int = 64 << 20

    def open(self, key: str) -> Entry | None:
        """The entry of a key, or None; one that is broken is dropped, with a warning."""
        folder = self._entries / key
        remove_dead_partials(self._entries)
        try:
            record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
            broken = _broken_file(folder, record["files"])
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            broken = f"{_RECORD} ({first_line(error)})"
        if broken:
            _warn(f"cache entry {folder}: {broken} is not what was written; made again")
            with suppress(OSError):
                remove(folder)
            return None
        with suppress(OSError):
            os.utime(folder / _RECORD)  # marks it as used
        return Entry(folder, record["record"])

    def store(self, key: str, write: Callable[[Path], Mapping[str, Any]]) -> None:
        """Make an entry; a cache that cannot be written to costs a warning, nothing else.

        Args:
            key: see `key_of`.
            write: puts files into an empty folder and returns a record for JSON.
        """
        try:
            with suppress(OutputExists), whole_folder(self._entries / key, drop_if_late=True) as partial:
                self._write(partial, write)
        except LorahubEdgeError as error:
            _warn(f"cache {self.folder}: {error}; the next start will be as slow")
        self._trim(keep=key)

    def sha256_files(self, files: Iterable[Path]) -> dict[str, str]:
        """File name -> hex SHA-256, in name order; a large file that has not changed since is not read again."""
        return {path.name: self.sha256_file(path) for path in sorted(files)}

    def sha256_file(self, path: Path) -> str:
        """Hex SHA-256 of a file; remembered by its place, size, inode and times of change."""
        status = path.stat()
        if status.st_size < _MIN_HASHED_BYTES:
            return sha256_file(path)
        seen = [
            str(path.resolve()),
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
        ]
        note = self.folder / "hashes" / f"{hashlib.sha256(seen[0].encode()).hexdigest()[:32]}.json"  # type: ignore[attr-defined]
        with suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads(note.read_text(encoding="utf-8"))
            if known["file"] == seen:
                return str(known["sha256"])
        digest = sha256_file(path)
        with suppress(OSError, LorahubEdgeError):
            note.parent.mkdir(parents=True, exist_ok=True)
            write_text(note, json.dumps({"file": seen, "sha256": digest}))
        return digest

    @property
    def _entries(self) -> Path:
        return self.folder / "entries"

    def _write(self, partial: Path, write: Callable[[Path], Mapping[str, Any]]) -> None:
        record = write(partial)
        files = {p.name: {"bytes": p.stat().st_size, "crc32": _crc32(p)} for p in sorted(partial.iterdir())}
        (partial / _RECORD).write_text(json.dumps({"files": files, "record": record}), encoding="utf-8")

    def _trim(self, *, keep: str) -> None:
        with suppress(OSError):
            used: list[tuple[int, Path]] = sorted(
                (r.stat().st_mtime_ns, r.parent) for r in self._entries.glob(f"*/{_RECORD}")
            )
            sizes = {folder: sum(f.stat().st_size for f in folder.iterdir()) for _, folder in used}
            total = sum(sizes.values())
            for _, folder in used:
                if total > self.max_bytes and folder.name != keep:
                    remove(folder)
                    total -= sizes[folder]


def default_cache() -> Cache | None:
    """The user's cache: $LORAHUB_EDGE_CACHE, or lorahub_edge in the system's place for caches; None if it is "off".

    At most $LORAHUB_EDGE_CACHE_BYTES, 20 GB unless told otherwise.
    """
    named = os.environ.get(_ENV_FOLDER)
    if named == "off":
        return None
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(named) if named else Path(home) / "lorahub_edge"
    limit = os.environ.get(_ENV_BYTES, "")
    return Cache(folder.expanduser(), max_bytes=int(limit) if limit.isdigit() else _DEFAULT_BYTES)


def content_hashes(files: Iterable[Path], cache: Cache | None) -> dict[str, str]:
    """File name -> hex SHA-256, in name order, remembered where there is a cache."""
    return sha256_files(list(files)) if cache is None else cache.sha256_files(files)


def key_of(kind: str, **parts: Any) -> str:
    """The name of an entry: a hash of all that it is made from.

    Args:
        kind: what is kept, for people who look into the folder.
        parts: anything JSON can say.
    """
    text = json.dumps([_FORMAT, kind, parts], sort_keys=True)
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def _broken_file(folder: Path, files: Mapping[str, Mapping[str, int]]) -> str | None:
    for name, expected in files.items():
        path = folder / name
        whole = path.is_file() and path.stat().st_size == expected["bytes"]
        if not whole or _crc32(path) != expected["crc32"]:
            return name
    return None


def _crc32(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            value = zlib.crc32(chunk, value)
    return value


def _warn(message: str) -> None:
    warnings.warn(message, CacheWarning, stacklevel=3)
