"""`--modules hub:QUERY`: what a run takes from the catalogue, what it reads, and how it is done again."""

import builtins
import io
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

import lorahub_edge
from lorahub_edge.benchmark.published import module_specs
from lorahub_edge.cli import app
from lorahub_edge.errors import InvalidInput
from lorahub_edge.modules import adapter_weights, find_modules
from tests import tiny
from tests.catalogue.conftest import TOPICS, write_module

SETTINGS = {
    "examples": tiny.ROWS, "n_examples": 4, "device": "cpu", "cache": False, "precision": "fp32", "budget": 6,
    "null_control": False,
}  # fmt: skip
PLANNED = {name: value for name, value in SETTINGS.items() if name not in ("budget", "null_control")}


@pytest.fixture
def opened(many, monkeypatch) -> Counter:
    """How often a file of each of the many folders is opened."""
    seen: Counter = Counter()
    real_open, real_safe_open = builtins.open, adapter_weights.safe_open

    def note(path):
        if isinstance(path, (str, Path)) and Path(path).parent.parent == many:
            seen[Path(path).parent.name] += 1

    def noted_open(path, *arguments, **options):
        note(path)
        return real_open(path, *arguments, **options)

    def noted_safe_open(path, *arguments, **options):
        note(path)
        return real_safe_open(path, *arguments, **options)

    monkeypatch.setattr(builtins, "open", noted_open)
    monkeypatch.setattr(io, "open", noted_open)
    monkeypatch.setattr(adapter_weights, "safe_open", noted_safe_open)
    return seen


@pytest.mark.parametrize("way", ["similar", "random"])
def test_a_choice_of_fifty_opens_fifty(bases, catalogued, opened, monkeypatch, way):
    monkeypatch.setenv("LORAHUB_EDGE_CATALOGUE", str(catalogued.path))
    plans = lorahub_edge.plan(str(bases["t5"]), "hub:all", max_modules=50, choose_modules=way, seed=3, **PLANNED)
    assert plans[0].stack_bytes > 0
    assert len(opened) == 50
    assert set(opened.values()) == {2}  # config and header
    numbers = [int(name[1:]) for name in opened]
    assert not any(number % 20 == 0 for number in numbers)  # those are for another base
    if way == "similar":  # their cards speak of the examples
        assert {TOPICS[number % len(TOPICS)] for number in numbers} == {TOPICS[3]}


def test_a_choice_is_that_of_the_folders_themselves(bases, module_folders, tmp_path, monkeypatch):
    few = tmp_path / "few"
    for number, topic in enumerate(TOPICS):
        write_module(module_folders["t5"] / f"m{number % 4}", few / f"n{number}", number=number, topic=topic)
    (few / "n1" / "training_rows.jsonl").write_text('{"question": "is red a dog ?", "answer": "no"}\n')
    monkeypatch.setenv("LORAHUB_EDGE_CATALOGUE", str(tmp_path / "catalogue"))
    lorahub_edge.Catalogue().add(few)
    settings = {**SETTINGS, "max_modules": 3, "choose_modules": "similar"}
    runs = [lorahub_edge.adapt(str(bases["t5"]), modules, **settings) for modules in (few, "hub:all")]
    choices = [run.manifest["chosen_modules"] for run in runs]
    assert choices[0] == choices[1]
    assert runs[0].coefficients == runs[1].coefficients
    assert [run.manifest["module_specs"] for run in runs] == [[str(few)], ["hub:all"]]


def test_a_run_is_done_again_with_exactly_its_modules(bases, few, tmp_path, monkeypatch):
    monkeypatch.setenv("LORAHUB_EDGE_CATALOGUE", str(tmp_path / "catalogue"))
    catalogue = lorahub_edge.Catalogue()
    catalogue.add([few, "pocket/sound"])
    base = str(bases["t5"])
    run = lorahub_edge.adapt(base, "hub:m", max_modules=2, **SETTINGS, out=tmp_path / "run")
    manifest = tmp_path / "run" / "manifest.json"
    record = json.loads(manifest.read_text())["modules"]
    for module in record:
        files = catalogue.get(module["name"]).files
        assert module["files"] == {name: files[name].sha256 for name in module["files"]}
    tiny.save_module(bases["t5"], few / "m9", "t5", seed=9)
    catalogue.add(few)
    again = lorahub_edge.adapt(base, manifest, **SETTINGS)
    assert again.coefficients == run.coefficients
    assert list(again.coefficients) == [module["name"] for module in record]
    changed = Path(record[0]["spec"])
    shutil.copyfile(few / "m9" / "adapter_model.safetensors", changed / "adapter_model.safetensors")
    with pytest.raises(InvalidInput, match=rf"module '{changed.name}' of run .* is not what the run used; see lorahub"):
        find_modules(manifest)


