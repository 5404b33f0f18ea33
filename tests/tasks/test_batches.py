"""Rows of unequal length in one batch: padding, labels and the decoder's inputs stand where a model expects them."""

import dataclasses

import pytest
import torch
from torch.nn import functional

from lorahub_edge.base import load_base
from lorahub_edge.tasks import Example, PromptFormat
from lorahub_edge.tasks.batches import IGNORED, answer_batch, greedy_tokens, prompt_batch
from tests import tiny

EXAMPLES = [Example("red", "yes"), Example("a cat", "no"), Example("two", "one two three")]


def words(rows):
    return [" ".join(tiny.WORDS[i] if i >= 0 else "-" for i in row) for row in rows.tolist()]


@pytest.fixture(params=["t5", "llama"])
def base(request, bases):
    return load_base(str(bases[request.param]), precision="fp32", device="cpu")


def test_input_and_answer_are_one_sequence_whose_labels_are_the_answer(bases):
    base = load_base(str(bases["llama"]), device="cpu")
    batch = answer_batch(PromptFormat.for_base(base, template="<s> {input}").encode_all(EXAMPLES))
    assert words(batch.model_inputs["input_ids"]) == [
        "<s> red yes <pad> <pad>", "<s> a cat no <pad>", "<s> two one two three",
    ]  # fmt: skip
    assert batch.model_inputs["attention_mask"].sum(1).tolist() == [3, 4, 5]
    assert batch.positions.tolist() == [1, 2, 3, 4]
    assert words(batch.labels) == ["yes </s> - -", "- no </s> -", "one two three </s>"]


def test_a_decoder_reads_its_start_and_the_answer_and_gives_the_answer_and_its_end(bases):
    base = load_base(str(bases["t5"]), device="cpu")
    batch = answer_batch(PromptFormat.for_base(base).encode_all(EXAMPLES))
    assert words(batch.model_inputs["input_ids"]) == ["red </s> <pad>", "a cat </s>", "two </s> <pad>"]
    assert batch.model_inputs["attention_mask"].sum(1).tolist() == [2, 3, 2]
    assert [row.split()[:2] for row in words(batch.model_inputs["decoder_input_ids"])] == [
        ["<pad>", "yes"], ["<pad>", "no"], ["<pad>", "one"],
    ]  # fmt: skip
    assert words(batch.labels) == ["yes </s> - -", "no </s> - -", "one two three </s>"]


def test_rows_of_one_length_need_no_mask(base):
    encoded = PromptFormat.for_base(base).encode_all([Example("red", "yes"), Example("blue", "no")])
    assert "attention_mask" not in answer_batch(encoded).model_inputs


def test_a_row_has_the_same_loss_and_answer_alone_and_in_a_batch(base):
    prompt = PromptFormat.for_base(base)
    encoded = prompt.encode_all(EXAMPLES)

    def losses(examples):
        batch = answer_batch(examples)
        keep = {} if batch.positions is None else {"logits_to_keep": batch.positions}
        with torch.inference_mode():
            logits = base.model(**batch.model_inputs, **keep).logits
        each = functional.cross_entropy(logits.transpose(1, 2), batch.labels, ignore_index=IGNORED, reduction="none")
        return each.sum(1)

    # float32 rounding through two layers
    torch.testing.assert_close(losses(encoded), torch.cat([losses([e]) for e in encoded]), rtol=1e-5, atol=1e-5)
    prompts = [e.input_ids for e in encoded]
    together = greedy_tokens(base, prompts, prompt, 6)
    assert together == [greedy_tokens(base, [row], prompt, 6)[0] for row in prompts]
    assert len({tuple(row) for row in together}) > 1, "answers must differ, or nothing is compared"


def test_an_answer_ends_at_the_first_stop_and_its_text_is_what_stands_before(base):
    prompt = PromptFormat.for_base(base)
    yes, no = tiny.WORDS.index("yes"), tiny.WORDS.index("no")
    assert prompt.until_stop([yes, 1, no, 1]) == [yes, 1]
    assert prompt.answer_text([yes, 1, no, no]) == "yes"
    other = dataclasses.replace(prompt, stop_ids=(no,))
    first = greedy_tokens(base, [prompt.encode_input("red")[0]], prompt, 6)[0][0]
    assert greedy_tokens(base, [prompt.encode_input("red")[0]], dataclasses.replace(other, stop_ids=(first,)), 6) == [
        [first]
    ]


def test_prompts_are_padded_away_from_the_answer(base):
    prompt = PromptFormat.for_base(base, template="{input} ?")
    batch = prompt_batch([prompt.encode_input(text)[0] for text in ("red", "a cat")], prompt)
    expected = ["red ? </s> <pad>", "a cat ? </s>"] if base.family.is_seq2seq else ["<pad> red ?", "a cat ?"]
    assert words(batch["input_ids"]) == expected
    assert torch.equal(batch["attention_mask"] == 0, batch["input_ids"] == 0)
