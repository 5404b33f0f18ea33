"""merge: the folder is the composed model, and the report says what rounding left of the delta."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

import lorahub_edge
from lorahub_edge.adaptation import SidePath
from lorahub_edge.base import Int8Linear, Int8Weight
from lorahub_edge.errors import IncompatibleModules, InvalidInput, OutputExists
from lorahub_edge.kernels import ops
from lorahub_edge.merging import MergeLost
from lorahub_edge.merging.inject import inject_float, inject_int8
from lorahub_edge.modules import LoraFactors, ModuleStack, read_module
from tests import tiny
from tests.resealed import reseal

IDS = torch.tensor([[6, 11, 4, 9, 1], [12, 5, 8, 7, 1]])
KINDS = ["t5", "t5-tied", "llama", "gemma2", "gemma3"]


def logits(model, is_seq2seq):
    inputs = {"input_ids": IDS, "labels": IDS[:, :2].contiguous()} if is_seq2seq else {"input_ids": IDS}
    with torch.inference_mode():
        return model(**inputs).logits


@pytest.fixture(scope="session")
def runs(bases, module_folders, tmp_path_factory):
    """Kind -> run folder of a tiny adapted base."""
    root = tmp_path_factory.mktemp("runs")
    for kind in KINDS:
        lorahub_edge.adapt(
            str(bases[kind]), [str(module_folders[kind.partition("-")[0]])], list(tiny.ROWS), n_examples=4,
            budget=6, device="cpu", null_control=False, out=root / kind,
        )  # fmt: skip
    return {kind: root / kind for kind in KINDS}


def side_path_logits(run, precision):
    """The composed model as the search evaluated it: a side path beside a base of that precision."""
    manifest = json.loads((run / "manifest.json").read_text())
    base = lorahub_edge.load_base(manifest["base"]["spec"], precision=precision, device="cpu")
    stack = ModuleStack.build([read_module(run / "adapter")], base)
    side_path = SidePath(base, stack)
    with side_path.active(side_path.prepare(torch.ones(1, 1))):
        return logits(base.model, base.family.is_seq2seq)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_fp32_is_the_composed_model(runs, kind, tmp_path):
    merged = lorahub_edge.merge(runs[kind], tmp_path / "merged", precision="fp32")
    is_seq2seq = merged.base.family.is_seq2seq
    expected = side_path_logits(runs[kind], "fp32")
    torch.testing.assert_close(logits(merged.base.model, is_seq2seq), expected, rtol=1e-4, atol=1e-4)
    auto = AutoModelForSeq2SeqLM if is_seq2seq else AutoModelForCausalLM
    model = auto.from_pretrained(merged.folder, attn_implementation="eager").eval()
    torch.testing.assert_close(logits(model, is_seq2seq), expected, rtol=1e-4, atol=1e-4)
    assert merged.survival.survived == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_a_sum_of_deltas_merges_like_any_module(kind, bases, module_folders, tmp_path):
    run = tmp_path / "run"
    lorahub_edge.adapt(
        str(bases[kind]), [str(module_folders[kind])], list(tiny.ROWS), n_examples=4,
        budget=4, device="cpu", null_control=False, preset="paper", composition="deltas", out=run,
    )  # fmt: skip
    assert max(f.rank for f in read_module(run / "adapter").factors.values()) > 4
    merged = lorahub_edge.merge(run, tmp_path / "merged", precision="fp32")
    is_seq2seq = merged.base.family.is_seq2seq
    expected = side_path_logits(run, "fp32")
    torch.testing.assert_close(logits(merged.base.model, is_seq2seq), expected, rtol=1e-4, atol=1e-4)
    assert merged.survival.survived == pytest.approx(1, abs=1e-4)
    assert lorahub_edge.merge(run, in_place_int8=True).survival.survived > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_merged_int8_is_quantised_once_and_keeps_its_codes_on_disk(runs, kind, tmp_path):
    merged = lorahub_edge.merge(runs[kind], tmp_path / "merged")
    exact = lorahub_edge.merge(runs[kind], precision="fp32").base.model
    again = lorahub_edge.load_base(str(merged.folder), device="cpu").model
    for name, layer in merged.base.model.named_modules():
        if isinstance(layer, Int8Linear):
            expected = Int8Weight.from_float(exact.get_submodule(name).weight)
            for copy in (layer, again.get_submodule(name)):
                assert torch.equal(copy.codes, expected.codes), name
                assert torch.equal(copy.row_scale, expected.row_scale), name


@pytest.mark.parametrize("kind", ["t5", "t5-tied", "llama"])
def test_transformers_reads_the_merged_int8_folder(runs, kind, tmp_path):
    """Codes of a layer that transformers keeps in float must not be read as values."""
    merged = lorahub_edge.merge(runs[kind], tmp_path / "merged")
    is_seq2seq = merged.base.family.is_seq2seq
    auto = AutoModelForSeq2SeqLM if is_seq2seq else AutoModelForCausalLM
    model = auto.from_pretrained(merged.folder, device_map="cpu").eval()
    expected = logits(merged.base.model, is_seq2seq)
    # Both quantise activations, bitsandbytes after a rounding to half precision, which may move any code by one: a step
    # is 1/127 of the largest input, and few inputs average it out here. Codes read as values would be off by 100 %.
    assert (logits(model, is_seq2seq).float() - expected).abs().max() < 0.1 * expected.abs().max()


def test_in_place_merges_into_the_codes(runs, tmp_path):
    merged = lorahub_edge.merge(runs["t5"], tmp_path / "merged", in_place_int8=True)
    source = merged.source
    base = lorahub_edge.load_base(source.base_spec, device="cpu")
    for target, factors in source.module.factors.items():
        before = base.model.get_submodule(target).int8_weight.to_float()
        layer = merged.base.model.get_submodule(target)
        step = layer.row_scale[:, None]
        assert ((layer.int8_weight.to_float() - before - factors.delta()).abs() <= 0.5001 * step).all()
    assert json.loads((merged.folder / "survival.json").read_text())["n_targets"] == len(source.module.factors)


def test_an_int8_folder_is_no_float_source_but_can_be_merged_in_place(runs, bases, tmp_path, module_folders):
    saved = lorahub_edge.save_base(lorahub_edge.load_base(str(bases["t5"]), device="cpu"), tmp_path / "int8")
    lorahub_edge.adapt(
        str(saved), [str(module_folders["t5"])], list(tiny.ROWS), n_examples=4, budget=4, device="cpu",
        null_control=False, out=tmp_path / "run",
    )  # fmt: skip
    with pytest.raises(InvalidInput, match=r"holds int8 codes, no float source.*--in-place-int8"):
        lorahub_edge.merge(tmp_path / "run")
    assert lorahub_edge.merge(tmp_path / "run", in_place_int8=True).survival.survived > 0.9


def factors_of_rms(weight, steps, seed=0):
    """A rank-4 delta whose rms is so many steps of the int8 weight."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(4, weight.shape[1], generator=generator)
    b = torch.randn(weight.shape[0], 4, generator=generator)
    factors = LoraFactors(a, b, 1.0)
    step = Int8Weight.from_float(weight).row_scale.mean()
    return LoraFactors(a, b, float(steps * step / factors.delta().square().mean().sqrt()))


