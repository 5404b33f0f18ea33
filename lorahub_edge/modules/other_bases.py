"""other_bases: modules whose config names another base than the one they are used with.

Bases of one size have the same shapes: nothing else tells a module for t5-base from one for flan-t5-base.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

from lorahub_edge.errors import LorahubEdgeWarning
from lorahub_edge.modules.files import LoraModule, ModuleFolder
from lorahub_edge.sources import Source

_SHOWN = 3
_GGUF = re.compile(r"[.-]gguf$")


class OtherBase(LorahubEdgeWarning):
    """Modules fit a base by their shapes, but were trained for another one."""


def other_bases(modules: Sequence[LoraModule | ModuleFolder], base: Source) -> dict[str, str]:
    """Module name -> the base that its config names, of those modules that name another one than `base`.

    Names are compared by their last part, without case and revision: a folder and a Hub id that end alike are the same
    base, and a GGUF file is that of the base its name begins with. A module that names none is not listed.
    """
    ours = {_short_name(base.spec), _short_name(str(base.folder))}
    return {m.name: m.base_name for m in modules if m.base_name and not _is_one_of(_short_name(m.base_name), ours)}


def warn_of_other_bases(modules: Sequence[LoraModule | ModuleFolder], base: Source) -> None:
    """One warning that counts them and names a few."""
    others = other_bases(modules, base)
    if not others:
        return
    named = [f"{base_name[:80]}: {name}" for name, base_name in list(others.items())[:_SHOWN]]
    more = ", ..." if len(others) > _SHOWN else ""
    warnings.warn(
        f"{len(others)} of {len(modules)} modules were trained for another base ({', '.join(named)}{more}), "
        f"not '{base.spec}'",
        OtherBase,
        stacklevel=2,
    )


def _short_name(place: str) -> str:
    parts = [part for part in re.split(r"[/\\]", place) if part not in ("", ".")]
    cached = [part for part in parts if part.startswith("models--")]  # the Hub's cache: models--ORG--NAME/snapshots/...
    name = cached[-1].rpartition("--")[2] if cached else "".join(parts[-1:]).partition("@")[0]
    return name.casefold()


def _is_one_of(name: str, ours: set[str]) -> bool:
    return not name or name in ours or any(_GGUF.search(our) and our.startswith(name) for our in ours)
