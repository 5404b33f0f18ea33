"""Every variant is edge with one part changed, and gradients on the coefficients find what the search looks for."""

import numpy as np
import pytest

import lorahub_edge
from bench.ablations import BUDGET, L2, VARIANTS, GradientOnCoefficients, Variant
from lorahub_edge.adaptation import FORMS, Objective, PopulationForward
from lorahub_edge.benchmark.methods import METHODS
from lorahub_edge.benchmark.trial import Pool, Protocol, TaskRows, Trial

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:nevergrad.*")


@pytest.fixture(scope="module")
def trial():
    names = ("opposite", "as_thanks", "sound", "as_braces")
    pool = Pool(
        lorahub_edge.load_base("pocket", device="cpu"), lorahub_edge.load_modules([f"pocket/{n}" for n in names])
    )
    rows = TaskRows("opposite", "pocket/opposite_in_thanks", "pocket/opposite_in_thanks")
    return Trial.of(pool, rows, Protocol("test", n_test=10), example_seed=42, seed=1)


def test_variants_have_names_and_settings_of_their_own(trial):
    settings = [str(v.settings(trial)) for v in VARIANTS]
    assert len({v.name for v in VARIANTS}) == len(set(settings)) == len(VARIANTS)
    assert not {v.name for v in VARIANTS} & (set(METHODS) - {"edge"})


def test_modules_are_chosen_by_loss_or_by_draw(trial):
    with METHODS["best-single"].fit(trial, {}) as best, Variant(n_modules=1, chosen_by="loss").fit(trial, {}) as fitted:
        assert fitted.model.stack.names[0] == best.detail.partition(",")[0]
        assert fitted.n_evaluations == BUDGET
    drawn = set()
    for seed in range(1, 7):
        chosen = Variant(n_modules=2)._with_chosen(Trial(**{**vars(trial), "seed": seed}))
        drawn.add(chosen.pool.stack.names)
    assert len(drawn) > 1


def test_the_l2_penalty_is_the_sum_of_squares():
    np.testing.assert_allclose(L2.l1_penalty(np.array([[1.0, -2.0], [0.0, 0.5]]), 0.1), [0.5, 0.025])


def test_gradients_on_the_coefficients_lower_the_objective_from_the_uniform_mean(trial):
    pool = trial.pool.at("fp32")
    on_float = Trial(**{**vars(trial), "pool": pool})
    with GradientOnCoefficients(25).fit(on_float, {}) as fitted:
        found = fitted.coefficients
    with PopulationForward(pool.base, pool.stack, trial.encoded).ready() as forward:
        objective = Objective(forward, FORMS["published"], 0.05)
        before, after = objective(np.stack([np.full(4, 0.25), found]))
    assert after.objective < 0.8 * before.objective
    assert np.abs(found).max() <= 1.5
