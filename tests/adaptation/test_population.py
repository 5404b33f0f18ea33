"""Many candidates in one forward give what transformers and PEFT give one by one, for every family."""

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from lorahub_edge.adaptation import AdaptedModel, PopulationForward, SidePath, population
from lorahub_edge.base import load_base
from lorahub_edge.modules import ModuleStack, load_modules
from lorahub_edge.tasks import Example, PromptFormat
from tests import tiny

KINDS = ["t5", "llama", "gemma2", "gemma3"]
EXAMPLES = [Example(*row) for row in tiny.ROWS]
RNG = np.random.default_rng(0)
COEFFICIENTS = torch.from_numpy(np.concatenate([np.zeros((1, 4)), np.eye(4), RNG.uniform(-1.5, 1.5, (7, 4))]))


def load(kind, bases, module_folders, precision="fp32"):
    base = load_base(str(bases[kind]), precision=precision, device="cpu")
    return base, ModuleStack.build(load_modules(module_folders[kind]), base), PromptFormat.for_base(base)


def losses(base, stack, prompt, coefficients=COEFFICIENTS, **options):
    with PopulationForward(base, stack, prompt.encode_all(EXAMPLES), **options).ready() as forward:
        return forward.negative_log_likelihoods(coefficients)


def peft_model(kind, base_folder, folder):
    auto = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    model = auto.from_pretrained(base_folder, attn_implementation="eager")  # the only one with gemma2's cap everywhere
    return PeftModel.from_pretrained(model, folder).eval() if folder else model.eval()


def transformers_nll(model, prompt, example, is_seq2seq):
    """Sum over the answer's tokens, computed by the model's own loss on one example."""
    encoded = prompt.encode(example)
    n = len(encoded.target_ids)
    if is_seq2seq:
        inputs = {"input_ids": torch.tensor([encoded.input_ids]), "labels": torch.tensor([encoded.target_ids])}
    else:
        ids = torch.tensor([encoded.input_ids + encoded.target_ids])
        inputs = {"input_ids": ids, "labels": torch.where(torch.arange(ids.shape[1]) < ids.shape[1] - n, -100, ids)}
    with torch.inference_mode():
        return model(**inputs).loss.item() * n


@pytest.mark.parametrize("kind", KINDS)
def test_zero_and_single_modules_equal_transformers_and_peft(kind, bases, module_folders):
    base, stack, prompt = load(kind, bases, module_folders)
    ours = losses(base, stack, prompt, COEFFICIENTS[:5])
    for row, folder in enumerate([None, *(module_folders[kind] / f"m{k}" for k in range(4))]):
        model = peft_model(kind, bases[kind], folder)
        expected = [transformers_nll(model, prompt, e, kind == "t5") for e in EXAMPLES]
        # every sum is below 30; float32 rounding through two layers stays under 1e-5 of it
        np.testing.assert_allclose(ours[row], expected, rtol=1e-5, atol=1e-4)
    assert ours.std(dim=0).min() > 0.01, "the candidates must differ, or nothing is compared"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_result_does_not_depend_on_how_candidates_are_grouped(kind, precision, bases, module_folders):
    base, stack, prompt = load(kind, bases, module_folders, precision)
    together = losses(base, stack, prompt)
    # torch multiplies one matrix and several in different orders; the last bit of a float can carry an input of an int8
    # layer over to the next of its 127 codes, which is what a loss may then differ by
    tolerance = 2e-4 if precision == "fp32" else 1 / 127
    for tokens_per_call in (1, 40):
        np.testing.assert_allclose(
            losses(base, stack, prompt, tokens_per_call=tokens_per_call), together, rtol=tolerance, atol=2e-4
        )
    one_by_one = torch.cat([losses(base, stack, prompt, c[None]) for c in COEFFICIENTS])
    np.testing.assert_allclose(one_by_one, together, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_lanes_give_what_one_gives(kind, precision, bases, module_folders, two_threads, monkeypatch):
    """For as many candidates as lanes and one more, whose examples the lanes share."""
    base, stack, prompt = load(kind, bases, module_folders, precision)
    seen = set()
    active = SidePath.active
    monkeypatch.setattr(SidePath, "active", lambda self, c: seen.add(id(self)) or active(self, c))
    in_lanes = losses(base, stack, prompt, COEFFICIENTS[:9], tokens_per_call=160)
    assert len(seen) == 2
    torch.set_num_threads(1)
    alone = losses(base, stack, prompt, COEFFICIENTS[:9])
    np.testing.assert_allclose(in_lanes, alone, rtol=2e-4, atol=2e-4)


def test_one_candidate_is_shared_by_all_lanes(bases, module_folders, two_threads, monkeypatch):
    """The examples of its one bucket go to both; the last of an odd number of candidates too, the others stay whole."""
    base, stack, prompt = load("t5", bases, module_folders, "int8")
    encoded = prompt.encode_all(EXAMPLES[:1] * 5)
    calls = []
    outputs_of = population._Place._outputs_of
    monkeypatch.setattr(
        population._Place, "_outputs_of", lambda self, b, n: calls.append((n, b.rows)) or outputs_of(self, b, n)
    )
    whole, halves = (0, 1, 2, 3, 4), [(0, 1, 2), (3, 4)]
    with PopulationForward(base, stack, encoded, tokens_per_call=2 * 80).ready() as forward:
        n = forward._n_together
        for n_candidates, expected in ((1, [(1, part) for part in halves]), (2 * n, [(n, whole)] * 2)):
            calls.clear()
            got = forward.negative_log_likelihoods(COEFFICIENTS[1:2].repeat(n_candidates, 1))
            assert sorted(calls) == sorted(expected)
            np.testing.assert_allclose(got, np.broadcast_to(got[0, 0], got.shape), rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_all_zero_coefficients_are_the_base_bit_for_bit_and_the_base_stays_untouched(kind, bases, module_folders):
    base, stack, prompt = load(kind, bases, module_folders, "int8")
    before = {n: b.clone() for n, b in base.model.named_buffers()}
    ids = torch.tensor([prompt.encode(EXAMPLES[0]).input_ids])
    inputs = {"input_ids": ids, "decoder_input_ids": torch.tensor([[0]])} if kind == "t5" else {"input_ids": ids}
    with torch.inference_mode():
        expected = base.model(**inputs).logits
        path = SidePath(base, stack)
        with path.active(path.prepare(torch.zeros(1, 4))):
            assert torch.equal(base.model(**inputs).logits, expected)
        with path.active(path.prepare(torch.ones(1, 4))):
            assert not torch.equal(base.model(**inputs).logits, expected)
        assert torch.equal(base.model(**inputs).logits, expected)
    assert all(torch.equal(b, before[n]) for n, b in base.model.named_buffers())


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_answers_equal_those_of_peft(kind, bases, module_folders, two_threads):
    base, stack, prompt = load(kind, bases, module_folders)
    model = AdaptedModel(base, stack, torch.tensor([0.0, 0, 1, 0]), prompt, max_new_tokens=6)
    peft = peft_model(kind, bases[kind], module_folders[kind] / "m2")
    expected = []
    for example in EXAMPLES:
        ids = torch.tensor([prompt.encode_input(example.input)[0]])
        output = peft.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        answer = output[0] if kind == "t5" else output[0, ids.shape[1] :]
        expected.append(base.tokenizer.decode(answer, skip_special_tokens=True).strip())
    for batch_size in (1, 4):
        for n_threads in (1, 2):  # lanes
            torch.set_num_threads(n_threads)
            assert model.predict([e.input for e in EXAMPLES], batch_size=batch_size) == expected
    assert len(set(expected)) > 1
