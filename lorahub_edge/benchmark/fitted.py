"""What a method of the tables is, and what it makes of a few examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lorahub_edge.adaptation import AdaptedModel
from lorahub_edge.benchmark.trial import TaskRows, Trial
from lorahub_edge.tasks import Example

Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class Fitted:
    """What a method made of the examples: a model, or the answers themselves.

    Attributes:
        model: answers and has losses; None where a method needs no model to answer.
        detail: for people.
        n_evaluations: passes over the examples: evaluations of a search, steps of a training.
        coefficients: (n_modules,), where there are any.
        resolved: the optimiser that really ran, if one did.
        has_examples_in_prompt: whether the model reads the examples with every question.
        answers: to the test rows, in order, where there is no model.
    """

    model: AdaptedModel | None
    detail: str
    n_evaluations: int = 0
    coefficients: npt.NDArray[np.float64] | None = None
    resolved: str | None = None
    has_examples_in_prompt: bool = False
    answers: Sequence[str] = ()

    def answers_to(self, test: Sequence[Example], *, batch_size: int) -> Sequence[str]:
        """The answers to the test rows, in order."""
        if self.model is None:
            return self.answers
        return self.model.predict([row.input for row in test], batch_size=batch_size)

    def costs(self, examples: Sequence[Example], test: Sequence[Example]) -> dict[str, float | None]:
        """Losses on both kinds of rows and tokens read for a test row, None where there is no such number."""
        model = self.model
        return {
            "example_loss": None if model is None or self.has_examples_in_prompt else model.loss(examples),
            "test_loss": None if model is None else model.loss(test),
            "tokens_per_example": None if model is None else _tokens_per_example(model, test),
        }

    def __repr__(self) -> str:
        return f"Fitted({self.detail}, {self.n_evaluations} evaluations)"


def _tokens_per_example(model: AdaptedModel, rows: Sequence[Example]) -> float:
    """Mean number of tokens that the model reads for one question."""
    return round(fmean(len(model.prompt.encode_input(row.input)[0]) for row in rows), 1)


# Metrics of the trial's earlier methods by name -> what was fitted, for as long as the block lasts.
Fit: TypeAlias = "Callable[[Trial, Mapping[str, Metrics]], AbstractContextManager[Fitted]]"


@dataclass(frozen=True)
class Method:
    """One way to adapt.

    Attributes:
        name: as --methods takes it and as tables show it.
        meaning: for people.
        fit: see Fit.
        settings: all that decides its outcome beside the trial's draw, for the record's key.
        uses_modules: whether the pool's modules matter to it; if not, one record serves every pool.
        after: methods whose metrics `fit` needs.
        precision: of the base, where it is not the pool's.
        is_for: whether a task has what the method needs.
    """

    name: str
    meaning: str
    fit: Fit
    settings: Callable[[Trial], Mapping[str, Any]] = lambda trial: {}
    uses_modules: bool = True
    after: tuple[str, ...] = ()
    precision: str | None = None
    is_for: Callable[[TaskRows], bool] = lambda rows: True
