"""Scores of answers, and the constant answer that every table is read beside."""

import pytest

from lorahub_edge.tasks import constant_answer, exact_match, score_answers


def test_right_answers_are_compared_as_lorahub_does_and_strictly():
    score = score_answers(["Yes.", " no", "(B)", "x"], ["yes", "no", "(b)", "y"])
    assert score.right == (True, True, True, False)
    assert score.exact_match == 75
    assert score.strict_match == 25
    assert exact_match(["Yes."], ["yes"]) == 100


def test_the_share_of_the_most_frequent_answer_shows_a_model_that_says_one_thing():
    assert score_answers(["No", "no.", "NO", "yes"], ["yes"] * 4).most_frequent == 75


@pytest.mark.parametrize(
    ("answer", "targets", "is_valid"),
    [
        ("yes", ["yes", "no"] * 5, True),
        ("maybe", ["yes", "no"] * 5, False),  # closed: each of two targets stands for five rows
        ("maybe", ["yes", "no"] * 4, True),  # open: any one word
        ("may be", ["yes", "no"] * 4, False),
        ("(C) 7", ["(a) 12", "(b) 3"], True),
        ("C 7", ["(a) 12", "(b) 3"], False),
        ("Côte d'Ivoire", ["man o'war", "b"], True),
        ("Où  là", ["a b", "c d"], True),
    ],
)
def test_an_answer_of_valid_form_may_be_wrong(answer, targets, is_valid):
    score = score_answers([answer] * len(targets), targets)
    assert score.valid_form == (100 if is_valid else 0)


def test_the_constant_answer_is_the_most_frequent_target_and_the_first_among_equals():
    assert constant_answer(["b", "No", "a", "no"]) == "No"
    assert constant_answer(["b", "a"]) == "b"


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="as many answers as targets"):
        score_answers(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="at least one target"):
        constant_answer([])
    with pytest.raises(TypeError, match="answers"):
        score_answers("a", ["a"])
