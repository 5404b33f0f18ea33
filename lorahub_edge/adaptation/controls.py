"""The controls that stand beside every result: without them no one can tell whether adapting helped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorahub_edge.adaptation.objective import Objective, Value


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


def fixed_controls(names: Sequence[str], objective: Objective) -> tuple[list[Row], list[float]]:
    """Zero-shot, best single module and uniform mean; and the mean loss of every module alone, in order of names."""
    n = len(names)
    candidates = np.concatenate([np.zeros((1, n)), np.full((1, n), 1.0 / n), np.eye(n)])
    zero, uniform, *singles = objective(candidates)
    best = min(range(n), key=lambda k: singles[k].mean_loss)
    rows = [
        Row("zero-shot", "the base alone", tuple(candidates[0]), zero),
        Row("best single module", f"{names[best]}, by loss", tuple(candidates[2 + best]), singles[best]),
        Row("uniform mean", f"all at 1/{n}", tuple(candidates[1]), uniform),
    ]
    return rows, [s.mean_loss for s in singles]
