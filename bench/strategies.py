"""Strategies of the search study: searchers that the package has, and those that were tried and not kept."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from lorahub_edge.search import SCREEN_BATCH, NevergradSearcher, Searcher, make_searcher
from lorahub_edge.search.searchers import CMA_STD_SHARE, REFINING_STD_SHARE, Candidates, cma_searcher

with warnings.catch_warnings():  # cma could plot if matplotlib were there
    warnings.simplefilter("ignore")
    import cma
    import nevergrad as ng

# (number of modules, half width of the box, budget, seed) -> a searcher
Make = Callable[[int, float, int, int], Searcher]


class Nothing:
    """c = 0 again and again: what the others must not end above."""

    name = resolved_name = "none"

    def __init__(self, n: int, bound: float, budget: int, seed: int) -> None:
        self._n = n

    def ask(self, at_most: int) -> Candidates:
        return np.zeros((at_most, self._n))

    def tell(self, candidates: Candidates, objectives: npt.NDArray[np.float64]) -> None:
        pass


class FoldedCma:
    """CMA-ES that knows delta(c) = delta(-c): of a point and its mirror image it is told the one with the larger sum.

    nevergrad takes back only what it asked for, so this one runs on pycma itself, which nevergrad runs on too.
    """

    name = "cma-folded"
    resolved_name = "pycma, diagonal, folded"

    def __init__(self, n: int, bound: float, budget: int, seed: int) -> None:
        options = {"bounds": [-bound, bound], "seed": seed + 1, "CMA_diagonal": True, "verbose": -9, "verb_log": 0}
        self._strategy = cma.CMAEvolutionStrategy(np.zeros(n), CMA_STD_SHARE * bound, options)
        self._left: list[npt.NDArray[np.float64]] = []
        self._told: list[tuple[npt.NDArray[np.float64], float]] = []

    def ask(self, at_most: int) -> Candidates:
        if not self._left:
            self._left = [x if x.sum() >= 0 else -x for x in self._strategy.ask()]
            self._told = []
        batch, self._left = self._left[:at_most], self._left[at_most:]
        return np.array(batch)

    def tell(self, candidates: Candidates, objectives: npt.NDArray[np.float64]) -> None:
        self._told += zip(candidates, objectives.tolist(), strict=True)
        if not self._left and len(self._told) == self._strategy.popsize:
            self._strategy.tell([x for x, _ in self._told], [value for _, value in self._told])


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


class WithoutZero(ScreeningSearcher):
    """The screens as they were at first: zero is never looked at."""

    name = "without-zero"

    def _first_screen(self) -> list[npt.NDArray[np.float64]]:
        return super()._first_screen()[1:]


class FromZero(ScreeningSearcher):
    """Zero may win the first screen; then there are no pairs to look at, and CMA-ES starts from zero."""

    name = "from-zero"

    def _best(self) -> npt.NDArray[np.float64]:
        return min(self._told, key=lambda pair: pair[0])[1]


class SinglesOnly(WithoutZero):
    """The first screen (generation 0 of one-hots), then CMA-ES: no pairs."""

    name = "singles-cma"

    def _second_screen(self) -> list[npt.NDArray[np.float64]]:
        return []


class ScreensThenNarrow(WithoutZero):
    """Both screens, then CMA-ES with a third of the step: a generation around a point pays the penalty of all axes."""

    name = "screens-narrow"

    def ask(self, at_most: int) -> Candidates:
        if not self._queue and not self._is_first_screen and self._inner is None:
            limits = {"bound": self._bound, "budget": max(1, self._left), "seed": self._seed}
            self._inner = cma_searcher(self._best(), std_share=REFINING_STD_SHARE / 3, **limits)  # type: ignore[arg-type]
        return super().ask(at_most)


class ScreensThenChosen(WithoutZero):
    """Both screens, then CMA-ES on the axes that the best point stands on, the others at zero."""

    name = "screens-chosen"

    def ask(self, at_most: int) -> Candidates:
        if self._queue or self._is_first_screen:
            return super().ask(at_most)
        if self._inner is None:
            best = self._best()
            self._chosen = np.flatnonzero(best)
            limits = {"bound": self._bound, "budget": max(1, self._left), "seed": self._seed}
            self._inner = cma_searcher(best[self._chosen], **limits)  # type: ignore[arg-type]
        chosen = self._inner.ask(at_most)
        candidates = np.zeros((len(chosen), len(self._steps)))
        candidates[:, self._chosen] = chosen
        return candidates


class ScreensThenCobyla(WithoutZero):
    """Both screens, then COBYLA from the best."""

    name = "screens-cobyla"

    def ask(self, at_most: int) -> Candidates:
        candidates = super().ask(at_most) if self._queue or self._is_first_screen else None
        if candidates is not None and self._inner is None:
            return candidates
        if not isinstance(self._inner, _Cobyla):
            self._inner = _Cobyla(self._best(), self._bound, max(1, self._left), self._seed)
        return self._inner.ask(at_most)


class _Cobyla(NevergradSearcher):
    def __init__(self, start: npt.NDArray[np.float64], bound: float, budget: int, seed: int) -> None:
        cobyla = ng.optimizers.registry["Cobyla"]
        super().__init__("Cobyla", cobyla, start=start, bound=bound, budget=budget, seed=seed)


def _named(optimizer: str) -> Make:
    return lambda n, bound, budget, seed: make_searcher(optimizer, n, bound=bound, budget=budget, seed=seed)


def _random(n: int, bound: float, budget: int, seed: int) -> Searcher:
    """Many at once: its points do not depend on what it is told."""
    uniform = ng.optimizers.registry["RandomSearch"]
    settings = {"start": np.zeros(n), "bound": bound, "budget": budget, "seed": seed}
    return NevergradSearcher("random", uniform, **settings, population_size=SCREEN_BATCH)


def _cma(std_share: float, *, from_mean: bool = False) -> Make:
    def make(n: int, bound: float, budget: int, seed: int) -> Searcher:
        start = np.full(n, 1.0 / n) if from_mean else np.zeros(n)
        return cma_searcher(start, bound=bound, budget=budget, seed=seed, std_share=std_share)

    return make


def _screening(kind: type[ScreeningSearcher]) -> Make:
    return lambda n, bound, budget, seed: kind(n, bound=bound, budget=budget, seed=seed)


STRATEGIES: Mapping[str, Make] = {
    "none": Nothing,
    "random": _random,
    "one-plus-one": _named("OnePlusOne"),
    "cobyla": _named("Cobyla"),
    "cobyla from the mean": lambda n, bound, budget, seed: _Cobyla(np.full(n, 1.0 / n), bound, budget, seed),
    "cma": _named("cma-es"),
    "cma, std 0.1": _cma(0.1),
    "cma from the mean": _cma(CMA_STD_SHARE, from_mean=True),
    "cma, folded": FoldedCma,
    "singles, cma": _screening(SinglesOnly),
    "singles, pairs, cobyla": _screening(ScreensThenCobyla),
    "singles, pairs, cma": _screening(WithoutZero),
    "singles, pairs, cma, std 0.03": _screening(ScreensThenNarrow),
    "singles, pairs, cma on the chosen": _screening(ScreensThenChosen),
    "zero, singles, pairs, cma": _screening(FromZero),
    "singles, pairs, cma, zero aside": _screening(ScreeningSearcher),
}
