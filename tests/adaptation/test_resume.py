"""A run that ended early, whatever the reason, goes on from its journals and comes to the same result, bit for bit."""

import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import lorahub_edge
from lorahub_edge.adaptation import PopulationForward, RunNotWritten, RunUnfinished
from lorahub_edge.adaptation.controls import MEAN_SUMS
from lorahub_edge.adaptation.journal import CONTROLS_JOURNAL, JOURNAL, NULL_JOURNAL
from lorahub_edge.adaptation.run_folder import default_place, newest_unfinished
from lorahub_edge.errors import InvalidInput, OutputExists
from lorahub_edge.outputs import locked
from tests import tiny

N_CONTROLS = 6 + len(MEAN_SUMS)  # zero-shot, the mean, four modules; means of the best of them


@pytest.fixture
def settings(bases, module_folders):
    return {
        "base": str(bases["t5"]), "modules": str(module_folders["t5"]), "examples": tiny.ROWS, "n_examples": 4,
        "device": "cpu", "cache": False, "budget": 20,
    }  # fmt: skip


def lines_in(unfinished: Path) -> int:
    journals = [unfinished / name for name in (CONTROLS_JOURNAL, JOURNAL, NULL_JOURNAL)]
    return sum(path.read_bytes().count(b"\n") for path in journals if path.exists())


def without_times(journal: Path) -> list[dict]:
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    return [{name: value for name, value in record.items() if name != "elapsed_s"} for record in records]


def failing_at(stage: str, done: int, error: BaseException):
    def fail(progress):
        if (progress.stage, progress.done) == (stage, done):
            raise error

    return fail


def die_at(n_evaluations: int, delay_s: float, settings: dict) -> None:
    """Run until so many evaluations of search and null are done, old ones among them, and a moment more."""
    seen = 0

    def count(progress):
        nonlocal seen
        seen += progress.stage in ("search", "null") and progress.done > 0
        if seen == n_evaluations:
            threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGKILL)).start()

    torch.set_num_threads(1)
    lorahub_edge.adapt(**settings, on_progress=count)


def kill(n_evaluations: int, delay_s: float, settings: dict) -> int:
    """How many evaluations are kept of a run that is killed so."""
    child = multiprocessing.get_context("forkserver").Process(target=die_at, args=(n_evaluations, delay_s, settings))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    return lines_in(Path(f"{settings['out']}.unfinished"))


