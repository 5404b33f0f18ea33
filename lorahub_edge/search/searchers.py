"""Searchers: ask for candidates, tell their objectives. nevergrad does the optimising."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import numpy.typing as npt

from lorahub_edge.errors import InvalidInput
from lorahub_edge.search.optimisers import Candidates, NevergradSearcher, optimiser_class, try_optimiser
from lorahub_edge.search.optimisers import nevergrad as _nevergrad

# The searchers that are not just one of nevergrad's names.
_OURS = ("screen-cma", "cma-es")

# First-generation standard deviation, as a share of the box's half width: 0.3 of ±1.5. nevergrad's own choice
# (0.07 to 0.13) hardly leaves the start within the few generations that a small budget pays for.
CMA_STD_SHARE = 0.2

# The same after screening, where the start is already good (docs/log.md).
REFINING_STD_SHARE = 0.1

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


class ScreeningSearcher:
    """Look first, then search: the mean and every axis alone; the best of them plus each promising axis; then CMA-ES.

    delta(c) = delta(-c) with a zero gradient at c = 0, so a search started there must first break a tie; and a
    generation drawn around any point pays the L1 penalty of all its coordinates at once. Single steps along the axes
    cost 2 n evaluations at most and leave CMA-ES a sparse point to refine, with a smaller step. The second screen takes
    the axes in the order of what they did alone, and at most half of the evaluations left: in a large pool CMA-ES
    still gets its share. Zero is looked at too, so that a search never ends behind it, but nothing starts there.
    """

    name = "screen-cma"

    def __init__(self, n: int, *, bound: float, budget: int, seed: int) -> None:
        self._bound = bound
        self._seed = seed
        self._left = budget
        self._steps = np.eye(n) * min(1.0, bound)
        self._queue = self._first_screen()
        self._is_first_screen = True
        self._told: list[tuple[float, npt.NDArray[np.float64]]] = []
        self._inner: NevergradSearcher | None = None

    @property
    def resolved_name(self) -> str:
        return "screening" if self._inner is None else f"screening, then {self._inner.resolved_name}"

    def ask(self, at_most: int) -> Candidates:
        if not self._queue and self._is_first_screen:
            self._is_first_screen = False
            self._queue = self._second_screen()
        if self._queue:
            size = min(at_most, SCREEN_BATCH)
            batch, self._queue = self._queue[:size], self._queue[size:]
            return np.array(batch)
        if self._inner is None:
            settings = {"bound": self._bound, "budget": max(1, self._left), "seed": self._seed}
            self._inner = cma_searcher(self._best(), std_share=REFINING_STD_SHARE, **settings)  # type: ignore[arg-type]
        return self._inner.ask(at_most)

    def tell(self, candidates: Candidates, objectives: npt.NDArray[np.float64]) -> None:
        self._left -= len(candidates)
        if self._inner is None:
            self._told += zip(objectives.tolist(), candidates, strict=True)
        else:
            self._inner.tell(candidates, objectives)

    def _best(self) -> npt.NDArray[np.float64]:
        """Where to go on from: the best so far that is not zero."""
        return min((pair for pair in self._told if pair[1].any()), key=lambda pair: pair[0])[1]

    def _first_screen(self) -> list[npt.NDArray[np.float64]]:
        n = len(self._steps)
        return [np.zeros(n), np.full(n, min(1.0 / n, self._bound)), *self._steps]

    def _second_screen(self) -> list[npt.NDArray[np.float64]]:
        """The best point so far plus one axis each, the most promising axes first; what was looked at is left out."""
        alone = [objective for objective, _ in self._told[-len(self._steps) :]]  # the axes stand last
        best = self._best()
        sums = (np.clip(best + self._steps[k], -self._bound, self._bound) for k in np.argsort(alone, kind="stable"))
        seen = {point.tobytes() for _, point in self._told}
        return [point for point in sums if point.tobytes() not in seen][: self._left // 2]


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


def make_searcher(optimizer: str, n: int, *, bound: float, budget: int, seed: int) -> Searcher:
    """A searcher by name.

    Args:
        optimizer: "screen-cma", "cma-es", or any name in nevergrad's registry ("NGOpt", "Cobyla", "OnePlusOne", ...),
            which then runs with nevergrad's own settings and one evaluation at a time from 0.
        n: dimensions.
        bound: half width of the box, positive and finite.
        budget: evaluations planned, at least 1.
        seed: of all randomness; the same seed gives the same search. nevergrad's CmaFmin2, MultiDS and what is built
            on them (some Carolas) do not keep to it: they draw by the clock or beside each other.

    Raises:
        InvalidInput: an unknown name (with close ones), a bound that is no box, or an optimiser that fails; a searcher
            raises it from `ask` too.
    """
    if not (math.isfinite(bound) and bound > 0):
        raise InvalidInput(f"bound: expected a positive number, received {bound}")
    if budget < 1:
        raise InvalidInput(f"budget: expected at least 1 evaluation, received {budget}")
    if optimizer == "screen-cma":
        return ScreeningSearcher(n, bound=bound, budget=budget, seed=seed)
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
