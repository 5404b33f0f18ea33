"""Models: adapters are chosen by name, share steps, and come and go while others are served."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from lorahub_edge.errors import InvalidInput, UnsupportedFormat
from lorahub_edge.serve import GenerationSettings, OnnxModel, generate, lora, open_folder
from lorahub_edge.serve.engine import Engine
from lorahub_edge.serve.generate import new_sequence
from lorahub_edge.serve.models import Models, UnknownModel
from lorahub_edge.serve.state import view
from tests import tiny
from tests.serve.conftest import random_adapter
from tests.serve.test_engine import answers

TEXTS = [text for text, _ in tiny.ROWS]
SETTINGS = GenerationSettings(max_new_tokens=6, n_logprobs=0)


@pytest.fixture(params=["t5", "llama"])
def folder(request, adapted_folders):
    return adapted_folders[request.param]


def questions(models, *, scale=1.0):
    """Every text for every model in turn."""
    found = []
    for k, text in enumerate(TEXTS * 2):
        served = models.all()[k % len(models.all())]
        mix = tuple((adapter, scale) for adapter, _ in served.mix)
        found.append(new_sequence(k, served.files, served.files.encode(text), SETTINGS, mix))
    return found


@pytest.mark.parametrize("scale", [1.0, -0.5])
def test_rows_of_different_adapters_share_a_step_and_answer_as_alone(folder, scale, monkeypatch):
    models = Models(folder)
    model = OnnxModel(models.base.files, n_threads=1)
    expected = [answers(Engine(model), [s])[0] for s in questions(models, scale=scale)]
    widest, read = [], OnnxModel.read
    monkeypatch.setattr(
        OnnxModel, "read", lambda self, *given, **how: widest.append(given[0].n_rows) or read(self, *given, **how)
    )
    found = answers(Engine(model), questions(models, scale=scale), every=0)
    assert [c.token_ids for c in found] == [c.token_ids for c in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose([s.logprob for s in one.scores], [s.logprob for s in other.scores], atol=0.1)
    assert max(widest) > 4
    assert len({c.token_ids for c in found}) > len(TEXTS)  # the adapters differ


def test_a_served_adapter_answers_as_the_folder_opened_with_it(folder):
    models = Models(folder)
    model = OnnxModel(models.base.files, n_threads=1)
    for name in ("run", "second", "third"):
        alone = OnnxModel(open_folder(folder, adapter=name), n_threads=1)
        served = models.resolve(name)
        made = [new_sequence(0, served.files, served.files.encode(TEXTS[0]), SETTINGS, served.mix)]
        assert answers(Engine(model), made) == generate(alone, TEXTS[:1], SETTINGS)


def test_two_adapters_on_one_row_are_the_sum_of_their_deltas(folder):
    """The stack of both gives what one adapter of both ranks gives."""
    models = Models(folder)
    model = OnnxModel(models.base.files, n_threads=1)
    second, third = (models.resolve(name).files.adapter for name in ("second", "third"))
    both = {}
    for name, tensor in second.tensors.items():
        other = third.tensors[name]
        is_a = name.endswith("lora_A")
        both[name] = np.concatenate([tensor, other] if is_a else [0.5 * tensor, 2 * other], 0 if is_a else 1)
    alone = type(second)("both", both, {})
    prompt = [models.base.files.encode(TEXTS[0])]
    _, mixed = model.begin(prompt, mixes=[((second, 0.5), (third, 2.0))])
    _, expected = model.begin(prompt, mixes=[((alone, 1.0),)])
    _, base = model.begin(prompt, mixes=[()])
    assert np.abs(mixed - expected).max() < 0.1 * np.abs(base - expected).max()


def test_a_graph_without_scales_runs_adapters_apart_and_answers_the_same(folder, monkeypatch):
    """As in folders that were exported before graphs took scales."""
    models = Models(folder)
    expected = answers(Engine(OnnxModel(models.base.files, n_threads=1)), questions(models))
    monkeypatch.setattr(lora, "SCALE_INPUT", "of another name")
    old = OnnxModel(models.base.files, n_threads=1)
    assert not old.can_share(models.resolve("run").mix, models.resolve("second").mix)
    assert [c.token_ids for c in answers(Engine(old), questions(models))] == [c.token_ids for c in expected]


def test_a_file_that_was_read_anew_is_another_adapter_also_beside_the_old_one(folder, tmp_path):
    """Answers under way go on with what they began with, in one step with those that began behind the change."""
    like = folder / "adapters" / "run.safetensors"
    models = Models(folder, [random_adapter(like, tmp_path / "a.safetensors", seed=1)])
    old = models.resolve("a")
    models.unload("a")
    new = models.load("a", random_adapter(like, tmp_path / "a.safetensors", seed=4))
    model = OnnxModel(models.base.files, n_threads=1)

    def questions():
        return [new_sequence(k, s.files, s.files.encode(TEXTS[0]), SETTINGS, s.mix) for k, s in enumerate((old, new))]

    expected = [answers(Engine(model), [sequence])[0] for sequence in questions()]
    assert expected[0].token_ids != expected[1].token_ids
    found = answers(Engine(model), questions(), every=0)
    assert [c.token_ids for c in found] == [c.token_ids for c in expected]


def test_names_that_are_not_served_are_never_answered_by_another(folder):
    models = Models(folder)
    assert [served.name for served in models.all()] == ["base", "run", "second", "third"]
    assert models.resolve(None).name == "run"
    assert models.resolve("base").mix == ()
    for name in ("", "Run", "base:run", "nobody"):
        with pytest.raises(UnknownModel, match=f"model: '{name}' is not served here"):
            models.resolve(name)
    models.unload("run")
    with pytest.raises(UnknownModel, match="'run' is not served here"):
        models.resolve(None)
    with pytest.raises(UnknownModel, match="'run' is not loaded"):
        models.unload("run")


def test_the_base_reads_a_text_as_it_is_and_may_answer_at_length(folder):
    """An adapter keeps the prompt and the length of answers that it was made with."""
    models = Models(folder)
    base, second = (models.resolve(name).files for name in ("base", "second"))
    assert (base.prompt.before, base.prompt.after) == ("", "")
    assert second.prompt.before == "dog dog "
    assert base.max_new_tokens == 256 > second.max_new_tokens
    assert second.encode(TEXTS[0]) == base.encode(f"dog dog {TEXTS[0]}")


def test_the_first_adapter_named_answers_requests_without_a_name(folder, tmp_path):
    elsewhere = random_adapter(folder / "adapters" / "run.safetensors", tmp_path / "x.safetensors", seed=1)
    models = Models(folder, [f"mine={elsewhere}", "second", elsewhere])
    assert [served.name for served in models.all()] == ["base", "mine", "second", "x"]
    assert models.resolve(None).name == "mine"
    assert models.resolve("mine").parent == "base"
    assert Models(folder, ["none"]).resolve(None).name == "base"
    assert Models(folder, ["none", "second"]).resolve(None).name == "base"
    for names, message in ((["run", "run"], "the name 'run' is taken"), ([f"base={elsewhere}"], "'base' is taken")):
        with pytest.raises(InvalidInput, match=message):
            Models(folder, names)
    with pytest.raises(InvalidInput, match="adapter 'nobody': no such file"):
        Models(folder, ["nobody"])


def test_a_merged_folder_serves_one_model(folders):
    models = Models(folders["t5"])
    assert [served.name for served in models.all()] == ["t5"]
    assert models.resolve(None) is models.resolve("t5") is models.base
    with pytest.raises(InvalidInput, match="its module is merged, so it takes no adapter"):
        Models(folders["t5"], ["run"])


def test_a_watched_folder_is_followed(folder, tmp_path, caplog):
    """New files are served, changed ones anew, those that are gone no longer; a broken one costs nobody anything."""
    like, place = folder / "adapters" / "run.safetensors", tmp_path / "hub"
    random_adapter(like, place / "a.safetensors", seed=1)
    models = Models(folder, [place])
    assert [served.name for served in models.adapters()] == ["a"]
    first = models.resolve("a").files.adapter
    models.refresh()
    assert models.resolve("a").files.adapter is first
    random_adapter(like, place / "b.safetensors", seed=2)
    random_adapter(like, place / "a.safetensors", seed=3, rank=4)
    (place / "c.safetensors").write_bytes(b"not one")
    models.refresh()
    models.refresh()
    assert [served.name for served in models.adapters()] == ["a", "b"]
    assert models.resolve("a").files.adapter is not first
    assert [record.message.partition(": ")[0] for record in caplog.records] == ["an adapter was left out"]
    shutil.copyfile(place / "b.safetensors", place / "c.safetensors")
    (place / "b.safetensors").unlink()
    models.refresh()
    assert [served.name for served in models.adapters()] == ["a", "c"]


def test_a_broken_file_is_refused_and_the_others_go_on(folder, tmp_path):
    models = Models(folder)
    path = random_adapter(folder / "adapters" / "run.safetensors", tmp_path / "x.safetensors", seed=1)
    path.write_bytes(path.read_bytes()[:-4] + b"beef")
    with pytest.raises(UnsupportedFormat, match="is not what was exported"):
        models.load("x", path)
    with pytest.raises(InvalidInput, match="expected a name of 1 to 200 printable characters"):
        models.load("a\nb", folder / "adapters" / "second.safetensors")
    assert [served.name for served in models.adapters()] == ["run", "second", "third"]


def test_a_stack_is_made_once_for_the_adapters_of_a_batch(folder):
    """Rows come and go; as long as they want nothing new, the stack stays."""
    models = Models(folder)
    side = OnnxModel(models.base.files, n_threads=1)._sides[-1]
    mixes = [served.mix for served in models.adapters()]
    first = side.feeds(mixes)
    name = f"{side.targets[0]}.lora_A"
    assert side.feeds(mixes[:2])[name] is first[name]
    ranks = [2, 5, max(len(t) for n, t in mixes[0][0][0].tensors.items() if n.endswith("lora_A"))]
    assert view(first[lora.SCALE_INPUT]).shape == (3, 1, sum(ranks))
    assert view(side.feeds([(), mixes[1]])[lora.SCALE_INPUT])[0].any() == np.False_


def test_a_hostile_file_in_a_watched_folder_keeps_no_other_out(folder, tmp_path, caplog):
    """Metadata nested so deeply that JSON's reader gives up; the file stands before one that is whole."""
    like = folder / "adapters" / "run.safetensors"
    models = Models(folder, [tmp_path])
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "a.safetensors", {"lorahub_edge": "[" * 100_000})
    random_adapter(like, tmp_path / "b.safetensors", seed=1)
    models.refresh()
    models.refresh()
    assert [served.name for served in models.adapters()] == ["b"]
    assert [record.message.partition(": ")[0] for record in caplog.records] == ["an adapter was left out"]
    with pytest.raises(UnsupportedFormat, match="expected a file that lorahub-edge export --with-adapter wrote"):
        models.load("a", tmp_path / "a.safetensors")


