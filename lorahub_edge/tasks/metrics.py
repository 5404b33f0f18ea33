"""Scores of answers; higher is better, but for the share of the most frequent one, which only describes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lorahub_edge.texts import checked_texts

# Targets are a closed set where each stands for so many rows on average; fewer than that are open answers.
_ROWS_PER_CLOSED_TARGET = 5


def normalize(answer: str) -> str:
    """An answer as LoRAHub compares it: no outer blanks, lower case, no full stops."""
    return answer.strip().lower().replace(".", "")


def exact_match(answers: Sequence[str], targets: Sequence[str]) -> float:
    """Percentage (0 to 100) of answers equal to their target after `normalize` on both sides.

    Raises:
        TypeError: one text instead of a list of texts.
        ValueError: differing or zero lengths.

    Source: accuracy_score in LoRAHub's released code.
    """
    return score_answers(answers, targets).exact_match


@dataclass(frozen=True)
class AnswerScore:
    """What a set of answers is like.

    Attributes:
        right: per row, whether the answer equals its target after `normalize`.
        strict_match: percentage of answers that equal their target but for outer blanks: what `exact_match` forgives,
            upper and lower case above all, counts here.
        most_frequent: percentage of answers that are the most frequent one, after `normalize`. Where it is high, the
            model says the same whatever is asked.
        valid_form: percentage of answers that look like an answer to this task, right or wrong: where the targets are
            a closed set (at least 5 rows for each on average), one of them; elsewhere a text of the shape of one:
            words, numbers and punctuation in the same places.
    """

    right: tuple[bool, ...]
    strict_match: float
    most_frequent: float
    valid_form: float

    @property
    def exact_match(self) -> float:
        """Percentage of right answers."""
        return 100.0 * sum(self.right) / len(self.right)

    def __repr__(self) -> str:
        return f"AnswerScore(exact match {self.exact_match:.1f} % of {len(self.right)})"


def score_answers(answers: Sequence[str], targets: Sequence[str]) -> AnswerScore:
    """Score answers against the targets of the same rows.

    Raises:
        TypeError: one text instead of a list of texts.
        ValueError: differing or zero lengths.
    """
    answers, targets = checked_texts(answers, "answers"), checked_texts(targets, "targets")
    if len(answers) != len(targets) or not targets:
        raise ValueError(
            f"score_answers: expected as many answers as targets and at least one, "
            f"received {len(answers)} and {len(targets)}"
        )
    given, expected = [normalize(a) for a in answers], [normalize(t) for t in targets]
    is_closed = len(set(expected)) * _ROWS_PER_CLOSED_TARGET <= len(expected)
    form = str if is_closed else _shape
    forms = {form(text) for text in expected}
    return AnswerScore(
        right=tuple(a == t for a, t in zip(given, expected, strict=True)),
        strict_match=_percentage([a.strip() == t.strip() for a, t in zip(answers, targets, strict=True)]),
        most_frequent=100.0 * Counter(given).most_common(1)[0][1] / len(given),
        valid_form=_percentage([form(text) in forms for text in given]),
    )


def constant_answer(targets: Sequence[str]) -> str:
    """The most frequent target, the first among equals: what a model would say that reads no question.

    Raises:
        ValueError: no targets.
    """
    if not targets:
        raise ValueError("constant_answer: expected at least one target")
    most_frequent = Counter(normalize(t) for t in targets).most_common(1)[0][0]
    return next(t for t in targets if normalize(t) == most_frequent)


def _shape(text: str) -> str:
    """A text with its words and numbers taken out: "(b) 12 blue cars" is "(a) 0 a a"."""
    words = re.sub(r"[^\W\d_]+", "a", " ".join(text.split()))
    return re.sub(r"\d+", "0", words)


def _percentage(flags: Sequence[bool]) -> float:
    return 100.0 * sum(flags) / len(flags)
