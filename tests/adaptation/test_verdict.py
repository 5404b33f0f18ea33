"""The sentence that says when a search was not worth it, on made-up rows."""

import math

import numpy as np
import pytest

from lorahub_edge.adaptation import Row
from lorahub_edge.adaptation.verdict import is_ahead, verdict_on
from lorahub_edge.tasks import AnswerScore


def row(name, *right):
    return Row(name, "", (), None, AnswerScore(right, 0.0, 0.0, 0.0) if right else None)


ADAPTED = row("adapted", *[True] * 6, *[False] * 4)
FIVE_OF_THEM = (*[True] * 5, *[False] * 5)
ONE_OF_THEM = (True, *[False] * 9)


def test_a_model_that_is_ahead_of_everything_gets_no_sentence():
    names = ("constant answer", "best single module", "uniform mean")
    assert verdict_on([*(row(name, *ONE_OF_THEM) for name in names), ADAPTED]) == ""


def test_without_a_test_nothing_is_said():
    assert verdict_on([row("zero-shot"), row("best single module"), row("adapted")]) == ""
    assert verdict_on([row("constant answer", True), row("adapted")]) == ""


def test_every_row_that_it_is_not_ahead_of_is_named_with_its_number_and_its_meaning():
    table = [
        row("constant answer", *FIVE_OF_THEM),
        row("zero-shot", *[True] * 10),
        row("best single module", *[False] * 3, *[True] * 7),
        row("uniform mean", *FIVE_OF_THEM),
        row("random-LoRA null", *[True] * 10),
        ADAPTED,
    ]
    assert verdict_on(table) == (
        "On 10 test rows the adapted model (60.0 %) is not clearly ahead of the constant answer (50.0 %): it may have "
        "learned the answer's form but not the task; nor of the best single module (70.0 %): as far as these rows can "
        "tell that module alone does at least as well, so use it, or search with other modules; nor of the uniform "
        "mean (50.0 %): the search has not shown to be worth its evaluations here."
    )
    table[2:4] = [row("best single module", *ONE_OF_THEM), row("uniform mean")]
    assert verdict_on(table) == (
        "On 10 test rows the adapted model (60.0 %) is not clearly ahead of the constant answer (50.0 %): it may have "
        "learned the answer's form but not the task."
    )


@pytest.mark.parametrize(
    ("won", "lost", "n", "expected"),
    [
        (0, 0, 5, False),
        (1, 0, 1, False),
        (1, 0, 50, False),  # exactly one standard error
        (2, 0, 2, True),
        (3, 1, 50, False),
        (4, 1, 50, True),
        (1, 4, 50, False),
        (24, 19, 100, False),
        (26, 19, 100, True),
    ],
)
def test_ahead_is_by_more_than_the_standard_error_of_the_paired_difference(won, lost, n, expected):
    right = [True] * won + [False] * (n - won)
    other = [False] * won + [True] * lost + [False] * (n - won - lost)
    assert is_ahead(right, other) == expected
    if n > 1:
        d = np.subtract(right, other, dtype=float)
        error = math.sqrt(((d - d.mean()) ** 2).sum() / (n * (n - 1)))
        assert expected == (d.mean() > error * (1 + 1e-9))
