"""Which modules of a large pool are searched: each way picks what it says, at the memory planned, also after a kill."""

import json
import random
import shutil
from pathlib import Path

import pytest

import lorahub_edge
from lorahub_edge.adaptation import RunUnfinished, prefilter
from lorahub_edge.adaptation.prefilter import PoolWarning
from lorahub_edge.adaptation.similarity import cosine_similarities
from lorahub_edge.base import load_base
from lorahub_edge.errors import InvalidInput, OutputExists
from lorahub_edge.modules import ModuleStack, find_modules
from tests import tiny

N_POOL = 6


@pytest.fixture(scope="module")
def pool(bases, module_folders, tmp_path_factory) -> Path:
    """Six modules; the last two have other ranks and scalings."""
    folder = tmp_path_factory.mktemp("pool")
    for source in module_folders["t5"].iterdir():
        shutil.copytree(source, folder / source.name)
    tiny.save_module(bases["t5"], folder / "m4", "t5", seed=4, r=2)
    tiny.save_module(bases["t5"], folder / "m5", "t5", seed=5, r=8, lora_alpha=4)
    return folder


@pytest.fixture
def settings(bases, pool):
    return {
        "base": str(bases["t5"]), "modules": str(pool), "examples": tiny.ROWS, "n_examples": 4, "device": "cpu",
        "cache": False, "budget": 8, "null_control": False, "precision": "fp32",
    }  # fmt: skip


@pytest.fixture
def batches_of_two(monkeypatch) -> list[list[str]]:
    """The names in each batch that is looked at, two at a time."""
    seen: list[list[str]] = []
    look = prefilter.LossFilter._values_alone

    def noted(self, base, modules):
        seen.append([module.name for module in modules])
        return look(self, base, modules)

    monkeypatch.setattr(prefilter, "_BATCH", 2)
    monkeypatch.setattr(prefilter.LossFilter, "_values_alone", noted)
    return seen


def result_of(run) -> tuple:
    return run.coefficients, run.table, run.single_losses


@pytest.mark.parametrize("composition", ["factors", "deltas"])
def test_by_loss_the_best_alone_are_searched_best_first(settings, batches_of_two, composition):
    settings |= {"composition": composition}
    losses = lorahub_edge.adapt(**settings).single_losses
    stages = []
    run = lorahub_edge.adapt(**settings, max_modules=3, on_progress=stages.append)
    best = sorted(losses, key=losses.get)
    assert list(run.coefficients) == best[:3] == [m["name"] for m in run.manifest["modules"]]
    assert batches_of_two == [["m0", "m1"], ["m2", "m3"], ["m4", "m5"]]
    assert [(p.done, p.total) for p in stages if p.stage == "choose"] == [(n, N_POOL) for n in (0, 2, 4, 6)]
    chosen = run.report()["chosen_modules"]
    assert (chosen["by"], chosen["of"], chosen["evaluations"]) == ("loss", N_POOL, N_POOL)
    assert [entry["name"] for entry in chosen["chosen"]] == best[:3]
    assert sorted(entry["name"] for entry in chosen["left_out"]) == sorted(best[3:])
    for entry in [*chosen["chosen"], *chosen["left_out"]]:
        assert entry["loss"] == pytest.approx(losses[entry["name"]], rel=1e-4)
    named = lorahub_edge.adapt(**{**settings, "modules": [Path(settings["modules"]) / name for name in best[:3]]})
    assert result_of(run) == result_of(named)
    assert named.manifest["chosen_modules"] is None


def test_by_chance_it_is_lorahubs_draw(settings):
    run = lorahub_edge.adapt(**settings, seed=7, max_modules=3, choose_modules="random")
    random.seed(7)
    assert list(run.coefficients) == random.sample([f"m{k}" for k in range(N_POOL)], 3)
    assert run.manifest["chosen_modules"]["evaluations"] == 0


