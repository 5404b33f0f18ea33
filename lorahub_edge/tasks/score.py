"""Score: how a model did on a set of examples, and how its numbers are shown to people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorahub_edge.tasks.examples import Example
from lorahub_edge.tasks.metrics import AnswerScore, score_answers

# Score of a row -> heading of its column.
SCORES: Mapping[str, str] = {
    "exact_match": "exact match",
    "strict_match": "strict",
    "most_frequent": "most frequent answer",
    "valid_form": "valid form",
}
STRICT_NOTE = (
    "Exact match as LoRAHub counts it ignores upper and lower case and full stops; some answers here are right only by "
    "that, and strict leaves them out."
)


@dataclass(frozen=True)
class Score(AnswerScore):
    """How a model did on a set of examples: what its greedy answers are like, and the loss.

    Attributes:
        loss: cross-entropy per answer token; None for an exported folder, whose graphs only answer.
        answers: the greedy answers, in order.
    """

    loss: float | None
    answers: tuple[str, ...]

    @classmethod
    def of(cls, answers: Sequence[str], examples: Sequence[Example], loss: float | None) -> Score:
        """Score answers to examples. Raises: see `score_answers`."""
        score = score_answers(answers, [e.target for e in examples])
        return cls(**vars(score), loss=loss, answers=tuple(answers))

    @property
    def n_examples(self) -> int:
        """How many were answered."""
        return len(self.answers)

    def __repr__(self) -> str:
        loss = "" if self.loss is None else f"loss {self.loss:.4f}, "
        return f"Score({loss}exact match {self.exact_match:.1f} % of {self.n_examples})"


def loss_text(loss: float | None, *, digits: int = 4) -> str:
    """A loss for people; None stands for one that is not finite."""
    return "not finite" if loss is None or not math.isfinite(loss) else f"{loss:.{digits}f}"
