"""Samples: a few test rows with the answers of the plain base and of the adapted model, right ones and wrong ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lorahub_edge.adaptation.controls import ADAPTED, ZERO_SHOT, Row
from lorahub_edge.tasks import Example

_N_OF_EACH = 4


def samples(table: Sequence[Row], test: Sequence[Example]) -> list[dict[str, Any]]:
    """The first rows that the adapted model answers rightly, and the first that it does not.

    Returns:
        Of each row: "input", "target", what "zero-shot" and "adapted" answer, and whether the latter is "right";
        nothing if there was no test.
    """
    rows = {row.name: row for row in table}
    zero_shot, adapted = rows.get(ZERO_SHOT), rows.get(ADAPTED)
    if zero_shot is None or adapted is None or zero_shot.score is None or adapted.score is None:
        return []
    right = adapted.score.right
    chosen = [k for wanted in (True, False) for k in [k for k, r in enumerate(right) if r == wanted][:_N_OF_EACH]]
    return [
        {
            "input": test[k].input,
            "target": test[k].target,
            ZERO_SHOT: zero_shot.answers[k],
            ADAPTED: adapted.answers[k],
            "right": right[k],
        }
        for k in chosen
    ]
