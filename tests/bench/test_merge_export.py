"""What is merged is compared with the formula, peers included, and what a process took is its own."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import lorahub_edge
from bench import merge_export, merge_peft, serve_convert
from bench.merge_check import check_merged, made_run
from bench.records import read
from bench.workers import Workplace, in_turns
from lorahub_edge.adaptation.run_folder import COEFFICIENTS
from tests import tiny


@pytest.fixture
def made(bases, tmp_path):
    """Base, modules and a run folder of drawn coefficients."""
    modules = tmp_path / "modules"
    for k in range(3):
        tiny.save_module(bases["t5"], modules / f"m{k}", "t5", seed=k)
    return bases["t5"], modules, made_run(tmp_path / "run", bases["t5"], modules)


@pytest.mark.parametrize(("precision", "in_place"), [("fp32", False), ("bf16", False), ("int8", False), ("int8", True)])
def test_what_merge_writes_passes_and_what_it_did_not_write_does_not(made, tmp_path, precision, in_place):
    base, _, run = made
    out = tmp_path / "merged"
    lorahub_edge.merge(run, out, precision=precision, in_place_int8=in_place, min_survival=0)
    check_merged(out, base, run, precision, in_place=in_place)
    path = out / "model.safetensors"
    tensors = load_file(path)
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    tensors[name][1, 2] += 3 if precision == "int8" else tensors[name].abs().max() / 50
    save_file(tensors, path)
    with pytest.raises(SystemExit, match=r"SelfAttention\.q' is off by .* a wrong result is not timed"):
        check_merged(out, base, run, precision, in_place=in_place)


def test_in_place_is_allowed_more_than_a_merge_of_the_float_source(made, tmp_path):
    base, _, run = made
    lorahub_edge.merge(run, tmp_path / "merged", in_place_int8=True, min_survival=0)
    with pytest.raises(SystemExit, match="is off by"):
        check_merged(tmp_path / "merged", base, run, "int8")


@pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied")
def test_peft_adds_up_the_same_module(made, tmp_path, monkeypatch, capsys):
    base, modules, run = made
    out = tmp_path / "merged"
    monkeypatch.setattr("sys.argv", ["merge_peft", *map(str, (base, modules, run / COEFFICIENTS, out))])
    merge_peft.main()
    check_merged(out, base, run, "fp32")
    assert set(json.loads(capsys.readouterr().out.splitlines()[-1])) == {"load_s", "compose_s", "merge_s", "save_s"}
    with pytest.raises(SystemExit, match="is off by"):
        check_merged(base, base, run, "fp32")


def test_a_process_is_measured_from_start_to_exit_by_itself(tmp_path):
    place = Workplace(tmp_path)
    sleeps = place.measured([sys.executable, "-S", "-c", 'import time; time.sleep(0.3); print("{\\"own_s\\": 1}")'])
    assert sleeps["own_s"] == 1
    assert sleeps["seconds"][0] >= 0.3 > sleeps["cpu_s"]
    assert 1e6 < sleeps["peak_bytes"] < 1e8  # this process, with torch, has more
    grows = place.measured([sys.executable, "-S", "-c", "x = bytearray(200_000_000)"])
    assert 2e8 < grows["peak_bytes"] < 3e8
    with pytest.raises(SystemExit, match=r"failed:\nno"):
        place.measured([sys.executable, "-S", "-c", "raise SystemExit('no')"])


def test_contenders_take_turns_in_changing_order():
    seen = []
    runs = in_turns({name: lambda name=name: seen.append(name) or {"name": name} for name in "abc"}, 6)
    assert {name: [run["name"] for run in rounds] for name, rounds in runs.items()} == {n: [n] * 6 for n in "abc"}
    assert len({tuple(seen[i : i + 3]) for i in range(0, 18, 3)}) > 1


def in_this_process(_, command):
    """A stand-in for a process: does what the command says, but for exports, whose folder is the base's."""
    out = command[command.index("--out") + 1]
    if command[1] == "merge":
        precision, in_place = command[command.index("--precision") + 1], "--in-place-int8" in command
        lorahub_edge.merge(command[2], out, precision=precision, in_place_int8=in_place, min_survival=0)
    else:
        shutil.copytree(command[2], out)
    return {"seconds": [2.0], "cpu_s": 1.0, "peak_bytes": 7}


def not_merged(_, command):
    """A process that writes the base as it was."""
    manifest = json.loads((Path(command[2]) / "manifest.json").read_text())
    return in_this_process(_, ["", "export", manifest["base"]["spec"], *command[3:]])


@pytest.fixture
def bench(bases, monkeypatch, tmp_path):
    """Runs the bench in a work folder whose models of every shape are the tiny one; returns setups and metrics."""
    tiny.save_module(bases["t5"], tmp_path / "modules" / "m0", "t5", seed=0)
    monkeypatch.setattr(Workplace, "model", lambda *_: (bases["t5"], tmp_path / "modules"))

    def run(process, *arguments):
        monkeypatch.setattr(Workplace, "measured", process)
        out = tmp_path / "records.jsonl"
        monkeypatch.setattr("sys.argv", ["merge_export", str(tmp_path), "--out", str(out), *arguments])
        merge_export.main()
        return [(record["setup"], record["metrics"]) for record in read(out)]

    return run


def test_quick_is_ours_on_the_small_shape_and_nothing_stays(bench, tmp_path):
    records = bench(in_this_process, "--quick")
    names = {(setup["part"], setup["shape"], setup["contender"]) for setup, _ in records}
    assert names == {("merge", "small", n) for n in merge_export.MERGES if n != "peft"} | {("export", "small", "ours")}
    for _, metrics in records:
        assert (metrics["median_s"], metrics["peak_bytes"]) == (2.0, 7)
        assert metrics["folder_bytes"] > 1000
    assert {path.name for path in tmp_path.iterdir()} == {"modules", "small-run", "records.jsonl"}


def test_a_wrong_merge_is_not_recorded(bench, tmp_path):
    with pytest.raises(SystemExit, match="a wrong result is not timed"):
        bench(not_merged, "--quick", "--parts", "merge")
    assert not (tmp_path / "records.jsonl").exists()


def test_exports_of_the_served_shape_stay_with_their_stamp(bench, bases, tmp_path, capsys):
    records = bench(in_this_process, "--shapes", "large", "--parts", "export")
    assert [setup["contender"] for setup, _ in records] == ["ours"]
    assert "optimum: left out, no --peer-python" in capsys.readouterr().err
    assert serve_convert.stamp_of(tmp_path / "ours") == serve_convert.model_hash(bases["t5"])
    assert (tmp_path / "ours" / "config.json").is_file()
