"""Losses that are not finite: they win nothing, and every result says so in words that JSON has."""

import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest

import lorahub_edge
from lorahub_edge.adaptation.controls import Row, fixed_controls
from lorahub_edge.adaptation.objective import Value
from lorahub_edge.adaptation.report import report_html
from lorahub_edge.adaptation.run import headline
from lorahub_edge.benchmark.methods import METHODS
from lorahub_edge.benchmark.trial import Pool, Protocol, TaskRows, Trial
from lorahub_edge.modules import load_modules
from lorahub_edge.terminal import print_run
from tests import tiny


def parsed(text):
    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def wild_modules(bases, module_folders, tmp_path):
    """The first of three has factors whose product float32 cannot hold."""
    wild = tiny.save_module(bases["t5"], tmp_path / "modules" / "wild", "t5", seed=0, std=1e30)
    return [str(wild), str(module_folders["t5"] / "m1"), str(module_folders["t5"] / "m2")]


def test_a_module_that_overflows_wins_nothing_and_the_files_are_json(
    bases, wild_modules, example_file, tmp_path, capsys
):
    run = lorahub_edge.adapt(
        str(bases["t5"]), wild_modules, example_file, n_examples=4, budget=6, precision="fp32", device="cpu",
        null_control=False, out=tmp_path / "run",
    )  # fmt: skip
    assert not math.isfinite(run.single_losses["wild"])
    finite = [name for name in run.single_losses if name != "wild"]
    assert run.row("best single module").detail == f"{min(finite, key=run.single_losses.get)}, by loss"
    assert not math.isfinite(run.row("uniform mean").value.mean_loss)
    report = parsed((run.folder / "report.json").read_text())
    assert report == parsed(json.dumps(run.report(), allow_nan=False))
    assert report["single_module_losses"]["wild"] is None
    assert [row["loss"] is None for row in report["table"]] == [False, False, True, False, False]
    journal = [parsed(line) for line in (run.folder / "journal.jsonl").read_text().splitlines()]
    assert sum(line["mean_loss"] is None for line in journal) >= 2
    parsed((run.folder / "manifest.json").read_text())
    assert re.search('<td>uniform mean<small>.*?</small></td><td class="n">not finite</td>', page_of(run))
    print_run(run.report())
    assert "not finite" in capsys.readouterr().out


def page_of(run):
    return (run.folder / "report.html").read_text()


def test_the_bench_picks_the_best_finite_module(bases, wild_modules, example_file):
    base = lorahub_edge.load_base(str(bases["t5"]), precision="fp32", device="cpu")
    pool = Pool(base, load_modules(wild_modules))
    rows = TaskRows("task", str(example_file), str(example_file))
    trial = Trial.of(pool, rows, Protocol("quality", n_examples=4), example_seed=42, seed=1)
    with METHODS["best-single"].fit(trial, {}) as fitted:
        assert not fitted.detail.startswith("wild")


def test_without_any_finite_loss_there_are_still_controls_a_headline_and_a_page():
    rows, losses = fixed_controls(["a", "b"], lambda c: [Value(math.nan, math.nan, 0.0, (math.nan,))] * len(c))
    assert [row.name for row in rows] == ["zero-shot", "best single module", "uniform mean", "mean of the best"]
    assert np.isnan(losses).all()
    run = SimpleNamespace(
        table=[
            Row("constant answer", "", (), None),
            Row("adapted", "", (1.0,), Value(1.25, 1.25, 0.0, (1.25,))),
            *rows,
        ],
        search=SimpleNamespace(n_evaluations=3),
        task=SimpleNamespace(name="t"),
        interrupted=False,
    )
    assert headline(run) == "adapted to t in 3 evaluations: loss not finite -> 1.250", "whatever their places"
    report = {
        "headline": "h", "verdict": "", "task": "t", "n_examples": 1, "n_test": 0, "table": [],
        "coefficients": {"a": 1.0}, "chosen_modules": None, "samples": [],
        "search": {"resolved_optimizer": "o", "evaluations": 1, "seed": 0, "formula": "f", "bound": 1.5,
            "composition": "factors"},
        "timings": {"total_s": 1.0},
    }  # fmt: skip
    assert "No candidate has a finite loss." in report_html(report, [(math.nan, math.nan)] * 3)


def test_the_bar_shows_the_best_finite_loss(bases, wild_modules, example_file, monkeypatch):
    points = iter([[[1.0]], [[0.0]], [[0.5]]])
    searcher = SimpleNamespace(
        name="listed", resolved_name="listed", ask=lambda at_most: np.array(next(points)), tell=lambda *told: None
    )
    monkeypatch.setattr("lorahub_edge.adaptation.job.make_searcher", lambda *args, **settings: searcher)
    seen = []
    lorahub_edge.adapt(
        str(bases["t5"]), wild_modules[:1], example_file, n_examples=4, budget=3, precision="fp32", device="cpu",
        null_control=False, on_progress=seen.append,
    )  # fmt: skip
    losses = [p.best_loss for p in seen if p.stage == "search" and p.best_loss is not None]
    assert [math.isfinite(loss) for loss in losses] == [False, True, True]
