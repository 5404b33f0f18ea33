"""Rule "deltas": candidates of one call give what each one's concatenated module gives alone."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

import lorahub_edge
from lorahub_edge.adaptation import AdaptedModel, Objective, PopulationForward, SidePath, population
from lorahub_edge.adaptation.graphs import CallGraphs
from lorahub_edge.adaptation.objective import objective_on
from lorahub_edge.adaptation.settings import RunSettings
from lorahub_edge.base import load_base
from lorahub_edge.base.engines import layer_engines, set_engines
from lorahub_edge.errors import InvalidInput
from lorahub_edge.modules import FactorsInUse, ModuleStack, find_modules, load_modules, load_stack, read_module
from lorahub_edge.tasks import Example, PromptFormat
from tests import tiny

KINDS = ["t5", "llama"]
EXAMPLES = [Example(*row) for row in tiny.ROWS]
RNG = np.random.default_rng(0)
SPARSE = np.array([[0, 0.8, 0, -1.2], [0, 0, 0, 0], [1, 0, 0, 0], [0, -0.4, 0, 0.9]])
COEFFICIENTS = torch.from_numpy(np.concatenate([SPARSE, RNG.uniform(-1, 1, (4, 4))]))
FAST = {"n_examples": 4, "budget": 8, "device": "cpu", "cache": False}


@pytest.fixture(scope="module")
def unlike_folders(bases, tmp_path_factory):
    """Kind -> modules that differ in rank, scaling and targets."""
    root = tmp_path_factory.mktemp("unlike")
    targets = {"t5": ["v", "wo"], "llama": ["v_proj", "down_proj"]}
    folders = {}
    for kind in KINDS:
        configs = [{}, {"r": 2, "lora_alpha": 10}, {"r": 3, "target_modules": targets[kind]}, {"lora_alpha": -4}]
        folders[kind] = root / kind
        for k, config in enumerate(configs):
            tiny.save_module(bases[kind], root / kind / f"u{k}", kind, seed=k, **config)
    return folders


def load(kind, bases, folders, precision="int8", engine=None, dtype="fp32"):
    base = load_base(str(bases[kind]), precision=precision, device="cpu")
    if engine:
        set_engines(base.model, dict.fromkeys(layer_engines(base.model), engine))
    stack = ModuleStack.build(load_modules(folders[kind]), base, dtype=dtype)
    return base, stack.composed_by("deltas"), PromptFormat.for_base(base)


def losses(base, stack, prompt, coefficients=COEFFICIENTS, **options):
    with PopulationForward(base, stack, prompt.encode_all(EXAMPLES), **options).ready() as forward:
        return forward.negative_log_likelihoods(coefficients)


def losses_alone(base, stack, prompt, c):
    """Of the composed module without any other candidate, by rule "factors"."""
    alone = ModuleStack.build([stack.composed_module(c, "composed")], base)
    return losses(base, alone, prompt, torch.ones(1, 1))[0]


# Losses are equal to rounding. Engines that round their inputs carry a last bit over to the next of 127 codes, or of
# 127 * 127 where they are split, now and then; that one layer is exact with them too, tests/base/test_int8.py says.
@pytest.mark.parametrize(
    ("precision", "engine", "dtype", "tolerance"),
    [
        ("fp32", None, "fp32", 1e-5),
        ("fp32", None, "bf16", 1e-5),
        ("fp32", None, "int8", 1e-5),
        ("int8", "dequantize", "fp32", 1e-5),
        ("int8", "dequantize", "int8", 1e-5),
        ("int8", "int8", "fp32", 1 / 127),
        ("int8", "int8-split", "fp32", 2e-4),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_candidates_of_one_call_equal_their_concatenated_modules(
    kind, precision, engine, dtype, tolerance, bases, unlike_folders
):
    base, stack, prompt = load(kind, bases, unlike_folders, precision, engine, dtype)
    together = losses(base, stack, prompt)
    alone = torch.stack([losses_alone(base, stack, prompt, c) for c in COEFFICIENTS])
    np.testing.assert_allclose(together, alone, rtol=tolerance, atol=1e-5)
    assert together.std(dim=0).min() > 0.01, "the candidates must differ, or nothing is compared"


@pytest.mark.parametrize("kind", KINDS)
def test_signs_mean_something(kind, bases, unlike_folders):
    base, stack, prompt = load(kind, bases, unlike_folders)
    there, back = (losses(base, stack, prompt, sign * COEFFICIENTS) for sign in (1, -1))
    assert ((there - back).abs().amax(dim=1) > 0.1).tolist() == [bool(c.any()) for c in COEFFICIENTS]
    by_factors = stack.composed_by("factors")
    there, back = (losses(base, by_factors, prompt, sign * COEFFICIENTS) for sign in (1, -1))
    assert torch.equal(there, back)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_module_alone_is_the_same_by_both_rules_and_no_module_is_the_base(precision, bases, unlike_folders):
    base, stack, prompt = load("t5", bases, unlike_folders, precision)
    points = torch.cat([torch.eye(4), torch.zeros(1, 4)]).double()
    deltas = losses(base, stack, prompt, points)
    np.testing.assert_allclose(deltas, losses(base, stack.composed_by("factors"), prompt, points), rtol=1e-5)
    ids = torch.tensor([prompt.encode(EXAMPLES[0]).input_ids])
    with torch.inference_mode():
        path, inputs = SidePath(base, stack), {"input_ids": ids, "decoder_input_ids": torch.tensor([[0]])}
        expected = base.model(**inputs).logits
        with path.active(path.prepare(torch.zeros(1, 4))):
            assert torch.equal(base.model(**inputs).logits, expected)
        with path.active(path.prepare(torch.ones(1, 4))):
            assert not torch.equal(base.model(**inputs).logits, expected)


def test_a_module_that_overflows_shows_in_its_own_candidates_only(bases, module_folders):
    """Its inner products are infinite, and 0 times that is no number."""
    base = load_base(str(bases["t5"]), precision="fp32", device="cpu")
    wild, tame = (read_module(module_folders["t5"] / name) for name in ("m0", "m1"))
    wild = replace(wild, factors={t: replace(f, A=torch.full_like(f.A, 3e38)) for t, f in wild.factors.items()})
    stack = ModuleStack.build([wild, tame], base).composed_by("deltas")
    prompt = PromptFormat.for_base(base)
    wild, tame = losses(base, stack, prompt, torch.eye(2).double())
    assert not torch.isfinite(wild).any()
    assert torch.isfinite(tame).all()


def test_lanes_share_the_factors_and_give_what_one_gives(bases, unlike_folders, two_threads, monkeypatch):
    base, stack, prompt = load("t5", bases, unlike_folders)
    taken = []
    side_by_side = ModuleStack.side_by_side
    monkeypatch.setattr(
        ModuleStack, "side_by_side", lambda self, t, modules: taken.append(modules) or side_by_side(self, t, modules)
    )
    in_lanes = losses(base, stack, prompt, tokens_per_call=160)
    assert taken == [[0, 1, 2, 3]] * len(stack.targets)
    torch.set_num_threads(1)
    np.testing.assert_allclose(in_lanes, losses(base, stack, prompt), rtol=2e-4, atol=2e-4)


def test_only_modules_in_use_are_taken_and_their_places_stay(bases, unlike_folders):
    """Which is what a CUDA graph needs: it reads where it read when it was recorded."""
    base, stack, _ = load("t5", bases, unlike_folders)
    shared = FactorsInUse(stack, torch.float32)
    path = SidePath(base, stack, in_use=shared)
    seen = []
    for coefficients, modules in ((COEFFICIENTS[:2], [1, 3]), (COEFFICIENTS[:3], [0, 1, 3]), (COEFFICIENTS[2:3], [0])):
        path.begin(coefficients)
        assert shared.modules == modules
        assert path.prepare(coefficients).shape == (len(coefficients), len(modules))
        seen.append([(A.data_ptr(), B.data_ptr()) for _, A, B in shared])
        for target, A, B in shared:
            expected = sum(stack.composed_by("factors").composed_module(e, "").factors[target.name].delta()
                           for e in torch.eye(4)[modules])  # fmt: skip
            torch.testing.assert_close(target.scaling * B @ A, expected, rtol=1e-4, atol=1e-5)
    assert seen[0] == seen[1] == seen[2]


def test_recordings_are_kept_apart_by_the_number_of_modules_in_use(bases, unlike_folders, monkeypatch):
    base, stack, prompt = load("t5", bases, unlike_folders)
    monkeypatch.setattr(population, "graphs_on", lambda *_: CallGraphs(lambda compute: compute))
    with PopulationForward(base, stack, prompt.encode_all(EXAMPLES)).ready() as forward:
        for modules in ([0, 1], [2, 3], [0, 1, 2]):
            c = torch.zeros(2, 4, dtype=torch.float64)
            c[:, modules] = 0.5
            forward.negative_log_likelihoods(c)
        assert [(r["candidates"], r["calls"]) for r in forward.recordings()] == [(2, 2), (2, 1)]


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_injected_it_is_the_concatenated_module_injected(dtype, bases, unlike_folders):
    base, stack, prompt = load("t5", bases, unlike_folders, dtype=dtype)
    for c in COEFFICIENTS[[0, 1, 5]]:
        alone = ModuleStack.build([stack.composed_module(c, "composed")], base)
        expected = losses(base, alone, prompt, torch.ones(1, 1), evaluate_by="inject")
        injected = losses(base, stack, prompt, c[None], evaluate_by="inject")
        # a value that the last bit of a delta carries over a tie is one step of 127 off
        np.testing.assert_allclose(injected, expected, rtol=1 / 127)


def test_a_mapped_stack_is_read_where_it_lies(bases, unlike_folders, tmp_path):
    from lorahub_edge.cache import Cache

    base, stack, prompt = load("t5", bases, unlike_folders, "fp32")
    mapped = load_stack(find_modules(unlike_folders["t5"]), base, mapping="mmap", cache=Cache(tmp_path))
    assert torch.equal(losses(base, mapped.composed_by("deltas"), prompt), losses(base, stack, prompt))


def test_settings_and_stack_must_agree(bases, unlike_folders):
    base, stack, prompt = load("t5", bases, unlike_folders)
    settings = RunSettings().search(4)
    with (
        pytest.raises(ValueError, match="expected a stack composed by 'factors', received 'deltas'"),
        objective_on(base, stack, prompt.encode_all(EXAMPLES), settings),
    ):
        pass
    with pytest.raises(InvalidInput, match="composition: expected one of factors, deltas, received 'linear'"):
        RunSettings(composition="linear")
    with pytest.raises(InvalidInput, match="rank: expected a whole number of at least 1"):
        RunSettings(rank=0)


@pytest.fixture(scope="module", params=KINDS)
def run(request, bases, unlike_folders, tmp_path_factory):
    """A run by rule "deltas", with its kind."""
    folder = tmp_path_factory.mktemp("deltas") / request.param
    arguments = (str(bases[request.param]), str(unlike_folders[request.param]), tiny.ROWS)
    found = lorahub_edge.adapt(*arguments, **FAST, precision="fp32", composition="deltas", out=folder)
    return request.param, found


def test_peft_answers_as_the_run_does(run, bases):
    """With ranks and alphas that differ from target to target."""
    kind, found = run
    ranks = {factors.rank for factors in found.module.factors.values()}
    config = json.loads((found.folder / "adapter" / "adapter_config.json").read_text())
    assert len(ranks) > 1
    assert {config["r"], *config["rank_pattern"].values()} == ranks
    auto = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    peft = PeftModel.from_pretrained(auto.from_pretrained(bases[kind]), found.folder / "adapter").eval()
    ids = torch.tensor([[6, 11, 4, 9, 1]])
    inputs = {"input_ids": ids, "decoder_input_ids": ids[:, :2]} if kind == "t5" else {"input_ids": ids}
    base = found.model.base
    with torch.inference_mode():
        plain = base.model(**inputs).logits
        stack = ModuleStack.build([read_module(found.folder / "adapter")], base)
        path = SidePath(base, stack)
        with path.active(path.prepare(torch.ones(1, 1))):
            ours = base.model(**inputs).logits
        torch.testing.assert_close(ours, peft(**inputs).logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours, plain, atol=1e-2)


def test_a_run_says_how_it_composed_and_its_model_has_the_loss_that_was_found(run):
    _, found = run
    assert found.manifest["search"]["composition"] == "deltas"
    assert found.manifest["rank_cut"] is None
    assert found.model.loss(found.task.examples) == pytest.approx(found.loss, rel=1e-5)
    assert found.row("random-LoRA null").value.mean_loss != found.loss
    assert lorahub_edge.load_adapted(found.folder, device="cpu").predict(["is red a dog ?"]) == found.predict(
        ["is red a dog ?"]
    )
    assert "takes away what its module adds" in (found.folder / "report.html").read_text()


def test_the_null_control_adds_up_by_the_same_rule(bases, module_folders, monkeypatch):
    seen = []
    begin = SidePath.begin
    monkeypatch.setattr(SidePath, "begin", lambda self, c: seen.append(type(self._sides).__name__) or begin(self, c))
    lorahub_edge.adapt(
        str(bases["t5"]), str(module_folders["t5"]), tiny.ROWS, **{**FAST, "budget": 2}, composition="deltas"
    )
    assert set(seen) == {"_Deltas"}


def test_a_table_answers_with_the_sum(bases, module_folders):
    """Exact match is that of the concatenated module, not of composed factors."""
    base, stack, prompt = load("t5", bases, module_folders, "fp32")
    c = COEFFICIENTS[4]
    texts = [e.input for e in EXAMPLES]
    summed = AdaptedModel(base, stack, c, prompt, 6).predict(texts)
    alone = AdaptedModel.of_module(base, stack.composed_module(c, "composed"), prompt, 6)
    assert summed == alone.predict(texts)
    assert summed != AdaptedModel(base, stack.composed_by("factors"), c, prompt, 6).predict(texts)


@pytest.mark.parametrize("composition", ["factors", "deltas"])
def test_a_run_cut_to_a_rank_says_what_that_costs(composition, bases, module_folders, tmp_path, capsys):
    arguments = (str(bases["llama"]), str(module_folders["llama"]), tiny.ROWS)
    settings = {**FAST, "null_control": False, "precision": "fp32", "composition": composition}
    whole = lorahub_edge.adapt(*arguments, **settings)
    cut = lorahub_edge.adapt(*arguments, **settings, rank=2, out=tmp_path / "run")
    assert cut.coefficients == whole.coefficients
    record = json.loads((cut.folder / "manifest.json").read_text())["rank_cut"]
    assert record == json.loads((cut.folder / "report.json").read_text())["rank_cut"]
    assert (record["rank"], record["rank_before"]) == (2, max(f.rank for f in whole.module.factors.values()))
    lost = [whole.module.factors[t].delta() - f.delta() for t, f in cut.module.factors.items()]
    norm = torch.stack([f.delta().square().sum() for f in whole.module.factors.values()]).sum().sqrt()
    error = torch.stack([d.square().sum() for d in lost]).sum().sqrt() / norm
    assert record["relative_error"] == pytest.approx(float(error), rel=1e-4)
    assert 0.01 < record["relative_error"] < 1
    assert record["loss"] == pytest.approx(cut.model.loss(cut.task.examples), rel=1e-5)
    assert record["loss"] != pytest.approx(cut.loss, rel=1e-3)
    assert {f.rank for f in read_module(cut.folder / "adapter").factors.values()} == {2}
    from lorahub_edge.terminal import print_run

    print_run(cut.report())
    assert f"adapter cut from rank {record['rank_before']} to 2: relative error" in capsys.readouterr().out


def test_an_objective_of_singles_is_the_same_by_both_rules(bases, module_folders):
    base, stack, prompt = load("t5", bases, module_folders, "fp32")
    values = []
    for composition in ("factors", "deltas"):
        settings = RunSettings(composition=composition).search(4)
        with objective_on(base, stack.composed_by(composition), prompt.encode_all(EXAMPLES), settings) as objective:
            assert isinstance(objective, Objective)
            values.append([v.objective for v in objective(np.eye(4))])
    np.testing.assert_allclose(*values, rtol=1e-5)
