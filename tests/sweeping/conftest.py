"""A sweep over tiny models: two tasks, two seeds, two pools."""

import json
import random
import signal

import pytest

import lorahub_edge
from tests import tiny


def write_task(path, seed=0):
    rows = [(f"{a} {b}", c) for a, b in tiny.ROWS for c in [b] for a in (a, f"not {a}", f"is {a}")]
    random.Random(seed).shuffle(rows)
    path.write_text("".join(json.dumps({"input": i, "target": t}) + "\n" for i, t in rows))


def settled(swept):
    """All of a sweep's results but for what they cost."""
    report = swept.report()
    return {**report, "points": [{k: v for k, v in row.items() if k != "costs"} for row in report["points"]]}


@pytest.fixture
def ctrl_c():
    """Ctrl-C counts here and in processes that are started; where tests run in the background it may be ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def task_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    for seed, name in enumerate(("left", "right")):
        write_task(folder / f"{name}.jsonl", seed)
    return folder


@pytest.fixture(scope="session")
def study(bases, module_folders, task_folder):
    """Eight points."""
    return {
        "base": str(bases["t5"]),
        "tasks": [str(task_folder)],
        "pools": {"all": str(module_folders["t5"]), "two": [f"{module_folders['t5']}/m{k}" for k in (0, 1)]},
        "presets": ["paper"],
        "seeds": 2,
        "settings": {"budget": 8, "n_test": 4, "max_new_tokens": 3, "null_control": False, "device": "cpu"},
    }


@pytest.fixture(scope="session")
def undisturbed(study, tmp_path_factory):
    """The sweep as it comes out in this process."""
    return lorahub_edge.sweep(study, tmp_path_factory.mktemp("sweep") / "whole")
