"""A hub of two thousand tiny PEFT folders, made in about a second, and a catalogue of it."""

import json
import shutil
from pathlib import Path

import pytest

from lorahub_edge.catalogue import Catalogue

N_MODULES = 2000
TOPICS = [
    "sentiment of reviews",
    "names of cities",
    "sums of numbers",
    "is red a dog ? is the cat blue ? one two three four five",
    "translation of verbs",
]
HEAD = """---
license: {licence}
tags:
- {tag}
---
# Module {number}
"""


def write_module(source: Path, folder: Path, *, number: int = 0, topic: str = "", **config: object) -> Path:
    """A copy of a PEFT folder with a card of its own."""
    shutil.copytree(source, folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, **config}))
    head = HEAD.format(licence="mit" if number % 2 else "apache-2.0", tag=f"group-{number % 10}", number=number)
    (folder / "README.md").write_text(f"{head}Trained on {topic}, part {number}.\n")
    return folder


@pytest.fixture(scope="session")
def many(bases, module_folders, tmp_path_factory) -> Path:
    """The folder of folders; every twentieth module is for another base."""
    root = tmp_path_factory.mktemp("hub") / "many"
    for number in range(N_MODULES):
        base = "org/other" if number % 20 == 0 else bases["t5"].name
        source = module_folders["t5"] / f"m{number % 4}"
        topic = TOPICS[number % len(TOPICS)]
        write_module(source, root / f"n{number:04d}", number=number, topic=topic, base_model_name_or_path=base)
    return root


@pytest.fixture(scope="session")
def catalogued(many) -> Catalogue:
    """All of them in one file; tests only read it."""
    catalogue = Catalogue(many.parent / "catalogue.sqlite")
    assert len(catalogue.add(many).added) == N_MODULES
    return catalogue


@pytest.fixture
def few(module_folders, tmp_path) -> Path:
    """A folder of four modules that a test may change."""
    return Path(shutil.copytree(module_folders["t5"], tmp_path / "few"))


@pytest.fixture
def catalogue(tmp_path) -> Catalogue:
    """An empty one, not made yet."""
    return Catalogue(tmp_path / "catalogue.sqlite")
