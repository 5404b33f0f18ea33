"""The benches measure what adapt() says, once per point, and the tables say what the records say."""

import json

import pytest

import lorahub_edge
from bench import tables
from bench.quality import Point, Pool, Protocol, measure_all, points
from bench.records import append, key_of, make_record, read

TASK = "pocket/opposite_in_thanks"


@pytest.fixture(scope="module")
def pool():
    modules = [f"pocket/{name}" for name in ("opposite", "as_thanks", "sound")]
    return Pool(lorahub_edge.load_base("pocket", device="cpu"), lorahub_edge.load_modules(modules))


def test_a_point_is_measured_once_and_equals_adapt(pool, tmp_path):
    protocol = Protocol("test", n_test=20)
    todo = points({"opposite": TASK}, ["edge", "lorahub-code"], n_seeds=1, n_null_seeds=1)
    assert [(p.preset, p.seed) for p in todo] == [("edge", 1), ("lorahub-code", 1)]
    out = tmp_path / "results.jsonl"
    measure_all(protocol, pool, todo, out)
    measure_all(protocol, pool, todo, out)
    records = read(out)
    assert len(out.read_text().splitlines()) == len(records) == 2
    run = lorahub_edge.adapt(pool.base, pool.modules, TASK, test=TASK, n_test=20, seed=1)
    expected = {row.name: (row.value.mean_loss, row.exact_match) for row in run.table}
    received = {name: (row["loss"], row["exact_match"]) for name, row in records[0]["metrics"]["rows"].items()}
    assert received == expected
    assert records[1]["metrics"]["resolved_optimizer"] == "Cobyla"


def test_the_last_record_of_a_key_counts_and_the_key_is_the_setups(tmp_path):
    path = tmp_path / "r.jsonl"
    for value in (1, 2):
        append(path, make_record("b", {"a": 1}, {"value": value}))
    append(path, make_record("b", {"a": 2}, {"value": 3}))
    assert [r["metrics"]["value"] for r in read(path)] == [2, 3]
    assert key_of("b", {"x": 1, "y": 2}) == key_of("b", {"y": 2, "x": 1}) != key_of("c", {"x": 1, "y": 2})
    path.write_text(json.dumps({"schema": 99}) + "\n")
    with pytest.raises(ValueError, match="schema 99, expected 1"):
        read(path)


def test_tables_are_put_between_their_markers_and_nothing_else_changes():
    text = "a\n<!-- begin:x -->\nold\n<!-- end:x -->\nb"
    assert tables.put_between_markers(text, "x", "new") == "a\n<!-- begin:x -->\nnew\n<!-- end:x -->\nb"
    with pytest.raises(SystemExit, match="expected the markers"):
        tables.put_between_markers("no markers", "x", "new")


def test_a_seed_of_the_search_goes_with_a_draw_of_examples():
    assert [Point("t", "s", "edge", seed, False).example_seed for seed in (1, 2, 3)] == [42, 43, 44]
