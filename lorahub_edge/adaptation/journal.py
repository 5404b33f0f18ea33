"""Journals: every evaluation of a stage, one line each, written as it happens, from which the next start can go on."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from lorahub_edge.adaptation.objective import Value
from lorahub_edge.errors import InvalidInput, LorahubEdgeError, LorahubEdgeWarning
from lorahub_edge.json_text import to_json
from lorahub_edge.outputs import write_errors, write_text
from lorahub_edge.search import Evaluated

_NUMBERS = ("objective", "loss", "l1_penalty", "mean_loss")


def journal_record(evaluated: Evaluated[Value]) -> dict[str, Any]:
    """One line of a journal."""
    return {
        "index": evaluated.index,
        **{name: getattr(evaluated.value, name) for name in _NUMBERS},
        "example_losses": list(evaluated.value.example_losses),
        "coefficients": evaluated.coefficients.tolist(),
    }


CHOICE_JOURNAL, CONTROLS_JOURNAL, JOURNAL, NULL_JOURNAL = (
    "choice.jsonl",
    "controls.jsonl",
    "journal.jsonl",
    "null.jsonl",
)
JOURNALS = (CHOICE_JOURNAL, CONTROLS_JOURNAL, JOURNAL, NULL_JOURNAL)


def notes_of(journal: str) -> str:
    """The file beside a journal that keeps its notes."""
    return f"{Path(journal).stem}.notes.json"


NOTES, NULL_NOTES = notes_of(JOURNAL), notes_of(NULL_JOURNAL)


class JournalNotWritten(LorahubEdgeWarning):
    """A journal cannot be written now; its evaluations are in memory only."""


class Journal:
    """The journal of one stage: its evaluations, and notes of what else it computed and must not compute otherwise.

    Attributes:
        values: of earlier starts, line by line.
        known: the same: bytes of the coefficients -> value.
        n_known: how many lines they left.
        evaluated: of this start, in order; what was known is among them once the search has come to it again.

    Args:
        path: its file, which may hold lines of an earlier start; None to keep it in memory only.

    Raises:
        InvalidInput: the file holds something else.
        LorahubEdgeError: it cannot be written.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.evaluated: list[Evaluated[Value]] = []
        records, self._n_bytes = ([], 0) if path is None else _read(path)
        self._notes_path = Path() if path is None else path.with_name(notes_of(path.name))
        self._notes = _read_notes(self._notes_path)
        self.values = [_value(record) for record in records]
        self.known = dict(zip(map(_key, records), self.values, strict=True))
        self.n_known = len(records)
        self._n_noted = len(records)
        self._elapsed_s = float(records[-1].get("elapsed_s", 0.0)) if records else 0.0
        self._unwritten = b""
        self._file: FileIO | None = None
        if path is not None:
            with write_errors(path):
                self._file = FileIO(path, "a")
                self._file.truncate(self._n_bytes)

    def append(self, batch: Sequence[Evaluated[Value]], *, elapsed_s: float = 0.0) -> None:
        """Note a batch and hand it to the system in one piece: a kill leaves all of it or nothing.

        A disk that is full costs a warning only: the lines are kept in memory and written later, at the latest by
        `flush`.

        Args:
            batch: evaluations that were computed together.
            elapsed_s: seconds since this start began the stage.
        """
        self.evaluated += batch
        new = [e for e in batch if e.index >= self._n_noted]
        if self._file is None or not new:
            return
        seconds = {"elapsed_s": round(self._elapsed_s + elapsed_s, 4)}
        had_trouble = bool(self._unwritten)
        self._unwritten += "".join(to_json({**journal_record(e), **seconds}, indent=None) + "\n" for e in new).encode()
        self._n_noted += len(new)
        try:
            self.flush()
        except LorahubEdgeError as error:
            if not had_trouble:
                warnings.warn(f"{error}; the search goes on", JournalNotWritten, stacklevel=2)

    @property
    def notes(self) -> Mapping[str, list[float]]:
        """Name -> numbers; see `noted`."""
        return self._notes

    def noted(self, name: str, compute: Callable[[], list[float]]) -> list[float]:
        """What an earlier start noted under this name; or else what `compute` gives now, which is noted at once.

        A note that cannot be written costs a later start the computation, nothing else.
        """
        if name not in self._notes:
            self._notes[name] = compute()
            if self._file is not None:
                with suppress(LorahubEdgeError), write_errors(self._notes_path):
                    write_text(self._notes_path, to_json(self._notes))
        return self._notes[name]

    def flush(self) -> None:
        """Write what could not be written before.

        Raises:
            LorahubEdgeError: it still cannot; the file ends with a whole batch.
        """
        if self._file is None or not self._unwritten:
            return
        with write_errors(Path(self._file.name)):
            try:
                _write_all(self._file, self._unwritten)
            except OSError:
                self._file.truncate(self._n_bytes)
                raise
        self._n_bytes += len(self._unwritten)
        self._unwritten = b""

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            file, self._file = self._file, None
            file.close()


@dataclass(frozen=True)
class Journals:
    """One for each stage that evaluates candidates."""

    choice: Journal
    controls: Journal
    search: Journal
    null: Journal

    @classmethod
    def in_memory(cls) -> Journals:
        """Without files."""
        return cls(*(Journal() for _ in JOURNALS))

    @classmethod
    def in_folder(cls, folder: Path) -> Journals:
        """With files, which may hold lines of an earlier start. Raises: see `Journal`."""
        journals = []
        with ExitStack() as opened:
            for name in JOURNALS:
                journals.append(Journal(folder / name))
                opened.callback(journals[-1].close)
            opened.pop_all()
        return cls(*journals)

    @property
    def computed_before(self) -> dict[bytes, Value]:
        """What an earlier start computed with the real modules."""
        return {**self.controls.known, **self.search.known}

    def flush(self) -> None:
        """See `Journal.flush`."""
        for journal in vars(self).values():
            journal.flush()

    def close(self) -> None:
        """Let go of the files."""
        for journal in vars(self).values():
            journal.close()


def _read(path: Path) -> tuple[list[Mapping[str, Any]], int]:
    """The whole lines of a journal, and their length: a line that was cut off by a kill is left out."""
    if not path.exists():
        return [], 0
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    records = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            record = json.loads(line)
            _key(record), _value(record)
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInput(f"{path}:{number}: not a line of a journal ({error}); remove its folder") from error
        records.append(record)
    return records, len(whole) + 1 if whole else 0


def _read_notes(path: Path) -> dict[str, list[float]]:
    """Name -> numbers; none if there is no such file."""
    if not path.is_file():
        return {}
    try:
        return {str(name): [float(x) for x in numbers] for name, numbers in json.loads(path.read_bytes()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidInput(f"{path}: not a journal's notes ({error}); remove its folder") from error


def _write_all(file: FileIO, data: bytes) -> None:
    while data:
        data = data[file.write(data) :]


def _key(record: Mapping[str, Any]) -> bytes:
    return np.array(record["coefficients"], dtype=np.float64).tobytes()


def _value(record: Mapping[str, Any]) -> Value:
    return Value(
        mean_loss=_number(record["mean_loss"]),
        loss=_number(record["loss"]),
        l1_penalty=_number(record["l1_penalty"]),
        example_losses=tuple(map(_number, record["example_losses"])),
    )


def _number(number: float | None) -> float:
    return math.nan if number is None else float(number)
