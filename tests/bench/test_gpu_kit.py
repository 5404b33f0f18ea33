"""The kit for a GPU that is lent: its script runs with stand-ins, and each program reads what it would be asked."""

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from bench.gpu import e2e
from bench.gpu.carry import carry
from lorahub_edge import cli

ROOT = Path(__file__).resolve().parents[2]
KIT = ROOT / "bench" / "gpu"


# Notes what it was asked, as a line of JSON; fails where the test says so.
STAND_IN = """#!{python}
import json, os, sys
with open({log!r}, "a") as log:
    log.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + chr(10))
sys.exit(7 if os.environ.get("FAILS", "nothing") in " ".join(sys.argv) else 0)
"""


@dataclass
class Lease:
    """What lease.sh does with stand-ins for Python and for the GPU's programs."""

    folder: Path
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)
    commands: list[list[str]] = field(default_factory=list)

    def run(self, part: str, fails: str = "nothing") -> int:
        programs, log = self.folder / "programs", self.folder / "log"
        programs.mkdir()
        for name in ("nvidia-smi", "ncu", "compute-sanitizer", "python"):
            program = programs / name
            program.write_text(STAND_IN.format(python=sys.executable, log=str(log)))
            program.chmod(0o755)
        (self.folder / "work" / "run").mkdir(parents=True)
        (self.folder / "work" / "run" / "manifest.json").write_text("{}")
        environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHON": str(programs / "python")}
        environment |= {"OUT": str(self.folder / "out"), "WORK": str(self.folder / "work"), "FAILS": fails}
        command = ["bash", str(KIT / "lease.sh"), part]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
        assert done.stderr == ""
        lines = (self.folder / "out" / "steps.jsonl").read_text().splitlines()
        self.steps = {step["step"]: step for step in map(json.loads, lines)}
        self.commands = [json.loads(line) for line in log.read_text().splitlines()]
        return done.returncode


@pytest.fixture
def lease(tmp_path):
    return Lease(tmp_path)


FIRST = ["facts", "kernels", "e2e", "graphs", "ops", "large"]
SECOND = ["model", "adapt", "large-off", "large-torch", "large-fused", "lorahub", "counters", "memcheck"]


@pytest.mark.parametrize(("part", "steps", "most_s"), [("first", FIRST, 480), ("second", SECOND, 600)])
def test_every_step_is_asked_for_what_its_program_takes(lease, monkeypatch, part, steps, most_s):
    assert lease.run(part) == 0
    assert list(lease.steps) == steps
    assert sum(step["limit_s"] for step in lease.steps.values()) < most_s
    asked = [command[command.index("-m") + 1 :] for command in lease.commands if "-m" in command]
    for module, *arguments in asked:
        if module != "zipfile":
            assert_taken(monkeypatch, module, arguments)
    assert {module for module, *_ in asked} >= ({"pytest", "bench.adapt", "bench.ops_gpu", "bench.gpu.model"})


def assert_taken(monkeypatch, module, arguments):
    """Fail unless the program reads these arguments; nothing is computed."""
    if module == "lorahub_edge.cli":
        group = typer.main.get_command(cli.app)
        context = group.make_context("lorahub-edge", list(arguments), resilient_parsing=False)
        name, command, rest = group.resolve_command(context, list(arguments))
        command.make_context(name, rest, parent=context)
    elif module == "pytest":
        files = [argument for argument in arguments if argument.startswith("tests/")]
        assert files
        assert all((ROOT / name).is_file() for name in files)
    else:
        monkeypatch.setattr("sys.argv", [module, *arguments])
        with monkeypatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_leave)
            with pytest.raises(Parsed):
                importlib.import_module(module).main()


class Parsed(Exception):
    """A program has read its arguments."""


PARSE = argparse.ArgumentParser.parse_args


def parse_and_leave(parser, *arguments):
    PARSE(parser, *arguments)
    raise Parsed


@pytest.mark.parametrize("fails", ["bench.ops_gpu", "e2e.py", "cuda_records"])
def test_a_failed_step_is_noted_and_the_next_begins(lease, fails):
    assert lease.run("first", fails) == 1
    assert list(lease.steps) == FIRST
    failed = [name for name, step in lease.steps.items() if step["exit_code"] == 7]
    assert failed == [{"bench.ops_gpu": "ops", "e2e.py": "e2e", "cuda_records": "graphs"}[fails]]


def test_runs_end_to_end_on_a_cpu(monkeypatch, capsys):
    names = ["int8, inject", "adapt, no graphs"]
    monkeypatch.setattr("sys.argv", ["e2e.py", "--device", "cpu", "--budget", "3", "--cases", *names])
    monkeypatch.setenv("LORAHUB_EDGE_CUDA_GRAPHS", "")
    assert e2e.main() == 0
    cases = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [case["case"] for case in cases] == names
    assert (cases[0]["relative_error"], cases[0]["largest_difference_of_calls"]) == (0, 0)


def test_losses_that_are_off_fail(monkeypatch, capsys):
    off = {"cpu": torch.ones(2, 2), "cuda": torch.full((2, 2), 1.2)}
    monkeypatch.setattr(e2e, "losses", lambda device, *_: e2e.Losses([off[device]], [], {}))
    monkeypatch.setattr("sys.argv", ["e2e.py", "--cases", "bf16, side path"])
    monkeypatch.setenv("LORAHUB_EDGE_CUDA_GRAPHS", "")
    assert e2e.main() == 1
    assert "expected a relative error below" in json.loads(capsys.readouterr().out)["error"]


def write_wheel(path, names):
    with zipfile.ZipFile(path, "w") as wheel:
        for name in names:
            wheel.writestr(name, name)
    return path


def test_wheels_are_carried_without_what_is_not_needed(tmp_path):
    (tmp_path / "dev").mkdir()
    peer = write_wheel(tmp_path / "peer-1.whl", ["peer/a.py", "peer/lib_cuda130.so", "peer/lib_cuda118.so"])
    assert zipfile.ZipFile(carry(peer, tmp_path / "dev", library="lib_cuda130.so")).namelist() == [
        "peer/a.py",
        "peer/lib_cuda130.so",
    ]
    ours = write_wheel(tmp_path / "ours-1.whl", ["ours/a.py", "ours/_native.so", "ours-1.dist-info/METADATA"])
    assert zipfile.ZipFile(carry(ours, tmp_path / "dev", extensions=tmp_path)).namelist() == [
        "ours-1.dist-info/METADATA"
    ]
    assert (tmp_path / "_native.so").read_text() == "ours/_native.so"


def test_what_is_carried_is_pinned():
    """prepare.sh fetches by constraints.txt; a package that it does not name could be any version."""
    packages = re.search(r"for package in (.*); do", (KIT / "prepare.sh").read_text())[1].split()
    pinned = (ROOT / "constraints.txt").read_text()
    assert [name for name in packages if f"\n{name}==" not in pinned] == []
