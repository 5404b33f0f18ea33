"""Against the released package `lorahub` 0.1.0, which still runs: the same numbers on a tiny T5 with a float base.

One defect of the package is mended here as its own repository mended it later: its cache of the last module is the live
adapter itself, so the first evaluation overwrites that module. The oracle gets deep copies.
"""

import copy

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

import lorahub_edge
from lorahub_edge.adaptation import FORMS, Objective, PopulationForward
from lorahub_edge.base import load_base
from lorahub_edge.modules import ModuleStack, load_modules
from lorahub_edge.tasks import Example, PromptFormat
from tests import tiny

algorithm = pytest.importorskip("lorahub.algorithm", reason="the package lorahub 0.1.0 is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")  # the oracle's own use of old interfaces
ROWS = tiny.ROWS[:5]
COEFFICIENTS = [[0.0] * 4, [0.25] * 4, [1.0, 0, 0, 0], [0.7, -1.2, 0.3, 1.5], [-0.4, 0.9, -1.5, 0.1]]


@pytest.fixture(autouse=True)
def _oracle_copies_modules(monkeypatch):
    original = algorithm.get_peft_model_state_dict
    monkeypatch.setattr(algorithm, "get_peft_model_state_dict", lambda model: copy.deepcopy(original(model)))


@pytest.fixture(scope="module")
def ours(bases, module_folders):
    base = load_base(str(bases["t5"]), precision="fp32", device="cpu")
    return base, ModuleStack.build(load_modules(module_folders["t5"]), base)


@pytest.fixture(scope="module")
def module_paths(module_folders):
    return [str(module_folders["t5"] / f"m{k}") for k in range(4)]


@pytest.mark.parametrize("batch_size", [5, None])
@pytest.mark.parametrize("n_examples", [5, 3])
def test_same_coefficients_give_the_same_objective(ours, bases, module_paths, batch_size, n_examples):
    base, stack = ours
    rows = ROWS[:n_examples]
    model, tokenizer, cache = algorithm.load_base_model_and_lora_modules(module_paths, str(bases["t5"]))
    dataset = algorithm.load_dataset([i for i, _ in rows], [t for _, t in rows], tokenizer)
    parts = (algorithm.default_get_loss, algorithm.default_l1_regularization)
    expected = [algorithm.get_score(c, model, cache, dataset, batch_size, *parts) for c in COEFFICIENTS]
    encoded = PromptFormat.for_base(base).encode_all([Example(*row) for row in rows])
    with PopulationForward(base, stack, encoded).ready() as forward:
        values = Objective(forward, FORMS["lorahub-code"], 0.05)(np.array(COEFFICIENTS))
    np.testing.assert_allclose([v.objective for v in values], expected, rtol=0, atol=1e-5)
    assert len({round(e, 3) for e in expected}) == len(expected), "the candidates must differ, or nothing is compared"


def test_more_examples_than_one_batch_are_added_up_as_the_released_code_does(ours, bases, module_paths):
    base, stack = ours
    rows = [*tiny.ROWS, ("the red cat .", "a cat .")]
    model, tokenizer, cache = algorithm.load_base_model_and_lora_modules(module_paths, str(bases["t5"]))
    dataset = algorithm.load_dataset([i for i, _ in rows], [t for _, t in rows], tokenizer)
    expected = algorithm.get_score(
        COEFFICIENTS[3], model, cache, dataset, 5, algorithm.default_get_loss, algorithm.default_l1_regularization
    )
    encoded = PromptFormat.for_base(base).encode_all([Example(*row) for row in rows])
    with PopulationForward(base, stack, encoded).ready() as forward:
        (value,) = Objective(forward, FORMS["lorahub-code"], 0.05)(np.array([COEFFICIENTS[3]]))
    assert value.objective == pytest.approx(expected, abs=1e-5)


def test_lorahub_code_finds_the_same_coefficients_and_merged_weights(bases, module_paths):
    expected, merged, _ = algorithm.lorahub_learning(
        lora_module_list=module_paths,
        example_inputs=[i for i, _ in ROWS],
        example_outputs=[t for _, t in ROWS],
        max_inference_step=40,
        model_name_or_path=str(bases["t5"]),
        batch_size=5,
        seed=7,
    )
    run = lorahub_edge.adapt(
        str(bases["t5"]), module_paths, ROWS, preset="lorahub-code", precision="fp32", device="cpu", seed=7,
        null_control=False,
    )  # fmt: skip
    assert run.search.resolved_optimizer == "Cobyla"
    assert run.search.n_evaluations == 40
    assert any(abs(c) > 0.1 for c in expected), "the search must have moved"
    # Objectives differ in their last float32 digits, by how a processor sums. COBYLA carries that along: its last steps
    # may be others, but not larger ones. 7e-6 was seen on one processor, 5e-3 on another that has AMX.
    candidates = np.array([evaluated.coefficients for evaluated in run.journal])
    last_step = np.abs(np.diff(candidates[-15:], axis=0)).max()
    np.testing.assert_allclose(list(run.coefficients.values()), expected, rtol=0, atol=last_step)
    stack = ModuleStack.build(load_modules(module_paths), run.model.base)
    theirs = stack.composed_module(torch.tensor(expected, dtype=torch.float64), "theirs")
    float_base = AutoModelForSeq2SeqLM.from_pretrained(bases["t5"])
    weights = dict(float_base.named_parameters())
    for name, factors in theirs.factors.items():
        ours = weights[f"{name}.weight"] + factors.delta()
        torch.testing.assert_close(ours, merged.get_submodule(name).weight, rtol=0, atol=1e-5)
