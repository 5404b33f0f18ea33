"""Searchers: ask for candidates, tell their objectives. nevergrad does the optimising."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from lorahub_edge.errors import InvalidInput
from lorahub_edge.search.optimisers import Candidates, NevergradSearcher, optimiser_class, try_optimiser
from lorahub_edge.search.optimisers import nevergrad as _nevergrad

# The searchers that are not just one of nevergrad's names.
_OURS = ("guided-cma", "cma-es")

# First-generation standard deviation, as a share of the box's half width: 0.3 of ±1.5. nevergrad's own choice
# (0.07 to 0.13) hardly leaves the start within the few generations that a small budget pays for.
CMA_STD_SHARE = 0.2

# The same after screening, where the start is already good (docs/log.md).
REFINING_STD_SHARE = 0.1

# Axes that are searched together, and how many of them the guide may name.
N_SEARCHED, N_GUIDED = 6, 3

# A smaller share of the guide's mixture names no axis.
LEAST_WEIGHT = 0.05

# Rule "factors" weighs own deltas by the squares of the coefficients, so the right scale has to be looked for.
MIXTURE_SCALES = (0.7, 0.85, 1.0, 1.2, 1.5)
MEAN_SCALES = (0.8, 1.2, 1.7)

# Candidates of a screen asked at once: as many as a generation, so that journal, bar and Ctrl-C are as prompt.
SCREEN_BATCH = 12


class Searcher(Protocol):
    """Proposes points of a box and learns from their objectives."""

    name: str

    @property
    def resolved_name(self) -> str:
        """What really runs, when `name` stands for a choice."""

    def ask(self, at_most: int) -> Candidates:
        """The next candidates, float64 (k, n) with 1 <= k <= at_most, all inside the box."""

    def tell(self, candidates: Candidates, objectives: npt.NDArray[np.float64]) -> None:
        """Report the objectives (k,), lower is better, of the candidates last asked for."""


class GuidedSearcher:
    """Look at every axis alone, ask a guide which belong together, then search among these few with CMA-ES.

    A few examples cannot tell twenty coefficients apart: what is fitted to them with all modules at once does worse
    on other rows than what is fitted with a handful (docs/log.md). The guide knows what each axis did alone and names
    a mixture. Up to `N_GUIDED` of its axes are searched, and the best single ones besides, `N_SEARCHED` in all; the
    others stay at zero. A wrong guide costs a few evaluations: its mixture is only a point to start from.

    The mean and zero are looked at too, so that a search never ends behind them; nothing starts at zero, where
    delta(c) = delta(-c) has no gradient.

    Args:
        guide: float64 (n,), not negative: what should be mixed. Called once, after all axes were looked at.
    """

    name = "guided-cma"

    def __init__(self, n: int, *, bound: float, budget: int, seed: int, guide: Callable[[], Candidates]) -> None:
        self._bound = bound
        self._seed = seed
        self._left = budget
        self._guide = guide
        self._axes = np.eye(n) * min(1.0, bound)
        self._queue: list[npt.NDArray[np.float64]] = [np.zeros(n), np.full(n, min(1.0 / n, bound)), *self._axes]
        self._chosen: npt.NDArray[np.intp] | None = None
        self._told: list[tuple[float, npt.NDArray[np.float64]]] = []
        self._inner: NevergradSearcher | None = None

    @property
    def resolved_name(self) -> str:
        return "screening" if self._inner is None else f"screening, a guide, then {self._inner.resolved_name}"

    def ask(self, at_most: int) -> Candidates:
        if not self._queue and self._chosen is None:
            self._queue = self._starts()
        if self._queue:
            size = min(at_most, SCREEN_BATCH)
            batch, self._queue = self._queue[:size], self._queue[size:]
            return np.array(batch)
        assert self._chosen is not None
        if self._inner is None:
            settings = {"bound": self._bound, "budget": max(1, self._left), "seed": self._seed}
            start = self._best()[self._chosen]
            self._inner = cma_searcher(start, std_share=REFINING_STD_SHARE, **settings)  # type: ignore[arg-type]
        inner = self._inner.ask(at_most)
        candidates = np.zeros((len(inner), len(self._axes)))
        candidates[:, self._chosen] = inner
        return candidates

    def tell(self, candidates: Candidates, objectives: npt.NDArray[np.float64]) -> None:
        self._left -= len(candidates)
        if self._inner is None:
            self._told += zip(objectives.tolist(), candidates, strict=True)
        else:
            self._inner.tell(candidates[:, self._chosen], objectives)

    def _best(self) -> npt.NDArray[np.float64]:
        """Where to go on from: the best so far that is not zero and has only chosen axes."""
        others = np.ones(len(self._axes), bool)
        others[self._chosen] = False
        return min((p for p in self._told if p[1].any() and not p[1][others].any()), key=lambda p: p[0])[1]

    def _starts(self) -> list[npt.NDArray[np.float64]]:
        """Choose the axes; then the guide's mixture of them, and their mean, each at some scales."""
        mixture = self._guide()
        alone = np.argsort([objective for objective, _ in self._told[-len(self._axes) :]], kind="stable")
        ranked = np.argsort(-mixture, kind="stable")
        guided = [k for k in ranked[:N_GUIDED] if mixture[k] > LEAST_WEIGHT]
        self._chosen = np.array([*guided, *(k for k in alone if k not in guided)][:N_SEARCHED])
        here = np.zeros(len(self._axes))
        here[self._chosen] = mixture[self._chosen]
        mean = np.zeros(len(self._axes))
        mean[self._chosen] = 1.0 / len(self._chosen)
        points = [scale * here for scale in MIXTURE_SCALES if here.any()] + [scale * mean for scale in MEAN_SCALES]
        return [np.clip(point, -self._bound, self._bound) for point in points]


