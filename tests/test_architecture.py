"""The house's rule: a room imports only from the rooms above it (docs/architecture.md), and search knows no torch."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "lorahub_edge"
# from the ground up; pocket/__init__.py only says where its data lie and may be asked by anyone
ROOMS = [
    "errors",
    "cpu_floor",
    "texts",
    "json_text",
    "pocket",
    "aside",
    "outputs",
    "sources",
    "integrity",
    "cache",
    "measure",
    "scheduling",
    "kernels",
    "doctor",
    "base",
    "tasks",
    "catalogue",
    "modules",
    "search",
    "adaptation",
    "train",
    "merging",
    "serve",
    "answering",
    "exporting",
    "benchmark",
    "sweeping",
]
TOP = [
    "pocket.make",
    "terminal",
    "commands",
    "cli_adapt",
    "cli_delivery",
    "cli_bench",
    "cli_sweep",
    "cli_hub",
    "cli_embedded",
    "cli",
    "__init__",
]


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = [
    p for p in PACKAGE.rglob("*.py") if room_of(p) in ROOMS and not (room_of(p) == "pocket" and p.stem != "__init__")
]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_from_rooms_above(path):
    allowed = ROOMS[: ROOMS.index(room_of(path)) + 1]
    for name in imports(path):
        if name.startswith("lorahub_edge."):
            assert name.split(".")[1] in allowed, f"{path.name} imports {name}"


def test_every_room_is_on_the_list():
    rooms = {room_of(p) for p in PACKAGE.rglob("*.py")}
    assert rooms == {*ROOMS, *(t.split(".")[0] for t in TOP)}


def test_search_knows_numbers_only():
    for path in (PACKAGE / "search").glob("*.py"):
        assert not {n.split(".")[0] for n in imports(path)} & {"torch", "transformers", "peft"}


def test_only_routes_imports_the_extensions():
    users = [p.name for p in PACKAGE.rglob("*.py") if re.search(r"lorahub_edge\._native|import _native", p.read_text())]
    assert users == ["routes.py"]
