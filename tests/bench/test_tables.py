"""The tables say what the records say, the first bench's records too."""

import pytest

from bench import tables, tables_adapt, tables_headline, tables_ops, tables_quality, tables_studies
from bench.records import append, make_record


def test_tables_are_put_between_their_markers_and_nothing_else_changes():
    text = "a\n<!-- begin:x -->\nold\n<!-- end:x -->\nb"
    assert tables.put_between_markers(text, "x", "new") == "a\n<!-- begin:x -->\nnew\n<!-- end:x -->\nb"
    with pytest.raises(SystemExit, match="expected the markers"):
        tables.put_between_markers("no markers", "x", "new")


def test_a_page_has_the_markers_of_its_tables_and_no_others():
    tables.check_markers("page.md", "<!-- begin:x -->\n<!-- begin:y -->", ["y", "x"])
    for names in (["x"], ["x", "y", "z"]):
        with pytest.raises(SystemExit, match=r"page\.md: expected the tables x"):
            tables.check_markers("page.md", "<!-- begin:x -->\n<!-- begin:y -->", names)


def quality_record(base, modules, method, seed, score):
    shared = {"task": "t", "example_seed": seed, "base": base, "method": {"name": method}}
    own = {"modules": ["a"], "modules_sha256": modules} if modules else {}
    return make_record("quality", {**shared, **own}, {"exact_match": score})


def test_only_the_base_and_modules_measured_last_are_in_the_table():
    records = [
        quality_record("old", "1", "edge", 42, 1.0),
        quality_record("new", "1", "edge", 42, 2.0),
        quality_record("new", None, "zero-shot", 42, 3.0),
        quality_record("old", None, "zero-shot", 42, 4.0),
        quality_record("new", "2", "edge", 42, 5.0),
    ]
    assert [r["metrics"]["exact_match"] for r in tables_quality.of_newest_pool(records)] == [3.0, 5.0]


def leave_out_record(task, method, seed, score, modules="1"):
    setup = {"task": task, "example_seed": seed, "base": {}, "n_examples": 5, "precision": "int8"}
    own = {"modules": ["a"], "modules_sha256": modules} if method == "edge" else {}
    metrics = {"exact_match": score, "peak_memory_bytes": None, "n_test": 100, "n_evaluations": 9}
    return make_record("quality", {**setup, **own, "method": {"name": method}}, metrics)


def test_the_leave_out_table_counts_tasks_with_headroom_and_shows_the_others_below(tmp_path, monkeypatch):
    monkeypatch.setattr(tables_quality, "RESULTS", tmp_path)
    assert tables_quality.leave_out() == "Not measured yet."
    points = [("wide", "edge", 30.0), ("wide", "constant-oracle", 20.0), ("wide", "own-module", 60.0)]
    points += [("narrow", "edge", 22.0), ("narrow", "constant-oracle", 20.0), ("narrow", "own-module", 25.0)]
    append(tmp_path / "leave-out-smollm2.jsonl", leave_out_record("wide", "edge", 42, 99.0, modules="of an older pool"))
    for seed in (42, 43):
        for task, method, score in points:
            append(tmp_path / "leave-out-smollm2.jsonl", leave_out_record(task, method, seed, score + seed - 42))
    _, counted, methods, tasks = tables_quality.leave_out().split("\n\n")
    assert counted.startswith("1 of 2 tasks count: ")
    assert counted.endswith(" Not counted: narrow (own module 25.5, best constant answer 20.5).")
    assert methods.splitlines()[-1].startswith("| own-module | 60.5 ± 0.5 |")
    rows = [line.strip("| ").split(" | ")[::2] for line in tasks.splitlines()[2:]]
    assert rows == [["wide", "30 ± 0.5"], ["narrow (not counted)", "22 ± 0.5"]]


def test_strategies_are_compared_where_all_have_the_same_points(tmp_path, monkeypatch):
    monkeypatch.setattr(tables_studies, "RESULTS", tmp_path)
    assert tables_studies.search_development() == "Not measured yet."
    shared = {"tasks": "development", "pool": "all", "task": "t", "modules": ["a"]}
    for strategy, scores in {"one": (10.0, 30.0), "two": (40.0, 50.0), "three": (99.0,)}.items():
        for seed, score in enumerate(scores):
            setup = {**shared, "strategy": strategy, "seed": seed, "budget": 40}
            metrics = {"exact_match": score, "objective": 1.0 if strategy == "one" else 2.0}
            append(tmp_path / "search-study.jsonl", make_record("search-study", setup, metrics))
    table = tables_studies.search_development().splitlines()[2:]
    assert table == ["| strategy | 40 |", "|---|---:|", "| one | 20.0 / **1.000** |", "| two | **45.0** / 2.000 |"]


