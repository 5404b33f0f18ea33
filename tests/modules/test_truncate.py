"""Factors of less rank against the SVD of the whole delta."""

import math

import pytest
import torch

from lorahub_edge.modules import LoraFactors, LoraModule, cut_rank
from lorahub_edge.modules.truncate import truncated, without_idle_ranks


def factors_of(out_features, in_features, rank, *, scaling=-0.5, seed=0):
    rng = torch.Generator().manual_seed(seed)
    sizes = 3.0 ** -torch.arange(rank)
    A = torch.randn(rank, in_features, generator=rng) * sizes[:, None]
    return LoraFactors(A, torch.randn(out_features, rank, generator=rng), scaling)


@pytest.mark.parametrize("shape", [(40, 24, 12), (24, 40, 12), (9, 40, 12), (40, 9, 30), (1, 7, 3)])
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_it_is_the_best_approximation(shape, rank):
    factors = factors_of(*shape)
    delta = factors.delta().double()
    U, singular, V_t = torch.linalg.svd(delta, full_matrices=False)
    n = min(rank, len(singular))
    best = (U[:, :n] * singular[:n]) @ V_t[:n]
    cut, lost = truncated(factors, rank)
    assert cut.rank == (n if rank < factors.rank else factors.rank)
    assert cut.A.dtype == cut.B.dtype == torch.float32
    torch.testing.assert_close(cut.delta().double(), best, rtol=1e-5, atol=1e-5 * float(singular[0]))
    assert lost == pytest.approx(float(singular[n:].square().sum()), rel=1e-4, abs=1e-9 * float(singular[0]) ** 2)


def test_both_factors_have_the_same_share_of_the_singular_values():
    cut, _ = truncated(factors_of(40, 24, 12), 4)
    torch.testing.assert_close(cut.A @ cut.A.T, cut.B.T @ cut.B, rtol=1e-5, atol=1e-6)


def test_the_error_is_that_of_all_targets_and_smaller_ranks_stay():
    module = LoraModule("m", {"a": factors_of(20, 30, 6), "b": factors_of(20, 10, 8, scaling=3.0, seed=1)})
    cut, report = cut_rank(module, 6)
    assert cut.factors["a"] is module.factors["a"]
    assert cut.factors["b"].rank == 6
    lost = (module.factors["b"].delta() - cut.factors["b"].delta()).double().norm()
    norm = math.sqrt(sum(float(f.delta().double().square().sum()) for f in module.factors.values()))
    assert report.relative_error == pytest.approx(float(lost) / norm, rel=1e-3)
    assert (report.rank, report.rank_before) == (6, 8)
    assert cut_rank(module, 8)[1].relative_error == 0
    zero = LoraModule("z", {"a": LoraFactors(torch.zeros(3, 8), torch.zeros(5, 3), 1.0)})
    assert cut_rank(zero, 1)[1].relative_error == 0


def test_idle_ranks_go_and_the_rest_stays_as_it_is():
    factors = factors_of(20, 30, 6)
    A, B = factors.A.clone(), factors.B.clone()
    A[1], B[:, 4] = 0, 0
    kept = without_idle_ranks(LoraFactors(A, B, factors.scaling))
    busy = [0, 2, 3, 5]
    assert torch.equal(kept.A, A[busy])
    assert torch.equal(kept.B, B[:, busy])
    assert kept.scaling == factors.scaling
    nothing = without_idle_ranks(LoraFactors(A, torch.zeros(20, 6), 2.0))
    assert (nothing.rank, nothing.delta().any()) == (1, False)
    assert without_idle_ranks(LoraFactors(torch.zeros(0, 30), torch.zeros(20, 0), 2.0)).A.shape == (0, 30)


def test_more_ranks_than_the_layer_has_become_as_many():
    factors = LoraFactors(torch.randn(60, 12), torch.randn(20, 60), 0.25)
    kept = without_idle_ranks(factors)
    assert kept.rank == 12
    torch.testing.assert_close(kept.delta(), factors.delta(), rtol=1e-5, atol=1e-5)
