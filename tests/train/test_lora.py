"""A module trained here lowers the loss of its task, is a plain PEFT folder, and can be composed at once."""

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

import lorahub_edge
from lorahub_edge.errors import InvalidInput, LorahubEdgeError, OutputExists
from lorahub_edge.tasks import Example, load_examples
from lorahub_edge.train import TrainSettings, train_module
from tests import tiny

ROWS = [Example(*row) for row in tiny.ROWS]
SETTINGS = TrainSettings(epochs=30, batch_size=4, learning_rate=2e-2, dropout=0.0)


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_training_lowers_the_loss_and_the_folder_is_plain_peft(bases, kind, tmp_path):
    steps: list[tuple[int, int, float]] = []
    module = train_module(
        str(bases[kind]), ROWS, tmp_path / "skill", settings=SETTINGS, device="cpu", on_step=lambda *s: steps.append(s)
    )
    assert (steps[0][0], steps[-1][:2]) == (1, (60, 60))
    assert sum(s[2] for s in steps[-5:]) < 0.5 * sum(s[2] for s in steps[:5])
    assert module.name == "skill"
    assert {t.rpartition(".")[2] for t in module.factors} == set(tiny.TARGETS[kind])
    assert {(f.rank, f.scaling) for f in module.factors.values()} == {(16, 2.0)}
    auto = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    PeftModel.from_pretrained(auto.from_pretrained(bases[kind]), tmp_path / "skill")
    config = json.loads((tmp_path / "skill" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(bases[kind])
    training = json.loads((tmp_path / "skill" / "training.json").read_text())
    assert (training["rows"], training["epochs"]) == (6, 30)
    run = lorahub_edge.adapt(
        str(bases[kind]), tmp_path / "skill", ROWS, precision="fp32", budget=6, device="cpu", null_control=False
    )
    assert run.single_losses["skill"] < 0.7 * run.row("zero-shot").value.mean_loss


def test_the_same_seed_trains_the_same_module_and_the_base_comes_back_unchanged(bases, tmp_path):
    base = lorahub_edge.load_base(str(bases["t5"]), precision="fp32", device="cpu")
    before = {n: p.clone() for n, p in base.model.state_dict().items()}
    settings = TrainSettings(max_steps=3, batch_size=4)
    first, second = (train_module(base, ROWS, tmp_path / name, settings=settings) for name in "ab")
    for target, factors in first.factors.items():
        assert torch.equal(factors.A, second.factors[target].A)
        assert torch.equal(factors.B, second.factors[target].B)
        assert factors.B.any()
    after = base.model.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[n], before[n]) for n in before)
    assert not any(p.requires_grad for p in base.model.parameters())


def test_only_train_rows_of_a_file_are_used(bases, tmp_path):
    path = tmp_path / "task.jsonl"
    rows = [{"split": s, "inputs": i, "targets": t} for s, (i, t) in zip(["train", "test"] * 3, tiny.ROWS, strict=True)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    train_module(str(bases["t5"]), path, tmp_path / "m", settings=TrainSettings(max_steps=1), device="cpu")
    assert json.loads((tmp_path / "m" / "training.json").read_text())["rows"] == 3


@pytest.mark.filterwarnings("ignore::lorahub_edge.tasks.lost.InputsWereCut")
def test_kept_rows_are_cut_and_may_be_none(bases, tmp_path):
    rows = [("is a dog ? " * 900, "yes " * 900), *tiny.ROWS]
    settings = TrainSettings(max_steps=1, batch_size=1, max_input_tokens=8, max_target_tokens=8)
    for keep, options in ((7, {"keep_rows": 7}), (0, {})):
        train_module(str(bases["t5"]), rows, tmp_path / f"m{keep}", settings=settings, device="cpu", **options)
    kept = load_examples(tmp_path / "m7" / "training_rows.jsonl")
    assert len(kept) == 7
    assert max(len(text) for row in kept for text in (row.input, row.target)) <= 2000
    assert not (tmp_path / "m0" / "training_rows.jsonl").exists()
    with pytest.raises(InvalidInput, match="keep_rows: expected a whole number of at least 0"):
        train_module(str(bases["t5"]), rows, tmp_path / "m", device="cpu", keep_rows=-1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank: expected a whole number of at least 1 and at most 65536, received 0"),
        ({"rank": 2.5}, "rank: expected a whole number"),
        ({"learning_rate": float("inf")}, "learning_rate: expected a finite number above 0, received inf"),
        ({"learning_rate": float("nan")}, "learning_rate: expected a finite number above 0, received nan"),
        ({"alpha": 0}, "alpha: expected a finite number above 0, received 0"),
        ({"dropout": 1.0}, "dropout"),
        ({"epochs": -1}, "epochs"),
        ({"epochs": 10**30}, "epochs: expected a whole number of at least 1 and at most 10000000, received 1000"),
        ({"batch_size": True}, "batch_size"),
        ({"max_input_tokens": -5}, "max_input_tokens"),
        ({"seed": -1}, "seed"),
        ({"targets": ("query",)}, r"targets \('query',\): not layers of this base; it has SelfAttention|not layers"),
    ],
)
def test_wrong_settings_are_refused(bases, tmp_path, settings, message):
    with pytest.raises(InvalidInput, match=message):
        train_module(str(bases["t5"]), ROWS, tmp_path / "m", settings=TrainSettings(**settings), device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_error_and_leaves_nothing_half_written(bases, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("peft.peft_model.safe_save_file", full)
    with pytest.raises(LorahubEdgeError, match=r"cannot be written .*No space left"):
        train_module(str(bases["t5"]), ROWS, tmp_path / "m", settings=TrainSettings(max_steps=1), device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_an_int8_base_or_an_existing_folder_is_refused(bases, tmp_path):
    base = lorahub_edge.load_base(str(bases["t5"]), device="cpu")
    with pytest.raises(InvalidInput, match="the base is int8"):
        train_module(base, ROWS, tmp_path / "m")
    with pytest.raises(OutputExists):
        train_module(base, ROWS, tmp_path)