def test_a_search_that_ends_above_zero_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(tables_studies, "RESULTS", tmp_path)
    assert tables_studies.harmful_heldout() == "Not measured yet."
    for strategy, objectives in {"none": (1.0, 2.0), "one": (0.5, 2.5), "two": (0.5,)}.items():
        for seed, objective in enumerate(objectives):
            setup = {"tasks": "held-out", "pool": "harmful", "task": "t", "modules": ["a"], "budget": 107}
            metrics = {"exact_match": 10.0, "objective": objective}
            record = make_record("search-study", {**setup, "strategy": strategy, "seed": seed}, metrics)
            append(tmp_path / "search-study.jsonl", record)
    rows = tables_studies.harmful_heldout().splitlines()[-2:]
    assert rows == ["| none | 10.0 | 1.500 | 0 of 2 |", "| one | 10.0 | 1.500 | 1 of 2 |"]


def timed_record(bench, seconds, **setup):
    metrics = {"median_s": seconds, "peak_bytes": 2e9, "folder_bytes": 3e6}
    return make_record(bench, {"n_modules": 20, "threads": 2, **setup}, metrics)


def test_evaluations_stand_by_size_with_ours_of_the_same_shape(tmp_path, monkeypatch):
    monkeypatch.setattr(tables_adapt, "RESULTS", tmp_path)
    assert tables_adapt.shapes_table() == tables_adapt.adapt_table() == "Not measured yet."
    for shape, ours, theirs in (("large", 2.0, 5.0), ("base", 1.0, 4.0)):
        for contender, seconds in (("ours", ours), ("lorahub", theirs)):
            record = timed_record("a", seconds, part="evaluation", shape=shape, contender=contender)
            append(tmp_path / "adapt-t5-large.jsonl", record)
    cells = [line.split(" | ") for line in tables_adapt.shapes_table().splitlines()[4:]]
    assert [(row[0], *row[2:]) for row in cells] == [
        ("| base", "1", "", "2.00 |"),
        ("| base", "4", "4.00", "2.00 |"),
        ("| large", "2", "", "2.00 |"),
        ("| large", "5", "2.50", "2.00 |"),
    ]
    times = [line.split(" | ")[2] for line in tables_adapt.adapt_table().splitlines()[4:]]
    assert times == ["2.00", "5.00"]  # this one has the large shape alone


def test_the_headline_has_ours_beside_others_of_the_same_measurement(tmp_path, monkeypatch):
    monkeypatch.setattr(tables_headline, "RESULTS", tmp_path)
    assert tables_headline.headline() == "Not measured yet."
    wide = {"edge": 30.0, "lorahub-code": 20.0, "best-single": 29.0, "constant": 5.0, "constant-oracle": 20.0}
    points = [("wide", method, 42, score) for method, score in {**wide, "own-module": 60.0}.items()]
    points += [("wide", "edge", 43, 31.0), ("narrow", "edge", 42, 99.0)]
    points += [("narrow", "constant-oracle", 42, 20.0), ("narrow", "own-module", 42, 25.0)]  # it does not count
    for point in points:
        append(tmp_path / "leave-out-smollm2.jsonl", leave_out_record(*point))
    timed = [("whole", "ours", 70.0), ("whole", "lorahub", 80.0), ("evaluation", "ours", 2.0)]
    timed += [("evaluation", "lorahub", 5.0), ("evaluation", "int-mm", 1.5)]
    sized = [("large", *each) for each in timed] + [("small", "evaluation", "ours", 0.1)]
    for shape, part, contender, seconds in sized:
        record = timed_record("a", seconds, part=part, shape=shape, contender=contender)
        append(tmp_path / "adapt-t5-large.jsonl", record)
    for clients, contender, speed in ((8, "ours", 100), (8, "ctranslate2", 90), (8, "llama.cpp", 80), (1, "ours", 20)):
        setup = {"contender": contender, "clients": clients, "threads": 2}
        append(tmp_path / "serve-many.jsonl", make_record("serve-many", setup, {"tokens_per_s": speed}))
    caption, _, _, *rows = filter(None, tables_headline.headline().splitlines())
    assert " over 2 seeds; 9 evaluations, LoRAHub 9. " in caption
    assert [row.split(" | ", 1)[1] for row in rows] == [
        "30.5 ± 0.5 | 20.0 | best single module 29.0; constant answer 5.0 |",
        "2.00 | 5.00 | the int8 products alone 1.50 |",
        "2.00 | 2.00 | |",
        "100 | no service | CTranslate2 90; llama.cpp's server, 4 bits, 80 |",
    ]