def test_a_watched_folder_that_is_gone_for_a_while_takes_nothing_with_it(folder, tmp_path, caplog):
    """As when a drive is mounted again; the other folders are looked at meanwhile."""
    like, gone, here = folder / "adapters" / "run.safetensors", tmp_path / "gone", tmp_path / "here"
    random_adapter(like, gone / "a.safetensors", seed=1)
    here.mkdir()
    models = Models(folder, [gone, here])
    gone.rename(tmp_path / "elsewhere")
    random_adapter(like, here / "b.safetensors", seed=2)
    models.refresh()
    models.refresh()
    assert [served.name for served in models.adapters()] == ["a", "b"]
    [record] = caplog.records
    assert record.message.startswith("a folder of adapters cannot be looked at, and what is served stays: ")
    (tmp_path / "elsewhere").rename(gone)
    (gone / "a.safetensors").unlink()
    models.refresh()
    assert [served.name for served in models.adapters()] == ["b"]


def test_an_adapter_that_was_unloaded_comes_back_only_when_its_file_changes(folder, tmp_path):
    """Otherwise the folder that it lies in would bring it back at once."""
    like = folder / "adapters" / "run.safetensors"
    random_adapter(like, tmp_path / "a.safetensors", seed=1)
    models = Models(folder, [tmp_path])
    models.unload("a")
    models.refresh()
    assert models.adapters() == []
    random_adapter(like, tmp_path / "a.safetensors", seed=1, rank=4)
    models.refresh()
    assert [served.name for served in models.adapters()] == ["a"]
