"""Tables: means over tasks and seeds, spread over seeds, the oracle under its name."""

from lorahub_edge.benchmark.records import make_record
from lorahub_edge.benchmark.summary import ORACLE, caption, cells_of, methods_table, tasks_table

EMPTY = {"example_loss": 0.5, "test_loss": 0.25, "tokens_per_example": 10, "n_evaluations": 40, "cpu_seconds": 1.5}
EMPTY |= {"seconds": 2.0, "peak_memory_bytes": None}


def record(task, method, seed, score, **metrics):
    setup = {"task": task, "method": {"name": method}, "example_seed": seed}
    return make_record("quality", setup, {"exact_match": score, **EMPTY, **metrics})


def columns(table, row):
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return dict(zip(lines[0], next(line for line in lines if line[0] == row), strict=True))


def test_spread_is_over_seeds_and_the_oracle_takes_the_best_seed_of_each_task():
    records = [record("a", "edge", s, v) for s, v in ((1, 10.0), (2, 30.0))]
    records += [record("b", "edge", s, v) for s, v in ((1, 70.0), (2, 60.0))]
    records += [record("a", "zero-shot", 1, 5.0)]  # has no record for b: no mean
    table = methods_table(cells_of(records))
    row = columns(table, "edge")
    assert row["exact match"] == "42.5 (40.0-45.0)"
    assert row[ORACLE] == "50.0"
    assert (row["loss on test"], row["CPU s"], row["peak MB"]) == ("0.250", "1.50", "")
    assert "zero-shot" not in table


def test_a_column_without_values_stays_empty_and_the_best_is_bold():
    records = [record("a", "in-context", 1, 20.0, example_loss=None), record("a", "edge", 1, 20.4)]
    records += [record("a", "uniform", 1, 10.0)]
    assert columns(methods_table(cells_of(records)), "in-context")["loss on examples"] == ""
    assert columns(tasks_table(cells_of(records)), "a") == {
        "task": "a", "in-context": "**20**", "uniform": "10", "edge": "**20**",
    }  # fmt: skip


def test_the_caption_counts_seeds_that_share_a_draw():
    """As in bbh: every seed draws modules, all have the same five examples."""
    shared = {"task": "a", "example_seed": 42, "n_examples": 5, "precision": "int8"}
    metrics = {"exact_match": 1.0, "n_test": 9}
    records = [
        make_record("bbh", {**shared, "modules": [module], "method": {"name": "edge"}}, metrics) for module in "xyz"
    ]
    assert " over 3 seeds; " in caption(records)
