"""The verdict: whether the adapted model is ahead of what takes no search, in one plain sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lorahub_edge.adaptation.controls import ADAPTED, BEST_MEAN, BEST_SINGLE, CONSTANT_ANSWER, UNIFORM_MEAN, Row

# Row of the table -> what it means that the adapted model is not ahead of it.
MEANINGS: Mapping[str, str] = {
    CONSTANT_ANSWER: "it may have learned the answer's form but not the task",
    BEST_SINGLE: "as far as these rows can tell that module alone does at least as well, so use it, or search with "
    "other modules",
    BEST_MEAN: "weighing the best modules equally does at least as well",
    UNIFORM_MEAN: "the search has not shown to be worth its evaluations here",
}


def verdict_on(table: Sequence[Row]) -> str:
    """Name the rows that the adapted model is not ahead of, with both scores and what that means.

    Returns:
        One sentence; empty if the adapted model is ahead of them all, or was not tested.
    """
    scores = {row.name: row.score for row in table if row.score is not None}
    adapted = scores.get(ADAPTED)
    if adapted is None:
        return ""
    parts = [
        f"of the {name} ({scores[name].exact_match:.1f} %): {meaning}"
        for name, meaning in MEANINGS.items()
        if name in scores and not is_ahead(adapted.right, scores[name].right)
    ]
    if not parts:
        return ""
    n = len(adapted.right)
    rows = f"{n} test row{'s' if n > 1 else ''}"
    return f"On {rows} the adapted model ({adapted.exact_match:.1f} %) is not clearly ahead {'; nor '.join(parts)}."


def is_ahead(right: Sequence[bool], other: Sequence[bool]) -> bool:
    """Whether the right answers of one model outnumber another's by more than the standard error of the difference.

    Meaning, with d = right - other over the same n rows:

        mean(d) > sqrt(sum((d - mean(d))^2) / (n * (n - 1)))

    which in whole numbers is won > lost and (won - lost)^2 > won + lost. One row alone shows nothing.

    Args:
        right, other: (n,), the same rows in the same order.
    """
    pairs = list(zip(right, other, strict=True))
    won, lost = pairs.count((True, False)), pairs.count((False, True))
    return won > lost and (won - lost) ** 2 > won + lost
