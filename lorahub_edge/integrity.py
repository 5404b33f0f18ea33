"""Integrity: records that hold the hashes of files and of themselves, compared before anything is loaded.

A hash finds what was damaged, cut or edited by mistake. It is no signature: a stranger can write a new one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from lorahub_edge.errors import UnsupportedFormat, first_line
from lorahub_edge.json_text import plain
from lorahub_edge.sources import sha256_file

# How something was made -> what makes it again.
_REMEDIES = {"exported": "export again", "merged": "merge again", "adapted": "adapt again"}
_OWN = "sha256"
_SHOWN_DIGITS = 16


def file_hashes(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """Name within the folder -> hex SHA-256, in name order."""
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in sorted(files)}


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record for JSON with the hash of itself, as `check_record` wants it."""
    content = {name: value for name, value in record.items() if name != _OWN}
    return {**content, _OWN: _digest(content)}


def check_record(record: Mapping[str, Any], where: object, made: str) -> None:
    """Compare a record that was read with its own hash; one without any is an early one and passes.

    Args:
        record: what was read.
        where: its place, for the message.
        made: "exported", "merged" or "adapted".

    Raises:
        UnsupportedFormat: it was changed.
    """
    if _OWN in record:
        check_hash(where, record[_OWN], sealed(record)[_OWN], made)


def check_files(folder: Path, hashes: object, made: str) -> None:
    """Compare files with their recorded hashes. Each is read as a whole: about a second per GB.

    Args:
        folder: where they are.
        hashes: name within the folder -> hex SHA-256, as a record has it.
        made: see `check_record`.

    Raises:
        UnsupportedFormat: names the first file that is gone or not what was written.
    """
    if not isinstance(hashes, Mapping) or not all(isinstance(value, str) for value in hashes.values()):
        raise UnsupportedFormat(f"{folder}: its record of files is no table of hashes; {_REMEDIES[made]}")
    for name, expected in hashes.items():
        try:
            is_here = ".." not in PurePosixPath(name).parts and (folder / name).is_file()
            received = sha256_file(folder / name) if is_here else None
        except OSError as error:
            raise UnsupportedFormat(f"{folder}: {name} cannot be read ({first_line(error)})") from error
        if received is None:
            raise UnsupportedFormat(f"{folder}: {name} is missing; {_REMEDIES[made]}")
        check_hash(folder / name, expected, received, made)


def check_hash(where: object, expected: object, received: str, made: str) -> None:
    """Compare two hex SHA-256.

    Raises:
        UnsupportedFormat: they differ.
    """
    if received != expected:
        raise UnsupportedFormat(
            f"{where} is not what was {made} (expected sha256 {str(expected)[:_SHOWN_DIGITS]}..., "
            f"received {received[:_SHOWN_DIGITS]}...); {_REMEDIES[made]}"
        )


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain(content), sort_keys=True).encode()).hexdigest()
