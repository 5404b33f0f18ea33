"""The controls that stand beside every result: without them no one can tell whether adapting helped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lorahub_edge.adaptation.objective import Objective, Value
from lorahub_edge.search import SCREEN_BATCH, Evaluated
from lorahub_edge.tasks import AnswerScore, Example, constant_answer, score_answers

CONSTANT_ANSWER, ZERO_SHOT, BEST_SINGLE = "constant answer", "zero-shot", "best single module"
UNIFORM_MEAN, RANDOM_NULL, ADAPTED = "uniform mean", "random-LoRA null", "adapted"


@dataclass(frozen=True)
class Row:
    """One line of the result table.

    Attributes:
        name: one of the names above.
        detail: which answer, which module, or what was searched.
        coefficients: float64 (n_modules,); none of the constant answer, which is no model.
        value: on the examples; None for the constant answer.
        score: of the answers to the test, or None without one.
    """

    name: str
    detail: str
    coefficients: tuple[float, ...]
    value: Value | None
    score: AnswerScore | None = None

    @property
    def exact_match(self) -> float | None:
        """Percentage of right answers to the test, or None without one."""
        return None if self.score is None else self.score.exact_match


N_FIXED_CONTROLS = 3
# Characters of the constant answer that its row shows.
_SHOWN = 40


def constant_control(examples: Sequence[Example], test: Sequence[Example]) -> list[Row]:
    """The row of a model that reads no question: the examples' most frequent target to all; none without a test."""
    if not test:
        return []
    answer = constant_answer([e.target for e in examples])
    shown = answer if len(answer) <= _SHOWN else f"{answer[: _SHOWN - 3]}..."
    score = score_answers([answer] * len(test), [e.target for e in test])
    return [Row(CONSTANT_ANSWER, f'always "{shown}"', (), None, score)]


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
        Row(ZERO_SHOT, "the base alone", tuple(candidates[0]), zero),
        Row(BEST_SINGLE, f"{names[best]}, by loss", tuple(candidates[2 + best]), singles[best]),
        Row(UNIFORM_MEAN, f"all at 1/{n}", tuple(candidates[1]), uniform),
    ]
    return rows, [s.mean_loss for s in singles]


def index_of_lowest(losses: Sequence[float]) -> int:
    """Where the lowest loss stands; one that is not finite is worse than any other."""
    return int(np.argmin(np.where(np.isfinite(losses), losses, np.inf)))
