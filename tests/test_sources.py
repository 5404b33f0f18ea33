"""read_json: one JSON object from a plain file of a sensible size, or one line that says why not."""

import os

import pytest

from lorahub_edge.errors import UnsupportedFormat
from lorahub_edge.sources import local_path, read_json


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, "is not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "is not a file"),
        (lambda path: path.symlink_to(path), "is not a file"),
        (lambda path: path.mkdir(), "is not a file"),
        (lambda path: None, "is not a file"),
        (lambda path: path.write_text("[" * 200_000), "not readable as JSON"),
        (lambda path: path.write_text('{"a": ' + "9" * 5000 + "}"), "not readable as JSON"),
        (lambda path: path.write_bytes(b'{"a": "\xff"}'), "not readable as JSON"),
        (lambda path: path.write_text(" " * 2000 + "{}"), "expected at most 1000 bytes"),
        (lambda path: path.write_text("[]"), "expected a JSON object, received list"),
        (lambda path: path.write_text('{"a": {"b": 1, "b": 1}}'), "it has the key 'b' twice"),
    ],
)
def test_what_is_no_json_object_is_refused(tmp_path, make, reason):
    path = tmp_path / "x.json"
    make(path)
    with pytest.raises(UnsupportedFormat, match=reason) as caught:
        read_json(path, max_bytes=1000 if "1000" in reason else 1 << 20, keys_once=True)
    assert str(path) in str(caught.value)


def test_a_key_twice_is_the_last_one_unless_told_otherwise(tmp_path):
    (tmp_path / "x.json").write_text('{"a": 1, "a": 2}')
    assert read_json(tmp_path / "x.json") == {"a": 2}


def test_the_home_of_nobody_is_a_path_like_any_other():
    assert str(local_path("~no-such-user-here/x")) == "~no-such-user-here/x"
