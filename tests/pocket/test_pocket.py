"""The embedded data: complete, small, reproducible, clean of held-out rows; and the generators that made them."""

import json
import logging
from itertools import islice

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoTokenizer, T5ForConditionalGeneration

from lorahub_edge import pocket
from lorahub_edge.pocket import formats, heldout, make, skills, upstream
from lorahub_edge.pocket.base_training import BaseSettings, new_model, save_base, to_batch
from lorahub_edge.pocket.tokenizer import make_tokenizer, save_tokenizer

MAX_DATA_BYTES = 25_000_000
UNKNOWN_ID = 2


def rows_of(name, part):
    return [json.loads(line) for line in pocket.task_file(name, part).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(pocket.base_folder())


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    yield torch.set_num_threads(1)
    torch.set_num_threads(threads)


def test_there_is_one_module_per_upstream_task_and_eight_heldout_tasks():
    assert len(pocket.module_names()) >= 20
    assert pocket.module_names() == sorted(upstream.TASK_NAMES)
    assert pocket.heldout_names() == sorted(task.name for task in heldout.HELDOUT)
    assert len(pocket.heldout_names()) == 8
    assert pocket.DEFAULT_TASK in pocket.heldout_names()


def test_the_data_stay_small():
    assert sum(path.stat().st_size for path in pocket.DATA.rglob("*") if path.is_file()) <= MAX_DATA_BYTES


def test_no_file_names_the_machine_that_made_it():
    texts = [path for path in pocket.DATA.rglob("*") if path.suffix in (".json", ".jsonl", ".md")]
    assert texts
    for path in texts:
        content = path.read_text(encoding="utf-8")
        assert not any(word in content for word in ("/tmp", "/home", "/work", "/root")), path


@pytest.mark.parametrize("part", pocket.PARTS)
def test_heldout_rows_are_made_again_byte_for_byte(part, tmp_path):
    make.make_tasks(tmp_path, seed=BaseSettings().seed)
    for name in pocket.heldout_names():
        assert (tmp_path / "heldout" / f"{name}.{part}.jsonl").read_bytes() == pocket.task_file(name, part).read_bytes()


def test_examples_and_test_rows_have_no_input_in_common():
    for name in pocket.heldout_names():
        examples, test = rows_of(name, "examples"), rows_of(name, "test")
        assert (len(examples), len(test)) == (make.EXAMPLES_PER_TASK, make.TEST_ROWS_PER_TASK)
        assert len({row["input"] for row in examples + test}) == len(examples) + len(test)


def test_no_training_row_has_a_kept_back_pair_or_wording():
    assert not heldout.KEPT_BACK & {(skill.name, form.name) for skill, form in upstream.PAIRS}
    known = {text for skill in skills.SKILLS for text in skill.wordings}
    known |= {text for form in formats.FORMATS for text in form.wordings}
    assert not known & {text for task in heldout.HELDOUT for text in (task.wording, task.form_wording) if text}
    kept = {row["input"] for name in pocket.heldout_names() for part in pocket.PARTS for row in rows_of(name, part)}
    seen = [row["input"] for row in islice(upstream.base_rows(seed=1), 5000)]
    seen += [row["input"] for name in upstream.TASK_NAMES for row in upstream.upstream_rows(name, 200, seed=1)]
    assert not kept & set(seen)


def test_the_tokenizer_knows_every_heldout_word_and_gives_back_every_target(tokenizer):
    for name in pocket.heldout_names():
        for row in rows_of(name, "examples") + rows_of(name, "test"):
            ids = tokenizer(row["target"])["input_ids"]
            assert ids[-1] == tokenizer.eos_token_id
            assert UNKNOWN_ID not in ids + tokenizer(row["input"])["input_ids"]
            assert tokenizer.decode(ids, skip_special_tokens=True) == row["target"]


def test_the_committed_tokenizer_is_the_one_the_grammar_makes():
    committed = Tokenizer.from_file(str(pocket.base_folder() / "tokenizer.json"))
    assert make_tokenizer().get_vocab() == committed.get_vocab()


def assert_loads_untied(folder, expected_loss, batch):
    loaded = T5ForConditionalGeneration.from_pretrained(folder).eval()
    assert loaded.dtype == torch.float32
    assert loaded.shared.weight.data_ptr() != loaded.lm_head.weight.data_ptr()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).loss, expected_loss, rtol=1e-5, atol=1e-6)


def test_a_saved_base_has_the_same_loss_after_a_plain_reload(tmp_path):
    tokenizer = save_tokenizer(tmp_path)
    model = new_model(tokenizer.get_vocab_size(), BaseSettings(width=32, encoder_layers=1, decoder_layers=1)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())  # the file is float16; what is compared is the head, not rounding
        batch = to_batch(tokenizer, upstream.upstream_rows("largest", 8, seed=3))
        loss = model(**batch).loss
    save_base(model, tmp_path)
    assert_loads_untied(tmp_path, loss, batch)


def test_the_committed_base_is_untied_and_trained():
    folder = pocket.base_folder()
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert {"shared.weight", "lm_head.weight"} <= set(file.keys())
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
    model = T5ForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    batch = to_batch(tokenizer, list(islice(upstream.base_rows(seed=99), 200)))
    with torch.no_grad():
        # logits scaled by width**-0.5 are too flat for this, whatever the training
        assert model(**batch).loss < 1.0


def test_modules_have_one_rank_16_pair_per_q_and_v():
    model = T5ForConditionalGeneration.from_pretrained(pocket.base_folder())
    shapes = {n: tuple(m.weight.shape) for n, m in model.named_modules() if n.rpartition(".")[2] in ("q", "v")}
    expected = {f"base_model.model.{n}.lora_A.weight": (16, shape[1]) for n, shape in shapes.items()}
    expected |= {f"base_model.model.{n}.lora_B.weight": (shape[0], 16) for n, shape in shapes.items()}
    for name in pocket.module_names():
        folder = pocket.modules_folder() / name
        config = json.loads((folder / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"], config["task_type"]) == (16, 32, "SEQ_2_SEQ_LM")
        assert config["base_model_name_or_path"] == "lorahub_edge/pocket"
        with safe_open(folder / "adapter_model.safetensors", "pt") as file:
            assert {key: tuple(file.get_tensor(key).shape) for key in file.keys()} == expected  # noqa: SIM118


@pytest.mark.usefixtures("one_thread")
def test_make_runs_all_stages_and_resumes(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(upstream, "TASK_NAMES", ("largest", "as_twice"))
    tiny = ["--out", str(tmp_path), "--width", "32", "--layers", "1", "1", "--steps", "2"]
    tiny += ["--module-steps", "2", "--module-rows", "64"]
    with caplog.at_level(logging.INFO):
        make.main(tiny)
        make.main([*tiny, "--only", "modules"])
    assert sum("is there already" in record.message for record in caplog.records) == 2
    assert len(list(tmp_path.glob("heldout/*.jsonl"))) == 16
    for name in ("largest", "as_twice"):
        written = {path.name for path in (tmp_path / "modules" / name).iterdir()}
        assert written == {"adapter_config.json", "adapter_model.safetensors"}


def test_unknown_names_are_refused_by_name():
    with pytest.raises(ValueError, match="no held-out task 'nothing'"):
        pocket.task_file("nothing", "test")
    with pytest.raises(ValueError, match="expected one of examples, test"):
        pocket.task_file(pocket.DEFAULT_TASK, "train")
    with pytest.raises(ValueError, match="no task 'nothing'"):
        upstream.upstream_rows("nothing", 1, seed=0)
