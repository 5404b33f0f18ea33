"""The catalogue: one SQLite file that knows thousands of modules, so that few of their folders need be opened."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lorahub_edge.cache import default_cache
from lorahub_edge.catalogue.bases import is_base
from lorahub_edge.catalogue.database import is_there, reading, writing
from lorahub_edge.catalogue.entry import Entry, asked_for, read_entry
from lorahub_edge.catalogue.folders import folders_of, is_module_folder
from lorahub_edge.catalogue.query import Query
from lorahub_edge.catalogue.rows import delete, entries_with, entry_named, insert
from lorahub_edge.errors import InvalidInput, LorahubEdgeError
from lorahub_edge.sources import Source, local_path, moved_to

_ENV_FILE = "LORAHUB_EDGE_CATALOGUE"
_FILE = "catalogue.sqlite"
_COMMIT_EVERY_S = 1.0

OnAdded = Callable[[str], None]


def default_catalogue() -> Path:
    """$LORAHUB_EDGE_CATALOGUE, or catalogue.sqlite in the cache's folder.

    Raises:
        InvalidInput: neither is there, since the cache is off.
    """
    if named := os.environ.get(_ENV_FILE):
        return local_path(named)
    cache = default_cache()
    if cache is None:
        raise InvalidInput(f"the cache is off, and the catalogue lies in its folder; name one by {_ENV_FILE}=FILE")
    return cache.folder / _FILE


@dataclass
class Added:
    """What `Catalogue.add` did.

    Attributes:
        added, updated: the entries that are new, and those that were read again.
        n_unchanged: modules whose files have the sizes and times that the catalogue knows.
        refused: what was asked for -> why it was not added.
    """

    added: list[Entry] = field(default_factory=list)
    updated: list[Entry] = field(default_factory=list)
    n_unchanged: int = 0
    refused: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """What `Catalogue.verify` found of one module.

    Attributes:
        name: the module's.
        faults: such as "adapter_model.safetensors: changed" and "org/name has moved on the Hub, to COMMIT"; empty if
            all is well.
    """

    name: str
    faults: tuple[str, ...]


class Catalogue:
    """Modules by name, with hashes, base, rank, targets, card, licence and tags.

    Args:
        path: of the SQLite file; None for `default_catalogue`. The first `add` makes it.

    Every method opens the file anew, so threads and processes may share a catalogue; writers wait for each other.

    Raises:
        UnsupportedFormat: the file is no catalogue, is damaged, or was made by a newer version; from every method.
        LorahubEdgeError: it cannot be read or written; from every method.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = default_catalogue() if path is None else local_path(path)

    def add(self, specs: str | Path | Iterable[str | Path], *, on_added: OnAdded = lambda name: None) -> Added:
        """Add modules, or read again those that changed since they were added.

        Args:
            specs: folders, folders of folders, "pocket", or Hub ids; see `folders_of`. Each module is added by
                itself: one that is refused keeps no other from being added.
            on_added: told the name of each module that was looked at.

        Cost: reads every new file once, for its hash; of an unchanged one, size and time.
        """
        known, done = self._by_asked(), Added()
        pending: list[Entry] = []
        written = time.monotonic()
        try:
            for name, asked, source in _sources([specs] if isinstance(specs, (str, Path)) else specs, done):
                on_added(name)
                if asked in known and known[asked].is_unchanged(source):
                    done.n_unchanged += 1
                    continue
                try:
                    pending.append(read_entry(name, source, asked))
                except LorahubEdgeError as error:
                    done.refused[asked] = str(error)
                if time.monotonic() - written > _COMMIT_EVERY_S:
                    self._write(pending, done)
                    pending, written = [], time.monotonic()
        finally:  # Ctrl-C: what was read is kept
            self._write(pending, done)
        return done

    def entries(self) -> list[Entry]:
        """All, by name.

        Raises:
            InvalidInput: there is no such file.
        """
        return self.search(Query())

    def search(self, query: Query | str) -> list[Entry]:
        """The entries that a query admits, the best match of its words first; without words, by name.

        Args:
            query: or its text; see `Query.parse`.

        Raises:
            InvalidInput: a query that is none, or no such file.
        """
        return self._search(query, with_texts=False)

    def get(self, name: str) -> Entry:
        """The entry of a name.

        Raises:
            InvalidInput: there is none, or no such file.
        """
        return self._named([name])[0]

    def pool(self, query: Query | str, bases: Sequence[str] = ()) -> list[Entry]:
        """The modules that a query admits and that are not for another base, by name, with their files in place.

        Args:
            query: see `search`.
            bases: names by which the base goes; none for any base. A module that names no base is taken.

        Raises:
            InvalidInput: no module is left, or one's files are not those that were added.
        """
        found = self._search(query, with_texts=True)
        fitting = [e for e in found if not bases or e.base is None or is_base(e.base, bases)]
        if not fitting:
            others = f"; {len(found)} that match are for another base" if found else ""
            raise InvalidInput(f"catalogue {self.path}: no module matches{others}; see lorahub-edge hub list")
        return [self._in_place(entry) for entry in sorted(fitting, key=lambda entry: entry.name)]

    def verify(self, names: Sequence[str] = ()) -> Iterator[Check]:
        """Compare the files of modules with their hashes, and the Hub's revisions with those that were added.

        Args:
            names: none for all.

        Raises:
            InvalidInput: a name that is not there.

        Cost: reads every file.
        """
        for entry in self._named(names) if names else self.entries():
            faults = [f"{name}: {fault}" for name, fault in entry.differences(read_all=True)]
            if entry.revision is not None and entry.spec != entry.asked:
                try:
                    commit = moved_to(entry.asked, entry.revision)
                except InvalidInput as error:
                    faults.append(str(error))
                else:
                    faults += [f"{entry.asked} has moved on the Hub, to {commit}"] if commit else []
            yield Check(entry.name, tuple(faults))

    def remove(self, names: Sequence[str]) -> list[Entry]:
        """Forget modules; their files stay.

        Raises:
            InvalidInput: a name that is not there; nothing is removed then.
        """
        entries = self._named(names)
        with writing(self.path) as connection:
            for entry in entries:
                delete(connection, entry.asked)
        return entries

    def _search(self, query: Query | str, *, with_texts: bool) -> list[Entry]:
        query = Query.parse(query) if isinstance(query, str) else query
        with reading(self.path) as connection:
            found = entries_with(connection, query.words, with_texts=with_texts)
            return [entry for entry in found if query.admits(entry)]

    def _named(self, names: Sequence[str]) -> list[Entry]:
        with reading(self.path) as connection:
            found = {name: entry_named(connection, name) for name in names}
        if missing := [name for name, entry in found.items() if entry is None]:
            raise InvalidInput(f"catalogue {self.path} has no module '{missing[0]}'; see lorahub-edge hub list")
        return [entry for entry in found.values() if entry is not None]

    def _by_asked(self) -> dict[str, Entry]:
        return {entry.asked: entry for entry in self.entries()} if is_there(self.path) else {}

    def _write(self, entries: Sequence[Entry], done: Added) -> None:
        if not entries:
            return
        with writing(self.path) as connection:
            for entry in entries:
                was_known = delete(connection, entry.asked)
                named = insert(connection, entry)
                (done.updated if was_known else done.added).append(named)

    def _in_place(self, entry: Entry) -> Entry:
        """An entry whose files are there and as they were; those of the Hub are fetched again where they are gone."""
        if entry.revision is not None and not is_module_folder(entry.folder) and entry.spec != entry.asked:
            entry = replace(entry, folder=folders_of(entry.spec)[0][1].folder)
        for name, fault in entry.differences(read_all=False):
            raise InvalidInput(
                f"module '{entry.name}' of catalogue {self.path}: {entry.folder / name}: {fault} since it was added; "
                "see lorahub-edge hub verify, then add it again or remove it"
            )
        return entry

    def __repr__(self) -> str:
        return f"Catalogue({self.path})"


def _sources(specs: Iterable[str | Path], done: Added) -> Iterator[tuple[str, str, Source]]:
    """Name, `Entry.asked` and place of the modules that specs name; a spec that names none is noted as refused."""
    for spec in map(str, specs):
        try:
            found = folders_of(spec)
        except LorahubEdgeError as error:
            done.refused[spec] = str(error)
            continue
        for name, source in found:
            yield name, asked_for(spec, source), source
