"""A sweep computes each point once, by content; what fails is a row, and never the end."""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

import lorahub_edge
from lorahub_edge.adaptation import PopulationForward, RunUnfinished
from lorahub_edge.adaptation.memory_plan import MemoryExceeded
from lorahub_edge.adaptation.run_folder import is_finished
from lorahub_edge.errors import InvalidInput, OutputExists
from lorahub_edge.outputs import locked
from lorahub_edge.sweeping.entry import _write_files
from lorahub_edge.sweeping.point import run_point
from lorahub_edge.sweeping.prepare import Preparer
from tests.sweeping.conftest import settled, write_task


@pytest.fixture
def events():
    return []


@pytest.fixture
def sweep(events, tmp_path):
    """Sweep in this process and keep the events."""

    def run(what, **options):
        events.clear()
        return lorahub_edge.sweep(what, tmp_path / "out", on_event=events.append, **options)

    return run


def kinds(events):
    return {
        kind: [e.point for e in events if e.kind == kind] for kind in ("known", "started", "done", "failed", "lost")
    }


def test_each_point_is_the_run_that_adapt_makes(undisturbed, study):
    assert len(undisturbed.rows) == 8
    assert not undisturbed.failures
    row = next(r for r in undisturbed.rows if (r["task"], r["pool"], r["seed"]) == ("right", "two", 2))
    examples = study["tasks"][0] + "/right.jsonl"
    run = lorahub_edge.adapt(
        study["base"], study["pools"]["two"], examples, test=examples, preset="paper", seed=2, example_seed=43,
        **study["settings"],
    )  # fmt: skip
    assert row["coefficients"] == run.coefficients
    for name, numbers in row["results"].items():
        assert numbers["exact_match"] == run.row(name).exact_match
        assert run.row(name).value is None or numbers["loss"] == run.row(name).value.mean_loss
    saved = lorahub_edge.load_adapted(undisturbed.folder / "runs" / row["folder"])
    assert saved.predict(["is red"]) == run.predict(["is red"])


def test_tables_are_means_over_seeds_with_their_errors(undisturbed):
    all_, two = undisturbed.tables()
    assert (all_.pool, two.pool, all_.preset) == ("all", "two", "paper")
    cell = two.rows["left"]["adapted"]
    values = [
        r["results"]["adapted"]["exact_match"] for r in undisturbed.rows if (r["task"], r["pool"]) == ("left", "two")
    ]
    assert cell.values == tuple(values)
    assert cell.standard_error == pytest.approx(abs(values[0] - values[1]) / 2)
    assert list(two.rows) == ["left", "right", "mean of the tasks"]
    page = (undisturbed.folder / "table.html").read_text()
    assert all(f'runs/{row["folder"]}/report.html"' in page for row in undisturbed.rows)
    assert json.loads((undisturbed.folder / "table.json").read_text()) == json.loads(json.dumps(undisturbed.report()))


def test_a_second_start_computes_what_changed_and_nothing_else(
    study, sweep, events, tmp_path, task_folder, undisturbed
):
    tasks = shutil.copytree(task_folder, tmp_path / "tasks")
    study = {**study, "tasks": [str(tasks)]}
    assert settled(sweep(study)) == settled(undisturbed)
    assert settled(sweep(study)) == settled(undisturbed)
    assert (len(kinds(events)["known"]), kinds(events)["started"]) == (8, [])
    write_task(tasks / "left.jsonl", seed=7)
    changed = sweep(study)
    assert {p.partition("--")[0] for p in kinds(events)["started"]} == {"left"}
    assert settled(changed)["points"][4:] == settled(undisturbed)["points"][4:]
    assert settled(changed)["points"][:4] != settled(undisturbed)["points"][:4]
    write_task(tasks / "left.jsonl", seed=0)
    assert settled(sweep(study)) == settled(undisturbed)
    assert kinds(events)["started"] == []


def test_what_fails_is_a_row_with_its_reason_and_is_tried_again(
    study, sweep, events, tmp_path, task_folder, module_folders
):
    tasks = shutil.copytree(task_folder, tmp_path / "tasks")
    (tasks / "broken.jsonl").write_text('{"input": "one"')
    pools = {"two": study["pools"]["two"], "foreign": str(module_folders["llama"])}
    study = {**study, "tasks": [str(tasks)], "pools": pools, "seeds": 1}
    swept = sweep(study)
    assert [row["task"] for row in swept.rows] == ["left", "right"]
    assert "broken.jsonl" in swept.failures["broken--two--paper--1"]
    assert "base" in swept.failures["left--foreign--paper--1"]
    assert len(swept.failures) == 4
    page = (tmp_path / "out" / "table.html").read_text()
    assert page.count("broken.jsonl") == 2  # with either pool
    write_task(tasks / "broken.jsonl", seed=3)
    assert len(sweep(study).failures) == 3
    assert kinds(events)["started"] == ["broken--two--paper--1"]