@pytest.mark.parametrize(("steps", "low", "high"), [(0.05, -0.01, 0.02), (2.0, 0.98, 1.02)])
def test_the_dead_zone_shows_in_the_report(steps, low, high):
    weight = torch.randn(96, 128, generator=torch.Generator().manual_seed(1))
    rounded = Int8Weight.from_float(weight)
    factors = factors_of_rms(rounded.to_float(), steps)
    report = inject_int8(rounded, factors).report
    assert low < float(report.survived.mean()) < high
    stochastic = inject_int8(rounded, factors, rounding=ops.Rounding("stochastic")).report
    assert float(stochastic.survived.mean()) == pytest.approx(1, abs=0.3)
    _, from_float = inject_float(weight, factors, dtype=torch.int8)
    assert float(from_float.report.survived.mean()) == pytest.approx(1, abs=0.3)
    assert float(report.delta_rms.square().mean().sqrt()) == pytest.approx(steps, rel=0.1)


def tiny_delta(run, folder):
    """The run with a composed module a thousand times smaller."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(run, folder)
    path = folder / "adapter" / "adapter_model.safetensors"
    save_file({k: v * 0.001 if "lora_B" in k else v for k, v in load_file(path).items()}, path)
    return reseal(folder)


def test_a_lost_delta_fails_closed(runs, tmp_path):
    run = tiny_delta(runs["t5"], tmp_path / "run")
    with pytest.raises(MergeLost, match=r"expected at least 90 %.*float source.*stochastic.*beside the base") as caught:
        lorahub_edge.merge(run, tmp_path / "merged", in_place_int8=True)
    assert caught.value.survival.survived < 0.9
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert lorahub_edge.merge(run, tmp_path / "merged", in_place_int8=True, min_survival=0).folder is not None


def test_a_base_that_is_gone_or_changed_is_named(runs, bases, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs["t5"], run)
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["base"]["spec"] = str(tmp_path / "gone")
    (run / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InvalidInput, match=r"its base cannot be loaded.*gone"):
        lorahub_edge.merge(run)
    manifest["base"]["spec"] = str(bases["t5-tied"])
    (run / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InvalidInput, match="has changed since the run"):
        lorahub_edge.merge(run)


def test_a_head_that_is_the_embedding_is_not_merged(runs, tmp_path):
    from safetensors.torch import load_file, save_file

    run = tmp_path / "run"
    shutil.copytree(runs["t5-tied"], run)
    path = run / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = "base_model.model.lm_head.lora_{}.weight"
    tensors |= {name.format("A"): torch.randn(4, 32), name.format("B"): torch.randn(len(tiny.WORDS), 4)}
    save_file(tensors, path)
    reseal(run)
    for in_place in (False, True):
        with pytest.raises(IncompatibleModules, match="'lm_head' is no linear layer of its own"):
            lorahub_edge.merge(run, in_place_int8=in_place)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "int4"}, "precision: expected one of int8, bf16, fp32"),
        ({"in_place_int8": True, "precision": "bf16"}, "expected precision int8, received 'bf16'"),
        ({"rounding": "up"}, "rounding: expected one of nearest, stochastic"),
        ({"rounding": "stochastic"}, "stochastic goes with --in-place-int8"),
        ({"min_survival": 2}, "min_survival: expected a number of at least 0 and at most 1, received 2"),
        ({"seed": -1}, "seed: expected a whole number of at least 0 and at most 4294967295, received -1"),
        ({"seed": 1.5}, "seed: expected a whole number"),
    ],
)
def test_bad_settings_are_refused(runs, settings, message):
    with pytest.raises(InvalidInput, match=message):
        lorahub_edge.merge(runs["t5"], **settings)


def test_an_existing_folder_and_a_folder_that_is_no_run_are_refused(runs, tmp_path):
    with pytest.raises(OutputExists):
        lorahub_edge.merge(runs["t5"], tmp_path)
    with pytest.raises(InvalidInput, match="is not a run folder"):
        lorahub_edge.merge(tmp_path)
