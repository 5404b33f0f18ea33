"""The real Hub code against a local stand-in: bases and modules by id and revision, and every way it can fail."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.hub import COMMIT, hub


@pytest.fixture
def repositories(bases, module_folders, tmp_path) -> dict[str, Path]:
    """A base, a module of today and a module of 2023 (a pickle, no safetensors)."""
    old = Path(shutil.copytree(module_folders["t5"] / "m1", tmp_path / "old"))
    torch.save(load_file(old / "adapter_model.safetensors"), old / "adapter_model.bin")
    (old / "adapter_model.safetensors").unlink()
    new = Path(shutil.copytree(module_folders["t5"] / "m0", tmp_path / "new"))
    (new / "optimizer.pt").write_bytes(b"never wanted")
    (new / "README.md").write_text("What it was trained on.")
    return {"org/base": bases["t5"], "org/skill": new, "lorahub/flan_t5_tiny-old": old}


@pytest.fixture
def call(tmp_path, repositories):
    """Run the command line in a process of its own: huggingface_hub reads its endpoint once, at import."""

    def run(*arguments: str, endpoint: str, **environment: str) -> subprocess.CompletedProcess[str]:
        settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, "-m", "lorahub_edge.cli", *arguments]
        settings = {**os.environ, **settings, **environment}
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=settings, check=False)

    return run


def test_base_and_modules_come_from_the_hub_with_their_commit_on_record(call, repositories, example_file, tmp_path):
    arguments = [
        "adapt", "--base", "org/base@v1", "--modules", "org/skill", "--modules", "lorahub/flan_t5_tiny-old",
        "--examples", str(example_file), "--budget", "4", "--device", "cpu", "--no-null-control",
    ]  # fmt: skip
    with hub(repositories) as (endpoint, requested):
        result = call(*arguments, "--out", "run", endpoint=endpoint)
    assert result.returncode == 0, result.stderr
    assert not any("optimizer.pt" in path for path in requested)
    assert any(path.endswith("org/skill/resolve/" + COMMIT + "/README.md") for path in requested)  # to choose by
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert (manifest["base"]["spec"], manifest["base"]["revision"]) == ("org/base@v1", COMMIT)
    assert [(m["name"], m["revision"]) for m in manifest["modules"]] == [
        ("org/skill", COMMIT),
        ("lorahub/flan_t5_tiny-old", COMMIT),
    ]
    # the second time from the cache alone, and the run opens again without a network too
    offline = {"endpoint": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    assert call(*arguments, "--out", "again", **offline).returncode == 0
    assert call("evaluate", "run", "--data", str(example_file), **offline).stdout.startswith("exact match")


@pytest.mark.parametrize(
    ("base", "module", "message"),
    [
        ("org/none", "org/skill", "base 'org/none': no such folder here, and the Hub did not deliver it"),
        ("org/base@v9", "org/skill", "base 'org/base@v9': no such folder here"),
        ("org/base", "org/none", "module 'org/none': no such folder here"),
    ],
)
def test_what_the_hub_does_not_have_is_one_line(call, repositories, example_file, base, module, message, tmp_path):
    with hub(repositories) as (endpoint, _):
        arguments = ["--base", base, "--modules", module, "--examples", str(example_file), "--out", "run"]
        result = call("adapt", *arguments, endpoint=endpoint)
    assert result.returncode == 1
    assert result.stdout == ""
    first, error = result.stderr.splitlines()
    assert first == f"adapting {base} to task"
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "run").exists()


def test_no_network_is_one_line(call, example_file):
    result = call(
        "adapt", "--base", "org/base", "--modules", "pocket", "--examples", str(example_file),
        endpoint="http://127.0.0.1:9",
    )  # fmt: skip
    assert result.returncode == 1
    first, error = result.stderr.splitlines()
    assert first == "adapting org/base to task"
    assert error.startswith("error: base 'org/base': no such folder here")
