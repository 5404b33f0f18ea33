"""What the table-question module learns from and what it is tested on have no table in common."""

import json

import pytest

from bench import wtq


def row(split, table, question, pad=0):
    return {"split": split, "inputs": f"Answer.\nTable: {table}{'x' * pad}\nQuestion: {question}", "targets": "1"}


ROWS = [
    row("train", "a", "seen in test?"),
    row("train", "b", "how many?"),
    row("train", "c", "too long?", pad=wtq.MAX_CHARACTERS),
    row("test", "a", "how many?"),
    row("test", "d", "which?"),
    row("test", "b", "too long?", pad=wtq.MAX_CHARACTERS),
]


def test_no_training_row_is_about_a_tested_table():
    training, tested = wtq.split_rows(ROWS)
    assert tested == [ROWS[3], ROWS[4]]
    assert training == [ROWS[1]]


def test_a_table_ends_where_the_last_question_begins():
    table = row("train", "a\nQuestion: in a cell", "x")
    assert wtq.table_of(table) == "Answer.\nTable: a\nQuestion: in a cell"


def test_the_module_is_trained_once_and_on_its_rows_only(tmp_path, monkeypatch):
    calls = []

    def train(base, examples, out, **options):
        calls.append((base, [json.loads(line) for line in examples.read_text().splitlines()]))
        out.mkdir()

    monkeypatch.setattr(wtq, "train_module", train)
    training, _ = wtq.split_rows(ROWS)
    for _ in range(2):
        assert wtq._trained(tmp_path / "work", training, "base") == tmp_path / "work" / wtq.MODULE
    assert calls == [("base", [ROWS[1]])]


@pytest.mark.parametrize("name", wtq.METHODS)
def test_what_is_compared_needs_no_gradient(name):
    (method,) = wtq.methods_by_name([name])
    assert method.precision is None


def test_pools_differ_by_the_trained_module(tmp_path):
    (without, _), (with_it, _), (alone, names) = wtq.pools_of("others", tmp_path, ["edge"])
    assert (without, with_it, alone) == (["others"], ["others", tmp_path], [tmp_path])
    assert names == ["best-single"]
