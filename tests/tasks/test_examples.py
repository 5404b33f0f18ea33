"""Splits, the draw, the score, and how text becomes tokens."""

import json
import random

import pytest

from lorahub_edge.errors import InvalidInput
from lorahub_edge.tasks import Example, draw_examples, exact_match, load_examples


def test_split_keeps_its_rows_and_those_without_one(tmp_path):
    path = tmp_path / "task.jsonl"
    rows = [{"split": "train", "input": "a", "target": "b"}, {"split": "test", "input": "c", "target": "d"}]
    path.write_text("".join(json.dumps(r) + "\n" for r in [*rows, {"input": "e", "target": "f"}]))
    assert [e.input for e in load_examples(path, split="train")] == ["a", "e"]
    (tmp_path / "t.jsonl").write_text(json.dumps(rows[0]))
    with pytest.raises(InvalidInput, match="no examples of split 'dev'"):
        load_examples(tmp_path / "t.jsonl", split="dev")


def test_the_draw_is_lorahubs():
    rows = [Example(str(i), "x") for i in range(50)]
    expected = list(rows)
    random.seed(42)
    random.shuffle(expected)
    assert draw_examples(rows, 5, 42) == expected[:5]
    assert draw_examples(rows[:3], 5, 42) == sorted(
        draw_examples(rows[:3], 5, 42), key=draw_examples(rows[:3], 3, 42).index
    )


def test_exact_match_is_lorahubs():
    assert exact_match([" Yes. ", "no", "(A)"], ["yes", "No.", "(B)"]) == pytest.approx(200 / 3)
    with pytest.raises(ValueError, match="received 1 and 0"):
        exact_match(["a"], [])
