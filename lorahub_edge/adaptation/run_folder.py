"""The run folder: everything a run leaves behind. Until it is whole it is called NAME.unfinished.

manifest.json       inputs with hashes, versions, seeds, resolved optimiser, timings, peak memory
journal.jsonl       one line per evaluation of the search, written as it happens
coefficients.json   module name -> coefficient, in the order given
examples.jsonl      what the search saw
adapter/            the composed module in PEFT's layout
report.json/.html   the controls' table and the verdict, the loss curve, the coefficients

A folder that a run left unfinished holds journals of its stages and `inputs.json`, which says what they were computed
from. The next start with the same output and inputs goes on from them.
"""

from __future__ import annotations

import datetime
import itertools
import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from lorahub_edge.adaptation.journal import (
    CHOICE_JOURNAL,
    CONTROLS_JOURNAL,
    JOURNAL,
    JOURNALS,
    NOTES,
    NULL_NOTES,
    Journals,
)
from lorahub_edge.errors import InvalidInput, LorahubEdgeWarning, OutputExists, UnsupportedFormat
from lorahub_edge.json_text import to_json
from lorahub_edge.modules import RUN_FORMAT
from lorahub_edge.outputs import (
    claimed,
    fingerprint,
    is_vacant,
    publish,
    remove_dead_partials,
    whole_file,
    write_errors,
    write_text,
)
from lorahub_edge.sources import local_path, read_json, record_of

MANIFEST, COEFFICIENTS, ADAPTER, EXAMPLES = "manifest.json", "coefficients.json", "adapter", "examples.jsonl"
REPORT_JSON, REPORT_HTML = "report.json", "report.html"
INPUTS, UNFINISHED = "inputs.json", ".unfinished"

# Part of the inputs -> its hash.
Inputs = Mapping[str, str]


class RunUnfinished(LorahubEdgeWarning):
    """A run ended early; what it had computed is kept."""


def is_run_folder(folder: Path) -> bool:
    """Whether a folder holds a finished run of ours."""
    return _manifest(folder) is not None


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a run of ours that nothing ended early."""
    manifest = _manifest(folder)
    return manifest is not None and not _was_interrupted(manifest)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished run.

    Raises:
        InvalidInput: the folder is not one.
    """
    manifest = _manifest(folder)
    if manifest is None:
        raise InvalidInput(
            f"{folder} is not a run folder; expected one with a {MANIFEST} that lorahub-edge adapt wrote"
        )
    return manifest


def _manifest(folder: Path) -> dict[str, Any] | None:
    return record_of(folder / MANIFEST, RUN_FORMAT)


def _was_interrupted(manifest: Mapping[str, Any] | None) -> bool:
    search = (manifest or {}).get("search")
    return isinstance(search, dict) and search.get("interrupted") is True


def _is_unfinished(folder: Path) -> bool:
    return folder.name.endswith(UNFINISHED) and (folder / INPUTS).is_file()


def newest_unfinished(parent: Path, task: str) -> Path | None:
    """The final name of the run of a task that ended early last, of those in `parent` with a default name, or None."""
    is_its_name = re.compile(rf"{re.escape(task)}-\d{{8}}-\d{{6}}(-\d+)?({re.escape(UNFINISHED)})?").fullmatch
    runs = [path for path in parent.glob("*") if is_its_name(path.name)]
    ended = [path for path in runs if _is_unfinished(path) or _was_interrupted(_manifest(path))]
    newest = max(ended, key=lambda path: path.stat().st_mtime_ns, default=None)
    return None if newest is None else newest.with_name(newest.name.removesuffix(UNFINISHED))


def default_place(parent: Path, task: str) -> Path:
    """Where a run's folder goes unless a user names it; two runs of one second get two names."""
    first = parent / f"{task}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    names = (first if n == 1 else first.with_name(f"{first.name}-{n}") for n in itertools.count(1))
    return next(place for place in names if not (place.exists() or place.with_name(place.name + UNFINISHED).exists()))


