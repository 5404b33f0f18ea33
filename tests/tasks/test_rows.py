"""Rows of every layout: what is asked and answered, and that no part of a question is dropped in silence."""

import math

import numpy as np
import pandas as pd
import pytest

from lorahub_edge.errors import InvalidInput
from lorahub_edge.tasks import Example, to_examples

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
READ = [
    ({"input": "q", "target": "a"}, "q"),
    ({"context": "q", "completion": "a"}, "q"),
    ({"input": "q", "output": "a"}, "q"),
    ({"inputs": "q", "targets": "a"}, "q"),
    ({"prompt": "q", "completion": "a"}, "q"),
    ({"question": "q", "answer": "a"}, "q"),
    ({"Input ": "q", " TARGET": "a", "Id": 3, "split": "x", "score": math.nan, "text": "all of it"}, "q"),
    # an instruction and what stands before a question are part of it
    ({"instruction": "double it", "input": "7", "output": "a"}, "double it\n7"),
    ({"instruction": "say no", "input": "or say no more", "output": "a"}, "say no\nor say no more"),
    ({"instruction": "name a colour", "input": "", "output": "a"}, "name a colour"),
    ({"instruction": "name a colour", "input": None, "output": "a"}, "name a colour"),
    ({"instruction": "name a colour", "input": math.nan, "output": "a"}, "name a colour"),
    ({"input": "7", "instruction": "double it", "target": "a"}, "double it\n7"),
    ({"instruction": "who?", "context": "Ann came", "response": "a", "category": "qa"}, "who?\nAnn came"),
    ({"question": "who?", "context": "Ann came", "answer": "a"}, "Ann came\nwho?"),
    ({"question": "who?", "context": "Ann", "answers": {"text": ["a", "a"], "answer_start": [0, 0]}}, "Ann\nwho?"),
    ({"system": "be brief", "prompt": "q", "completion": "a"}, "be brief\nq"),
    ({"system_prompt": "", "question": "q", "response": "a"}, "q"),
    ({"Definition": ["double it"], "input": "7", "output": ["a"]}, "double it\n7"),
    # conversations
    ({"messages": [USER, ANSWER]}, "q"),
    ({"messages": [{"role": "system", "content": "be brief"}, USER, ANSWER]}, "be brief\nq"),
    ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "x"}, "x\nq"),
    ({"prompt": [USER], "completion": [ANSWER]}, "q"),
    ({"prompt": "q", "messages": [USER, ANSWER]}, "q"),
    # a filled-in template holds the columns that it was made from
    ({"instruction": "who?", "input": "Ann", "prompt": "# who?\n# Ann.", "output": "a"}, "# who?\n# Ann."),
    # options that the question lists already
    ({"inputs": "good or Bad? fine", "targets": "a", "options": ["good", "bad"]}, "good or Bad? fine"),
    ({"input": "b or a?", "target_scores": {"a": 1, "b": 0}}, "b or a?"),
    ({"input": "q", "target": "a", "options": [], "history": None}, "q"),
    ({"input": "Is 7 (A) odd\n or (B)?", "target": "a", "choices": {"A": "Odd or", "B": 7}, "hint": ""}, None),
    ({"input": "q", "target": "a", "answer": "a"}, "q"),
]  # fmt: skip
REFUSED = [
    ({"input": "q"}, "expected keys input/target.*received input; rename"),
    ({"q": 1, "a": 2}, "received q, a"),
    ({}, "received none"),
    ({"input": " ", "target": "a"}, "'input' is empty"),
    ({"instruction": "", "input": "", "output": "a"}, "'input' is empty"),
    ({"input": "q", "target": ""}, "'target' is empty"),
    ({"input": "q", "target": None}, "'target' is missing"),
    ({"input": "q", "target": math.nan}, "'target' is missing"),
    ({"input": "q", "target": pd.NA}, "'target' is missing"),
    ({"input": None, "target": "a"}, "'input' is missing"),
    ({"input": "q", "target": 2.5}, "'target' is float; expected text .put it in quotes"),
    ({"input": "q", "target": True}, "'target' is bool; expected text"),
    ({"input": "q", "target": b"a"}, "'target' is bytes; expected text"),
    ({"input": "q", "target": 10**5000}, "'target' is int; expected text"),
    ({"input": "q", "target": {"a": 1}}, "'target' is dict; expected text"),
    ({"input": {"0": "q"}, "target": "a"}, "'input' is dict; expected text .one text in every row"),
    ({"input": ["q", "r"], "target": "a"}, "'input' is list; expected text .one text in every row"),
    ({"input": "q", "target": ["a", "b"]}, "'target' has 2 answers; expected one"),
    ({"input": "q", "target": []}, "'target' is empty"),
    ({"input": "q" * (2 << 20), "target": "a"}, "'input' has 2097152 characters; expected at most 1048576"),
    ({"input": "q", "target": "a\ud800"}, "'target' has half of a surrogate pair"),
    ({"instruction": "go\udc00", "input": "q", "target": "a"}, "'instruction' has half of a surrogate pair"),
    ({"input": "q", "Input": "r", "target": "a"}, "the column 'input' is there twice"),
    ({"input": "q", "question": "r", "target": "a"}, "'input' and 'question' both hold a question"),
    ({"input": "q", "target": "a", "output": "b"}, "'target' and 'output' hold different answers"),
    ({"input": "q", "target": "a", "options": ["a", "b"]}, "'options' is part of what is asked.*not stand in 'input'"),
    ({"question": "apple", "answer": 0, "choices": {"text": ["app"], "label": ["A"]}}, "'choices' is part"),
    ({"input": "q", "target": "a", "options": ["q"] * 101}, "'options' is part"),
    ({"input": "q", "target": "a", "options": [{"q": 1}]}, "'options' is part"),
    ({"input": "q", "target": "a", "history": [["x", "y"]]}, "'history' is part"),
    ({"input": "q", "target_scores": {"a": 1, "b": 0}}, "'target_scores' is part of what is asked.*give 'target'"),
    ({"input": "a b", "target_scores": {"a": 1, "b": 1}}, "'target_scores' has 2 answers"),
    ({"input": "a b", "target_scores": ["a"]}, "'target_scores' is no mapping"),
    ({"input": "a b", "target_scores": {}}, "'target_scores' is empty"),
    ({"messages": [USER, ANSWER, USER, ANSWER]}, r"'messages' has 4 turns \(user's .*each question"),
    ({"messages": [USER]}, "'messages' has 1 turns"),
    ({"messages": "q"}, "'messages' is str; expected a list of turns"),
    ({"messages": ["q", "a"]}, "'messages' holds str; expected turns"),
    ({"messages": [{"role": "user"}, ANSWER]}, "'user's turn' is missing"),
    ({"messages": [{"role": "system", "content": "x"}, USER, ANSWER], "system": "y"}, "'system' is there twice"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "question"), READ, ids=range(len(READ)))
