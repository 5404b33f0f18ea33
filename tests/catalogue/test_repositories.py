"""Modules of the Hub in the catalogue, against the local stand-in: busy, cut short, moved on, gone from the disk."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.catalogue.conftest import write_module
from tests.hub import COMMIT, Weather, hub

NEXT = "b" * 40
# What a run asks the catalogue for, without what a run imports.
POOL = "from lorahub_edge.catalogue import Catalogue; print(*(entry.spec for entry in Catalogue().pool('all')))"


@pytest.fixture
def repositories(module_folders, tmp_path) -> dict[str, Path]:
    root = tmp_path / "served"
    folders = {f"org/s{k}": module_folders["t5"] / f"m{k}" for k in range(2)}
    return {name: write_module(source, root / name, topic="skills") for name, source in folders.items()}


@pytest.fixture
def call(tmp_path):
    """Run the command line in a process of its own: huggingface_hub reads its endpoint once, at import."""

    def run(*arguments: str, endpoint: str, exit_code: int = 0, **environment: str) -> tuple[str, str]:
        settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        settings |= {"LORAHUB_EDGE_CATALOGUE": str(tmp_path / "catalogue"), **environment}
        program = ["-c", POOL] if arguments == ("pool",) else ["-m", "lorahub_edge.cli", *arguments]
        command = [sys.executable, *program]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **settings}, check=False)
        assert done.returncode == exit_code, done.stderr
        return done.stdout, done.stderr

    return run


def listed(call, endpoint):
    return {record["name"]: record for record in json.loads(call("hub", "list", "--json", endpoint=endpoint)[0])}


def test_a_busy_hub_is_asked_again_and_a_cut_file_is_fetched_whole(call, repositories):
    with hub(repositories, Weather(n_busy=3, n_cut=2)) as (endpoint, requested):
        call("hub", "add", "org/s0", "org/s1@v1", endpoint=endpoint)
        entries = listed(call, endpoint)
        n_requests = len(requested)
        again, _ = call("hub", "add", "org/s0", endpoint=endpoint)
        assert call("hub", "verify", endpoint=endpoint)[0] == "2 of 2 modules are as they were added\n"
    assert {name: entry["spec"] for name, entry in entries.items()} == {
        "org/s0": f"org/s0@{COMMIT}",
        "org/s1@v1": f"org/s1@{COMMIT}",
    }
    assert again.startswith("added 0, updated 0, unchanged 1; catalogue: ")
    assert not any(path.endswith(".safetensors") for path in requested[n_requests:])


def test_a_hub_that_stays_busy_is_one_line(call, repositories):
    with hub(repositories, Weather(n_busy=10**6)) as (endpoint, _):
        stdout, stderr = call("hub", "add", "org/s0", endpoint=endpoint, exit_code=1)
    assert stdout.startswith("added 0, updated 0, unchanged 0, refused 1; catalogue: ")
    assert stderr.splitlines()[-1].startswith(
        "error: module 'org/s0': no such folder here, and the Hub did not deliver"
    )


def test_a_revision_that_has_moved_is_told_and_the_pinned_one_is_used(call, repositories, tmp_path):
    weather = Weather()
    with hub(repositories, weather) as (endpoint, requested):
        call("hub", "add", "org/s0", "org/s1", endpoint=endpoint)
        weather.commit = NEXT
        stdout, _ = call("hub", "verify", endpoint=endpoint, exit_code=1)
        assert stdout.splitlines() == [
            "0 of 2 modules are as they were added",
            f"org/s0: org/s0 has moved on the Hub, to {NEXT}",
            f"org/s1: org/s1 has moved on the Hub, to {NEXT}",
        ]
        shutil.rmtree(tmp_path / "home")
        requested.clear()
        assert call("pool", endpoint=endpoint)[0].split() == [f"org/s{k}@{COMMIT}" for k in range(2)]
        assert f"org/s0/resolve/{COMMIT}/adapter_model.safetensors" in requested
        assert not any(NEXT in path for path in requested)
        (repositories["org/s0"] / "README.md").write_text("A new card.")
        call("hub", "add", "org/s0", endpoint=endpoint)
    nowhere = "http://127.0.0.1:9"
    assert call("pool", endpoint=nowhere)[0].split() == [f"org/s0@{NEXT}", f"org/s1@{COMMIT}"]
    shutil.rmtree(tmp_path / "home")
    _, stderr = call("pool", endpoint=nowhere, exit_code=1, HF_HUB_OFFLINE="1")
    assert f"InvalidInput: module 'org/s0@{NEXT}': no such folder here, and the Hub did not deliver it" in stderr
