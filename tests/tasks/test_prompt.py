"""Text becomes the tokens that the base should read: its marks, its end, where it is cut, and the same on any day."""

import datetime
import json
import shutil

import numpy as np
import pytest
import torch
from tokenizers import processors
from transformers import AutoModelForCausalLM

import lorahub_edge
from lorahub_edge.adaptation import AdaptedModel
from lorahub_edge.base import load_base
from lorahub_edge.errors import InvalidInput
from lorahub_edge.exporting.folder import generation_record, prompt_record
from lorahub_edge.modules import ModuleStack, load_modules
from lorahub_edge.serve.folder import ExportFolder, Prompt, _tokenizer
from lorahub_edge.tasks import Example, PromptFormat
from tests import tiny
from tests.tasks.test_chat_template import BLANK_INST, HEADERS

MARKS = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 3), ("</s>", 1)])
EXAMPLES = [Example(*row) for row in tiny.ROWS]
DATED = (
    "<s> {{ ['one', 'two'][strftime_now('%d') | int - 1] }} is {% for m in messages %}{{ m.content }} </s> {% endfor %}"
    "{% if add_generation_prompt %}the dog .{% endif %}"
)


@pytest.fixture(scope="module")
def t5(bases):
    return load_base(str(bases["t5"]), device="cpu")


@pytest.fixture
def llama(bases):
    return load_base(str(bases["llama"]), precision="fp32", device="cpu")


def words(ids) -> str:
    return " ".join(tiny.WORDS[i] for i in ids)


def test_t5_reads_the_input_and_answers_to_the_end_mark(t5):
    encoded = PromptFormat.for_base(t5).encode(Example("is red a dog ?", "no"))
    assert (words(encoded.input_ids), words(encoded.target_ids)) == ("is red a dog ? </s>", "no </s>")
    assert not encoded.was_cut


def test_a_decoder_only_prompt_has_a_start_mark_unless_it_is_there_already(llama):
    llama.tokenizer._tokenizer.post_processor = MARKS
    for template in ("{input} .", "<s> {input} ."):
        encoded = PromptFormat.for_base(llama, template=template).encode(Example("red", "yes"))
        assert (words(encoded.input_ids), words(encoded.target_ids)) == ("<s> red .", "yes </s>")


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_a_long_input_is_cut_on_the_right_but_keeps_what_follows_it(kind, request):
    base = request.getfixturevalue(kind)
    format_ = PromptFormat.for_base(base, template="is {input} a dog ?", max_input_tokens=8, max_target_tokens=3)
    encoded = format_.encode(Example("one two three four five one two three", "yes no yes no"))
    ending = " </s>" if kind == "t5" else ""
    assert len(encoded.input_ids) == 8
    assert words(encoded.input_ids).endswith(f"a dog ?{ending}")
    assert words(encoded.input_ids).startswith("is one two")
    assert words(encoded.target_ids) == "yes no </s>"
    assert encoded.was_cut


def test_a_cut_prompt_has_its_start_mark_once_and_no_end_mark(llama):
    llama.tokenizer._tokenizer.post_processor = MARKS
    format_ = PromptFormat.for_base(llama, template="{input} a dog ?", max_input_tokens=8)
    encoded = format_.encode(Example("one two three four five one two three", "yes"))
    assert words(encoded.input_ids) == "<s> one two three four a dog ?"


def test_a_limit_that_leaves_no_room_for_the_input_is_refused(t5):
    with pytest.raises(InvalidInput, match="max_input_tokens: expected more than 4"):
        PromptFormat.for_base(t5, template="is {input} a dog ?", max_input_tokens=4)


def test_a_model_with_few_positions_gives_half_of_them_to_the_answer(llama, monkeypatch):
    monkeypatch.setattr(llama.model.config, "max_position_embeddings", 64)
    format_ = PromptFormat.for_base(llama)
    assert (format_.max_input_tokens, format_.max_target_tokens) == (32, 32)


def test_a_tokenizer_without_an_end_mark_is_refused(llama):
    llama.tokenizer.eos_token = None
    with pytest.raises(InvalidInput, match="names no token that ends a text"):
        PromptFormat.for_base(llama)


@pytest.mark.parametrize(("template", "message"), [("no mark", "one {input} in it"), ("chat", "has no chat template")])
def test_a_template_that_cannot_be_used_is_refused(llama, template, message):
    with pytest.raises(InvalidInput, match=message):
        PromptFormat.for_base(llama, template=template)


def test_an_end_mark_of_the_tokenizer_stands_behind_answers_only(llama, bases, module_folders):
    llama.tokenizer._tokenizer.post_processor = MARKS
    prompt = PromptFormat.for_base(llama, template="is {input} .")
    stack = ModuleStack.build(load_modules(module_folders["llama"]), llama)
    loss = AdaptedModel(llama, stack, torch.zeros(4, dtype=torch.float64), prompt, 4).loss(EXAMPLES)
    model = AutoModelForCausalLM.from_pretrained(bases["llama"]).eval()
    total, n_tokens = 0.0, 0
    for text, answer in tiny.ROWS:
        ids, answer_ids = (
            torch.tensor([[tiny.WORDS.index(word) for word in words.split()]])
            for words in (f"<s> is {text} .", f"{answer} </s>")
        )
        labels = torch.cat([torch.full_like(ids, -100), answer_ids], 1)
        with torch.inference_mode():
            mean = model(input_ids=torch.cat([ids, answer_ids], 1), labels=labels).loss.item()
        total, n_tokens = total + mean * answer_ids.numel(), n_tokens + answer_ids.numel()
    # float32 rounding through two layers
    np.testing.assert_allclose(loss, total / n_tokens, rtol=1e-5)


