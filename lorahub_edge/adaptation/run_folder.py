"""The run folder: everything a run leaves behind, written under a temporary name and renamed when it is whole.

manifest.json       inputs with hashes, versions, seeds, resolved optimiser, timings, peak memory
journal.jsonl       one line per evaluation, flushed as it happens
coefficients.json   module name -> coefficient, in the order given
examples.jsonl      what the search saw
adapter/            the composed module in PEFT's layout
report.json/.html   the controls' table, the loss curve, the coefficients
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from lorahub_edge.errors import InvalidInput, LorahubEdgeError, OutputExists
from lorahub_edge.sources import write_text_atomically

RUN_FORMAT = "lorahub-edge-run/1"
MANIFEST, JOURNAL, COEFFICIENTS, ADAPTER = "manifest.json", "journal.jsonl", "coefficients.json", "adapter"
EXAMPLES = "examples.jsonl"
REPORT_JSON, REPORT_HTML = "report.json", "report.html"


def is_run_folder(folder: Path) -> bool:
    """Whether a folder holds a finished run of ours."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == RUN_FORMAT


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished run.

    Raises:
        InvalidInput: the folder is not one.
    """
    if not is_run_folder(folder):
        raise InvalidInput(
            f"{folder} is not a run folder; expected one with a {MANIFEST} that lorahub-edge adapt wrote"
        )
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return manifest


class RunFolder:
    """A run folder in the making. Its files lie under a temporary name beside the final one until `finish`.

    Args:
        folder: the final name. Must not exist, be empty, or (with `overwrite`) be an earlier run.

    Raises:
        OutputExists: the folder holds something else, or an earlier run and not `overwrite`.
        LorahubEdgeError: nothing can be written there.
    """

    def __init__(self, folder: str | Path, *, overwrite: bool = False) -> None:
        self.folder = Path(folder).expanduser().absolute()
        self._check(overwrite)
        self.partial = self.folder.with_name(f".{self.folder.name}.partial-{os.getpid()}")
        self._journal: TextIO | None = None
        try:
            shutil.rmtree(self.partial, ignore_errors=True)
            self.partial.mkdir(parents=True)
            (self.partial / ADAPTER).mkdir()
            self._journal = open(self.partial / JOURNAL, "w", encoding="utf-8")  # noqa: SIM115  closed by finish/discard
        except OSError as error:
            raise self._failure(error) from error

    def _check(self, overwrite: bool) -> None:
        if self.folder.is_symlink():
            raise OutputExists(f"output {self.folder} is a link; name a new folder")
        if not self.folder.exists():
            return
        if not self.folder.is_dir():
            raise OutputExists(f"output {self.folder} is a file; name a new folder")
        if not any(self.folder.iterdir()):
            return
        if not is_run_folder(self.folder):
            raise OutputExists(
                f"output folder {self.folder} exists and is not a run of lorahub-edge; name a new folder"
            )
        if not overwrite:
            raise OutputExists(
                f"output folder {self.folder} holds an earlier run; add --overwrite or name a new folder"
            )

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a line to the journal and hand it to the system at once."""
        assert self._journal is not None
        try:
            self._journal.write(json.dumps(record) + "\n")
            self._journal.flush()
        except OSError as error:
            raise self._failure(error) from error

    def write(self, name: str, content: str | Mapping[str, Any]) -> None:
        """Write one text or JSON file."""
        text = content if isinstance(content, str) else json.dumps(content, indent=2) + "\n"
        try:
            write_text_atomically(self.partial / name, text)
        except OSError as error:
            raise self._failure(error) from error

    @property
    def adapter(self) -> Path:
        """Where the composed module is to be written before `finish`."""
        return self.partial / ADAPTER

    def finish(self) -> Path:
        """Give the folder its final name, replacing an earlier run only once this one is whole; returns it."""
        try:
            self._close()
            earlier = self.folder.with_name(f".{self.folder.name}.earlier-{os.getpid()}")
            if self.folder.exists():
                self.folder.rename(earlier)
            try:
                self.partial.rename(self.folder)
            except BaseException:
                if earlier.exists():
                    earlier.rename(self.folder)
                raise
            shutil.rmtree(earlier, ignore_errors=True)
        except OSError as error:
            raise self._failure(error) from error
        return self.folder

    def discard(self) -> None:
        """Remove what was written so far; an earlier run under the final name stays."""
        with contextlib.suppress(OSError):  # closing may fail on the very disk that was full
            self._close()
        shutil.rmtree(self.partial, ignore_errors=True)

    def _close(self) -> None:
        if self._journal is not None:
            journal, self._journal = self._journal, None
            journal.close()

    def _failure(self, error: OSError) -> LorahubEdgeError:
        return LorahubEdgeError(f"output folder {self.folder}: cannot be written ({error.strerror or error})")
