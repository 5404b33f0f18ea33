"""Tables: means with standard errors, differences on the same draws, and tasks that cannot show any aside."""

import math

import pytest

from lorahub_edge.benchmark.points import cells_of, headroom
from lorahub_edge.benchmark.records import make_record
from lorahub_edge.benchmark.summary import caption, methods_table, summary, tasks_table
from lorahub_edge.errors import InvalidInput

EMPTY = {"example_loss": 0.5, "test_loss": 0.25, "tokens_per_example": 10, "n_evaluations": 40, "cpu_seconds": 1.5}
EMPTY |= {"seconds": 2.0, "peak_memory_bytes": None, "n_test": 9}
SHARED = {"n_examples": 5, "precision": "int8"}


def record(task, method, seed, score, *, modules=None, **metrics):
    pool = {"modules": [modules], "modules_sha256": modules} if modules else {}
    setup = {**SHARED, "task": task, "method": {"name": method}, "example_seed": seed, **pool}
    return make_record("quality", setup, {"exact_match": score, **EMPTY, **metrics})


def columns(table, row):
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return dict(zip(lines[0], next(line for line in lines if line[0] == row), strict=True))


def test_the_error_is_over_tasks_and_seeds_and_a_method_that_lacks_a_task_has_no_row():
    records = [record("a", "edge", s, v) for s, v in ((1, 10.0), (2, 30.0))]
    records += [record("b", "edge", s, v) for s, v in ((1, 70.0), (2, 60.0))]
    records += [record("a", "zero-shot", 1, 5.0)]  # has no record for b: no mean
    table = methods_table(cells_of(records))
    row = columns(table, "edge")
    error = math.sqrt((32.5**2 + 12.5**2 + 27.5**2 + 17.5**2) / 3 / 4)
    assert row["exact match"] == f"42.5 ± {error:.1f}"
    assert (row["loss on test"], row["CPU s"], row["peak MB"]) == ("0.250", "1.50", "")
    assert "zero-shot" not in table
    assert "ifference" not in table  # nothing to compare with


def test_records_of_earlier_versions_have_empty_cells_and_new_ones_their_numbers():
    new = {"strict_match": 12.5, "most_frequent": 80.4, "valid_form": 99.6}
    records = [record("a", "edge", 1, 20.0, **new), record("a", "uniform", 1, 20.0)]
    row = columns(methods_table(cells_of(records)), "edge")
    heads = ("strict match", "most frequent answer", "valid form")
    assert [row[head] for head in heads] == ["12.5", "80", "100"]
    assert [columns(methods_table(cells_of(records)), "uniform")[head] for head in heads] == ["", "", ""]


def test_a_difference_is_taken_on_the_same_draws_and_is_none_within_its_error():
    """Draws differ by 60 points, methods on a draw by 5 to 7: only pairs can show it."""
    scores = {"edge": (15.0, 77.0, 46.0), "uniform": (10.0, 70.0, 40.0), "best-single": (14.0, 68.0, 39.0)}
    records = [record("a", name, seed, v) for name, vs in scores.items() for seed, v in enumerate(vs)]
    table = methods_table(cells_of(records[::-1]), against="uniform")
    difference = {name: columns(table, name)["difference to `uniform`"] for name in scores}
    assert difference == {"edge": "+6.0 ± 0.6", "uniform": "", "best-single": "none shown (+0.3 ± 1.9)"}
    assert "within one standard error" in table
    one = methods_table(cells_of([r for r in records if r["setup"]["example_seed"] == 0]), against="uniform")
    assert columns(one, "edge")["difference to `uniform`"] == "+5.0 (one point)"
    with pytest.raises(InvalidInput, match=r"against 'edge-equal-time': it is not measured; .*, uniform, edge"):
        methods_table(cells_of(records), against="edge-equal-time")


def test_pools_that_share_a_draw_are_paired_by_their_modules_and_the_released_search_is_the_reference():
    records = [record("a", "lorahub-code", 42, v, modules=m) for m, v in (("x", 10.0), ("y", 50.0))]
    records += [record("a", "edge", 42, v, modules=m) for m, v in (("y", 54.0), ("x", 12.0))]
    records += [record("a", "zero-shot", 42, 5.0)]  # one record for every pool
    table = methods_table(cells_of(records))
    assert columns(table, "edge")["difference to `lorahub-code`"] == "+3.0 ± 1.0"
    assert columns(table, "zero-shot")["difference to `lorahub-code`"] == "-25.0 ± 20.0"


def test_a_column_without_values_stays_empty_and_the_best_is_bold():
    records = [record("a", "in-context", 1, 20.0, example_loss=None), record("a", "edge", 1, 20.4)]
    records += [record("a", "uniform", 1, 10.0)]
    assert columns(methods_table(cells_of(records)), "in-context")["loss on examples"] == ""
    assert columns(tasks_table(cells_of(records)), "a") == {
        "task": "a", "in-context": "**20**", "uniform": "10", "edge": "**20**",
    }  # fmt: skip


def with_ceilings():
    """a just counts, b just does not, c has no own module."""
    scores = {("a", "own-module"): (40.0, 20.0), ("b", "own-module"): (39.8, 20.0), ("c", "edge"): (90.0, 90.0)}
    scores |= {(task, "constant-oracle"): (20.0, 20.0) for task in "abc"}
    scores |= {("a", "edge"): (10.0, 30.0), ("b", "edge"): (90.0, 90.0)}
    return [record(*cell, seed, v) for cell, values in scores.items() for seed, v in enumerate(values)]


def test_a_task_counts_where_its_own_module_beats_the_best_constant_by_ten_points():
    found = headroom(cells_of(with_ceilings()))
    assert found.counted == ("a",)
    assert found.others == {"b": "own module 29.9, best constant answer 20.0", "c": "no own module"}
    assert headroom(cells_of([record("a", "edge", 1, 20.0)])).counted == ("a",)  # without ceilings all do


def test_means_are_over_the_tasks_that_count_and_the_others_stand_below():
    about, counted, methods, *_, tasks = summary(with_ceilings(), against="constant-oracle")
    assert " over 2 seeds; " in about
    assert counted.startswith("1 of 3 tasks count")
    assert columns(methods.partition("\n\n")[0], "edge")["exact match"] == "20.0 ± 10.0"
    rows = [line.split(" | ")[0] for line in tasks.splitlines()[2:]]
    assert rows == ["| a", "| b (not counted)", "| c (not counted)"]
    more = with_ceilings() + [record("d", "own-module", s, 90.0) for s in (0, 1)]
    more += [record("d", name, s, 10.0) for s in (0, 1) for name in ("edge", "constant-oracle")]
    rows = {line.split(" | ")[0]: line for line in summary(more)[-1].splitlines()[2:]}
    assert list(rows) == ["| a", "| d", "| **mean**", "| b (not counted)", "| c (not counted)"]
    assert rows["| **mean**"] == "| **mean** | 15.0 | 15.0 | **60.0** |"
    none = [r for r in with_ceilings() if r["setup"]["task"] == "b"]
    assert summary(none)[1].startswith("0 of 1 tasks count")
    assert len(summary(none)) == 3  # no means over nothing


def test_the_caption_counts_seeds_that_share_a_draw():
    """As in bbh: every seed draws modules, all have the same five examples."""
    records = [record("a", "edge", 42, 1.0, modules=module) for module in "xyz"]
    assert " over 3 seeds; " in caption(records)
