"""A tuned base has learned its rows inside the block and is the old one behind it, whatever was trained."""

import pytest
import torch

import lorahub_edge
from lorahub_edge.errors import InvalidInput, LorahubEdgeError
from lorahub_edge.tasks import Example
from lorahub_edge.train import TrainSettings, tuned
from tests import tiny

ROWS = [Example(*row) for row in tiny.ROWS]


@pytest.fixture(params=["t5", "llama"])
def base(request, bases):
    return lorahub_edge.load_base(str(bases[request.param]), precision="fp32", device="cpu")


@pytest.mark.parametrize(("kind", "rate"), [("lora", 2e-2), ("ia3", 5e-2), ("full", 3e-3)])
def test_the_loss_falls_and_the_base_comes_back_bit_for_bit(base, kind, rate):
    before = {n: p.clone() for n, p in base.model.state_dict().items()}
    settings = TrainSettings(epochs=15, batch_size=6, learning_rate=rate, dropout=0.0)
    with tuned(base, ROWS, kind, settings=settings) as result:
        assert len(result.losses) == 15
        assert result.final_loss < 0.9 * result.losses[0]
        assert not base.model.training
        n_all = sum(p.numel() for p in base.model.parameters())
        assert (result.n_parameters == n_all) == (kind == "full")
    after = base.model.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[n], before[n]) for n in before)
    assert not any(p.requires_grad for p in base.model.parameters())


def test_a_loss_that_is_no_number_leaves_the_base_as_it_was(base):
    before = {n: p.clone() for n, p in base.model.state_dict().items()}
    settings = TrainSettings(epochs=50, learning_rate=1e30)
    with (
        pytest.raises(LorahubEdgeError, match=r"the loss became (nan|inf) at step"),
        tuned(base, ROWS, "full", settings=settings),
    ):
        pass
    assert all(torch.equal(p, before[n]) for n, p in base.model.state_dict().items())


def test_an_unknown_kind_is_refused(base):
    with (
        pytest.raises(InvalidInput, match="kind 'prefix' is not known; expected lora, ia3, full"),
        tuned(base, ROWS, "prefix"),
    ):
        pass
