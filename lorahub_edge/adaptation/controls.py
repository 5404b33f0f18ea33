"""The controls that stand beside every result: without them no one can tell whether adapting helped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lorahub_edge.adaptation.objective import Objective, Value
from lorahub_edge.search import SCREEN_BATCH, Evaluated


@dataclass(frozen=True)
class Row:
    """One line of the result table.

    Attributes:
        name: "zero-shot", "best single module", "uniform mean", "random-LoRA null" or "adapted".
        detail: which module, or what was searched.
        coefficients: float64 (n_modules,).
        value: on the examples.
        exact_match: percentage on the test set, or None without one.
    """

    name: str
    detail: str
    coefficients: tuple[float, ...]
    value: Value
    exact_match: float | None = None


N_FIXED_CONTROLS = 3


def fixed_controls(
    names: Sequence[str],
    objective: Objective,
    on_evaluated: Callable[[Sequence[Evaluated[Value]]], None] = lambda batch: None,
) -> tuple[list[Row], list[float]]:
    """Zero-shot, best single module and uniform mean; and the mean loss of every module alone, in order of names.

    Args:
        names: of the modules.
        objective: called with one batch after the other.
        on_evaluated: called after each batch.
    """
    n = len(names)
    candidates = np.concatenate([np.zeros((1, n)), np.full((1, n), 1.0 / n), np.eye(n)])
    values: list[Value] = []
    for start in range(0, len(candidates), SCREEN_BATCH):
        batch = candidates[start : start + SCREEN_BATCH]
        values += objective(batch)
        on_evaluated([Evaluated(start + i, c, values[start + i]) for i, c in enumerate(batch)])
    zero, uniform, *singles = values
    best = index_of_lowest([s.mean_loss for s in singles])
    rows = [
        Row("zero-shot", "the base alone", tuple(candidates[0]), zero),
        Row("best single module", f"{names[best]}, by loss", tuple(candidates[2 + best]), singles[best]),
        Row("uniform mean", f"all at 1/{n}", tuple(candidates[1]), uniform),
    ]
    return rows, [s.mean_loss for s in singles]


def index_of_lowest(losses: Sequence[float]) -> int:
    """Where the lowest loss stands; one that is not finite is worse than any other."""
    return int(np.argmin(np.where(np.isfinite(losses), losses, np.inf)))
