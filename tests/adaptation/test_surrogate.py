"""The surrogate foresees compositions from single modules, and an evaluation hands over what it needs."""

import numpy as np
import pytest
import torch
from torch.nn import functional

import lorahub_edge
from lorahub_edge.adaptation import PopulationForward
from lorahub_edge.adaptation.surrogate import best_mixture
from lorahub_edge.base import load_base
from lorahub_edge.modules import ModuleStack, load_modules
from lorahub_edge.tasks import Example, PromptFormat
from tests import tiny

EXAMPLES = [Example(*row) for row in tiny.ROWS]
FEATURES, VOCABULARY, N_TOKENS = 8, 200, 6


def made(n=5, seed=0):
    """States of the base and of n modules alone, answers, and an output layer."""
    rng = torch.Generator().manual_seed(seed)
    states = torch.randn(1 + n, N_TOKENS, FEATURES, generator=rng)
    layer = torch.randn(VOCABULARY, FEATURES, generator=rng)
    answers = torch.randint(VOCABULARY, (N_TOKENS,), generator=rng)
    return states, answers, lambda s: s @ layer.T


def loss_at(states, answers, logits, weights):
    mixed = states[0] + torch.einsum("n,ntf->tf", torch.from_numpy(weights).float(), states[1:] - states[0])
    return float(functional.cross_entropy(logits(mixed), answers))


@pytest.mark.parametrize("n", [1, 2, 5, 30])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_other_mixture_has_a_lower_loss_on_the_likely_tokens(n, seed):
    states, answers, logits = made(n, seed)
    best = best_mixture(states, answers, logits)
    assert best.min() >= 0
    assert best.sum() <= 1 + 1e-9
    rng = np.random.default_rng(seed)
    found = loss_at(states, answers, logits, best)
    for other in [
        np.zeros(n),
        *np.eye(n),
        *rng.dirichlet(np.full(n, 0.3), 200),
        *(best + rng.normal(0, 0.02, (50, n))),
    ]:
        clipped = np.clip(other, 0, None)
        clipped /= max(1.0, clipped.sum())
        # unlikely tokens are one token to the fit, so it is not exact to the last digit
        assert found <= loss_at(states, answers, logits, clipped) + 2e-3


def test_two_that_need_each_other_are_both_named():
    """One knows the first half of the answer, another the second; a third is a little good everywhere."""
    layer = torch.eye(VOCABULARY)
    answers = torch.tensor([3, 3, 3, 7, 7, 7])
    states = torch.zeros(4, N_TOKENS, VOCABULARY)
    states[1, :3, 3] = 8.0
    states[2, 3:, 7] = 8.0
    states[3, torch.arange(N_TOKENS), answers] = 1.0
    weights = best_mixture(states, answers, lambda s: s @ layer.T)
    assert weights[0] > 0.3
    assert weights[1] > 0.3
    assert weights[2] < 0.05


def test_the_step_at_which_modules_were_looked_at_is_taken_out():
    states, answers, logits = made()
    half = states[0] + 0.5 * (states - states[0])
    np.testing.assert_allclose(
        best_mixture(half, answers, logits, step=0.5), best_mixture(states, answers, logits), atol=5e-3
    )


def test_states_that_are_not_finite_name_no_module():
    states, answers, logits = made()
    broken = states.clone()
    broken[2] = torch.nan
    weights = best_mixture(broken, answers, logits)
    assert weights[1] == 0
    np.testing.assert_allclose(
        np.delete(weights, 1), best_mixture(torch.cat([states[:2], states[3:]]), answers, logits)
    )
    broken[0] = torch.inf
    assert not best_mixture(broken, answers, logits).any()


@pytest.mark.parametrize("tokens_per_call", [None, 40])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("kind", ["t5", "llama", "gemma2"])
def test_the_states_of_an_evaluation_give_its_losses(
    kind, precision, tokens_per_call, bases, module_folders, two_threads
):
    """The output layer's logits of state t give answer token t; Gemma 2 caps them."""
    base = load_base(str(bases[kind]), precision=precision, device="cpu")
    stack = ModuleStack.build(load_modules(module_folders[kind]), base)
    encoded = PromptFormat.for_base(base).encode_all(EXAMPLES)
    coefficients = torch.from_numpy(np.concatenate([np.zeros((1, 4)), np.eye(4)]))
    with PopulationForward(base, stack, encoded, tokens_per_call=tokens_per_call).ready() as forward:
        losses, states = forward.evaluate(coefficients)
        assert states.shape == (5, len(forward.answers), states.shape[2])
        for candidate in range(5):
            nll = functional.cross_entropy(forward.logits(states[candidate]), forward.answers, reduction="none")
            by_example = torch.stack([part.sum() for part in nll.split(forward.n_target_tokens.tolist())])
            np.testing.assert_allclose(by_example, losses[candidate], rtol=1e-4, atol=1e-4)


def test_only_a_guided_search_keeps_states(bases, module_folders, monkeypatch):
    """They are as many as answer tokens: a test set of thousands of rows would fill the memory for nothing."""
    run = lorahub_edge.adapt(
        str(bases["t5"]), module_folders["t5"], tiny.ROWS, n_examples=4, budget=6, device="cpu", null_control=False
    )
    monkeypatch.setattr(PopulationForward, "evaluate", lambda *_: pytest.fail("nobody asks for states"))
    assert np.isfinite(run.evaluate(tiny.ROWS).loss)
    lorahub_edge.adapt(
        str(bases["t5"]), module_folders["t5"], tiny.ROWS, n_examples=4, budget=6, device="cpu", null_control=False,
        preset="paper",
    )  # fmt: skip


def test_the_screen_of_a_guided_search_is_computed_once(bases, module_folders, monkeypatch):
    seen: list[bytes] = []
    evaluate = PopulationForward.evaluate

    def noted(self, coefficients):
        seen.extend(row.numpy().tobytes() for row in coefficients)
        return evaluate(self, coefficients)

    monkeypatch.setattr(PopulationForward, "evaluate", noted)
    lorahub_edge.adapt(
        str(bases["t5"]), module_folders["t5"], tiny.ROWS, n_examples=4, budget=20, device="cpu", null_control=False
    )
    assert len(seen) == len(set(seen)) > 20
