"""The comparison pairs what can be compared, and nothing else."""

import json

import pytest

from bench.compare import changes_between, main


def record(commit, median_s, *, key="k", cpu="c", **metrics):
    return {
        "schema": 1, "bench": "b", "key": key, "commit": commit, "machine": {"cpu": cpu}, "setup": {"n_modules": 20},
        "metrics": {"median_s": median_s, "samples_s": [9.0], **metrics},
    }  # fmt: skip


def test_costs_of_one_point_on_one_processor_are_paired():
    records = [
        record("a" * 40, 2.0, peak_bytes=100, load_s={"median": 3.0, "min": 1.0}, tokens_per_s=5.0, exact_match=7),
        record("b" * 40, 1.0, peak_bytes=150, load_s={"median": 6.0, "min": 1.0}, tokens_per_s=9.0, exact_match=8),
        record("b" * 40, 9.0, key="another point"),
        record("b" * 40, 9.0, cpu="another processor"),
    ]
    changes = {c.metric: c.ratio for c in changes_between(records, "a" * 40, "b" * 40)}
    assert changes == {"median_s": 0.5, "peak_bytes": 1.5, "load_s.median": 2.0}


def test_of_repeats_on_one_commit_the_last_counts():
    records = [record("a", 2.0), record("a", 4.0), record("b", 1.0)]
    assert [c.ratio for c in changes_between(records, "a", "b")] == [0.25]


@pytest.fixture
def results(tmp_path):
    lines = [record("a" * 40, 2.0), record("b" * 40, 3.0)]
    (tmp_path / "ops.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "one.jsonl").write_text(json.dumps(record("a" * 40, 2.0)) + "\n")
    return tmp_path


def compare(monkeypatch, results, *arguments):
    monkeypatch.setattr("sys.argv", ["compare", "--results", str(results), *arguments])
    main()


def test_it_prints_an_answer_first(monkeypatch, results, capsys):
    compare(monkeypatch, results)
    one, ops, change = capsys.readouterr().out.splitlines()
    assert one == "one: nothing to compare (1 commits)"
    assert ops == "ops: 1 numbers on aaaaaaa and bbbbbbb, mean ratio 1.500 (below 1 is better)"
    assert change.split() == ["1.500", "2", "->", "3", "median_s", "n_modules", "20"]


def test_a_gate_fails_only_when_asked(monkeypatch, results):
    with pytest.raises(SystemExit, match=r"slower by more than 1\.2"):
        compare(monkeypatch, results, "--fail-above", "1.2")
    compare(monkeypatch, results, "--fail-above", "1.6")