def test_by_similarity_what_says_the_same_comes_first_and_what_says_nothing_last(settings, pool, tmp_path):
    modules = shutil.copytree(pool, tmp_path / "pool")
    header = "---\nlibrary_name: peft\n---\n# Model card\n"
    (modules / "m3" / "README.md").write_text(header + "Trained on prices of houses in far away towns.")
    (modules / "m4" / "README.md").write_text(header + "Trained on questions such as: is the fish a cat ?")
    rows = [{"input": "is red the dog ?", "target": "no"}, {"input": "not a cat .", "target": "a cat ."}]
    (modules / "m1" / "training_rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings |= {"modules": str(modules), "choose_modules": "similar"}
    with pytest.warns(PoolWarning, match=r"^choose_modules: 3 of 6 modules have neither README.md nor training_rows"):
        run = lorahub_edge.adapt(**settings, max_modules=4)
    assert list(run.coefficients) == ["m1", "m4", "m3", "m0"]
    *_, last, silent = run.manifest["chosen_modules"]["chosen"]
    assert 0 <= last["similarity"] < 0.05
    assert silent == {"name": "m0", "similarity": None}
    (modules / "m1" / "training_rows.jsonl").write_text("{")
    with pytest.raises(InvalidInput, match=r"m1.training_rows\.jsonl"):
        lorahub_edge.adapt(**settings, max_modules=2)


def test_similarity_looks_at_what_tells_texts_apart():
    heading = "The same long heading for everything. "
    texts = [f"{heading.upper()} cats  and dogs", f"{heading}prices", heading]
    cats, prices, nothing = cosine_similarities(f"{heading}dogs and cats", texts)
    assert 0.3 < cats < 1
    assert 0 <= max(prices, nothing) < 0.1 * cats
    assert cosine_similarities("a text", ["", "ab"]) == [0, 0]
    assert cosine_similarities(texts[1], texts)[1] == pytest.approx(1)


@pytest.mark.parametrize("error", [RuntimeError("power failure"), KeyboardInterrupt()])
def test_a_choice_that_was_cut_short_goes_on_where_it_was(settings, batches_of_two, tmp_path, error):
    settings |= {"max_modules": 3, "out": tmp_path / "run"}
    whole = lorahub_edge.adapt(**{**settings, "out": None})
    batches_of_two.clear()

    def fail(progress):
        if (progress.stage, progress.done) == ("choose", 4):
            raise error

    with pytest.raises(type(error)), pytest.warns(RunUnfinished, match="^4 evaluations are kept"):
        lorahub_edge.adapt(**settings, on_progress=fail)
    for changes in ({"max_modules": 4}, {"modules": [Path(settings["modules"]) / f"m{k}" for k in (1, 0, 2, 3, 4, 5)]}):
        with pytest.raises(OutputExists, match="differs from this one in: modules;"):
            lorahub_edge.adapt(**{**settings, **changes})
    run = lorahub_edge.adapt(**settings, resume=True)
    assert batches_of_two == [["m0", "m1"], ["m2", "m3"], ["m4", "m5"]]
    assert result_of(run) == result_of(whole)
    assert run.manifest["chosen_modules"] == whole.manifest["chosen_modules"]
    assert not {"choice.jsonl", "controls.jsonl", "null.jsonl"} & {path.name for path in run.folder.iterdir()}


def test_a_search_that_ctrl_c_ended_goes_on_without_choosing_again(settings, batches_of_two, tmp_path):
    settings |= {"max_modules": 3, "budget": 20, "out": tmp_path / "run"}
    whole = lorahub_edge.adapt(**{**settings, "out": None})

    def interrupt(progress):
        if (progress.stage, progress.done) == ("search", 11):
            raise KeyboardInterrupt

    assert lorahub_edge.adapt(**settings, on_progress=interrupt).interrupted
    batches_of_two.clear()
    run = lorahub_edge.adapt(**settings)
    assert batches_of_two == []
    assert (run.interrupted, result_of(run)) == (False, result_of(whole))


@pytest.mark.parametrize("way", ["loss", "random"])
def test_the_plan_counts_as_many_modules_as_are_searched(settings, way):
    task = {name: settings[name] for name in ("base", "examples", "n_examples", "device", "cache", "precision")}
    choice = {"max_modules": 2, "choose_modules": way}
    plan = lorahub_edge.plan(modules=settings["modules"], seed=3, **task, **choice)[0]
    base = load_base(task["base"], device="cpu", precision="fp32")
    names = random.Random(3).sample([f"m{k}" for k in range(N_POOL)], 2)
    drawn = ModuleStack.build(find_modules([f"{settings['modules']}/{name}" for name in names]), base)
    widest = ModuleStack.build(find_modules([f"{settings['modules']}/{name}" for name in ("m0", "m5")]), base)
    assert plan.stack_bytes == (drawn if way == "random" else widest).n_bytes
    run = lorahub_edge.adapt(**settings, **choice, seed=3)
    assert run.manifest["memory_plan"]["stack_bytes"] == plan.stack_bytes
    assert run.manifest["search"]["budget"] == 8


def test_a_pool_that_is_no_larger_is_taken_whole(settings):
    plain = lorahub_edge.adapt(**settings)
    assert result_of(lorahub_edge.adapt(**settings, max_modules=N_POOL)) == result_of(plain)
    with pytest.warns(PoolWarning, match="^max_modules: 9 may be chosen and there are 6; all are taken$"):
        run = lorahub_edge.adapt(**settings, max_modules=9, choose_modules="random")
    assert (result_of(run), run.manifest["chosen_modules"]) == (result_of(plain), None)
    assert run.manifest["inputs"] == plain.manifest["inputs"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"max_modules": 3, "choose_modules": "best"}, "choose_modules: expected one of loss, random, similar, rec"),
        ({"max_modules": 0}, "max_modules: expected a whole number of at least 1"),
        ({"choose_modules": "random"}, "choose_modules 'random': expected max_modules, how many; received none"),
    ],
)
def test_wrong_choices_are_refused(settings, asked, message):
    with pytest.raises(InvalidInput, match=message):
        lorahub_edge.adapt(**settings, **asked)


@pytest.mark.parametrize("way", ["loss", "random"])
def test_a_choice_from_pocket_on_its_int8_base(way):
    """The base is opened, then loaded from its files: what was opened is empty by the time of the choice."""
    run = lorahub_edge.adapt(
        examples="pocket/sound_in_braces", max_modules=9, choose_modules=way, budget=11, null_control=False, cache=False
    )
    chosen = [entry["name"] for entry in run.manifest["chosen_modules"]["chosen"]]
    assert list(run.coefficients) == chosen
    assert len(chosen) == 9
    if way == "loss":
        losses = [entry["loss"] for entry in run.manifest["chosen_modules"]["chosen"]]
        assert losses == sorted(losses)
        assert chosen[0] == "as_braces"  # alone the best for this task
