"""A task is measured without its own module, which is its ceiling; a module of the ceilings is nothing else."""

import json

import numpy as np
import pytest

import lorahub_edge
from lorahub_edge.benchmark import Protocol, bench_quality
from lorahub_edge.benchmark.records import read
from lorahub_edge.benchmark.trial import Pool, Trial, find_tasks
from lorahub_edge.errors import InvalidInput
from tests import tiny

PROTOCOL = Protocol("quality", n_examples=2)


@pytest.fixture(scope="module")
def base(bases):
    return lorahub_edge.load_base(str(bases["t5"]), device="cpu")


@pytest.fixture(scope="module")
def ceilings(bases, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ceilings")
    tiny.save_module(bases["t5"], folder / "elsewhere", "t5", seed=9)
    return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """One with a module in the pool of m0 ... m3, one with a ceiling, one with neither."""
    folder = tmp_path_factory.mktemp("tasks")
    for name in ("m1", "elsewhere", "nowhere"):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps({"input": i, "target": t}) for i, t in tiny.ROWS))
    return folder


@pytest.fixture
def measured(base, module_folders, tasks, ceilings, tmp_path):
    def measure(methods=("best-single", "zero-shot"), **options):
        specs = {"out": tmp_path / "r.jsonl", "n_seeds": 1, "protocol": PROTOCOL, "methods": methods, **options}
        found = bench_quality(base, module_folders["t5"], [str(tasks)], **specs)
        return {(r["setup"]["task"], r["setup"]["method"]["name"]): r for r in found}

    return measure


def test_its_own_module_is_left_out_of_the_pool_and_measured_alone(base, module_folders, measured, tasks, ceilings):
    records = measured(leave_out=True, ceilings=[ceilings])
    pools = {task: r["setup"] for (task, method), r in records.items() if method == "best-single"}
    assert {task: setup["modules"] for task, setup in pools.items()} == {
        "m1": ["m0", "m2", "m3"],
        "elsewhere": ["m0", "m1", "m2", "m3"],
        "nowhere": ["m0", "m1", "m2", "m3"],
    }
    assert [pools[task].get("left_out") for task in ("m1", "elsewhere", "nowhere")] == ["m1", None, None]
    assert len({setup["modules_sha256"] for setup in pools.values()}) == 1
    own = {task: r["metrics"]["detail"] for (task, method), r in records.items() if method == "own-module"}
    assert own == {"m1": "m1 at 1", "elsewhere": "elsewhere at 1"}
    alone = Pool(base, lorahub_edge.load_modules(module_folders["t5"] / "m1"))
    trial = Trial.of(alone, find_tasks([str(tasks / "m1.jsonl")])[0], PROTOCOL, example_seed=42, seed=1)
    loss = trial.model(np.ones(1)).loss(trial.task.test)
    assert records["m1", "own-module"]["metrics"]["test_loss"] == pytest.approx(loss)
    assert records["m1", "best-single"]["metrics"]["test_loss"] != pytest.approx(loss)
    assert "left_out" not in records["m1", "zero-shot"]["setup"]
    assert all((task, "constant-oracle") in records for task in pools)


def test_a_whole_pools_points_are_no_points_of_one_without_a_module(measured, ceilings, tmp_path):
    measured(methods=("best-single",))
    measured(methods=("best-single",), leave_out=True, ceilings=[ceilings])
    tasks = [r["setup"]["task"] for r in read(tmp_path / "r.jsonl") if r["setup"]["method"]["name"] == "best-single"]
    assert sorted(tasks) == ["elsewhere", "m1", "m1", "nowhere"]


def test_what_makes_no_sense_is_refused_before_anything_is_measured(measured, base, module_folders, tasks, ceilings):
    with pytest.raises(InvalidInput, match="ceilings: they are for leave_out"):
        measured(ceilings=[ceilings])
    with pytest.raises(InvalidInput, match=r"method 'own-module' .*: no task has one; with leave_out"):
        measured(methods=("own-module",))
    with pytest.raises(InvalidInput, match="no task has one"):
        bench_quality(base, module_folders["t5"], [str(tasks / "nowhere.jsonl")], out=tasks / "r.jsonl", leave_out=True)
    with pytest.raises(InvalidInput, match="'m1' is the only one and is left out"):
        bench_quality(
            base, module_folders["t5"] / "m1", [str(tasks / "m1.jsonl")], out=tasks / "r.jsonl", leave_out=True,
            methods=["uniform"], protocol=PROTOCOL,
        )  # fmt: skip
    assert not (tasks / "r.jsonl").exists()
