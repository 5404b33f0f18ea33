"""The plain install, without the extra `adapt`: it answers from exported folders, and says what the rest needs.

One process in which nothing can be imported that pyproject.toml's dependencies do not bring.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
REMEDY = "which is not installed; pip install 'lorahub-edge[adapt]'"

PROGRAM = """
import contextlib, http.client, importlib.abc, io, json, socket, sys, threading, time

class NoneOfThese(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

folder, run, rows, *missing = sys.argv[1:]
sys.meta_path.insert(0, NoneOfThese())

from typer.testing import CliRunner
from lorahub_edge.cli import app

def call(*arguments, input=None):
    result = CliRunner().invoke(app, arguments, input=input)
    return result.exit_code, result.stdout, result.stderr

said = {" ".join(words): call(*words) for words in (
    ["--help"], ["--version"], ["adapt", "--help"], ["doctor"], ["evaluate", folder, "--data", rows],
    ["adapt"], ["plan"], ["export", folder, "--out", "x"], ["merge", run, "--out", "x"], ["verify", folder],
    ["train", rows, "--out", "x"], ["bench", "quality"], ["predict", run],
    ["hub", "add", "pocket", "--catalogue", "c"], ["hub", "search", "sound", "--catalogue", "c"],
    ["hub", "verify", "--catalogue", "c"],
)}
said["predict"] = call("predict", folder, input="is red a dog ?\\n")

import lorahub_edge
from lorahub_edge.serve import OnnxModel
from lorahub_edge.serve.server import make_server
from lorahub_edge.serve.server_settings import ServerSettings

said["api"] = {}
for name in sorted({*lorahub_edge.__all__} - {"load_adapted", "ExportedModel", "Catalogue"}):
    try:
        getattr(lorahub_edge, name)
    except ImportError as error:
        said["api"][name] = str(error)
said["load_adapted"] = lorahub_edge.load_adapted(folder).predict(["is red a dog ?"])

try:
    import lorahub_edge.serve.on_ray
except ImportError as error:
    said["on_ray"] = str(error)

server = make_server(OnnxModel(folder), ServerSettings())
listening = socket.create_server(("127.0.0.1", 0))
thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
thread.start()
while not server.started:
    time.sleep(0.01)
with contextlib.closing(http.client.HTTPConnection("127.0.0.1", listening.getsockname()[1], timeout=30)) as client:
    body = json.dumps({"prompt": "is red a dog ?", "max_tokens": 4})
    client.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    said["served"] = client.getresponse().status
server.should_exit = True
thread.join()
print(json.dumps(said))
"""


def plain_dependencies() -> list[str]:
    """pyproject.toml's dependencies, without its extras; read by hand, since Python 3.10 has no tomllib."""
    block = re.search(r"^dependencies = \[\n(.*?)^\]", PYPROJECT.read_text(), re.DOTALL | re.MULTILINE)
    return re.findall(r'^  "([^"]+)"', block[1], re.MULTILINE)


def plain_name(distribution: str) -> str:
    """Its name as PEP 503 writes it."""
    return re.sub("[-_.]+", "-", distribution).lower()


def brought_by(requirements: list[str]) -> Iterator[str]:
    """Names of the distributions that requirements bring, their own requirements included."""
    seen = set()
    while requirements:
        requirement = Requirement(requirements.pop())
        name = plain_name(requirement.name)
        if name in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        seen.add(name)
        try:
            requirements += requires(name) or []
        except PackageNotFoundError:
            continue
        yield name


@pytest.fixture(scope="module")
def said(export_base, bases, tmp_path_factory):
    """What commands and functions say in a plain install: exit code, stdout, stderr."""
    folder = export_base("t5").folder
    rows = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows.write_text(json.dumps({"input": "is red a dog ?", "target": "no"}))
    distributions = {*brought_by(plain_dependencies())}
    missing = [
        module
        for module, found in packages_distributions().items()
        if not distributions & {plain_name(name) for name in found} and module != "lorahub_edge"
    ]
    assert {"torch", "transformers", "peft", "nevergrad", "onnx"} <= {*missing}
    arguments = [str(folder), str(bases["t5"]), str(rows), *missing]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False, cwd=rows.parent
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_an_exported_folder_is_answered_scored_and_served(said):
    exit_code, answers, stderr = said["predict"]
    assert (exit_code, stderr) == (0, "")
    assert said["load_adapted"] == answers.splitlines()
    assert said["served"] == 200
    [(exit_code, stdout, _)] = [result for command, result in said.items() if command.startswith("evaluate ")]
    assert exit_code == 0
    assert stdout.startswith("exact match ")


def test_the_catalogue_needs_no_torch(said):
    results = [result for words, result in said.items() if words.startswith("hub ")]
    assert [result[::2] for result in results] == [[0, ""]] * 3
    assert results[1][1].startswith("found 1 in c")


@pytest.mark.parametrize("command", ["--help", "--version", "adapt --help", "doctor"])
def test_what_needs_no_model_works(said, command):
    assert said[command][::2] == [0, ""]


def test_doctor_says_what_is_missing(said):
    lines = said["doctor"][1].splitlines()
    assert "torch         not installed" in lines
    assert lines[-1] == f"note          all but answering from an exported folder needs torch, {REMEDY}"


@pytest.mark.parametrize("command", ["adapt", "bench", "export", "merge", "plan", "predict", "train", "verify"])
def test_the_rest_says_in_one_line_what_it_needs(said, command):
    """predict here of a folder that is no export."""
    [(exit_code, stdout, stderr)] = [
        result
        for words, result in said.items()
        if words.startswith(command) and words not in ("predict", "adapt --help")
    ]
    lines = stderr.splitlines()
    if command == "adapt":  # its first line comes before anything slow is loaded
        assert lines.pop(0) == "adapting pocket to sound_in_braces"
    assert (exit_code, stdout, len(lines)) == (1, "", 1)
    assert re.fullmatch(f"error: .* needs torch, {re.escape(REMEDY)}", lines[0])


def test_the_python_functions_say_it_too(said):
    assert said["api"]["adapt"] == f"adapt needs torch, {REMEDY}"
    assert all(message.endswith(REMEDY) for message in said["api"].values())


def test_what_needs_ray_names_its_own_extra(said):
    needs = "lorahub_edge.serve.on_ray needs ray, which is not installed; pip install 'lorahub-edge[ray]'"
    assert said["on_ray"] == needs


@pytest.mark.parametrize(("set_before", "expected"), [(None, "1"), ("0", "0")])
def test_onnxruntime_is_told_to_report_nothing_unless_the_user_says_otherwise(set_before, expected):
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {} if set_before is None else {"ORT_DISABLE_TELEMETRY": set_before}
    script = "import os, lorahub_edge; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout == f"{expected}\n", done.stderr
