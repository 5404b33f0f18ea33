"""What a sweep is asked for: a TOML file or the same as a mapping, every key checked by name."""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorahub_edge.adaptation.settings import MAX_SEED, RunSettings, check_numbers
from lorahub_edge.benchmark.quality import FIRST_EXAMPLE_SEED
from lorahub_edge.errors import InvalidInput, first_line
from lorahub_edge.sources import local_path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_MAX_BYTES = 1 << 20
_KEYS = ("base", "tasks", "pools", "presets", "seeds", "settings")
_NAME = re.compile(r"[A-Za-z0-9][\w.]*(-[\w.]+)*")  # part of a folder's name, whose parts "--" divides

# Settings of adapt that a sweep's file may hold. The others differ from point to point or are no part of a result.
_OF_TASK = ("n_examples", "example_seed", "n_test")
_OF_RUN = {
    f.name: str(f.type) for f in dataclasses.fields(RunSettings) if f.name not in ("preset", "seed", "max_memory")
}


@dataclass(frozen=True)
class SweepFile:
    """A sweep, all its parts checked.

    Attributes:
        base: see `load_base`.
        tasks: see `find_tasks`.
        pools: name -> modules, see `find_modules`.
        presets, seeds: at least one of each.
        settings: of `adapt`, for all points.
    """

    base: str
    tasks: tuple[str, ...]
    pools: Mapping[str, tuple[str, ...]]
    presets: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]

    def run_settings(self, preset: str, seed: int) -> RunSettings:
        """What a point's run is asked for."""
        return RunSettings(preset=preset, seed=seed, **{k: v for k, v in self.settings.items() if k not in _OF_TASK})

    def draw(self, seed: int) -> dict[str, Any]:
        """The arguments of `load_task` that a point's seed decides."""
        drawn = {"n_examples": 5, "n_test": None, "example_seed": FIRST_EXAMPLE_SEED + seed - 1}
        return {**drawn, **{name: self.settings[name] for name in _OF_TASK if name in self.settings}}


def read_sweep(what: str | Path | Mapping[str, Any]) -> SweepFile:
    """Read and check a sweep.

    Args:
        what: a TOML file, whose paths are relative to its folder, or its content, whose paths are relative to the
            working folder.

    Raises:
        InvalidInput: in one line, the file, the key, what was expected and what came.
    """
    if isinstance(what, Mapping):
        return _checked(dict(what), "sweep", Path.cwd())
    path = local_path(what)
    try:
        with open(path, "rb") as file:
            text = file.read(_MAX_BYTES + 1)
        if len(text) > _MAX_BYTES:
            raise InvalidInput(f"sweep {path}: larger than {_MAX_BYTES} bytes; expected a TOML file")
        content = tomllib.loads(text.decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidInput(f"sweep {path}: not readable as TOML ({first_line(error)})") from error
    return _checked(content, f"sweep {path}", path.absolute().parent)


def _checked(content: Mapping[str, Any], where: str, folder: Path) -> SweepFile:
    _check_keys(content, _KEYS, where)
    for key in ("tasks", "pools"):
        if not content.get(key):
            raise InvalidInput(f"{where}: '{key}' is missing; expected {_EXPECTED[key]}")
    pools = content["pools"]
    if not isinstance(pools, Mapping):
        raise _wrong(where, "pools", pools)
    for name in pools:
        if not _NAME.fullmatch(name) or len(name) > 60:
            raise InvalidInput(
                f"{where}: pools: expected short names of letters, digits, '.', '_' and '-', received '{name}'"
            )
    presets = _texts(content.get("presets", "edge"), where, "presets")
    seeds = _seeds(content.get("seeds", 1), where)
    settings = content.get("settings", {})
    if not isinstance(settings, Mapping):
        raise _wrong(where, "settings", settings)
    _check_keys(settings, (*_OF_TASK, *_OF_RUN), f"{where}: settings")
    try:
        swept = SweepFile(
            base=_placed(_text(content.get("base", "pocket"), where, "base"), folder),
            tasks=tuple(_placed(task, folder) for task in _texts(content["tasks"], where, "tasks")),
            pools={
                n: tuple(_placed(m, folder) for m in _texts(specs, where, f"pools.{n}")) for n, specs in pools.items()
            },
            presets=presets,
            seeds=seeds,
            settings=settings,
        )
        _check_settings(settings)
        for preset in presets:
            swept.run_settings(preset, seeds[0])
    except InvalidInput as error:
        raise error if str(error).startswith(where) else InvalidInput(f"{where}: {error}") from error
    return swept


_EXPECTED = {
    "base": "one name or folder",
    "tasks": 'a list of tasks, such as ["pocket", "my_tasks/"]',
    "pools": 'a table of names and modules, such as [pools] and under it all = "pocket"',
    "presets": 'a list, such as ["edge", "paper"], each once',
    "seeds": "a number n for seeds 1 to n, or a list of whole numbers, each once",
    "settings": "a table of adapt's settings, such as [settings] and under it n_test = 50",
}


def _wrong(where: str, key: str, value: object) -> InvalidInput:
    expected = _EXPECTED.get(key, "one or several modules")
    return InvalidInput(f"{where}: {key}: expected {expected}, received {value!r:.80}")


def _check_keys(content: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in content:
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean '{close[0]}'?" if close else f"expected {', '.join(known)}"
            raise InvalidInput(f"{where}: key '{key}' is not known; {hint}")


def _text(value: object, where: str, key: str) -> str:
    if not isinstance(value, str) or not value:
        raise _wrong(where, key, value)
    return value


def _texts(value: object, where: str, key: str) -> tuple[str, ...]:
    """One text or a list of them, each once."""
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, (list, tuple)) or not listed or len({*map(str, listed)}) < len(listed):
        raise _wrong(where, key, value)
    return tuple(_text(text, where, key) for text in listed)


def _seeds(value: object, where: str) -> tuple[int, ...]:
    listed: Iterable[Any] = range(1, min(value, 10**4) + 1) if type(value) is int else value  # type: ignore[assignment]
    if not isinstance(listed, (list, tuple, range)) or not listed or len({*map(str, listed)}) < len(listed):
        raise _wrong(where, "seeds", value)
    if any(type(seed) is not int or not 0 <= seed < MAX_SEED - FIRST_EXAMPLE_SEED for seed in listed):
        raise _wrong(where, "seeds", value)
    return tuple(listed)


def _check_settings(settings: Mapping[str, Any]) -> None:
    """Kinds that `RunSettings` takes for granted, since its callers are typed; and the numbers that are not its own."""
    for name, value in settings.items():
        for kind, type_ in (("str", str), ("bool", bool)):
            if _OF_RUN.get(name, "").startswith(kind) and not isinstance(value, type_):
                expected = {"str": "a text", "bool": "true or false"}[kind]
                raise InvalidInput(f"settings.{name}: expected {expected}, received {value!r:.40}")
    check_numbers(**{name: settings[name] for name in _OF_TASK if name in settings})


def _placed(spec: str, folder: Path) -> str:
    """A path in full where there is such a file or folder, since workers may work elsewhere; else the name as it is."""
    path = folder / local_path(spec)
    return str(path.resolve()) if spec != "pocket" and path.exists() else spec
