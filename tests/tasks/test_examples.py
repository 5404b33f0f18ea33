"""Example files of every kind are read; what is wrong in one is named with its line."""

import json
import random

import pytest

from lorahub_edge.errors import InvalidInput
from lorahub_edge.tasks import Example, draw_examples, exact_match, load_examples

EXPECTED = [Example("one two", "three"), Example('a "b", c', "é .")]


@pytest.mark.parametrize(
    "keys", [("input", "target"), ("context", "completion"), ("input", "output"), ("inputs", "targets")]
)
def test_jsonl_with_any_known_keys(tmp_path, keys):
    path = tmp_path / "task.jsonl"
    lines = [json.dumps({keys[0]: e.input, keys[1]: e.target, "id": 3}, ensure_ascii=False) for e in EXPECTED]
    path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    assert load_examples(path) == EXPECTED


def test_bbh_json_and_a_plain_list(tmp_path):
    rows = [{"input": e.input, "target": e.target} for e in EXPECTED]
    for content in ({"canary": "x", "examples": rows}, rows):
        path = tmp_path / "task.json"
        path.write_text(json.dumps(content))
        assert load_examples(path) == EXPECTED


def test_csv_with_quotes_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "task.csv"
    path.write_text('input,target\r\none two,three\r\n"a ""b"", c",é .\r\n', encoding="utf-8-sig")
    assert load_examples(path) == EXPECTED


def test_split_keeps_its_rows_and_those_without_one(tmp_path):
    path = tmp_path / "task.jsonl"
    rows = [{"split": "train", "input": "a", "target": "b"}, {"split": "test", "input": "c", "target": "d"}]
    path.write_text("".join(json.dumps(r) + "\n" for r in [*rows, {"input": "e", "target": "f"}]))
    assert [e.input for e in load_examples(path, split="train")] == ["a", "e"]
    (tmp_path / "t.jsonl").write_text(json.dumps(rows[0]))
    with pytest.raises(InvalidInput, match="no examples of split 'dev'"):
        load_examples(tmp_path / "t.jsonl", split="dev")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", "", r"t\.jsonl has no examples"),
        ("t.jsonl", '{"input": "a", "target": "b"}\n{oops\n', r"t\.jsonl:2: not JSON"),
        ("t.jsonl", '{"input": "a", "target": "b"}\n[1]\n', r"t\.jsonl:2: expected a JSON object, received list"),
        ("t.jsonl", '{"question": "a", "answer": "b"}', r"t\.jsonl:1: expected keys .*received question, answer"),
        ("t.jsonl", '{"input": "a", "target": 3}', r"t\.jsonl:1: 'target' is int; expected text"),
        ("t.jsonl", '{"input": " ", "target": "b"}', r"t\.jsonl:1: 'input' is empty"),
        ("t.jsonl", '\n\n{"input": "a", "target": ""}', r"t\.jsonl:3: 'target' is empty"),
        ("t.json", '{"rows": []}', "expected .*examples"),
        ("t.json", "{", "not JSON"),
        ("t.json", '{"examples": [{"input": "a"}]}', "example 1: expected keys"),
        ("t.csv", "input,target\n", "has no examples"),
        ("t.csv", "question,answer\na,b\n", r"t\.csv:2: expected keys .*received question, answer"),
        ("t.csv", "input,target\nwhat,yes, it is\n", r"t\.csv:2: more cells than the header"),
        ("t.jsonl", "[" * 200_000, r"t\.jsonl:1: not JSON"),
        ("t.jsonl", '{"input": "\\ud800 x", "target": "b"}', r"t\.jsonl:1: 'input' has half of a surrogate pair"),
        ("t.csv", "input,target\na\n", r"t\.csv:2: 'target' is NoneType"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InvalidInput, match=message):
        load_examples(tmp_path / name)


def test_missing_folder_and_binary_files_are_refused(tmp_path):
    with pytest.raises(InvalidInput, match="was not found"):
        load_examples(tmp_path / "none.jsonl")
    with pytest.raises(InvalidInput, match="cannot be read"):
        load_examples(tmp_path)
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput, match="not UTF-8"):
        load_examples(tmp_path / "b.jsonl")


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
