"""The paper's protocol against stand-ins: modules of 2023, the release's folders, an archive, the Hub."""

import functools
import http.server
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
import torch
from lorahub.constant import LORA_MODULE_NAMES
from safetensors.torch import load_file

from lorahub_edge.benchmark import bench_bbh
from lorahub_edge.benchmark.published import draw_modules, fetch_data, module_specs, published_modules
from lorahub_edge.benchmark.records import read
from lorahub_edge.errors import InvalidInput
from tests import tiny
from tests.hub import hub

METHODS = ["zero-shot", "lorahub-code"]
AT_THE_TOP = "lorahub-edge-test.jsonl"


def as_of_2023(folder, target):
    """A copy with a pickle in place of safetensors."""
    old = Path(shutil.copytree(folder, target))
    torch.save(load_file(old / "adapter_model.safetensors"), old / "adapter_model.bin")
    (old / "adapter_model.safetensors").unlink()
    return old


@pytest.fixture
def old_modules(module_folders, tmp_path):
    for k in range(4):
        as_of_2023(module_folders["t5"] / f"m{k}", tmp_path / "modules" / f"flan_t5_tiny-m{k}")
    return tmp_path / "modules"


@pytest.fixture
def data(tmp_path):
    """Two tasks in the release's layout."""
    folder = tmp_path / "data_bbh"
    rows = [json.dumps({"context": i, "completion": t}) + "\n" for i, t in tiny.ROWS]
    others = [json.dumps({"context": f"not {i}", "completion": t}) + "\n" for i, t in tiny.ROWS]
    for name in ("navigate", "snarks"):
        (folder / name).mkdir(parents=True)
        (folder / name / "example.jsonl").write_text("".join(rows))
        (folder / name / "zero_shot.jsonl").write_text("".join(others))
    return folder


def test_names_and_draws_are_those_of_the_released_code():
    assert published_modules() == LORA_MODULE_NAMES
    for seed in range(1, 6):
        random.seed(seed)
        assert draw_modules(published_modules(), 20, seed) == random.sample(LORA_MODULE_NAMES, 20)
    with pytest.raises(InvalidInput, match="n_modules: expected at least 1"):
        draw_modules(["a"], 0, 1)


def test_every_seed_draws_modules_and_every_task_has_one_draw(bases, old_modules, data, tmp_path):
    out = tmp_path / "bbh.jsonl"
    settings = {"out": out, "methods": METHODS, "n_modules": 2, "device": "cpu"}
    arguments = (str(bases["t5"]), [str(old_modules)], str(data))
    bench_bbh(*arguments, n_seeds=1, only=["snarks"], **settings)
    assert len(read(out)) == 2
    bench_bbh(*arguments, n_seeds=2, **settings)
    records = read(out)
    points = [(r["setup"]["task"], r["setup"]["method"]["name"], r["setup"]["method"].get("seed")) for r in records]
    # zero-shot once per task; what the first call measured was not measured again
    expected = {(task, "zero-shot", None) for task in ("navigate", "snarks")}
    expected |= {(task, "lorahub-code", seed) for task in ("navigate", "snarks") for seed in (1, 2)}
    assert len(points) == 6
    assert set(points) == expected
    assert {r["setup"]["example_seed"] for r in records} == {42}
    assert {r["setup"]["max_new_tokens"] for r in records} == {256}
    assert {r["metrics"]["n_test"] for r in records} == {len(tiny.ROWS)}
    for record in records:
        if "modules" in record["setup"]:
            seed = record["setup"]["method"]["seed"]
            names = [Path(spec).name for spec in draw_modules(module_specs([str(old_modules)]), 2, seed)]
            assert record["setup"]["modules"] == names
    with pytest.raises(InvalidInput, match="task 'sports' is not in the data; it has navigate, snarks"):
        bench_bbh(*arguments, only=["sports"], **settings)


def test_the_published_modules_come_from_the_hub(bases, module_folders, data, tmp_path):
    """The whole command in a process of its own, as huggingface_hub reads its endpoint once."""
    drawn = draw_modules(published_modules(), 2, 1)
    served = {name: as_of_2023(module_folders["t5"] / f"m{k}", tmp_path / f"old{k}") for k, name in enumerate(drawn)}
    served["google/flan-t5-large"] = bases["t5"]
    command = [sys.executable, "-m", "lorahub_edge.cli", "bench", "bbh", "--data", str(data), "--n-modules", "2"]
    command += ["--seeds", "1", "--methods", "lorahub-code", "--device", "cpu", "--tasks", "snarks", "--out", "o.jsonl"]
    with hub(served) as (endpoint, _):
        settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
        environment = {**os.environ, **settings}
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    (record,) = read(tmp_path / "o.jsonl")
    assert record["setup"]["modules"] == drawn
    assert "| snarks |" in done.stdout


