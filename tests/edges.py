"""Constraints for `make test-lowest` and `make test-newest`: the edges of what pyproject.toml allows.

    python tests/edges.py lowest|newest [TORCH]

torch is that of constraints.txt if no version is named: an open range takes gigabytes with CUDA.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from importlib.metadata import requires
from pathlib import Path


def lower_bounds(requirements: Iterable[str]) -> dict[str, str]:
    """Name -> the version behind ">=" of each requirement that has one; of "name[extra]>=1,<2" that is "1"."""
    found = (re.match(r"([\w.-]+)[^;]*>=\s*([\w.]+)", text) for text in requirements)
    return {match[1]: match[2] for match in found if match}


def pinned_torch() -> str:
    """The version that constraints.txt names."""
    text = (Path(__file__).parents[1] / "constraints.txt").read_text()
    return re.search(r"^torch==(\S+)$", text, re.MULTILINE)[1]  # type: ignore[index]


def main(edge: str, torch: str = "") -> None:
    """Print one constraint per line."""
    bounds = lower_bounds(requires("lorahub-edge") or ()) if edge == "lowest" else {}
    for name, version in {**bounds, "torch": torch or pinned_torch()}.items():
        sys.stdout.write(f"{name}=={version}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