def test_merges_and_exports_stand_by_size_in_the_names_order(tmp_path, monkeypatch):
    monkeypatch.setattr(tables_adapt, "RESULTS", tmp_path)
    assert tables_adapt.merge_export_table() == "Not measured yet."
    for shape in ("large", "small"):
        for part, contender in (("export", "ours"), ("merge", "peft"), ("merge", "ours-fp32")):
            record = timed_record("m", 1.25, part=part, shape=shape, contender=contender)
            append(tmp_path / "merge-export-t5.jsonl", record)
    lines = tables_adapt.merge_export_table().splitlines()[4:]
    assert [line.split(" | ")[0] for line in lines] == ["| small"] * 3 + ["| large"] * 3
    assert lines[1:3] == [
        "| small | PEFT, float32, adding up included | 1.2 | 2.00 | 3 |",
        "| small | `lorahub-edge export`, int8, verified | 1.2 | 2.00 | 3 |",
    ]


def test_a_form_that_a_record_does_not_have_has_no_row(tmp_path, monkeypatch):
    monkeypatch.setattr(tables_ops, "RESULTS", tmp_path)
    forms = {"ours, float32 stack": 2.0, "ours, int8 stack": 0.5, "torch.mv": 4.0}
    for n_candidates, names in ((1, list(forms)), (2, list(forms)[::2])):
        setup = {"op": "compose_factors", "n_candidates": n_candidates, "n_modules": 20, "threads": 1, "isa": "i"}
        floors = {"bytes, float32 stack": 1.0, "bytes, int8 stack": 0.25}
        timings = {name: {"median_ms": forms[name]} for name in names}
        append(tmp_path / "ops.jsonl", make_record("ops", setup, {"timings": timings, "floors_ms": floors}))
    assert tables_ops.ops_table().splitlines()[4:] == [
        "| `compose_factors`, 1 candidate x 20 modules, float32 stack | 2 | 1 | torch.mv 4 (2.0) |",
        "| `compose_factors`, 1 candidate x 20 modules, int8 stack | 0.5 | 0.25 | torch.mv 4 (8.0) |",
        "| `compose_factors`, 2 candidates x 20 modules, float32 stack | 2 | 1 | torch.mv 4 (2.0) |",
    ]


def wtq_record(method, modules, seed, score):
    setup = {"task": "t", "example_seed": seed, "n_examples": 5, "precision": "int8", "method": {"name": method}}
    own = {"modules": modules} if modules else {}
    return make_record("wtq", {**setup, **own}, {"exact_match": score, "test_loss": 2.0, "n_test": 53})


def test_table_questions_stand_in_a_column_per_pool(tmp_path, monkeypatch):
    monkeypatch.setattr(tables_studies, "RESULTS", tmp_path)
    assert tables_studies.wtq() == "Not measured yet."
    trained = tables_studies.TABLE_MODULE
    points = [
        ("zero-shot", None, 42, 1.0),
        ("edge", ["a", "b"], 42, 2.0),
        ("edge", ["a", "b"], 43, 4.0),
        ("edge", ["a", "b", trained], 42, 5.0),
        ("best-single", [trained], 42, 6.0),
    ]
    for point in points:
        append(tmp_path / "wtq.jsonl", wtq_record(*point))
    caption, *table = tables_studies.wtq().split("\n", 2)
    assert " over 2 seeds; " in caption
    assert table[-1].splitlines() == [
        f"| method | 2 modules | 2 modules and `{trained}` | `{trained}` |",
        "|---|---:|---:|---:|",
        "| zero-shot | 1.0 / 2.000 | 1.0 / 2.000 | 1.0 / 2.000 |",
        "| edge | 3.0 ± 1.0 / 2.000 | 5.0 / 2.000 |  |",
        "| best-single |  |  | 6.0 / 2.000 |",
    ]


def test_ranks_stand_in_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(tables_studies, "RESULTS", tmp_path)
    assert tables_studies.ranks() == "Not measured yet."
    losses = {"example_loss": 1.0, "test_loss": 2.0, "tokens_per_example": 9, "n_evaluations": 1}
    metrics = {**losses, "cpu_seconds": 1, "seconds": 1, "peak_memory_bytes": 1, "n_test": 9}
    for rank in (16, 4):
        setup = {"task": "t", "example_seed": 42, "n_examples": 5, "precision": "int8", "modules": ["a"]}
        method = {"name": f"rank {rank}, edge", "rank": rank}
        append(
            tmp_path / "ranks.jsonl",
            make_record("ranks", {**setup, "method": method}, {**metrics, "exact_match": rank}),
        )
    rows = tables_studies.ranks().splitlines()[-2:]
    assert [row.split(" | ")[:2] for row in rows] == [["| rank 4, edge", "4.0"], ["| rank 16, edge", "16.0"]]