@pytest.mark.filterwarnings("ignore:Underlying optimizer has already converged")
@pytest.mark.parametrize(("preset", "budget"), [("edge", 60), ("paper", 60), ("lorahub-code", 40)])
def test_ten_kills_at_random_moments_change_no_bit(settings, tmp_path, preset, budget, monkeypatch):
    multiprocessing.set_forkserver_preload([__name__])  # torch is imported once for all of them
    settings |= {"preset": preset, "budget": budget, "test": tiny.ROWS}
    whole = lorahub_edge.adapt(**settings, out=tmp_path / "whole")
    settings["out"] = str(tmp_path / "killed")
    rng = random.Random(preset)
    kept = [kill(n, rng.uniform(0, 0.01), settings) for n in sorted(rng.sample(range(1, 2 * budget - 15), 10))]
    assert kept == sorted(kept)
    assert 0 < kept[0] < kept[-1] < N_CONTROLS + 2 * budget
    n_computed = 0
    compute = PopulationForward._fill

    def counted(self, coefficients, *to_fill):
        nonlocal n_computed
        n_computed += len(coefficients)
        compute(self, coefficients, *to_fill)

    monkeypatch.setattr(PopulationForward, "_fill", counted)
    resumed = lorahub_edge.adapt(**settings)
    assert 0 < n_computed <= N_CONTROLS + 2 * budget - kept[-1]
    assert resumed.manifest["search"]["evaluations_of_earlier_starts"] == min(budget, kept[-1] - N_CONTROLS)
    assert resumed.table == whole.table
    for name in ("coefficients.json", "adapter/adapter_model.safetensors"):
        assert (resumed.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    assert without_times(resumed.folder / JOURNAL) == without_times(whole.folder / JOURNAL)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["killed", "whole"]


@pytest.mark.parametrize("composition", ["factors", "deltas"])
def test_a_run_that_ctrl_c_ended_goes_on_and_is_replaced_by_its_whole_self(composition, settings, tmp_path):
    settings["composition"] = composition
    whole = lorahub_edge.adapt(**settings)
    out = tmp_path / "run"
    run = lorahub_edge.adapt(**settings, out=out, on_progress=failing_at("search", 11, KeyboardInterrupt()))
    assert run.interrupted
    for other in ({"seed": 7}, {"composition": {"factors": "deltas", "deltas": "factors"}[composition]}):
        with pytest.raises(OutputExists, match="differs from this one in: search settings; add --overwrite"):
            lorahub_edge.adapt(**{**settings, **other}, out=out)
    run = lorahub_edge.adapt(**settings, out=out, resume=True)
    assert run.manifest["search"]["evaluations_of_earlier_starts"] >= 11
    assert (run.interrupted, run.coefficients) == (False, whole.coefficients)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_resume_wants_something_to_go_on_from_and_the_same_inputs(settings, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(InvalidInput, match="expected a run that ended early in"):
        lorahub_edge.adapt(**settings, out=out, resume=True)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError), pytest.warns(RunUnfinished, match="the same command goes on"):
        lorahub_edge.adapt(**settings, out=out, on_progress=failing_at("search", 8, RuntimeError("power failure")))
    other = {**settings, "examples": tiny.ROWS[1:5]}
    with pytest.raises(OutputExists, match="differs from this one in: examples"):
        lorahub_edge.adapt(**other, out=out)
    again = lorahub_edge.adapt(**other, out=out, overwrite=True)
    assert again.manifest["search"]["evaluations_of_earlier_starts"] == 0


def test_the_newest_run_of_a_task_that_ended_early_is_found_by_its_default_name(tmp_path):
    for age, name in enumerate(["fv-20260101-000000", "fv-antonym-20260101-000000", "fv-mine", "fv-20250101-000000"]):
        folder = tmp_path / f"{name}.unfinished"
        folder.mkdir()
        (folder / "inputs.json").write_text("{}")
        os.utime(folder, (1000 - age, 1000 - age))
    places = []
    for _ in range(3):
        places.append(default_place(tmp_path, "fv"))
        places[-1].mkdir()
    assert len(set(places)) == 3
    assert newest_unfinished(tmp_path, "fv") == tmp_path / "fv-20260101-000000"
    assert newest_unfinished(tmp_path, "fv-antonym") == tmp_path / "fv-antonym-20260101-000000"
    assert newest_unfinished(tmp_path / "none", "fv") is None


def test_a_line_cut_off_by_a_power_failure_is_computed_again(settings, tmp_path):
    whole = lorahub_edge.adapt(**settings, out=tmp_path / "whole")
    with pytest.raises(RuntimeError), pytest.warns(RunUnfinished):
        lorahub_edge.adapt(**settings, out=tmp_path / "run", on_progress=failing_at("null", 0, RuntimeError("power")))
    journal = tmp_path / "run.unfinished" / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-300])
    run = lorahub_edge.adapt(**settings, out=tmp_path / "run")
    assert without_times(run.folder / JOURNAL) == without_times(whole.folder / JOURNAL)
    assert run.table == whole.table