def test_queries_stand_beside_other_specs_and_in_lists(few, tmp_path, monkeypatch):
    monkeypatch.setenv("LORAHUB_EDGE_CATALOGUE", str(tmp_path / "catalogue"))
    lorahub_edge.Catalogue().add(few)
    (tmp_path / "list").write_text("hub:m1 rank:4  # one\npocket/sound\n")
    found = find_modules([tmp_path / "list", "hub:m2"])
    assert [module.name for module in found] == ["m1", "sound", "m2"]
    assert module_specs(["hub:m", "pocket/sound"]) == [*(str(few / f"m{k}") for k in range(4)), "pocket/sound"]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("hub:nothing", "no module matches; see lorahub-edge hub list"),
        ("hub:", "it asks for nothing; expected words, filters, or 'all'"),
        ("hub:colour:red", "'colour:red' is no filter"),
        ("hub:m1", "module 'm1' of catalogue .*: missing since it was added; see lorahub-edge hub verify"),
    ],
)
def test_a_query_that_gives_nothing_is_one_line(bases, few, tmp_path, monkeypatch, query, message):
    monkeypatch.setenv("LORAHUB_EDGE_CATALOGUE", str(tmp_path / "catalogue"))
    lorahub_edge.Catalogue().add(few)
    shutil.rmtree(few / "m1")
    result = CliRunner().invoke(app, ["plan", "--base", str(bases["t5"]), "--modules", query])
    assert result.exit_code == 1
    [line] = result.stderr.splitlines()
    with pytest.raises(InvalidInput, match=message):
        find_modules(query)
    assert line.startswith("error: ")


def test_the_catalogue_lies_in_the_caches_folder_unless_named(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAHUB_EDGE_CACHE", str(tmp_path))
    assert lorahub_edge.Catalogue().path == tmp_path / "catalogue.sqlite"
    monkeypatch.setenv("LORAHUB_EDGE_CACHE", "off")
    with pytest.raises(InvalidInput, match=r"the cache is off.*LORAHUB_EDGE_CATALOGUE=FILE"):
        lorahub_edge.Catalogue()
    monkeypatch.setenv("LORAHUB_EDGE_CATALOGUE", str(tmp_path / "mine"))
    assert lorahub_edge.Catalogue().path == tmp_path / "mine"


def test_the_commands_say_first_what_happened(few, tmp_path):
    place = ["--catalogue", str(tmp_path / "catalogue")]

    def call(*arguments, exit_code=0):
        result = CliRunner().invoke(app, ["hub", *map(str, arguments), *place])
        assert result.exit_code == exit_code, result.output
        return result

    added = call("add", few, few / "none", exit_code=1)
    first, heading, *lines = added.stdout.splitlines()
    assert first.startswith("added 4, updated 0, unchanged 0, refused 1; catalogue: ")
    assert heading.split() == ["module", "base", "rank", "size", "licence"]
    assert [line.split() for line in lines] == [[f"m{k}", "4", "0.0", "MB"] for k in range(4)]
    assert added.stderr.startswith("error: module ")
    assert call("list").stdout.startswith("catalogue of 4: ")
    assert call("search", "m1", "--rank", 4).stdout.startswith("found 1 in ")
    assert call("search", "m1", "--rank", 5).stdout.startswith("found 0 in ")
    assert "lora: rank 4, alpha 8, on q, v" in call("show", "m1").stdout.splitlines()
    shown = json.loads(call("show", "m1", "--json").stdout)
    assert (shown["name"], shown["rank"], shown["folder"]) == ("m1", 4, str(few / "m1"))
    assert set(shown["files"]) >= {"adapter_config.json", "adapter_model.safetensors"}
    assert call("show", "m9", exit_code=1).stderr.startswith("error: catalogue ")
    (few / "m2" / "adapter_config.json").unlink()
    verified = call("verify", exit_code=1)
    assert verified.stdout.splitlines() == ["3 of 4 modules are as they were added", "m2: adapter_config.json: missing"]
    assert json.loads(call("verify", "m1", "--json").stdout) == {"m1": []}
    assert call("remove", "m2").stdout.startswith("removed 1 from ")
    assert [record["name"] for record in json.loads(call("list", "--json").stdout)] == ["m0", "m1", "m3"]
