"""One record format for all benches: a JSON line with what ran (setup), on what (machine, commit) and what came out.

Result files only grow. A record's key is a hash of its setup alone, so that a bench finds what it has measured already,
whatever the commit; among records of one key the last one counts.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorahub_edge.errors import InvalidInput
from lorahub_edge.json_text import plain, to_json
from lorahub_edge.measure import machine, versions

SCHEMA = 1

Record = Mapping[str, Any]


def key_of(bench: str, setup: Mapping[str, Any]) -> str:
    """The name of a point: equal setups of a bench give equal keys, on any machine and commit."""
    text = json.dumps([bench, setup], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def make_record(bench: str, setup: Mapping[str, Any], metrics: Mapping[str, Any]) -> Record:
    """A record of something measured just now, by this process.

    Args:
        bench: the bench's name.
        setup: all that was decided before the run; its hash is the key.
        metrics: all that came out, units in the names.
    """
    return {
        "schema": SCHEMA,
        "bench": bench,
        "key": key_of(bench, setup),
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **commit(),
        "machine": machine(),
        "versions": versions(),
        "setup": dict(setup),
        "metrics": plain(metrics),
    }


def commit() -> dict[str, Any]:
    """The checkout's commit, and whether its files (results and pages aside) differ from it.

    None for an installed copy, also for one that lies inside some other repository.
    """
    here = Path(__file__)
    if _git("ls-files", "--error-unmatch", here.name) is None:
        return {"commit": None, "dirty": None}
    inputs = [":/", ":(top,exclude)bench/results", ":(top,exclude)README.md", ":(top,exclude)docs"]
    return {"commit": _git("rev-parse", "HEAD"), "dirty": bool(_git("status", "--porcelain", "--", *inputs))}


def _git(*arguments: str) -> str | None:
    folder = Path(__file__).parent
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def append(path: Path, record: Record) -> None:
    """Add a record at the end of a result file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(to_json(record, indent=None) + "\n")


def read(path: Path) -> list[Record]:
    """The records of a result file, oldest first, the last one of each key; none if there is no such file.

    Raises:
        InvalidInput: a line that is no record of this schema; names file and line.
    """
    if not path.exists():
        return []
    records = [_parse(line, f"{path}:{n}") for n, line in enumerate(_lines(path), start=1) if line.strip()]
    last = {record["key"]: number for number, record in enumerate(records)}
    return [records[number] for number in sorted(last.values())]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"result file {path}: cannot be read as text ({error})") from error


def _parse(line: str, where: str) -> Record:
    try:
        record = json.loads(line)
        schema, _ = record["schema"], record["key"]
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidInput(f"{where}: not a record ({error}); a killed run left it: remove the line") from error
    if schema != SCHEMA:
        raise InvalidInput(f"{where}: schema {schema}, expected {SCHEMA}")
    return dict(record)