def test_the_ending_of_a_cut_prompt_has_the_tokens_that_it_has_behind_a_text(base_with):
    base = base_with("spiece")
    long, limit = " ".join(["the red dog is not the blue cat"] * 9), 40
    whole, cut = (
        PromptFormat.for_base(base, template="{input}?!", max_input_tokens=n).encode_input(long)[0]
        for n in (999, limit)
    )
    n = len(base.tokenizer("a?!", add_special_tokens=False)["input_ids"]) - 1
    assert cut == [*whole[: limit - n], *whole[-n:]]


def test_padding_that_the_model_has_no_row_for_is_not_used(base_with):
    base = base_with()
    base.tokenizer.add_special_tokens({"pad_token": "<|fill|>"})
    assert PromptFormat.for_base(base).pad_id == base.tokenizer.pad_token_id
    base.model.config.vocab_size = base.tokenizer.pad_token_id
    assert PromptFormat.for_base(base).pad_id == base.tokenizer.eos_token_id


@pytest.mark.parametrize(
    "options",
    [
        {"base": "t5", "marks": "$A </s>"}, {"marks": "<s> $A </s>"}, {"marks": "$A"}, {"chat": HEADERS},
        {"kind": "spiece", "chat": BLANK_INST},
    ],
    ids=["t5", "end mark", "no marks", "stripped", "spiece"],
)  # fmt: skip
def test_serving_and_a_record_give_the_same_tokens(base_with, tmp_path, options):
    base = base_with(**options)
    prompt = PromptFormat.for_base(base)
    record = json.loads(json.dumps(prompt.as_record()))
    assert PromptFormat.of_record(base, record) == prompt
    base.tokenizer.save_pretrained(tmp_path)
    record, generation = json.loads(json.dumps([prompt_record(prompt), generation_record(prompt, 8)]))
    end_ids = tuple(generation.pop("end_ids"))
    served = ExportFolder(tmp_path, {}, {}, _tokenizer(tmp_path), Prompt(**record), end_ids, **generation)
    for text in ("is red a dog ?", "  {Two} lines\nand 12 ", "7"):
        assert served.encode(text) == prompt.encode_input(text)[0]
    assert (served.end_ids, served.pad_id, served.start_id) == (prompt.stop_ids, prompt.pad_id, prompt.start_id)


def test_an_export_that_leaves_the_marks_to_its_tokenizer_is_still_read(base_with, tmp_path):
    base = base_with(base="t5", marks="$A </s>")
    base.tokenizer.save_pretrained(tmp_path)
    prompt = Prompt(**{"before": "", "after": "", "add_special_tokens": True, "max_input_tokens": 9})
    served = ExportFolder(tmp_path, {}, {}, _tokenizer(tmp_path), prompt, (2,), 0, 0, 8)
    assert served.encode("red") == PromptFormat.for_base(base).encode_input("red")[0]


def test_a_run_has_the_same_prompt_on_any_day(bases, module_folders, tmp_path, monkeypatch):
    class Day(datetime.datetime):
        number = 1

        @classmethod
        def now(cls, tz=None):
            return datetime.datetime(2026, 1, cls.number)

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Day)
    folder = shutil.copytree(bases["llama"], tmp_path / "llama")
    (folder / "chat_template.jinja").write_text(DATED)
    run = lorahub_edge.adapt(
        str(folder), module_folders["llama"], EXAMPLES, budget=4, null_control=False, precision="fp32", device="cpu",
        out=tmp_path / "run",
    )  # fmt: skip
    assert run.model.prompt.before == "<s> one is "
    Day.number = 2
    assert PromptFormat.for_base(run.model.base).before == "<s> two is "
    again = lorahub_edge.load_adapted(tmp_path / "run", device="cpu")
    merged = lorahub_edge.merge(tmp_path / "run", precision="fp32")
    for prompt in (again.prompt, PromptFormat.of_record(merged.base, merged.record["prompt"])):
        assert prompt.encode_all(EXAMPLES) == run.model.prompt.encode_all(EXAMPLES)
        assert prompt.stop_ids == (1,)
    assert again.loss(run.task.examples) == pytest.approx(run.loss, rel=1e-5)


def test_the_record_of_an_early_run_is_made_into_a_prompt_anew(llama):
    record = {"template": "is {input}", "max_input_tokens": 9}
    assert PromptFormat.of_record(llama, record) == PromptFormat.for_base(llama, **record)
    assert PromptFormat.of_record(llama, {}) == PromptFormat.for_base(llama)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("after", 3), ("strip_input", 1), ("end_ids", [1, 99]), ("stop_ids", "1"), ("pad_id", -1), ("start_id", True),
        ("max_input_tokens", 0), ("opening_ids", None), ("template", None),
    ],
)  # fmt: skip
def test_a_recorded_prompt_that_does_not_fit_is_refused_by_the_name_of_what_is_wrong(llama, name, value):
    record = PromptFormat.for_base(llama).as_record() | {name: value}
    with pytest.raises(InvalidInput, match=f"recorded prompt: '{name}' is "):
        PromptFormat.of_record(llama, record)
