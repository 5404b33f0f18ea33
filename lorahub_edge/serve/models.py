"""Models: what requests may ask for by name, a base and its adapters. Adapters come and go while the service runs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorahub_edge.errors import InvalidInput, LorahubEdgeError, first_line
from lorahub_edge.serve.adapter import ADAPTER_SUFFIX, ADAPTERS, NO_ADAPTER, Mix, adapter_file, read_adapter
from lorahub_edge.serve.folder import ExportFolder, open_folder, with_adapter, without_prompt
from lorahub_edge.sources import local_path

MAX_NAME = 200
_log = logging.getLogger("lorahub_edge.serve")


class UnknownModel(LorahubEdgeError):
    """A request asks for a model that is not served."""


@dataclass(frozen=True)
class Served:
    """One model that requests may ask for.

    Attributes:
        name: by which they do.
        files: the base's files, with this model's prompt and length of answers.
        root: where it came from.
        parent: the base's name, or None for the base itself.
        created: seconds since 1970.
        stamp: size and time of an adapter's file when it was read.
    """

    name: str
    files: ExportFolder
    root: str
    parent: str | None = None
    created: int = 0
    stamp: tuple[int, int] | None = None

    @property
    def mix(self) -> Mix:
        """Its adapter, at full scale."""
        return () if self.files.adapter is None else ((self.files.adapter, 1.0),)


class Models:
    """A base and the adapters that are served beside it.

    Args:
        folder: an exported folder. One that was opened with an adapter serves just that one beside its base.
        adapters: NAME=FILE, a file, the name of one in the folder, a folder of them, or "none". The first one answers
            requests that name no model. Without any: all of the exported folder's own, its default first.

    Folders, the exported one's own among them, are looked at again by `refresh`.

    Raises:
        InvalidInput, UnsupportedFormat: see `open_folder`; two adapters of one name.
    """

    def __init__(self, folder: str | Path | ExportFolder, adapters: Sequence[str | Path] = ()) -> None:
        opened = folder if isinstance(folder, ExportFolder) else open_folder(folder, adapter=NO_ADAPTER)
        takes_adapters = opened.record.get("adapter") is not None
        self._lock = threading.Lock()
        self._adapters: dict[str, Served] = {}
        self._watched: list[Path] = []
        self._left_out: dict[Path, tuple[int, int]] = {}  # until its stamp is another one
        root = opened.folder.resolve()
        name = root.name.encode("utf-8", "replace").decode()
        files = without_prompt(opened) if takes_adapters else opened
        self.base = Served(name, files, str(root), created=int(time.time()))
        self.default = self.base.name
        if opened.adapter is not None:
            alone = Served(opened.adapter.name, opened, str(root), name, self.base.created)
            self._adapters, self.default = {alone.name: alone}, alone.name
        elif takes_adapters:
            self._open(adapters, str(opened.record["adapter"]["default"]))
        else:
            for spec in adapters:
                adapter_file(opened.folder, opened.record, spec)  # says why not

    def _open(self, adapters: Sequence[str | Path], default: str) -> None:
        own = self.base.files.folder / ADAPTERS
        for spec in adapters or (own,):
            if spec == NO_ADAPTER:
                continue
            name, _, path = str(spec).partition("=")
            if not path and local_path(spec).is_dir():
                self._watched.append(local_path(spec))
                self._look_at(self._watched[-1], is_strict=True)
            else:
                self.load(name if path else None, path or spec)
        names = list(self._adapters)
        is_own = not adapters and default in names
        if names and (not adapters or str(adapters[0]) != NO_ADAPTER):
            self.default = default if is_own else names[0]

    def resolve(self, name: str | None) -> Served:
        """The model of this name, or the default one.

        Raises:
            UnknownModel: no such model; never answered by another one.
        """
        wanted = self.default if name is None else name
        found = self.base if wanted == self.base.name else self._adapters.get(wanted)
        if found is None:
            raise UnknownModel(f"model: '{wanted}' is not served here; see /v1/models")
        return found

    def all(self) -> list[Served]:
        """The base and its adapters."""
        return [self.base, *self.adapters()]

    def adapters(self) -> list[Served]:
        """The adapters, in the order in which they were loaded."""
        return list(self._adapters.values())

    def mix(self, scales: Mapping[int, float]) -> Mix:
        """Adapters by their places in `adapters`, each with its scale; a scale of 0 leaves one out.

        Raises:
            InvalidInput: no adapter has this place.
        """
        here = self.adapters()
        if unknown := [place for place in scales if place >= len(here)]:
            raise InvalidInput(f"lora: expected ids below {len(here)} (see /lora-adapters), received {unknown[0]}")
        chosen = ((here[place].files.adapter, scale) for place, scale in scales.items() if scale)
        return tuple((adapter, scale) for adapter, scale in chosen if adapter is not None)

    def load(self, name: str | None, source: str | Path) -> Served:
        """Serve one more adapter.

        Args:
            name: by which requests ask for it; the file's if None.
            source: its file, or the name of one in the exported folder.

        Raises:
            InvalidInput, UnsupportedFormat: see `adapter_file` and `read_adapter`; a name that is taken or no name.
        """
        record = self.base.files.record
        path = adapter_file(self.base.files.folder, record, source)
        if path is None:
            raise InvalidInput(f"adapter: expected a file, received '{source}'")
        served = self._read(name, path)
        with self._lock:
            self._check_name(served.name)
            self._adapters[served.name] = served
        return served

    def unload(self, name: str) -> None:
        """Serve an adapter no longer; answers under way are finished. A watched file comes back once it changes.

        Raises:
            UnknownModel: no such adapter.
        """
        with self._lock:
            served = self._adapters.pop(name, None)
            if served is None:
                raise UnknownModel(f"adapter: '{name}' is not loaded; see /v1/models")
            if served.stamp is not None:
                self._left_out[Path(served.root)] = served.stamp

    def refresh(self) -> None:
        """Look at the watched folders again. What cannot be read is logged, and what is served stays."""
        for folder in self._watched:
            try:
                self._look_at(folder, is_strict=False)
            except OSError as error:
                if folder not in self._left_out:
                    _log.warning("a folder of adapters cannot be looked at, and what is served stays: %s", error)
                self._left_out[folder] = (0, 0)
            else:
                self._left_out.pop(folder, None)

    def _look_at(self, folder: Path, *, is_strict: bool) -> None:
        files = sorted(path for path in folder.iterdir() if path.suffix == ADAPTER_SUFFIX and path.is_file())
        found = {path.resolve(): _stamp(path) for path in files}
        here = {Path(served.root): served for served in self.adapters() if Path(served.root).parent == folder.resolve()}
        for path, served in here.items():
            if path not in found:
                self._adapters.pop(served.name, None)  # a request may just have unloaded it
        for path, stamp in found.items():
            old = here.get(path)
            if (old is not None and old.stamp == stamp) or self._left_out.get(path) == stamp:
                continue
            try:
                served = self._read(None if old is None else old.name, path)
                with self._lock:
                    if old is None:
                        self._check_name(served.name)
                    self._adapters[served.name] = served
            except LorahubEdgeError as error:
                if is_strict:
                    raise
                self._left_out[path] = stamp
                _log.warning("an adapter was left out: %s", first_line(error))

    def _read(self, name: str | None, path: Path) -> Served:
        stamp = _stamp(path)
        adapter = read_adapter(path, self.base.files.record)
        files = with_adapter(self.base.files, adapter)
        return Served(name or adapter.name, files, str(path.resolve()), self.base.name, int(time.time()), stamp)

    def _check_name(self, name: str) -> None:
        if not (0 < len(name) <= MAX_NAME and name.isprintable()):
            raise InvalidInput(f"adapter: expected a name of 1 to {MAX_NAME} printable characters, received {name!r}")
        if name == self.base.name or name in self._adapters:
            raise InvalidInput(f"adapter: the name '{name}' is taken; unload that one, or choose another name")


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
