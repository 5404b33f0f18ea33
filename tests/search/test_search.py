"""Searchers stay in the box and the budget, repeat themselves from a seed, and find known minima."""

import itertools
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorahub_edge.errors import InvalidInput, LorahubEdgeError
from lorahub_edge.search import make_searcher as make
from lorahub_edge.search import run_search
from lorahub_edge.search.searchers import CMA_STD_SHARE, SCREEN_BATCH, cma_searcher

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:nevergrad.*")
OPTIMIZERS = ["guided-cma", "cma-es", "NGOpt", "Cobyla", "OnePlusOne", "RandomSearch"]


@dataclass(frozen=True)
class Number:
    objective: float


def make_searcher(optimizer, n, **settings):
    """As the package's, with a guide that has no opinion."""
    return make(optimizer, n, **{"guide": lambda: np.zeros(n), **settings})


def function(minimum, tilt=1.0):
    """A valley around `minimum`, `tilt` times steeper across than along, turned out of the axes."""

    def evaluate(candidates):
        d = candidates - minimum
        along = d.sum(axis=1) / np.sqrt(d.shape[1])
        return [Number(float(v)) for v in tilt * (d**2).sum(axis=1) + (1 - tilt) * along**2]

    return evaluate


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@settings(max_examples=8)
@given(n=st.integers(1, 24), budget=st.integers(1, 45), bound=st.sampled_from([0.2, 1.5]), seed=st.integers(0, 99))
def test_never_outside_the_box_nor_over_the_budget_and_the_same_from_one_seed(optimizer, n, budget, bound, seed):
    asked: list[list[np.ndarray]] = []
    for _ in range(2):
        seen: list[np.ndarray] = []

        def evaluate(candidates, seen=seen):
            seen.extend(candidates)
            return function(np.full(n, 0.1))(candidates)

        result = run_search(evaluate, make_searcher(optimizer, n, bound=bound, budget=budget, seed=seed), budget)
        assert len(seen) == result.n_evaluations == budget
        assert np.abs(seen).max() <= bound
        asked.append(seen)
    np.testing.assert_array_equal(*asked)


@pytest.mark.parametrize("optimizer", ["guided-cma", "cma-es", "Cobyla"])
@pytest.mark.parametrize("tilt", [1.0, 5.0])
def test_known_minima_are_reached(optimizer, tilt):
    minimum = np.array([0.5, -0.8, 0.0, 1.2, -0.3])
    evaluate = function(minimum, tilt)
    result = run_search(evaluate, make_searcher(optimizer, 5, bound=1.5, budget=600, seed=1), 600)
    np.testing.assert_allclose(result.best.coefficients, minimum, atol=0.05)


def test_the_released_code_runs_cobyla_and_the_record_says_so():
    """FACTS of nevergrad: NGOpt on a bounded box with one worker and a small budget is COBYLA, not CMA-ES."""
    result = run_search(function(np.zeros(20)), make_searcher("NGOpt", 20, bound=1.5, budget=40, seed=1), 40)
    assert (result.optimizer, result.resolved_optimizer) == ("NGOpt", "Cobyla")
    result = run_search(function(np.zeros(20)), make_searcher("cma-es", 20, bound=1.5, budget=40, seed=1), 40)
    assert result.resolved_optimizer.startswith("ParametrizedCMA(")


@pytest.mark.parametrize("n", [5, 17, 18, 40])
def test_the_first_generation_spreads_as_stated(n):
    """nevergrad halves its step from 18 dimensions on; ours must not."""
    samples = []
    for seed in range(60):
        searcher = cma_searcher(np.zeros(n), bound=1.5, budget=100, seed=seed)
        samples.append(searcher.ask(100))
    std = np.concatenate(samples).std()
    assert std == pytest.approx(CMA_STD_SHARE * 1.5, rel=0.12)


def screened(n, alone, mixture, **settings):
    """A guided searcher that has looked at every axis: `alone` are their objectives; zero and the mean did worse."""
    limits = {"bound": 1.5, "budget": 200, "seed": 0, **settings}
    searcher = make("guided-cma", n, guide=lambda: np.array(mixture), **limits)
    objectives, seen = [9.0, 8.0, *alone], 0
    while seen < n + 2:
        batch = searcher.ask(200)
        searcher.tell(batch, np.array(objectives[seen : seen + len(batch)]))
        seen += len(batch)
    return searcher


def test_a_guided_search_looks_at_zero_the_mean_and_every_axis_first():
    searcher = make_searcher("guided-cma", 30, bound=1.5, budget=80, seed=0)
    looked_at = []
    while len(looked_at) < 32:
        batch = searcher.ask(80)
        assert len(batch) == min(SCREEN_BATCH, 32 - len(looked_at))
        searcher.tell(batch, np.ones(len(batch)))
        looked_at.extend(batch)
    np.testing.assert_array_equal(looked_at, [np.zeros(30), np.full(30, 1 / 30), *np.eye(30)])


