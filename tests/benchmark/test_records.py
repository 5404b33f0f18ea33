"""Records: one line each, keyed by the setup alone; what a killed run left is named."""

import json
import subprocess

import pytest

from lorahub_edge.benchmark import records
from lorahub_edge.benchmark.records import append, key_of, make_record, read
from lorahub_edge.errors import InvalidInput


def test_the_last_record_of_a_key_counts_and_the_key_is_the_setups(tmp_path):
    path = tmp_path / "r.jsonl"
    for value in (1, 2):
        append(path, make_record("b", {"a": 1}, {"value": value}))
    append(path, make_record("b", {"a": 2}, {"value": 3}))
    assert [r["metrics"]["value"] for r in read(path)] == [2, 3]
    assert key_of("b", {"x": 1, "y": 2}) == key_of("b", {"y": 2, "x": 1}) != key_of("c", {"x": 1, "y": 2})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (json.dumps({"schema": 99, "key": "k"}), "schema 99, expected 1"),
        ('{"schema": 1, "key": "k", "met', r"r\.jsonl:2: not a record .* remove the line"),
        ("[1]", r"r\.jsonl:2: not a record"),
    ],
)
def test_a_line_that_is_no_record_is_named(tmp_path, line, message):
    path = tmp_path / "r.jsonl"
    append(path, make_record("b", {}, {}))
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InvalidInput, match=message):
        read(path)


def test_an_installed_copy_inside_another_repository_has_no_commit(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    copy = tmp_path / "records.py"
    copy.touch()
    monkeypatch.setattr(records, "__file__", str(copy))
    assert records.commit() == {"commit": None, "dirty": None}
