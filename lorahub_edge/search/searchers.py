"""Searchers: ask for candidates, tell their objectives. nevergrad does the optimising."""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import math
import sys
import warnings
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from lorahub_edge.errors import InvalidInput

Candidates = npt.NDArray[np.float64]

# First-generation standard deviation, as a share of the box's half width: 0.3 of ±1.5. nevergrad's own choice
# (0.07 to 0.13) hardly leaves the start within the few generations that a small budget pays for.
CMA_STD_SHARE = 0.2

# The same after screening, where the start is already good (docs/log.md).
REFINING_STD_SHARE = 0.1


# nevergrad's optimisers that need the package bayes_opt, which loads scikit-learn and pandas: up to 80 MB for two names
# of more than 500, so it is left out for all others. nevergrad itself treats it as one that may be missing.
_NEED_BAYES_OPT = ("BO", "BOSplit")


@functools.cache
def _nevergrad() -> Any:
    """nevergrad, imported when a search begins: it takes a second and 40 MB, and answering needs neither."""
    with _expected_warnings(), _left_out("bayes_opt"):
        return importlib.import_module("nevergrad")


def load_optimisers(optimizer: str = "cma-es") -> None:
    """Import what a search by this optimiser needs, so that what it takes in memory is there to be measured."""
    if optimizer in _NEED_BAYES_OPT:
        with contextlib.suppress(ImportError):  # make_searcher says what is missing
            importlib.import_module("bayes_opt")
    _nevergrad()


@contextlib.contextmanager
def _left_out(package: str) -> Iterator[None]:
    """Let an import of the package fail as if it was not installed, unless it is loaded already."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]


@contextlib.contextmanager
def _expected_warnings() -> Iterator[None]:
    """Keep quiet what nevergrad's dependencies say of every run."""
    with warnings.catch_warnings():
        # cma could plot if matplotlib were there
        warnings.filterwarnings("ignore", message="Could not import matplotlib")
        # SciPy's COBYLA corrects the end radius that nevergrad gives it, and a budget too small for its simplex
        warnings.filterwarnings("ignore", message="COBYLA: Invalid (RHOEND|MAXFUN)")
        yield


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


class NevergradSearcher:
    """Any nevergrad optimiser over the box [-bound, bound]^n.

    Args:
        name: what the user asked for, for the record.
        optimizer: a nevergrad optimiser class or configured family.
        start: float64 (n,), where the search begins.
        bound: half width of the box.
        budget: evaluations that the optimiser may plan with.
        seed: of all its randomness.
        population_size: candidates per ask; 1 for optimisers that learn after each evaluation.
    """

    def __init__(
        self,
        name: str,
        optimizer: Any,
        *,
        start: npt.NDArray[np.float64],
        bound: float,
        budget: int,
        seed: int,
        population_size: int = 1,
    ) -> None:
        box = _nevergrad().p.Array(init=start.tolist(), lower=[-bound] * len(start), upper=[bound] * len(start))
        box.random_state = np.random.RandomState(seed)  # nevergrad takes no Generator
        self.name = name
        self._population_size = population_size
        self._optimizer = optimizer(parametrization=box, budget=budget)
        self._asked: list[Any] = []

    @property
    def resolved_name(self) -> str:
        """The innermost optimiser: nevergrad's choosers (NGOpt, Shiwa) pick another at the first ask."""
        inner = self._optimizer
        while (chosen := getattr(inner, "optim", None)) is not None and chosen is not inner:
            inner = chosen
        return str(inner.name)

    def ask(self, at_most: int) -> Candidates:
        with _expected_warnings():
            self._asked = [self._optimizer.ask() for _ in range(min(self._population_size, at_most))]
        return np.array([candidate.value for candidate in self._asked], dtype=np.float64)

    def tell(self, candidates: Candidates, objectives: npt.NDArray[np.float64]) -> None:
        with _expected_warnings():
            for candidate, objective in zip(self._asked, objectives, strict=True):
                self._optimizer.tell(candidate, float(objective))


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
        seed: of all randomness; the same seed gives the same search.

    Raises:
        InvalidInput: an unknown name (with close ones), or a bound that is no box.
    """
    if not (math.isfinite(bound) and bound > 0):
        raise InvalidInput(f"bound: expected a positive number, received {bound}")
    if budget < 1:
        raise InvalidInput(f"budget: expected at least 1 evaluation, received {budget}")
    if optimizer == "screen-cma":
        return ScreeningSearcher(n, bound=bound, budget=budget, seed=seed)
    if optimizer == "cma-es":
        return cma_searcher(np.zeros(n), bound=bound, budget=budget, seed=seed)
    load_optimisers(optimizer)
    registry = _nevergrad().optimizers.registry
    if optimizer not in registry:
        if optimizer in _NEED_BAYES_OPT:
            raise InvalidInput(
                f"optimizer '{optimizer}' needs the package bayes_opt when nevergrad is loaded, and in this process it "
                "was not there; install it, and import it before the first search"
            )
        names = ["screen-cma", "cma-es", *registry]
        close = difflib.get_close_matches(optimizer, names, n=3, cutoff=0.4) or [
            "screen-cma",
            "cma-es",
            "NGOpt",
            "Cobyla",
        ]
        raise InvalidInput(f"optimizer '{optimizer}' is not known; did you mean {', '.join(close)}?")
    return NevergradSearcher(optimizer, registry[optimizer], start=np.zeros(n), bound=bound, budget=budget, seed=seed)
