"""Every method is measured once per point, as adapt() would have it, and leaves the base as it was."""

import json
import math
from dataclasses import replace

import pytest
import torch

import lorahub_edge
from lorahub_edge.benchmark.methods import METHODS, methods_by_name
from lorahub_edge.benchmark.points import cells_of
from lorahub_edge.benchmark.quality import Results, measure
from lorahub_edge.benchmark.records import read
from lorahub_edge.benchmark.summary import methods_table
from lorahub_edge.benchmark.trial import Pool, Protocol, TaskRows, Trial, find_tasks
from lorahub_edge.benchmark.usage import measured
from lorahub_edge.errors import InvalidInput

TASK = TaskRows("opposite", "pocket/opposite_in_thanks", "pocket/opposite_in_thanks")
PROTOCOL = Protocol("test", n_test=10)


@pytest.fixture(scope="module")
def pool():
    modules = [f"pocket/{name}" for name in ("opposite", "as_thanks", "sound")]
    return Pool(lorahub_edge.load_base("pocket", device="cpu"), lorahub_edge.load_modules(modules))


@pytest.fixture(scope="module")
def with_ceiling():
    (module,) = lorahub_edge.load_modules("pocket/as_braces")
    return replace(TASK, own_module=module)


@pytest.fixture(scope="module")
def measured_once(pool, with_ceiling, tmp_path_factory):
    """All methods on one draw."""
    path = tmp_path_factory.mktemp("results") / "r.jsonl"
    before = {n: t.clone() for n, t in pool.base.model.state_dict().items()}
    records = measure(PROTOCOL, pool, [with_ceiling], list(METHODS.values()), seeds=[1], results=Results(path))
    assert all(torch.equal(t, before[n]) for n, t in pool.base.model.state_dict().items())
    return path, {r["setup"]["method"]["name"]: r for r in records}


def test_every_method_fills_every_column(measured_once):
    _, records = measured_once
    assert list(records) == list(METHODS)
    constants = ("constant", "constant-oracle")
    for name, record in records.items():
        metrics = record["metrics"]
        assert all(0 <= metrics[k] <= 100 for k in ("exact_match", "strict_match", "most_frequent", "valid_form"))
        assert set(metrics["right"]) <= {"0", "1"}
        assert len(metrics["right"]) == metrics["n_test"] == 10
        assert metrics["exact_match"] == 10 * metrics["right"].count("1")
        assert (metrics["example_loss"] is None) == (name in (*constants, "in-context"))
        assert metrics["test_loss"] is None if name in constants else math.isfinite(metrics["test_loss"])
        assert metrics["cpu_seconds"] >= 0
        assert record["setup"]["precision"] == ("fp32" if name in ("lora-tuning", "ia3", "full-tuning") else "int8")
    tokens = {n: r["metrics"]["tokens_per_example"] for n, r in records.items() if n not in constants}
    assert tokens.pop("in-context") > 4 * max(tokens.values())
    assert len(set(tokens.values())) == 1
    table = methods_table(cells_of(list(records.values())))
    assert sum(line.startswith("| ") for line in table.splitlines()) == len(METHODS) + 1


def test_the_constant_answers_are_the_most_frequent_targets(pool, tmp_path):
    """The oracle knows the test rows, the other one only the examples."""
    rows = {"example.jsonl": ["Yes.", "yes", "no"], "zero_shot.jsonl": ["yes", "no", "No", "yes", "no"]}
    for part, targets in rows.items():
        lines = [json.dumps({"input": f"{part} {k}", "target": t}) for k, t in enumerate(targets)]
        (tmp_path / part).write_text("\n".join(lines))
    protocol = Protocol("test", n_examples=3)
    methods = methods_by_name(["constant", "constant-oracle"])
    records = measure(
        protocol, pool, find_tasks([str(tmp_path)]), methods, seeds=[1], results=Results(tmp_path / "r.jsonl")
    )
    found = {r["setup"]["method"]["name"]: r["metrics"] for r in records}
    assert [(found[m.name]["exact_match"], found[m.name]["right"].count("1")) for m in methods] == [
        (40.0, 2),
        (60.0, 3),
    ]
    assert all(metrics["most_frequent"] == 100 for metrics in found.values())
    assert found["constant-oracle"]["detail"] == "always 'no'"
    assert "modules" not in records[0]["setup"]


def test_what_is_on_record_is_what_adapt_says(pool, measured_once):
    _, records = measured_once
    run = lorahub_edge.adapt(
        pool.base, pool.modules, TASK.examples, test=TASK.test, n_test=10, seed=1, example_seed=42, null_control=True
    )
    names = {"zero-shot": "zero-shot", "best-single": "best single module", "uniform": "uniform mean"}
    names |= {"random-null": "random-LoRA null", "edge": "adapted"}
    for method, row_name in names.items():
        row, metrics = run.row(row_name), records[method]["metrics"]
        assert metrics["exact_match"] == row.exact_match
        assert metrics["example_loss"] == pytest.approx(row.value.mean_loss, rel=1e-5)
    assert records["lorahub-code"]["metrics"]["resolved_optimizer"] == "Cobyla"


def test_a_point_is_measured_once(pool, with_ceiling, measured_once):
    path, records = measured_once
    lines = path.read_text()
    said: list[str] = []
    methods = list(METHODS.values())
    again = measure(PROTOCOL, pool, [with_ceiling], methods, seeds=[1], results=Results(path), say=said.append)
    assert path.read_text() == lines
    assert again == [*records.values()] == read(path)
    assert all(line.endswith("on record") for line in said)


