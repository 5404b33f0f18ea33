"""The main job end to end on tiny models: what it returns, what it writes, and what it leaves alone."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

import lorahub_edge
from lorahub_edge.adaptation import InputsWereCut, Progress, Row, RunUnfinished
from lorahub_edge.errors import InvalidInput, OutputExists
from lorahub_edge.tasks import constant_answer, score_answers
from tests import tiny

FAST = {"budget": 20, "device": "cpu", "n_examples": 4}
NAMES = [
    "constant answer", "zero-shot", "best single module", "uniform mean", "mean of the best", "random-LoRA null",
    "adapted",
]  # fmt: skip


@pytest.fixture
def run(bases, module_folders, example_file, tmp_path):
    return lorahub_edge.adapt(
        str(bases["t5"]), module_folders["t5"], example_file, test=example_file, precision="fp32",
        out=tmp_path / "run", **FAST,
    )  # fmt: skip


def test_the_table_has_every_control_and_the_adapted_model_wins_on_its_objective(run):
    assert [row.name for row in run.table] == NAMES
    objectives = {row.name: row.value.objective for row in run.table if row.value}
    for name in ("uniform mean", "best single module"):  # edge looks at both before anything else
        assert objectives["adapted"] <= objectives[name]
    assert run.row("zero-shot").value.l1_penalty == 0
    assert all(0 <= row.exact_match <= 100 for row in run.table)
    targets = [e.target for e in run.task.test]
    answers = run.predict([e.input for e in run.task.test])
    assert run.row("adapted").score == score_answers(answers, targets)
    said = constant_answer([e.target for e in run.task.examples])
    assert run.row("constant answer") == Row(
        "constant answer", f'always "{said}"', (), None, score_answers([said] * 2, targets), (said,) * 2
    )
    assert run.row("adapted").answers == tuple(answers)
    assert list(run.coefficients) == ["m0", "m1", "m2", "m3"]
    best = min(run.single_losses, key=run.single_losses.get)
    assert best in run.row("best single module").detail
    assert (len(run.task.examples), len(run.task.test)) == (4, 2)
    assert not {e.input for e in run.task.examples} & {e.input for e in run.task.test}


def test_the_run_folder_is_complete_and_tells_the_truth(run):
    folder = run.folder
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert files == {
        "manifest.json", "journal.jsonl", "coefficients.json", "examples.jsonl", "report.json", "report.html",
        "adapter/adapter_config.json", "adapter/adapter_model.safetensors",
    }  # fmt: skip
    assert [p.name for p in folder.parent.iterdir() if "partial" in p.name] == []
    assert json.loads((folder / "coefficients.json").read_text()) == run.coefficients
    journal = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    assert [j["index"] for j in journal] == list(range(20))
    best = min(journal, key=lambda j: j["objective"])
    assert best["coefficients"] == list(run.coefficients.values())
    assert best["mean_loss"] == run.loss
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["answer_tokens"] == [len(e.target.split()) + 1 for e in run.task.examples]  # and the end mark
    for line in journal:
        assert line["mean_loss"] == pytest.approx(np.average(line["example_losses"], weights=manifest["answer_tokens"]))
    alone = [run.model.loss([example]) for example in run.task.examples]
    assert best["example_losses"] == pytest.approx(alone, rel=1e-5)
    assert manifest["search"]["resolved_optimizer"].startswith("screening, a guide, then ParametrizedCMA")
    assert manifest["search"]["evaluations"] == 20
    assert manifest["kernels"]["compose_factors"] == "native-cpu"
    assert re.fullmatch("[0-9a-f]{64}", manifest["base"]["files"]["model.safetensors"])
    assert [m["name"] for m in manifest["modules"]] == ["m0", "m1", "m2", "m3"]
    assert all(set(m["files"]) == {"adapter_config.json", "adapter_model.safetensors"} for m in manifest["modules"])
    assert manifest["task"]["examples"]["used"] == 4
    assert manifest["task"]["test"]["left_out_as_examples"] == 4
    assert manifest["timings"]["total_s"] > 0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells peak memory")
def test_the_manifest_has_the_peak_memory(run):
    assert run.manifest["peak_memory"]["VmHWM_bytes"] > 100e6


def test_the_page_stands_alone_and_shows_the_numbers(run):
    page = (run.folder / "report.html").read_text()
    assert "http" not in page
    assert "<script" not in page
    for row in run.table[1:]:
        assert f"{row.value.mean_loss:.4f}" in page
    score = run.row("constant answer").score
    numbers = [f"{number:.1f}" for number in (score.exact_match, score.most_frequent, score.valid_form)]
    cells = "".join(f'<td class="n">{text}</td>' for text in ["-", *numbers])
    assert f"</small></td>{cells}" in page.partition("constant answer")[2]
    assert page.count("<circle") == 20
    n_used = sum(value != 0 for value in run.coefficients.values())
    assert page.count("<i style") == n_used
    assert (f"{4 - n_used} of 4 at zero" in page) == (n_used < 4)
    shown = run.report()["samples"]
    assert {s["input"] for s in shown} == {e.input for e in run.task.test}
    assert [s["adapted"] for s in shown if s["right"]] == [s["target"] for s in shown if s["right"]]


@pytest.mark.parametrize("kind", ["t5", "llama", "gemma3"])
def test_peft_loads_the_adapter_and_gives_our_loss(kind, bases, module_folders, example_file, tmp_path):
    run = lorahub_edge.adapt(
        str(bases[kind]), module_folders[kind], example_file, precision="fp32", out=tmp_path / "run",
        null_control=False, **FAST,
    )  # fmt: skip
    auto = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    model = PeftModel.from_pretrained(auto.from_pretrained(bases[kind]), run.folder / "adapter").eval()
    nll, n_tokens = 0.0, 0
    for encoded in run.model.prompt.encode_all(run.task.examples):
        n = len(encoded.target_ids)
        if kind == "t5":
            inputs = {"input_ids": torch.tensor([encoded.input_ids]), "labels": torch.tensor([encoded.target_ids])}
        else:
            ids = torch.tensor([encoded.input_ids + encoded.target_ids])
            inputs = {"input_ids": ids, "labels": torch.where(torch.arange(ids.shape[1]) < ids.shape[1] - n, -100, ids)}
        with torch.inference_mode():
            nll += model(**inputs).loss.item() * n
        n_tokens += n
    assert nll / n_tokens == pytest.approx(run.loss, rel=1e-5)


def test_unlike_modules_survive_the_round_trip_through_the_adapter_folder(bases, example_file, tmp_path):
    """Ranks, scalings and targets that differ end up in rank_pattern and alpha_pattern."""
    configs = [{}, {"r": 8, "lora_alpha": 2}, {"target_modules": ["encoder.block.0.layer.0.SelfAttention.k"], "r": 2}]
    folders = [tiny.save_module(bases["t5"], tmp_path / f"u{i}", "t5", seed=i, **c) for i, c in enumerate(configs)]
    run = lorahub_edge.adapt(
        str(bases["t5"]), folders, example_file, precision="fp32", out=tmp_path / "run", null_control=False, **FAST
    )
    model = AutoModelForSeq2SeqLM.from_pretrained(bases["t5"])
    peft = PeftModel.from_pretrained(model, run.folder / "adapter")
    for target, factors in run.module.factors.items():
        delta = peft.get_submodule(f"base_model.model.{target}").get_delta_weight("default")
        torch.testing.assert_close(delta, factors.delta(), rtol=1e-5, atol=1e-7)
    assert lorahub_edge.load_adapted(run.folder, device="cpu").loss(run.task.examples) == pytest.approx(
        run.loss, rel=1e-6
    )


@pytest.mark.parametrize("precision", ["int8", "bf16"])
def test_a_run_opened_again_answers_and_scores_the_same(bases, module_folders, example_file, tmp_path, precision):
    run = lorahub_edge.adapt(
        str(bases["t5"]), module_folders["t5"], example_file, precision=precision, out=tmp_path / "run",
        null_control=False, **FAST,
    )  # fmt: skip
    again = lorahub_edge.load_adapted(run.folder, device="cpu")
    assert again.loss(run.task.examples) == pytest.approx(run.loss, rel=1e-6)
    inputs = [i for i, _ in tiny.ROWS]
    assert again.predict(inputs) == run.predict(inputs)
    for wrong, message in (("one two", r"inputs: expected a list .* put it in a list"), (["a", None], r"inputs\[1\]")):
        with pytest.raises(TypeError, match=message):
            again.predict(wrong)
    assert again.evaluate(example_file).n_examples == len(tiny.ROWS)


def test_the_same_seed_gives_the_same_run_and_another_does_not(bases, module_folders):
    def coefficients(seed):
        run = lorahub_edge.adapt(
            str(bases["t5"]), module_folders["t5"], tiny.ROWS, seed=seed, null_control=False, **FAST
        )
        return list(run.coefficients.values()), [e.value.objective for e in run.journal]

    assert coefficients(1) == coefficients(1)
    assert coefficients(1) != coefficients(2)


def test_loaded_values_can_be_handed_over_and_nothing_is_written_or_printed(
    bases, module_folders, tmp_path, capfd, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    base = lorahub_edge.load_base(str(bases["llama"]), device="cpu")
    modules = lorahub_edge.load_modules(module_folders["llama"])
    capfd.readouterr()
    seen: list[Progress] = []
    run = lorahub_edge.adapt(base, modules, tiny.ROWS, test=tiny.ROWS, on_progress=seen.append, **FAST)
    assert run.folder is None
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    assert [p.stage for p in seen if p.done == 0] == ["load", "controls", "search", "test", "null"]
    searching = [p for p in seen if p.stage == "search" and p.best_loss is not None]
    assert [p.done for p in searching] == list(range(1, 21))
    assert searching[-1].best_loss == run.loss
    saved = run.save(tmp_path / "later")
    assert lorahub_edge.load_adapted(saved.folder, device="cpu").predict(["is red ?"]) == run.predict(["is red ?"])
    assert len((saved.folder / "journal.jsonl").read_text().splitlines()) == 20


@pytest.mark.parametrize(
    ("preset", "optimizer", "form"),
    [
        ("edge", "screening, a guide, then Param", "published"),
        ("paper", "ParametrizedCMA", "published"),
        ("lorahub-code", "Cobyla", "lorahub-code"),
    ],
)
def test_presets_run_what_they_say(bases, module_folders, preset, optimizer, form):
    run = lorahub_edge.adapt(
        str(bases["t5"]), module_folders["t5"], tiny.ROWS, preset=preset, null_control=False, **FAST
    )
    search = run.manifest["search"]
    assert search["resolved_optimizer"].startswith(optimizer)
    assert search["objective_form"] == form
    value = run.search.best.value
    c = np.abs(list(run.coefficients.values()))
    penalty = 0.05 * (c.mean() if form == "lorahub-code" else c.sum())
    assert value.l1_penalty == pytest.approx(penalty)
    assert value.loss == pytest.approx(value.mean_loss / (4 if form == "lorahub-code" else 1))


def test_an_interrupt_keeps_the_best_so_far(bases, module_folders, example_file, tmp_path):
    def interrupt(progress):
        if (progress.stage, progress.done) == ("search", 9):
            raise KeyboardInterrupt

    run = lorahub_edge.adapt(
        str(bases["t5"]), module_folders["t5"], example_file, on_progress=interrupt, out=tmp_path / "run", **FAST
    )
    assert run.interrupted
    assert json.loads((run.folder / "manifest.json").read_text())["search"]["interrupted"] is True
    assert len((run.folder / "journal.jsonl").read_text().splitlines()) == run.search.n_evaluations == 14
    assert run.search.best.value.objective == min(e.value.objective for e in run.journal)


@pytest.mark.parametrize("stage", ["null", "test"])
def test_an_interrupt_after_the_search_costs_only_what_it_interrupts(bases, module_folders, example_file, stage):
    def interrupt(progress):
        if progress.stage == stage and progress.done > 0:
            raise KeyboardInterrupt

    run = lorahub_edge.adapt(
        str(bases["t5"]), module_folders["t5"], example_file, test=example_file, on_progress=interrupt, **FAST
    )
    assert not run.interrupted
    assert run.row("random-LoRA null") is None, "nothing is begun after an interrupt"
    assert (run.row("adapted").exact_match is None) == (stage == "test")
    assert len(run.journal) == FAST["budget"]


def test_long_examples_are_cut_and_counted(bases, module_folders):
    with pytest.warns(InputsWereCut, match="1 of 4 examples are longer.*cut to 4 input"):
        run = lorahub_edge.adapt(
            str(bases["t5"]), module_folders["t5"], [*tiny.ROWS[2:4], ("one", "two"), ("is a", "cat")],
            max_input_tokens=4, null_control=False, **FAST,
        )  # fmt: skip
    assert run.manifest["n_cut"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": 0}, "budget: expected a whole number of at least 1 and at most 10000000, received 0"),
        ({"alpha": -0.1}, "alpha: expected a finite number of at least 0"),
        ({"alpha": float("nan")}, "alpha"),
        ({"seed": -5}, "seed: expected a whole number of at least 0 and at most 4294967295, received -5"),
        ({"seed": 2**32}, "seed"),
        ({"n_examples": 0}, "n_examples"),
        ({"preset": "best"}, "preset 'best' is not known; expected edge, paper, lorahub-code"),
        ({"optimizer": "Cobila"}, "did you mean Cobyla"),
        ({"bound": -1.0}, "bound"),
        ({"examples": []}, "no examples were given"),
        ({"examples": [{"question": "a"}]}, "example 1: expected"),
        ({"test": tiny.ROWS[:1], "examples": tiny.ROWS[:1]}, "has nothing but the 1 examples"),
    ],
)
def test_wrong_arguments_are_refused_and_leave_nothing_behind(bases, module_folders, tmp_path, change, message):
    arguments = {"examples": tiny.ROWS, "out": tmp_path / "run", **FAST, **change}
    with pytest.raises(InvalidInput, match=message):
        lorahub_edge.adapt(str(bases["t5"]), module_folders["t5"], **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_ours_is_left_alone(bases, module_folders, tmp_path):
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter1.txt").write_text("ten years")
    for overwrite in (False, True):
        with pytest.raises(OutputExists, match="is not a run of lorahub-edge"):
            lorahub_edge.adapt(str(bases["t5"]), module_folders["t5"], tiny.ROWS, out=out, overwrite=overwrite, **FAST)
    assert [p.name for p in tmp_path.rglob("*")] == ["thesis", "chapter1.txt"]


def test_an_earlier_run_is_only_replaced_on_request_and_only_by_a_whole_one(run, bases, module_folders):
    arguments = (str(bases["t5"]), module_folders["t5"], tiny.ROWS)
    before = (run.folder / "manifest.json").read_text()
    with pytest.raises(OutputExists, match="earlier run; add --overwrite"):
        lorahub_edge.adapt(*arguments, out=run.folder, **FAST)

    def fail(progress):
        if progress.stage == "test" or (progress.stage, progress.done) == ("null", 3):
            raise RuntimeError("power failure")

    with pytest.raises(RuntimeError), pytest.warns(RunUnfinished, match="evaluations are kept"):
        lorahub_edge.adapt(*arguments, out=run.folder, overwrite=True, on_progress=fail, **FAST)
    assert (run.folder / "manifest.json").read_text() == before
    lorahub_edge.adapt(*arguments, out=run.folder, overwrite=True, null_control=False, **FAST)
    assert (run.folder / "manifest.json").read_text() != before
    assert sorted(p.name for p in run.folder.parent.iterdir()) == ["run", "task.jsonl"]


def test_an_incomplete_manifest_is_one_error(tmp_path):
    (tmp_path / "manifest.json").write_text('{"format": "lorahub-edge-run/1"}')
    with pytest.raises(InvalidInput, match=r"its manifest\.json is incomplete"):
        lorahub_edge.load_adapted(tmp_path)


def test_a_changed_base_is_noticed(bases, module_folders, tmp_path):
    import shutil

    folder = Path(shutil.copytree(bases["t5"], tmp_path / "base"))
    run = lorahub_edge.adapt(
        str(folder), module_folders["t5"], tiny.ROWS, out=tmp_path / "run", null_control=False, **FAST
    )
    tiny.save_model(tiny.make_model("t5", seed=9), folder, "t5")
    with pytest.raises(InvalidInput, match="has changed since the run"):
        lorahub_edge.load_adapted(run.folder, device="cpu")
    with pytest.raises(InvalidInput, match="is not a run folder"):
        lorahub_edge.load_adapted(folder)