class RunFolder:
    """A run folder in the making.

    Use it as a context: after an error the journals stay for the next start if they hold an evaluation; without one
    nothing is left.

    Args:
        folder: the final name. Nothing, an empty folder, a run that Ctrl-C ended, or (with `overwrite`) any run of ours
            may be there.
        overwrite: replace an earlier run, and drop the journals of another one that was left unfinished.
        resume: refuse to begin from nothing.

    Raises:
        OutputExists: something else is there, or another process writes it.
        InvalidInput: `resume`, and there is nothing to go on from.
        LorahubEdgeError: nothing can be written there.
    """

    def __init__(self, folder: str | Path, *, overwrite: bool = False, resume: bool = False) -> None:
        self.folder = local_path(folder).absolute()
        self.unfinished = self.folder.with_name(self.folder.name + UNFINISHED)
        self._overwrite = overwrite
        self._has_begun = self._is_finished = False
        self._earlier = _manifest(self.folder)
        _check_place(self.folder, is_run=self._earlier is not None)
        self._replaces = fingerprint(self.folder) if self._earlier is not None else None
        if self._earlier is not None and not overwrite and not _was_interrupted(self._earlier):
            raise OutputExists(
                f"output folder {self.folder} holds an earlier run; add --overwrite or name a new folder"
            )
        if resume and not (_was_interrupted(self._earlier) or _is_unfinished(self.unfinished)):
            raise InvalidInput(f"resume: expected a run that ended early in {self.unfinished}, found none")
        self._stack = ExitStack()
        self._lock()

    def _lock(self) -> None:
        with write_errors(self.folder):
            remove_dead_partials(self.unfinished)
            if not is_vacant(self.unfinished) and not _is_unfinished(self.unfinished):
                raise OutputExists(
                    f"{self.unfinished} exists and is no unfinished run; rename it, or name a new folder"
                )
            self.unfinished.mkdir(parents=True, exist_ok=True)
            self._stack.enter_context(claimed(self.unfinished, self.folder))

    def begin(self, inputs: Inputs) -> Journals:
        """The journals, with what an earlier start computed from the same inputs.

        Args:
            inputs: part of the inputs -> its hash: all that the evaluations depend on.

        Raises:
            OutputExists: an unfinished or interrupted run with other inputs is there, and not `overwrite`.
        """
        earlier = (self._earlier or {}).get("inputs") if _was_interrupted(self._earlier) else None
        found = None
        with suppress(UnsupportedFormat):
            found = read_json(self.unfinished / INPUTS)
        if not self._overwrite:
            _check_same_inputs(self.folder, earlier, inputs)
            _check_same_inputs(self.unfinished, found, inputs)
        with write_errors(self.folder):
            if found != inputs:
                _empty(self.unfinished)
                write_text(self.unfinished / INPUTS, json.dumps(inputs))
            if earlier == inputs:
                self._go_on_from_interrupted()
        self._journals = Journals.in_folder(self.unfinished)
        self._has_begun = True
        self._stack.callback(self._journals.close)
        return self._journals

    def _go_on_from_interrupted(self) -> None:
        for name in (CHOICE_JOURNAL, CONTROLS_JOURNAL, JOURNAL, NOTES):
            if (self.folder / name).is_file() and not (self.unfinished / name).exists():
                with whole_file(self.unfinished / name) as partial:
                    shutil.copyfile(self.folder / name, partial)

    def write(self, name: str, content: str | Mapping[str, Any]) -> None:
        """Write one text or JSON file."""
        text = content if isinstance(content, str) else to_json(content) + "\n"
        with write_errors(self.folder):
            (self.unfinished / name).write_text(text, encoding="utf-8")

    @property
    def adapter(self) -> Path:
        """Where the composed module is to be written before `finish`."""
        path = self.unfinished / ADAPTER
        path.mkdir(exist_ok=True)
        return path

    def finish(self, *, keep_journals: bool) -> Path:
        """Give the folder its final name, replacing an earlier run only once this one is whole; returns it.

        Args:
            keep_journals: whether those of the choice of modules and of the controls are needed to go on later.

        Raises:
            OutputExists: something has appeared there since; the message says where the run is now.
            LorahubEdgeError: it cannot be written.
        """
        self._journals.flush()
        with write_errors(self.folder):
            publish(self.unfinished, self.folder, replaces=self._replaces)
            self._is_finished = True
            kept = (JOURNAL, *((CHOICE_JOURNAL, CONTROLS_JOURNAL, NOTES) if keep_journals else ()))
            for path in (self.folder / name for name in (INPUTS, *JOURNALS, NOTES, NULL_NOTES)):
                is_empty = path.is_file() and path.stat().st_size == 0
                if path.name not in kept or (is_empty and path.name != JOURNAL):
                    path.unlink(missing_ok=True)
        return self.folder

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._stack:
            if self._is_finished or not self.unfinished.exists():
                return
            n_kept = _n_evaluations(self.unfinished)
            if n_kept == 0:
                shutil.rmtree(self.unfinished, ignore_errors=True)
            elif kind is not None and self._has_begun:
                warnings.warn(
                    f"{n_kept} evaluations are kept in {self.unfinished}; the same command goes on from there",
                    RunUnfinished,
                    stacklevel=2,
                )


def _check_place(folder: Path, *, is_run: bool) -> None:
    if folder.is_symlink():
        raise OutputExists(f"output {folder} is a link; name a new folder")
    if folder.exists() and not folder.is_dir():
        raise OutputExists(f"output {folder} is a file; name a new folder")
    if os.path.ismount(folder):
        raise OutputExists(f"output {folder} is where a disk is mounted; name a new folder in it")
    if not is_run and not is_vacant(folder):
        raise OutputExists(f"output folder {folder} exists and is not a run of lorahub-edge; name a new folder")


def _check_same_inputs(place: Path, found: Inputs | None, inputs: Inputs) -> None:
    if found is not None and found != inputs:
        parts = ", ".join(part for part in inputs if found.get(part) != inputs[part])
        raise OutputExists(
            f"{place} holds a run that ended early and differs from this one in: {parts}; "
            "add --overwrite to drop it, or name a new folder"
        )


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _n_evaluations(unfinished: Path) -> int:
    """Of all journals of an unfinished run."""
    found = 0
    for name in JOURNALS:
        with suppress(OSError):
            found += (unfinished / name).read_bytes().count(b"\n")
    return found
