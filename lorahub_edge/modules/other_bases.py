"""other_bases: modules whose config names another base than the one they are used with.

Bases of one size have the same shapes: nothing else tells a module for t5-base from one for flan-t5-base.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from lorahub_edge.catalogue.bases import is_base
from lorahub_edge.errors import LorahubEdgeWarning
from lorahub_edge.modules.files import LoraModule, ModuleFolder
from lorahub_edge.sources import Source

_SHOWN = 3


class OtherBase(LorahubEdgeWarning):
    """Modules fit a base by their shapes, but were trained for another one."""


def other_bases(modules: Sequence[LoraModule | ModuleFolder], base: Source) -> dict[str, str]:
    """Module name -> the base that its config names, of those modules that name another one than `base`.

    See `is_base` for when two names mean one base. A module that names none is not listed.
    """
    return {m.name: m.base_name for m in modules if m.base_name and not is_base(m.base_name, base.names)}


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
