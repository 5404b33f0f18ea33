"""The controls that stand beside every result: without them no one can tell whether adapting helped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from lorahub_edge.adaptation.objective import Objective, Value
from lorahub_edge.modules import ModuleStack


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


@dataclass(frozen=True)
class Contender:
    """A row and the stack that its coefficients belong to (the null has a stack of its own)."""

    row: Row
    stack: ModuleStack


def fixed_controls(stack: ModuleStack, objective: Objective) -> tuple[list[Contender], list[float]]:
    """Zero-shot, best single module and uniform mean; and the mean loss of every module alone, in stack order."""
    n = len(stack.names)
    candidates = np.concatenate([np.zeros((1, n)), np.full((1, n), 1.0 / n), np.eye(n)])
    zero, uniform, *singles = objective(candidates)
    best = min(range(n), key=lambda k: singles[k].mean_loss)
    rows = [
        Row("zero-shot", "the base alone", tuple(candidates[0]), zero),
        Row("best single module", f"{stack.names[best]}, by loss", tuple(candidates[2 + best]), singles[best]),
        Row("uniform mean", f"all at 1/{n}", tuple(candidates[1]), uniform),
    ]
    return [Contender(row, stack) for row in rows], [s.mean_loss for s in singles]


def with_exact_match(
    contenders: list[Contender], score: Callable[[ModuleStack, torch.Tensor], float]
) -> list[Contender]:
    """The contenders with their exact match filled in."""
    return [
        Contender(
            Row(
                **{**vars(c.row), "exact_match": score(c.stack, torch.tensor(c.row.coefficients, dtype=torch.float64))}
            ),
            c.stack,
        )
        for c in contenders
    ]
