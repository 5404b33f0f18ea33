"""Scores of answers; higher is better."""

from __future__ import annotations

from collections.abc import Sequence

from lorahub_edge.texts import checked_texts


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
    answers, targets = checked_texts(answers, "answers"), checked_texts(targets, "targets")
    if len(answers) != len(targets) or not targets:
        raise ValueError(
            f"exact_match: expected as many answers as targets and at least one, "
            f"received {len(answers)} and {len(targets)}"
        )
    return 100.0 * sum(normalize(a) == normalize(t) for a, t in zip(answers, targets, strict=True)) / len(targets)
