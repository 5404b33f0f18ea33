"""Trials on workers give the records of one process, but for what they cost."""

import json

import pytest

from lorahub_edge.benchmark import Protocol, bench_quality
from lorahub_edge.benchmark.records import read
from lorahub_edge.errors import InvalidInput, LorahubEdgeError
from lorahub_edge.scheduling import Workers
from tests import tiny

METHODS = ["zero-shot", "best-single", "uniform", "own-module"]


def outcome(record):
    """A record without its costs."""
    metrics = {n: v for n, v in record["metrics"].items() if n != "test" and "seconds" not in n and "peak" not in n}
    return record["key"], record["setup"], metrics


@pytest.fixture
def bench(bases, module_folders, tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, word in (("m1", "red"), ("other", "blue")):
        rows = [json.dumps({"input": f"{word} {i}", "target": t}) + "\n" for i, t in tiny.ROWS * 2]
        (folder / f"{name}.jsonl").write_text("".join(rows))

    def run(out, **options):
        return bench_quality(
            str(bases["t5"]), str(module_folders["t5"]), [str(folder)], out=tmp_path / out, methods=METHODS, n_seeds=2,
            leave_out=True, protocol=Protocol("quality", n_examples=3, n_test=2, max_new_tokens=3), device="cpu",
            **options,
        )  # fmt: skip

    return run


def test_records_are_those_of_one_process_and_known_ones_stay(bench, tmp_path):
    here = bench("here.jsonl")
    said: list[str] = []
    there = bench("there.jsonl", workers=Workers(2), say=said.append)
    assert [outcome(r) for r in there] == [outcome(r) for r in here]
    assert {r["setup"]["method"]["name"] for r in there} >= set(METHODS)
    assert sorted(map(str, map(outcome, read(tmp_path / "there.jsonl")))) == sorted(map(str, map(outcome, here)))
    assert len(said) == len(there)
    lines = (tmp_path / "there.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "there.jsonl").write_text("".join(lines[:-2]))
    assert list(map(outcome, bench("there.jsonl", workers=Workers(1)))) == list(map(outcome, here))
    again = (tmp_path / "there.jsonl").read_text().splitlines(keepends=True)
    assert (again[:-2], len(again)) == (lines[:-2], len(lines))


def test_a_trial_that_fails_is_named_and_the_others_are_measured(bench, tmp_path, monkeypatch):
    monkeypatch.setattr("lorahub_edge.benchmark.on_workers.run_trial", fails_on_m1)
    with pytest.raises(LorahubEdgeError, match="2 trials failed; m1, seed 1: ValueError: no such luck"):
        bench("r.jsonl", workers=Workers(1))
    assert {r["setup"]["task"] for r in read(tmp_path / "r.jsonl")} == {"other"}


def fails_on_m1(unit, held):
    from lorahub_edge.benchmark.on_workers import run_trial

    if unit.rows.name == "m1":
        raise ValueError("no such luck")
    return run_trial(unit, held)


def test_a_loaded_base_does_not_travel(bases, tmp_path):
    import lorahub_edge

    base = lorahub_edge.load_base(str(bases["t5"]), device="cpu")
    with pytest.raises(InvalidInput, match="workers: each loads the base itself"):
        bench_quality(base, out=tmp_path / "r.jsonl", workers=Workers(1))