def test_a_full_disk_is_a_failure_of_its_point_and_costs_no_evaluation(study, sweep, events, undisturbed, monkeypatch):
    write_text, victims = Path.write_text, ["report.html", "report.html"]

    def write(self, *arguments, **options):
        if victims and self.name == victims[-1]:
            victims.pop()
            raise OSError(28, "No space left on device")
        return write_text(self, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", write)
    with pytest.warns(RunUnfinished):
        swept = sweep(study)
    assert len(swept.rows) == 6
    assert all("No space left on device" in reason for reason in swept.failures.values())
    monkeypatch.setattr(PopulationForward, "_fill", lambda *_: pytest.fail("computed again"))
    assert settled(sweep(study)) == settled(undisturbed)
    assert len(kinds(events)["started"]) == 2


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_a_sweep_and_the_same_call_goes_on(study, sweep, events, undisturbed, tmp_path, monkeypatch):
    fill, is_told = PopulationForward._fill, False

    def interrupted(self, *arguments):
        nonlocal is_told
        if len(kinds(events)["started"]) == 3 and not is_told:  # at the third point's beginning
            is_told = True
            signal.raise_signal(signal.SIGINT)
        fill(self, *arguments)

    monkeypatch.setattr(PopulationForward, "_fill", interrupted)
    with pytest.raises(KeyboardInterrupt), pytest.warns(RunUnfinished):
        sweep(study)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    done, started = kinds(events)["done"], kinds(events)["started"]
    assert 0 < len(done) == len(started) - 1 < 7
    assert len(list((tmp_path / "out" / "runs").glob("*.unfinished"))) == 1
    assert settled(sweep(study)) == settled(undisturbed)
    assert kinds(events)["known"] == done


def test_one_sweep_at_a_time_in_a_folder_that_is_its_own(study, sweep, tmp_path):
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out"), pytest.raises(OutputExists, match="being written by another process"):
        sweep(study)
    (tmp_path / "out" / "novel.txt").write_text("chapter 1")
    with pytest.raises(OutputExists, match="is no sweep of lorahub-edge"):
        sweep(study)


def test_a_worker_out_of_reach_sends_its_files(study, undisturbed, tmp_path, monkeypatch):
    units = []
    monkeypatch.setattr("lorahub_edge.sweeping.entry.run_point", lambda unit, held: units.append(unit))
    swept = lorahub_edge.sweep({**study, "seeds": 1, "tasks": study["tasks"][0] + "/left.jsonl"}, tmp_path / "out")
    assert len(swept.failures) == len(units) == 2  # nothing was written
    (unit, _) = units
    files = run_point(replace(unit, mark="of another machine"), {})
    assert not unit.folder.exists()
    _write_files(unit.folder, files)
    assert is_finished(unit.folder)
    theirs = undisturbed.folder / "runs" / unit.folder.name
    assert (unit.folder / "coefficients.json").read_bytes() == (theirs / "coefficients.json").read_bytes()
    assert sorted(map(str, files)) == sorted(str(p.relative_to(theirs)) for p in theirs.rglob("*") if p.is_file())


def test_inputs_that_change_under_way_are_no_result(study, tmp_path, monkeypatch):
    units = []
    monkeypatch.setattr("lorahub_edge.sweeping.entry.run_point", lambda unit, held: units.append(unit))
    write_task(tmp_path / "task.jsonl", seed=1)
    lorahub_edge.sweep({**study, "tasks": str(tmp_path / "task.jsonl"), "seeds": 1}, tmp_path / "out")
    write_task(tmp_path / "task.jsonl", seed=2)
    with pytest.raises(InvalidInput, match="are not what they were when the sweep began"):
        run_point(units[0], {})
    assert not units[0].folder.exists()


def test_memory_is_planned_for_all_workers_together(study, tmp_path):
    file = lorahub_edge.sweeping.entry.read_sweep(study)
    points = [
        Preparer(file, None, is_shared=False).prepare(point, tmp_path)
        for point in lorahub_edge.sweeping.entry.points_of(file)
    ]
    within = lorahub_edge.sweeping.entry.within
    need = max(point.needed_bytes for point in points)
    assert within(None, points, 4) == (4, None)
    assert within(3 * need, points, 4) == (3, need)
    assert within(need, points, 4) == (1, need)
    with pytest.raises(MemoryExceeded, match=r"max_memory: no point fits; .* does not fit 1 MB: at least .* is needed"):
        lorahub_edge.sweep(study, tmp_path / "out", max_memory="1MB")
    with pytest.raises(InvalidInput, match="max_memory: expected a whole number"):
        lorahub_edge.sweep(study, tmp_path / "out", max_memory=0)