def test_it_goes_on_with_what_the_guide_names_and_the_best_alone_and_leaves_the_others_at_zero():
    alone = [5.0, 1.0, 2.0, 3.0, 7.0, 6.0, 4.0, 8.0]
    mixture = [0.0, 0.1, 0.0, 0.0, 0.5, 0.0, 0.04, 0.3]  # 0.04 names no axis
    searcher = screened(8, alone, mixture)
    starts = searcher.ask(200)
    chosen = [4, 7, 1, 2, 3, 6]  # the guide's three, then the best alone that are not among them
    others = [0, 5]
    assert len(starts) == 8
    np.testing.assert_allclose(starts[2], np.where(np.isin(np.arange(8), chosen), mixture, 0))
    np.testing.assert_allclose(starts[5], np.where(np.isin(np.arange(8), chosen), 0.8 / 6, 0))
    objectives = np.full(8, 9.0)
    objectives[2] = 0.5
    searcher.tell(starts, objectives)
    around = searcher.ask(200)
    assert not around[:, others].any()
    assert np.abs(around[:, chosen]).min() > 0
    np.testing.assert_allclose(around.mean(axis=0), starts[2], atol=0.3)  # around the best of the starts


def test_where_the_guide_has_no_opinion_the_best_alone_are_searched():
    searcher = screened(8, [5.0, 1.0, 2.0, 3.0, 7.0, 6.0, 4.0, 8.0], np.zeros(8))
    starts = searcher.ask(200)
    assert len(starts) == 3  # the mean of the chosen at three scales
    np.testing.assert_array_equal(np.flatnonzero(starts[0]), [0, 1, 2, 3, 5, 6])


def test_nothing_starts_outside_the_box():
    searcher = screened(3, [1.0, 2.0, 3.0], [1.0, 0.0, 0.0], bound=0.5)
    assert np.abs(searcher.ask(200)).max() == 0.5


def test_a_search_does_not_end_behind_zero_where_every_axis_does_harm():
    cone = run_search(
        lambda candidates: [Number(float(np.abs(c).sum())) for c in candidates],
        make_searcher("guided-cma", 20, bound=1.5, budget=60, seed=0),
        60,
    )
    assert cone.best.value.objective == 0.0


def test_a_guided_search_needs_a_guide():
    with pytest.raises(InvalidInput, match="guided-cma: expected a guide, received none; hand one over"):
        make("guided-cma", 3, bound=1.5, budget=10, seed=0)


def test_the_best_is_kept_when_interrupted():
    counter = itertools.count()

    def evaluate(candidates):
        if next(counter) == 3:
            raise KeyboardInterrupt
        return function(np.zeros(4))(candidates)

    result = run_search(evaluate, make_searcher("cma-es", 4, bound=1.5, budget=80, seed=0), 80)
    assert result.interrupted
    assert 0 < result.n_evaluations < 80

    def at_once(candidates):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_search(at_once, make_searcher("cma-es", 4, bound=1.5, budget=80, seed=0), 80)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_candidates_without_a_finite_objective_lose(optimizer):
    def evaluate(candidates):
        return [Number(float("nan") if c[0] > 0.4 else float((c**2).sum())) for c in candidates]

    result = run_search(evaluate, make_searcher(optimizer, 3, bound=1.5, budget=40, seed=0), 40)
    assert np.isfinite(result.best.value.objective)
    with pytest.raises(LorahubEdgeError, match="none of 5 candidates has a finite loss"):
        run_search(
            lambda c: [Number(float("nan"))] * len(c), make_searcher(optimizer, 3, bound=1.5, budget=5, seed=0), 5
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "CMA-ESS"}, "'CMA-ESS' is not known; did you mean"),
        ({"bound": 0.0}, "bound"),
        ({"bound": float("nan")}, "bound"),
        ({"budget": 0}, "budget: expected at least 1"),
    ],
)
def test_wrong_settings_are_refused(change, message):
    settings_ = {"optimizer": "cma-es", "bound": 1.5, "budget": 10, **change}
    with pytest.raises(InvalidInput, match=message):
        make_searcher(settings_.pop("optimizer"), 3, seed=0, **settings_)


def run_afresh(script: str) -> None:
    """nevergrad is loaded once per process, so what is loaded with it shows only in a new one."""
    start = "import sys, warnings\nwarnings.simplefilter('ignore')\nimport numpy as np\n"
    start += "from lorahub_edge.errors import InvalidInput\nfrom lorahub_edge.search import make_searcher\n"
    start += "settings = dict(bound=1.5, budget=8, seed=0)\n"
    done = subprocess.run([sys.executable, "-c", start + script + "\nprint('checked')"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "checked\n"), done.stderr


def test_a_search_does_not_load_what_it_does_not_use():
    """bayes_opt loads scikit-learn and pandas, 80 MB, for two optimisers; others can still import it afterwards."""
    run_afresh(
        "make_searcher('cma-es', 3, **settings).ask(4)\n"
        "assert not {'bayes_opt', 'sklearn', 'pandas'} & set(sys.modules)\n"
        "try:\n"
        "    make_searcher('BO', 3, **settings)\n"
        "    raise AssertionError\n"
        "except InvalidInput as error:\n"
        "    assert 'needs the package bayes_opt' in str(error)\n"
        "import bayes_opt"
    )


def test_an_optimiser_that_needs_bayes_opt_gets_it():
    run_afresh(
        "searcher = make_searcher('BO', 3, **settings)\n"
        "candidates = searcher.ask(1)\n"
        "assert candidates.shape == (1, 3)\n"
        "searcher.tell(candidates, np.zeros(1))\n"
        "assert 'bayes_opt' in sys.modules"
    )
