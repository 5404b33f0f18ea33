"""The controls that stand beside every result: without them no one can tell whether adapting helped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lorahub_edge.adaptation.objective import Array, Objective, Value
from lorahub_edge.search import SCREEN_BATCH, Evaluated
from lorahub_edge.tasks import AnswerScore, Example, constant_answer, score_answers

CONSTANT_ANSWER, ZERO_SHOT, BEST_SINGLE = "constant answer", "zero-shot", "best single module"
UNIFORM_MEAN, BEST_MEAN, RANDOM_NULL, ADAPTED = "uniform mean", "mean of the best", "random-LoRA null", "adapted"


@dataclass(frozen=True)
class Row:
    """One line of the result table.

    Attributes:
        name: one of the names above.
        detail: which answer, which module, or what was searched.
        coefficients: float64 (n_modules,); none of the constant answer, which is no model.
        value: on the examples; None for the constant answer.
        score: of the answers to the test, or None without one.
        answers: to the test, in order; () without one.
    """

    name: str
    detail: str
    coefficients: tuple[float, ...]
    value: Value | None
    score: AnswerScore | None = None
    answers: tuple[str, ...] = ()

    @property
    def exact_match(self) -> float | None:
        """Percentage of right answers to the test, or None without one."""
        return None if self.score is None else self.score.exact_match


N_FIXED_CONTROLS = 4

# The mean of the best: of how many modules, and the sums of coefficients that are tried. By rule "factors" a mean of N
# has each module's own delta at 1/N^2, so what it is worth depends on its scale.
N_BEST = 6
MEAN_SUMS = (0.6, 0.8, 1.0, 1.3, 1.7, 2.2)

# Characters of the constant answer that its row shows.
_SHOWN = 40


def constant_control(examples: Sequence[Example], test: Sequence[Example]) -> list[Row]:
    """The row of a model that reads no question: the examples' most frequent target to all; none without a test."""
    if not test:
        return []
    answer = constant_answer([e.target for e in examples])
    shown = answer if len(answer) <= _SHOWN else f"{answer[: _SHOWN - 3]}..."
    answers = [answer] * len(test)
    score = score_answers(answers, [e.target for e in test])
    return [Row(CONSTANT_ANSWER, f'always "{shown}"', (), None, score, tuple(answers))]


def fixed_controls(
    names: Sequence[str],
    objective: Objective,
    on_evaluated: Callable[[Sequence[Evaluated[Value]]], None] = lambda batch: None,
) -> tuple[list[Row], list[float]]:
    """Zero-shot, best single module and two means; and the mean loss of every module alone, in order of names.

    Args:
        names: of the modules.
        objective: called with one batch after the other.
        on_evaluated: called after each batch.
    """
    n = len(names)
    seen: list[Evaluated[Value]] = []

    def evaluate(candidates: Array) -> list[Value]:
        for start in range(0, len(candidates), SCREEN_BATCH):
            batch = candidates[start : start + SCREEN_BATCH]
            first = len(seen)
            new = [Evaluated(first + i, *pair) for i, pair in enumerate(zip(batch, objective(batch), strict=True))]
            on_evaluated(new)
            seen.extend(new)
        return [e.value for e in seen[-len(candidates) :]]

    candidates = np.concatenate([np.zeros((1, n)), np.full((1, n), 1.0 / n), np.eye(n)])
    zero, uniform, *singles = evaluate(candidates)
    losses = [s.mean_loss for s in singles]
    best = index_of_lowest(losses)
    means = means_of_best(losses)
    mean_values = evaluate(means)
    scale = index_of_lowest([v.mean_loss for v in mean_values])
    rows = [
        Row(ZERO_SHOT, "the base alone", tuple(candidates[0]), zero),
        Row(BEST_SINGLE, f"{names[best]}, by loss", tuple(candidates[2 + best]), singles[best]),
        Row(UNIFORM_MEAN, f"all at 1/{n}", tuple(candidates[1]), uniform),
        Row(BEST_MEAN, mean_text(means[scale]), tuple(means[scale].tolist()), mean_values[scale]),
    ]
    return rows, losses


def means_of_best(losses: Sequence[float]) -> Array:
    """Up to N_BEST modules that are best alone, equally weighted, with each of MEAN_SUMS as the sum of coefficients.

    Args:
        losses: (n_modules,), of each module alone.

    Returns:
        float64 (len(MEAN_SUMS), n_modules).
    """
    n_best = max(1, min(N_BEST, int(np.isfinite(losses).sum())))
    best = lowest_first(losses)[:n_best]
    means = np.zeros((len(MEAN_SUMS), len(losses)))
    means[:, best] = np.array(MEAN_SUMS)[:, None] / n_best
    return means


def mean_text(mean: Array) -> str:
    """One of `means_of_best` for people."""
    return f"the {np.count_nonzero(mean)} best alone at {mean.max():.2g}, by loss"


def lowest_first(losses: Sequence[float]) -> list[int]:
    """Where the losses stand, the lowest first; one that is not finite is worse than any other."""
    order: list[int] = np.argsort(np.where(np.isfinite(losses), losses, np.inf), kind="stable").tolist()
    return order


def index_of_lowest(losses: Sequence[float]) -> int:
    """Where the lowest loss stands; see `lowest_first`."""
    return lowest_first(losses)[0]
