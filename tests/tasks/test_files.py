"""Files of every format are read or refused with a remedy, within bounds; a task is named after its file."""

import csv
import gzip
import io
import json

import pytest

from lorahub_edge.errors import InvalidInput
from lorahub_edge.tasks import Example, files, load_examples, task_name

EXPECTED = [Example("one two", "three"), Example('a "b", c;\td', "é .")]
ROWS = [{"input": e.input, "target": e.target} for e in EXPECTED]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def table(delimiter, *, header=("input", "target"), line="\r\n"):
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, lineterminator=line)
    writer.writerows([header, *([e.input, e.target] for e in EXPECTED)])
    return file.getvalue()


READ = [
    ("a.jsonl", LINES),
    ("a.json", LINES),
    ("a.jsonl", LINES.replace("\n", "\n\n\n")),
    ("a.jsonl", LINES.replace("\n", "\r\n").encode("utf-8-sig")),
    ("a.jsonl", "\n".join(json.dumps(row, indent=1) for row in ROWS)),
    ("a.jsonl", json.dumps(ROWS)),
    ("a.json", json.dumps(ROWS, indent=1)),
    ("a.json", json.dumps({"canary": "x", "examples": ROWS})),
    ("a.json", json.dumps({"data": ROWS})),
    ("a.json", json.dumps({"Instances": [{"id": "1", "input": r["input"], "output": [r["target"]]} for r in ROWS]})),
    ("a.jsonl", LINES.encode("utf-16")),
    ("a.JSONL.GZ", gzip.compress(LINES.encode())),
    ("a.csv.gz", gzip.compress(table(",").encode())),
    ("a.jsonl", gzip.compress(LINES.encode()[:20]) + gzip.compress(LINES.encode()[20:])),
    ("a.csv", table(",")),
    ("a.csv", table(";")),
    ("a.csv", table("|")),
    ("a.csv", table("\t")),
    ("a.tsv", table("\t")),
    ("a.csv", table(",").encode("utf-8-sig")),
    ("a.csv", table(",", line="\r")),
    ("a.csv", table(",", header=("Input", " TARGET "))),
    ("a.csv", table(",", header=("Input", "target", "", "")).replace("three", "three,,")),
    ("a.csv", 'input, target\none two, three\n"a ""b"", c;\td", é .\n,\n\n'),
]


@pytest.mark.parametrize(("name", "content"), READ, ids=range(len(READ)))
def test_what_is_unambiguous_is_read(tmp_path, name, content):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert load_examples(tmp_path / name) == EXPECTED


def test_what_stands_beside_a_list_holds_for_all_its_rows(tmp_path):
    task = {"Definition": ["double it"], "Positive Examples": [{"input": "1", "output": "2"}]}
    (tmp_path / "t.json").write_text(json.dumps({**task, "Instances": [{"input": "7", "output": ["14"]}]}))
    assert load_examples(tmp_path / "t.json") == [Example("double it\n7", "14")]
    (tmp_path / "t.json").write_text(json.dumps({"input": "q", "target": "a", "examples": ["x"]}))
    assert load_examples(tmp_path / "t.json") == [Example("q", "a")]


