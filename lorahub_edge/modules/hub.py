"""load_modules: specs (embedded names, folders, folders of folders, list files, Hub ids) -> LoRA modules."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from lorahub_edge import pocket
from lorahub_edge.errors import InvalidInput, first_line, printable
from lorahub_edge.modules.adapter_config import CONFIG_FILE
from lorahub_edge.modules.adapter_weights import WEIGHT_FILES
from lorahub_edge.modules.files import CARD, TRAINING_ROWS, LoraModule, ModuleFolder, is_module_folder
from lorahub_edge.sources import Source, local_path, resolve

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


def find_modules(specs: str | Path | Iterable[str | Path]) -> list[ModuleFolder]:
    """The folders of all modules that the specs name, in order, not read yet; downloads those on the Hub.

    Args:
        specs: see `load_modules`.

    Raises:
        InvalidInput: nothing of that name, or a folder whose name has control characters.
    """
    modules = [
        ModuleFolder(name, source.folder, source.spec, source.revision)
        for spec in _flatten([specs] if isinstance(specs, (str, Path)) else specs)
        for name, source in _folders(spec)
    ]
    if not modules:
        raise InvalidInput("no LoRA modules were given; expected at least one folder, embedded name or Hub id")
    modules = _with_unique_names(modules)
    for module in modules:
        if printable(module.name) != module.name:
            raise InvalidInput(f"module folder {module.folder}: its name has control characters; rename it")
    return modules


def embedded_modules() -> dict[str, Path]:
    """Embedded name -> folder."""
    return {f"pocket/{name}": pocket.modules_folder() / name for name in pocket.module_names()}


def _flatten(specs: Iterable[str | Path]) -> list[str]:
    flat: list[str] = []
    for spec in map(str, specs):
        path = local_path(spec)
        flat += _lines(path) if os.path.isfile(path) else [spec]
    return flat


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


def _folders(spec: str) -> list[tuple[str, Source]]:
    if spec == "pocket":
        return [(name.partition("/")[2], Source(name, folder)) for name, folder in embedded_modules().items()]
    source = resolve(spec, embedded=embedded_modules(), choose_files=_choose_files, kind="module")
    if is_module_folder(source.folder):
        name = source.folder.name if source.revision is None else spec
        return [(name, source)]
    try:
        children = sorted(p for p in source.folder.iterdir() if p.is_dir() and is_module_folder(p))
    except OSError as error:
        raise InvalidInput(f"module folder {source.folder}: cannot be listed ({first_line(error)})") from error
    if not children:
        raise InvalidInput(f"module folder {source.folder} has no {CONFIG_FILE}, and neither has any folder in it")
    return [(p.name, Source(str(p), p, source.revision)) for p in children]


def _choose_files(names: Sequence[str], pick: str | None) -> list[str]:
    if pick is not None:
        raise InvalidInput(f"'{pick}' picks a file of a base; a module has one")
    weights = next((n for n in WEIGHT_FILES if n in names), None)
    return [CONFIG_FILE, *filter(None, [weights]), *(name for name in (CARD, TRAINING_ROWS) if name in names)]


def _with_unique_names(modules: list[ModuleFolder]) -> list[ModuleFolder]:
    """Told apart by the parent folder where names collide, and by the whole spec where that collides too."""
    for rename in (lambda m: f"{m.folder.parent.name}/{m.name}", lambda m: m.spec):
        names = [m.name for m in modules]
        modules = [replace(m, name=rename(m)) if names.count(m.name) > 1 else m for m in modules]
    return modules
