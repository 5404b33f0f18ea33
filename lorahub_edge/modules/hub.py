"""load_modules: specs (embedded names, folders, list files, Hub ids, queries of the catalogue) -> LoRA modules."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorahub_edge.catalogue import Catalogue
from lorahub_edge.catalogue.folders import folders_of
from lorahub_edge.errors import InvalidInput, printable, refused_as
from lorahub_edge.modules.files import LoraModule, ModuleFolder
from lorahub_edge.sources import local_path, record_of, sha256_files

RUN_FORMAT = "lorahub-edge-run/1"
QUERY = "hub:"
_MAX_LIST_BYTES = 10**7


def load_modules(specs: str | Path | Iterable[str | Path]) -> list[LoraModule]:
    """Load all modules that the specs name, in order.

    Args:
        specs: one or several of: "pocket" (all embedded modules) or "pocket/NAME"; a PEFT folder; a folder of PEFT
            folders (taken in name order); a text file with one spec per line (# starts a comment); a Hub id such as
            org/name or org/name@revision.

    Raises:
        InvalidInput: nothing of that name. UnsupportedFormat: see `read_module`.

    A name that occurs twice (two folders called "lora") is made unique by its parent folder's name.
    """
    return [module.read() for module in find_modules(specs)]


def find_modules(specs: str | Path | Iterable[str | Path], *, bases: Sequence[str] = ()) -> list[ModuleFolder]:
    """The folders of all modules that the specs name, in order, not read yet; downloads those on the Hub.

    Args:
        specs: see `load_modules`.
        bases: names by which the base goes: the catalogue's modules for other bases are left out.

    Raises:
        InvalidInput: nothing of that name, a folder whose name has control characters, or a module of the catalogue or
            of a run that is not what it was.
    """
    listed = [specs] if isinstance(specs, (str, Path)) else specs
    modules = [module for spec in map(str, listed) for module in _found(spec, bases)]
    if not modules:
        raise InvalidInput("no LoRA modules were given; expected at least one folder, embedded name or Hub id")
    modules = _with_unique_names(modules)
    for module in modules:
        if printable(module.name) != module.name:
            raise InvalidInput(f"module folder {module.folder}: its name has control characters; rename it")
    return modules


def _found(spec: str, bases: Sequence[str], *, in_list: bool = False) -> Iterator[ModuleFolder]:
    path = local_path(spec)
    if spec.startswith(QUERY):
        entries = Catalogue().pool(spec.removeprefix(QUERY), bases)
        yield from (ModuleFolder(e.name, e.folder, e.spec, e.revision, e.words) for e in entries)
    elif in_list or not os.path.isfile(path):
        yield from (ModuleFolder(name, s.folder, s.spec, s.revision) for name, s in folders_of(spec))
    elif record := record_of(path, RUN_FORMAT):
        yield from _of_run(record, path)
    else:
        for line in _lines(path):
            yield from _found(line, bases, in_list=True)


def _lines(path: Path) -> list[str]:
    if path.stat().st_size > _MAX_LIST_BYTES:
        raise InvalidInput(f"module list {path}: larger than {_MAX_LIST_BYTES} bytes; expected a text of module names")
    try:
        lines = [line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"module list {path}: not readable as text ({error}); expected one module per line"
        ) from error
    # folders in a list are meant relative to the list
    return [str(path.parent / line) if os.path.isdir(path.parent / line) else line for line in lines if line]


def _of_run(record: Mapping[str, Any], path: Path) -> list[ModuleFolder]:
    """The modules that a run searched, in its order, if their files are still what they were."""
    with refused_as(f"{path}: its modules cannot be read"):
        listed = [(str(m["name"]), str(m["spec"]), m["revision"], dict(m["files"])) for m in record["modules"]]
    found = []
    for name, spec, revision, files in listed:
        is_hub_id = revision is not None and not os.path.isdir(local_path(spec))
        places = folders_of(f"{spec.partition('@')[0]}@{revision}" if is_hub_id else spec)
        source = places[0][1]
        module = ModuleFolder(name, source.folder, source.spec, source.revision)
        if len(places) > 1 or sha256_files(module.files) != files:
            raise InvalidInput(
                f"module '{name}' of run {path.parent}: {source.folder} is not what the run used; "
                "see lorahub-edge hub verify"
            )
        found.append(module)
    return found


def _with_unique_names(modules: list[ModuleFolder]) -> list[ModuleFolder]:
    """Told apart by the parent folder where names collide, and by the whole spec where that collides too."""
    for rename in (lambda m: f"{m.folder.parent.name}/{m.name}", lambda m: m.spec):
        n_named = Counter(m.name for m in modules)
        modules = [replace(m, name=rename(m)) if n_named[m.name] > 1 else m for m in modules]
    return modules
