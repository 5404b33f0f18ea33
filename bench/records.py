"""Where the repository keeps its records; their format is the package's (lorahub_edge/benchmark/records.py)."""

from __future__ import annotations

import sys
from pathlib import Path

from lorahub_edge.benchmark.records import SCHEMA, Record, append, commit, key_of, make_record, read

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"

__all__ = ["RESULTS", "ROOT", "SCHEMA", "Record", "append", "commit", "key_of", "make_record", "read", "say"]


def say(line: str) -> None:
    """Tell where a bench stands, on stderr."""
    sys.stderr.write(line + "\n")
