"""Example files of every kind are read; what is wrong in one is named with its line."""

import json
import random

import pytest
from tokenizers import processors

from lorahub_edge.base import load_base
from lorahub_edge.errors import InvalidInput
from lorahub_edge.tasks import Example, PromptFormat, draw_examples, exact_match, load_examples
from tests import tiny

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


@pytest.fixture(scope="module")
def t5(bases):
    return load_base(str(bases["t5"]), device="cpu")


@pytest.fixture(scope="module")
def llama(bases):
    return load_base(str(bases["llama"]), device="cpu")


def words(ids) -> str:
    return " ".join(tiny.WORDS[i] for i in ids)


def test_t5_reads_the_input_and_answers_to_the_end_mark(t5):
    encoded = PromptFormat.for_base(t5).encode(Example("is red a dog ?", "no"))
    assert (words(encoded.input_ids), words(encoded.target_ids)) == ("is red a dog ? </s>", "no </s>")
    assert not encoded.was_cut


def test_a_decoder_only_prompt_has_a_start_mark_unless_it_is_there_already(llama):
    plain = PromptFormat.for_base(llama, template="{input} .")
    assert plain.add_special_tokens
    marked = PromptFormat.for_base(llama, template="<s> {input} .")
    assert not marked.add_special_tokens
    encoded = marked.encode(Example("red", "yes"))
    assert (words(encoded.input_ids), words(encoded.target_ids)) == ("<s> red .", "yes </s>")


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_a_long_input_is_cut_on_the_right_but_keeps_what_follows_it(kind, request):
    base = request.getfixturevalue(kind)
    format_ = PromptFormat.for_base(base, template="is {input} a dog ?", max_input_tokens=8, max_target_tokens=3)
    encoded = format_.encode(Example("one two three four five one two three", "yes no yes no"))
    ending = " </s>" if kind == "t5" else ""
    assert len(encoded.input_ids) == 8
    assert words(encoded.input_ids).endswith(f"a dog ?{ending}")
    assert words(encoded.input_ids).startswith("is one two")
    assert words(encoded.target_ids) == "yes no </s>"
    assert encoded.was_cut


def test_a_cut_prompt_of_a_model_with_a_start_mark_has_it_once(bases):
    base = load_base(str(bases["llama"]), device="cpu")
    base.tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 3)]
    )
    format_ = PromptFormat.for_base(base, template="{input} a dog ?", max_input_tokens=8)
    encoded = format_.encode(Example("one two three four five one two three", "yes"))
    assert words(encoded.input_ids) == "<s> one two three four a dog ?"


def test_a_limit_that_leaves_no_room_for_the_input_is_refused(t5):
    with pytest.raises(InvalidInput, match="max_input_tokens: expected more than 4"):
        PromptFormat.for_base(t5, template="is {input} a dog ?", max_input_tokens=4)


def test_a_chat_template_that_fails_is_one_error(bases):
    base = load_base(str(bases["llama"]), device="cpu")
    base.tokenizer.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(InvalidInput, match="its chat template fails on one user turn"):
        PromptFormat.for_base(base)


def test_the_chat_template_gives_the_turns_and_the_token_that_ends_them(llama):
    tokenizer = llama.tokenizer
    tokenizer.chat_template = (
        "{% for m in messages %}<s> {{ m.role }} : {{ m.content }} </s>\n{% endfor %}"
        "{% if add_generation_prompt %}<s> assistant :{% endif %}"
    )
    try:
        format_ = PromptFormat.for_base(llama)
        assert format_.text("red") == "<s> user : red </s>\n<s> assistant :"
        assert format_.end_ids == (1,)
    finally:
        tokenizer.chat_template = None


def test_a_model_with_few_positions_gives_half_of_them_to_the_answer(llama, monkeypatch):
    monkeypatch.setattr(llama.model.config, "max_position_embeddings", 64)
    format_ = PromptFormat.for_base(llama)
    assert (format_.max_input_tokens, format_.max_target_tokens) == (32, 32)


def test_a_tokenizer_without_an_end_mark_is_refused(bases):
    base = load_base(str(bases["llama"]), device="cpu")
    base.tokenizer.eos_token = None
    with pytest.raises(InvalidInput, match="names no token that ends a text"):
        PromptFormat.for_base(base)


@pytest.mark.parametrize(("template", "message"), [("no mark", "one {input} in it"), ("chat", "has no chat template")])
def test_a_template_that_cannot_be_used_is_refused(llama, template, message):
    with pytest.raises(InvalidInput, match=message):
        PromptFormat.for_base(llama, template=template)