def cma_searcher(
    start: npt.NDArray[np.float64], *, bound: float, budget: int, seed: int, std_share: float = CMA_STD_SHARE
) -> NevergradSearcher:
    """CMA-ES through nevergrad with explicit scale and population size.

    Args:
        start, bound, budget, seed: see NevergradSearcher.
        std_share: standard deviation of the first generation, as a share of the bound.

    The population is the standard 4 + floor(3 ln n); the covariance is kept diagonal, since a budget of tens of
    evaluations cannot teach n * (n + 1) / 2 numbers. One dimension gets the (1+1) evolution strategy instead.

    Source: Hansen, arXiv:1604.00772, table 1; Ros and Hansen 2008 for the diagonal.
    """
    n = len(start)
    if n == 1:  # nothing to adapt a covariance to; nevergrad's own choice for CMA in one dimension is another package
        one_plus_one = _nevergrad().optimizers.registry["OnePlusOne"]
        return NevergradSearcher("cma-es", one_plus_one, start=start, bound=bound, budget=budget, seed=seed)
    population_size = 4 + math.floor(3 * math.log(n))
    # nevergrad's step on a bounded box: half width / 3 times 0.3, or times 0.15 from 18 dimensions on
    unit_std_share = 0.3 / 3 if n < 18 else 0.15 / 3
    scale = round(std_share / unit_std_share, 6)
    cma = _nevergrad().families.ParametrizedCMA(scale=scale, popsize=population_size, diagonal=True, elitist=False)
    return NevergradSearcher(
        "cma-es", cma, start=start, bound=bound, budget=budget, seed=seed, population_size=population_size
    )


def make_searcher(
    optimizer: str,
    n: int,
    *,
    bound: float,
    budget: int,
    seed: int,
    guide: Callable[[], Candidates] | None = None,
) -> Searcher:
    """A searcher by name.

    Args:
        optimizer: "guided-cma", "cma-es", or any name in nevergrad's registry ("NGOpt", "Cobyla", "OnePlusOne", ...),
            which then runs with nevergrad's own settings and one evaluation at a time from 0.
        n: dimensions.
        bound: half width of the box, positive and finite.
        budget: evaluations planned, at least 1.
        seed: of all randomness; the same seed gives the same search. nevergrad's CmaFmin2, MultiDS and what is built
            on them (some Carolas) do not keep to it: they draw by the clock or beside each other.
        guide: see `GuidedSearcher`, which needs one; the others ignore it.

    Raises:
        InvalidInput: an unknown name (with close ones), a bound that is no box, no guide where one is needed, or an
            optimiser that fails; a searcher raises it from `ask` too.
    """
    if not (math.isfinite(bound) and bound > 0):
        raise InvalidInput(f"bound: expected a positive number, received {bound}")
    if budget < 1:
        raise InvalidInput(f"budget: expected at least 1 evaluation, received {budget}")
    if optimizer == "guided-cma":
        if guide is None:
            raise InvalidInput("guided-cma: expected a guide, received none; hand one over, or choose cma-es")
        return GuidedSearcher(n, bound=bound, budget=budget, seed=seed, guide=guide)
    if optimizer == "cma-es":
        return cma_searcher(np.zeros(n), bound=bound, budget=budget, seed=seed)
    found = optimiser_class(optimizer, _OURS)
    return NevergradSearcher(optimizer, found, start=np.zeros(n), bound=bound, budget=budget, seed=seed)


def check_optimizer(optimizer: str, n: int | None = None, budget: int = 40) -> None:
    """Refuse an optimiser that cannot search, before anything slow begins.

    Args:
        optimizer: see `make_searcher`.
        n: dimensions; None if they are not known yet. What an optimiser needs may depend on them.
        budget: evaluations planned, at least 1.

    Raises:
        InvalidInput: an unknown name; an optimiser that needs a package which is not installed, that fails, or that
            waits for itself for ever.

    Cost: one of nevergrad's names searches a toy objective, for a second at most if it works.
    """
    if optimizer not in _OURS:
        try_optimiser(optimizer, optimiser_class(optimizer, _OURS), n, budget)
