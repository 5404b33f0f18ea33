"""Counts of instructions are compared with those recorded for the same compiler."""

import pytest

from bench import callgrind
from bench.records import append, make_record


@pytest.mark.parametrize(
    ("count", "compiler", "is_wrong"),
    [
        (100, "GNU 1", False),
        (101, "GNU 1", False),
        (102, "GNU 1", True),
        (50, "GNU 1", False),
        (49, "GNU 1", True),
        (500, "GNU 2", False),
    ],
)
def test_a_count_may_not_grow_nor_fall_to_nothing(tmp_path, count, compiler, is_wrong):
    records = tmp_path / "records.jsonl"
    setup = {"case": "linear", "op": "int8_linear", "isa": "avx2", "compiler": "GNU 1"}
    append(records, make_record("callgrind", setup, {"instructions": 100}))
    message = callgrind.compare({("linear", "avx2"): count, ("new", "avx2"): 7}, compiler, records)
    assert (f"linear avx2: {count} instructions, recorded 100" in str(message)) is is_wrong
    assert bool(message) is is_wrong