@pytest.mark.parametrize(
    ("part", "instead"),
    [
        ('"loss": ', '"loss": "none", "was": '),
        ('"example_losses": ', '"was": '),
        ('"example_losses": ', '"example_losses": 1, "was": '),
    ],
)
def test_a_journal_with_a_line_that_is_none_is_refused_by_its_place(settings, tmp_path, part, instead):
    with pytest.raises(RuntimeError), pytest.warns(RunUnfinished):
        lorahub_edge.adapt(**settings, out=tmp_path / "run", on_progress=failing_at("null", 0, RuntimeError("power")))
    journal = tmp_path / "run.unfinished" / JOURNAL
    journal.write_text(journal.read_text().replace(part, instead, 1))
    with pytest.raises(InvalidInput, match=r"journal\.jsonl:1: not a line"):
        lorahub_edge.adapt(**settings, out=tmp_path / "run")


def test_two_processes_do_not_write_one_run(settings, tmp_path):
    (tmp_path / "run.unfinished").mkdir()
    with locked(tmp_path / "run.unfinished"), pytest.raises(OutputExists, match="being written by another process"):
        lorahub_edge.adapt(**settings, out=tmp_path / "run")


def test_a_kill_between_two_steps_of_the_start_blocks_no_name(settings, tmp_path):
    """What the killed start had written was only a part of `inputs.json`."""
    (tmp_path / "run.unfinished" / ".inputs.json.lorahub-edge-partial-deadbeef").mkdir(parents=True)
    lorahub_edge.adapt(**{**settings, "budget": 4}, null_control=False, out=tmp_path / "run")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_folder_that_is_a_mounted_disk_is_refused_at_once(settings):
    with pytest.raises(OutputExists, match="is where a disk is mounted; name a new folder in it"):
        lorahub_edge.adapt(**settings, out="/proc")


def test_a_folder_that_happens_to_be_called_unfinished_is_left_alone(settings, tmp_path):
    novel = tmp_path / "run.unfinished" / "novel.txt"
    novel.parent.mkdir()
    novel.write_text("chapter 1")
    with pytest.raises(OutputExists, match="is no unfinished run"):
        lorahub_edge.adapt(**settings, out=tmp_path / "run")
    assert novel.read_text() == "chapter 1"


@pytest.mark.parametrize("victim", ["adapter_model.safetensors", "report.html", "the last step"])
def test_a_disk_that_is_full_at_the_end_costs_no_evaluation(settings, tmp_path, monkeypatch, victim):
    """Every write to the victim fails as it does on a full disk; once there is room the run only has to be written."""
    settings |= {"null_control": False, "out": tmp_path / "run"}
    write_text = Path.write_text

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    def write(self, *arguments, **options):
        return fail() if self.name == victim else write_text(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", write)
        if victim == "adapter_model.safetensors":
            patch.setattr("lorahub_edge.modules.files.save_file", fail)
        elif victim == "the last step":
            patch.setattr("lorahub_edge.adaptation.run_folder.publish", fail)
        with pytest.raises(RunNotWritten, match=r"No space left on device") as raised, pytest.warns(RunUnfinished):
            lorahub_edge.adapt(**settings)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(PopulationForward, "_fill", lambda *_: pytest.fail("computed again"))
    assert lorahub_edge.adapt(**settings).coefficients == raised.value.run.coefficients
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_journal_that_cannot_be_written_costs_no_result(settings, tmp_path):
    """A child whose files may not exceed two kilobytes prints what it cannot keep."""
    (tmp_path / "task.jsonl").write_text("".join(json.dumps({"input": i, "target": t}) + "\n" for i, t in tiny.ROWS))
    arguments = [
        "adapt", "--base", settings["base"], "--modules", settings["modules"], "--examples", "task.jsonl",
        "--out", "run", "--budget", "20", "--no-null-control", "--no-cache",
    ]  # fmt: skip
    script = f"""
import resource, signal
from lorahub_edge.cli import app
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
app({arguments!r})
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "warning: output " in done.stderr
    assert "the search goes on" in done.stderr
    assert re.search(r"error: output .* cannot be written .*File too large", done.stderr)
    assert "Traceback" not in done.stderr
    kept = json.loads(done.stdout)
    assert list(kept["coefficients"]) == ["m0", "m1", "m2", "m3"]
    assert len(kept["journal"]) == 20