def test_every_part_of_the_question_is_in_the_input(row, question):
    assert to_examples([row]) == [Example(question or row["input"], "a")]


@pytest.mark.parametrize(
    "row",
    [
        {"input": "Passage: The cat sat. Question: who sat?", "passage": "The cat sat."},
        {"inputs": "Definition: Do X twice. Now: 7", "definition": "do x twice."},
    ],
)
def test_what_a_filled_in_question_has_already_is_not_put_before_it_again(row):
    question = row.get("input") or row["inputs"]
    assert to_examples([{**row, ("targets" if "inputs" in row else "target"): "a"}]) == [Example(question, "a")]


@pytest.mark.parametrize(("row", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_placed_is_refused_by_name(row, message):
    with pytest.raises(InvalidInput, match=f"examples, example 1: .*({message})"):
        to_examples([row])


@pytest.mark.parametrize("number", [3, np.int64(3)])
def test_a_whole_number_is_text_on_either_side(number):
    assert to_examples([(number, number), {"input": "q", "target": [number]}]) == [Example("3", "3"), Example("q", "3")]


def test_python_rows_of_any_kind_go_through_the_same_check():
    frame = pd.DataFrame({"input": ["q", "r"], "target": ["a", None]})
    for rows in ([("q", "a"), ("r", None)], frame.to_dict("records"), [Example("q", "a"), Example("r", None)]):
        with pytest.raises(InvalidInput, match="test, example 2: 'target' is missing"):
            to_examples(rows, "test")
    assert to_examples([["q", "a"], Example("r", np.str_("b"))]) == [Example("q", "a"), Example("r", "b")]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"input": ["q"], "target": ["a"]}, "expected a file or a list of rows, received dict"),
        (7, "received int"),
        (["q", "a"], "example 1: expected an Example, .* received 'q'"),
        ([("q", "a", "b")], "example 1: expected an Example"),
        ([], "no examples were given"),
    ],
)
def test_what_is_no_list_of_rows_is_refused(rows, message):
    with pytest.raises(InvalidInput, match=message):
        to_examples(rows)