@pytest.fixture
def archive(data, tmp_path):
    path = tmp_path / "release.zip"
    with zipfile.ZipFile(path, "w") as content:
        for file in sorted(data.rglob("*.jsonl")):
            content.write(file, f"data_bbh/{file.parent.name}/{file.name}")
        content.writestr("../../outside.jsonl", "{}")
        content.writestr(AT_THE_TOP, "{}")  # its folder's name is /
        content.writestr("data_bbh/README.md", "not rows")
    return path


def test_an_archive_is_fetched_once_and_nothing_lands_outside(archive, data, tmp_path):
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    handler = functools.partial(quiet, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/release.zip"
    try:
        folder = fetch_data(address, tmp_path / "cache" / "deep")
    finally:
        server.shutdown()
        server.server_close()
    assert folder == fetch_data(address, tmp_path / "cache" / "deep")  # the server is gone
    assert not Path("/", AT_THE_TOP).exists()
    for file in data.rglob("*.jsonl"):
        assert (folder / file.relative_to(data)).read_text() == file.read_text()
    assert folder.name.startswith("release-")
    assert sorted(p.name for p in (tmp_path / "cache").rglob("*")) == sorted(
        ["deep", folder.name, "navigate", "snarks", *["example.jsonl", "zero_shot.jsonl"] * 2]
    )


def test_archives_of_one_name_are_kept_apart(tmp_path):
    found = []
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        with zipfile.ZipFile(tmp_path / place / "data.zip", "w") as content:
            content.writestr("snarks/example.jsonl", place)
        found.append(fetch_data(str(tmp_path / place / "data.zip"), tmp_path / "cache"))
    assert [(folder / "snarks/example.jsonl").read_text() for folder in found] == ["a", "b"]
    shutil.copy(tmp_path / "b/data.zip", tmp_path / "a/data.zip")  # the same place, other rows
    assert fetch_data(str(tmp_path / "a/data.zip"), tmp_path / "cache") == found[1]


def lying(path):
    """A member that claims to have one byte and unpacks to two million."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as content:
        content.writestr("snarks/example.jsonl", " " * 2_000_000)
    data = path.read_bytes()
    path.write_bytes(data.replace((2_000_000).to_bytes(4, "little"), (1).to_bytes(4, "little")))


def twice(path):
    with zipfile.ZipFile(path, "w") as content:
        for top in ("a", "b"):
            content.writestr(f"{top}/snarks/example.jsonl", "{}")


def too_large(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as content:
        for task in "ab":
            content.writestr(f"{task}/example.jsonl", " " * 600_000)


def locked(path):
    with zipfile.ZipFile(path, "w") as content:
        content.writestr("snarks/example.jsonl", "{}")
    data = path.read_bytes()
    for mark in (b"PK\x03\x04", b"PK\x01\x02"):  # the flag for a password, in both headers
        place = data.index(mark) + (6 if mark[2] == 3 else 8)
        data = data[:place] + bytes([data[place] | 1]) + data[place + 1 :]
    path.write_bytes(data)


@pytest.mark.parametrize("make", [lying, twice, too_large, locked])
def test_a_strangers_archive_is_refused_within_bounds(tmp_path, monkeypatch, make):
    monkeypatch.setattr("lorahub_edge.benchmark.published.MAX_DATA_BYTES", 1_000_000)
    make(tmp_path / "data.zip")
    with pytest.raises(InvalidInput, match=r"cannot be fetched or unpacked .* give a folder"):
        fetch_data(str(tmp_path / "data.zip"), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_is_no_archive_is_refused_and_leaves_nothing(tmp_path):
    (tmp_path / "broken.zip").write_bytes(b"PK\3\4 not whole")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as content:
        content.writestr("README.md", "")
    for source in ("broken.zip", "empty.zip", "none.zip"):
        with pytest.raises(InvalidInput, match=r"cannot be fetched or unpacked .* give a folder"):
            fetch_data(str(tmp_path / source), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