ROW = '{"input": "a", "target": "b"}'
REFUSED = [
    ("t.jsonl", "", r"t\.jsonl has no examples"),
    ("t.jsonl", f"{ROW}\n{{oops\n", r"t\.jsonl:2: not JSON"),
    ("t.jsonl", f"{ROW}\n[1]\n", r"t\.jsonl:2: expected a JSON object, received list"),
    ("t.jsonl", f'{ROW}\n\n{{"input": "a", "target": ""}}', r"t\.jsonl:3: 'target' is empty"),
    ("t.jsonl", '{"input": "a", "target": "b", "input": "c"}', r"t\.jsonl:1: not JSON .the key 'input' is there twice"),
    ("t.jsonl", '{"input": "a", "target": NaN}', r"t\.jsonl:1: 'target' is missing"),
    ("t.jsonl", f'{{"input": "a", "target": {"1" * 5000}}}', r"t\.jsonl:1: not JSON"),
    ("t.jsonl", "[" * 200_000, r"t\.jsonl:1: not JSON"),
    ("t.jsonl", '{"a":' * 200_000, r"t\.jsonl:1: not JSON"),
    ("t.jsonl", '"text"', r"t\.jsonl:1: expected objects, a list of them"),
    ("t.json", '{"rows": []}', "expected keys .*received rows"),
    ("t.json", "{", r"t\.json:1: not JSON"),
    ("t.json", '{"examples": [{"input": "a"}]}', "example 1: expected keys"),
    ("t.json", f"[{ROW}, 3]", "example 2: expected a JSON object, received int"),
    ("t.txt", "input,target\na,b\n", r"t\.txt:1: not JSON .*or \.csv for tables"),
    ("t.csv", "input,target\n", "has no examples"),
    ("t.csv", "q,a\na,b\n", r"t\.csv:2: expected keys .*received q, a"),
    ("t.csv", "input,target\nwhat,yes, it is\n", r"t\.csv:2: more cells than the header; quote"),
    ("t.csv", "input,target\na\n", r"t\.csv:2: 'target' is missing"),
    ("t.csv", "input,target,input\na,b,c\n", r"t\.csv:1: the column 'input' is there twice"),
    ("t.csv", 'input,target\na,"b\nc,d\n', r"t\.csv:3: not CSV .*doubled"),
    ("t.csv", f"input,target\n{'a ' * 100_000},b\n", r"t\.csv:2: not CSV .field larger.*use JSON lines"),
    ("t.jsonl", LINES.encode("latin-1"), "not UTF-8 text .*; save it as UTF-8"),
    ("t.jsonl", b"\xff\xfe\x00", "not UTF-16 text"),
    ("t.parquet", b"PAR1 and so on", "is a Parquet file, which is not read; save its rows as CSV or JSON lines"),
    ("t.xlsx", b"PK\x03\x04 and so on", r"is an \.xlsx sheet"),
    ("t.jsonl.bz2", b"BZh9 and so on", "is packed with bzip2"),
    ("t.jsonl.gz", gzip.compress(LINES.encode())[:-9], "cannot be read"),
    ("t.jsonl.gz", gzip.compress(LINES.encode())[:20] + b"\xff" * 30, "cannot be read"),
]


@pytest.mark.parametrize(("name", "content", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_wrong_is_named_with_its_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidInput, match=message):
        load_examples(tmp_path / name)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="was not found"):
        load_examples(tmp_path / "none.jsonl")
    with pytest.raises(InvalidInput, match="is a folder or no plain file"):
        load_examples(tmp_path)
    with pytest.raises(InvalidInput, match="is a folder or no plain file"):
        load_examples("/dev/zero")
    with pytest.raises(InvalidInput, match="cannot be read"):
        load_examples("what is this? " * 100)
    with pytest.raises(InvalidInput, match=r"was not found|cannot be read"):
        load_examples("a\0b")


def test_a_file_and_what_is_packed_in_it_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_BYTES", 1 << 20)
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(b" " * (2 << 20)))
    (tmp_path / "long.jsonl").write_bytes(b'{"input": "' + b"a" * (2 << 20))
    for name in ("bomb.jsonl.gz", "long.jsonl"):
        with pytest.raises(InvalidInput, match=r"expected at most 1 MiB of text; give fewer rows"):
            load_examples(tmp_path / name)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("rows/fv.antonym.jsonl", "fv.antonym"),
        ("fv.antonym.JSON.gz", "fv.antonym"),
        ("v1.2.csv", "v1.2"),
        ("a.tsv", "a"),
        ("a.txt", "a"),
        ("a.b", "a.b"),
        (".jsonl", ".jsonl"),
        ("pocket/sound_in_braces", "sound_in_braces"),
    ],
)
def test_a_task_is_named_after_its_file(file, name):
    assert task_name(file) == name
