"""Whether two names mean the same base: a folder, a Hub id, a place in the Hub's cache, a GGUF file."""

from __future__ import annotations

import re
from collections.abc import Iterable

_GGUF = re.compile(r"[.-]gguf$")


def is_base(name: str, places: Iterable[str]) -> bool:
    """Whether a module's word for its base means the base that goes by one of these names.

    Names are compared by their last part, without case and revision: a folder and a Hub id that end alike are the same
    base, and a GGUF file is that of the base its name begins with. An empty name means any.
    """
    named, ours = _short_name(name), {_short_name(place) for place in places}
    return not named or named in ours or any(_GGUF.search(our) and our.startswith(named) for our in ours)


def _short_name(place: str) -> str:
    parts = [part for part in re.split(r"[/\\]", place) if part not in ("", ".")]
    cached = [part for part in parts if part.startswith("models--")]  # the Hub's cache: models--ORG--NAME/snapshots/...
    name = cached[-1].rpartition("--")[2] if cached else "".join(parts[-1:]).partition("@")[0]
    return name.casefold()