def test_the_gradient_methods_learn_the_examples(measured_once):
    losses = {name: r["metrics"]["example_loss"] for name, r in measured_once[1].items()}
    for name in ("lora-tuning", "ia3", "full-tuning"):
        assert losses[name] < losses["zero-shot"]


def test_equal_budget_and_equal_time_are_what_they_say(measured_once):
    metrics = {name: r["metrics"] for name, r in measured_once[1].items()}
    assert metrics["edge-equal-budget"]["n_evaluations"] == metrics["lorahub-code"]["n_evaluations"] == 40
    edge = metrics["edge"]
    affordable = metrics["lorahub-code"]["cpu_seconds"] * edge["n_evaluations"] / edge["cpu_seconds"]
    assert metrics["edge-equal-time"]["n_evaluations"] == max(1, int(affordable))
    with pytest.raises(InvalidInput, match="'edge-equal-time' is measured against lorahub-code: name these too"):
        methods_by_name(["edge", "edge-equal-time"])
    with pytest.raises(InvalidInput, match="method 'sgd' is not known; expected constant, "):
        methods_by_name(["sgd"])


def test_a_method_without_modules_is_measured_once_for_all_pools(pool, tmp_path):
    results = Results(tmp_path / "r.jsonl")
    methods = methods_by_name(["zero-shot", "uniform"])
    for modules in (pool.modules, pool.modules[:2]):
        measure(PROTOCOL, Pool(pool.base, modules), [TASK], methods, seeds=[1], results=results)
    lines = [json.loads(line) for line in results.path.read_text().splitlines()]
    assert [r["setup"]["method"]["name"] for r in lines] == ["zero-shot", "uniform", "uniform"]


def test_seeds_go_with_draws_unless_there_is_one_draw_for_all(pool, tmp_path):
    results = Results(tmp_path / "r.jsonl")
    uniform = methods_by_name(["uniform"])
    measure(PROTOCOL, pool, [TASK], uniform, seeds=[1, 2, 3], results=results)
    assert [r["setup"]["example_seed"] for r in read(results.path)] == [42, 43, 44]
    measure(PROTOCOL, pool, [TASK], uniform, seeds=[7, 8], results=results, example_seed=42)
    assert len(read(results.path)) == 3


def test_examples_in_the_prompt_leave_room_for_the_question(pool):
    trial = Trial.of(pool, TASK, PROTOCOL, example_seed=42, seed=1)
    for limit, expected in ((2048, 5), (60, 2), (25, 0)):
        short = replace(trial, prompt=replace(trial.prompt, max_input_tokens=limit))
        with METHODS["in-context"].fit(short, {}) as fitted:
            assert fitted.detail.startswith(f"{expected} examples")
            text = fitted.model.prompt.text("question")
        assert text.count("\n\n") == expected
        assert text.endswith("question")
        assert all(e.target in text for e in trial.task.examples[:expected])


def test_tasks_are_files_folders_and_embedded_names(tmp_path):
    row = '{"context": "a", "completion": "b"}\n'
    for name in ("one", "two"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "example.jsonl").write_text(row)
        (tmp_path / "data" / name / "zero_shot.jsonl").write_text(row)
    (tmp_path / "data" / "three.json").write_text('{"examples": []}')
    (tmp_path / "data" / "LICENSE").write_text("")
    for name in ("fv.color.jsonl", "fv.antonym.tsv"):  # two tasks, though their names begin alike
        (tmp_path / "data" / name).write_text("")
    tasks = find_tasks([str(tmp_path / "data"), "pocket/sound_in_braces"])
    assert [t.name for t in tasks] == ["fv.antonym", "fv.color", "one", "three", "two", "sound_in_braces"]
    assert tasks[2].test.endswith("one/zero_shot.jsonl")
    assert find_tasks([str(tmp_path / "data" / "one")]) == tasks[2:3]
    assert len(find_tasks(["pocket"])) == 8
    for specs, message in (
        (["nowhere"], "task 'nowhere' was not found"),
        ([str(tmp_path)], "expected example.jsonl and zero_shot.jsonl"),
        (["pocket", "pocket/sound_in_braces"], "'sound_in_braces' occurs twice"),
        ([], "none were given"),
    ):
        with pytest.raises(InvalidInput, match=message):
            find_tasks(specs)


@pytest.mark.parametrize("split", [("train", "test"), ("train", "train"), (None, None)])
def test_rows_of_a_split_stay_on_their_side_and_have_a_key_of_their_own(pool, tmp_path, split):
    """Only a file with both sides is split; of any other all rows go into one bag."""
    rows = [{"input": f"{side} {k}", "target": "a", "split": split[side]} for k in range(30) for side in (0, 1)]
    rows = [{name: value for name, value in row.items() if value is not None} for row in rows]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (task,) = find_tasks([str(tmp_path / "t.jsonl")])
    trial = Trial.of(pool, task, Protocol("test", n_examples=20, n_test=20), example_seed=42, seed=1)
    sides = [{e.input[0] for e in part} for part in (trial.task.examples, trial.task.test)]
    is_split = split == ("train", "test")
    assert sides == ([{"0"}, {"1"}] if is_split else [{"0", "1"}] * 2)
    assert ("by_split" in trial.record()) == is_split
    assert trial.task.record["test"]["rows"] == (30 if is_split else 60)


def test_a_peak_of_memory_belongs_to_its_block():
    with measured() as first:
        big = torch.ones(50_000_000)
        del big
    with measured() as second:
        sum(range(10_000))
    assert first.cpu_seconds > 0
    assert second.seconds > 0
    if first.peak_memory_bytes is None:
        pytest.skip("this system cannot start its peak anew")
    assert first.peak_memory_bytes - second.peak_memory_bytes > 150_000_000
