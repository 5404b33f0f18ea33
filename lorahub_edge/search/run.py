"""run_search: spend a budget of evaluations, remember the best, survive an interrupt."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from lorahub_edge.errors import InvalidInput, LorahubEdgeError
from lorahub_edge.search.searchers import Searcher

# What a searcher is told for a candidate without a finite objective: worse than anything real.
_WORST_OBJECTIVE = 1e18


class Value(Protocol):
    """What an evaluation gives: at least the number to minimise."""

    @property
    def objective(self) -> float:
        """Lower is better; may be infinite or NaN."""


V = TypeVar("V", bound=Value)


@dataclass(frozen=True)
class Evaluated(Generic[V]):
    """One evaluated candidate.

    Attributes:
        index: 0 for the first evaluation of the search.
        coefficients: float64 (n,).
        value: what the objective returned for it.
    """

    index: int
    coefficients: npt.NDArray[np.float64]
    value: V


@dataclass(frozen=True)
class SearchResult(Generic[V]):
    """How a search ended.

    Attributes:
        best: the best evaluated candidate.
        n_evaluations: how many were spent.
        interrupted: whether Ctrl-C ended it before the budget did.
        optimizer: what was asked for.
        resolved_optimizer: what really ran.
    """

    best: Evaluated[V]
    n_evaluations: int
    interrupted: bool
    optimizer: str
    resolved_optimizer: str

    def __repr__(self) -> str:
        objective = self.best.value.objective
        return f"SearchResult({self.resolved_optimizer}, {self.n_evaluations} evaluations, {objective:.4f})"


def run_search(
    evaluate: Callable[[npt.NDArray[np.float64]], Sequence[V]],
    searcher: Searcher,
    budget: int,
    on_evaluated: Callable[[Sequence[Evaluated[V]]], None] | None = None,
) -> SearchResult[V]:
    """Minimise until the budget is spent.

    Args:
        evaluate: float64 (n_candidates, n) -> one value per candidate.
        searcher: proposes candidates.
        budget: number of evaluations, at least 1; never exceeded.
        on_evaluated: called after each batch with its evaluations, in order (journal, progress bar).

    Returns:
        The best of all evaluated candidates, earlier ones first among equals.

    Raises:
        InvalidInput: a budget below 1.
        LorahubEdgeError: no candidate had a finite objective.
        KeyboardInterrupt: only if not a single candidate has been evaluated yet; otherwise the search ends early.
    """
    if budget < 1:
        raise InvalidInput(f"budget: expected at least 1 evaluation, received {budget}")
    best: Evaluated[V] | None = None
    n_evaluations = 0
    interrupted = False
    try:
        while n_evaluations < budget:
            candidates = searcher.ask(budget - n_evaluations)
            values = evaluate(candidates)
            pairs = zip(candidates, values, strict=True)
            batch = [Evaluated(n_evaluations + i, coefficients, value) for i, (coefficients, value) in enumerate(pairs)]
            n_evaluations += len(batch)
            best = min([*([] if best is None else [best]), *batch], key=lambda e: finite_objective(e.value.objective))
            if on_evaluated is not None:
                on_evaluated(batch)
            searcher.tell(candidates, np.array([finite_objective(v.objective) for v in values]))
    except KeyboardInterrupt:
        if best is None:
            raise
        interrupted = True
    if best is None or not math.isfinite(best.value.objective):
        raise LorahubEdgeError(f"search: none of {n_evaluations} candidates has a finite loss; check base and examples")
    return SearchResult(best, n_evaluations, interrupted, searcher.name, searcher.resolved_name)


def finite_objective(objective: float) -> float:
    """An objective that compares: one that is not finite is worse than anything real."""
    return objective if math.isfinite(objective) else _WORST_OBJECTIVE
