"""The stack composes by LoRAHub's rule, and bringing modules to a common form changes none of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorahub_edge.base import load_base
from lorahub_edge.errors import IncompatibleModules, InvalidInput
from lorahub_edge.modules import ModuleStack, load_modules, random_modules, read_module
from lorahub_edge.modules.layout import BLOCK
from tests import tiny


@pytest.fixture(scope="module")
def base(bases):
    return load_base(str(bases["t5"]), precision="fp32", device="cpu")


@pytest.fixture(scope="module")
def unlike_modules(bases, tmp_path_factory):
    """Modules that differ in rank, alpha, rank stabilisation and targets."""
    root = tmp_path_factory.mktemp("unlike")
    configs = [
        {},
        {"r": 2, "lora_alpha": 10},
        {"r": 8, "use_rslora": True, "lora_alpha": 3},
        {"target_modules": ["v", "wo"], "r": 3},
        {"lora_alpha": -4},
    ]
    folders = [tiny.save_module(bases["t5"], root / f"u{i}", "t5", seed=i, **c) for i, c in enumerate(configs)]
    return [read_module(f) for f in folders]


def delta(stack: ModuleStack, coefficients, target: str) -> torch.Tensor:
    module = stack.composed_module(torch.tensor(coefficients, dtype=torch.float64), "composed")
    return module.factors[target].delta() if target in module.factors else torch.zeros(())


def test_one_module_alone_is_itself_whatever_the_others_are(base, unlike_modules):
    stack = ModuleStack.build(unlike_modules, base)
    for k, module in enumerate(unlike_modules):
        for target in stack.targets:
            one = np.eye(len(unlike_modules))[k]
            if target.name in module.factors:
                expected = module.factors[target.name].delta()
            else:
                expected = torch.zeros(target.out_features, target.in_features)
            torch.testing.assert_close(delta(stack, one, target.name), expected, rtol=1e-5, atol=1e-6)


@given(st.lists(st.floats(-1.5, 1.5), min_size=4, max_size=4))
def test_equal_modules_compose_by_the_published_formula(base, module_folders, coefficients):
    """s * (sum c B) @ (sum c A), with cross terms; not the sum of the deltas."""
    modules = load_modules(module_folders["t5"])
    stack = ModuleStack.build(modules, base)
    target = "decoder.block.1.layer.1.EncDecAttention.v"
    factors = [m.factors[target] for m in modules]
    a = sum(c * f.A.double() for c, f in zip(coefficients, factors, strict=True))
    b = sum(c * f.B.double() for c, f in zip(coefficients, factors, strict=True))
    torch.testing.assert_close(delta(stack, coefficients, target).double(), 2.0 * b @ a, rtol=1e-4, atol=1e-5)


def test_a_composed_module_is_one_block_of_memory(base, unlike_modules):
    """It is made while the stack and what searched it are still there: a copy of every factor would double it."""
    stack = ModuleStack.build(unlike_modules, base)
    factors = stack.composed_module(torch.ones(5, dtype=torch.float64), "composed").factors.values()
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for f in factors for t in (f.A, f.B)}
    assert list(storages.values()) == [4 * stack.n_values]


def test_signs_flipped_give_the_same_model_and_zero_gives_none(base, unlike_modules):
    stack = ModuleStack.build(unlike_modules, base)
    c = np.array([0.3, -1.1, 0.7, 0.2, 1.4])
    for target in stack.targets:
        assert torch.equal(delta(stack, c, target.name), delta(stack, -c, target.name))
        assert not delta(stack, 0 * c, target.name).any()


def summed(stack: ModuleStack, coefficients) -> dict[str, torch.Tensor]:
    module = stack.composed_by("deltas").composed_module(torch.tensor(coefficients, dtype=torch.float64), "composed")
    return {target: factors.delta().double() for target, factors in module.factors.items()}


@given(st.lists(st.floats(-1.5, 1.5), min_size=5, max_size=5))
def test_by_rule_deltas_what_modules_do_alone_adds_up(base, unlike_modules, coefficients):
    stack = ModuleStack.build(unlike_modules, base)
    got = summed(stack, coefficients)
    for target in stack.targets:
        alone = [
            c * m.factors[target.name].delta().double()
            for c, m in zip(coefficients, unlike_modules, strict=True)
            if target.name in m.factors
        ]
        torch.testing.assert_close(got[target.name], sum(alone), rtol=1e-4, atol=1e-5)


def test_by_rule_deltas_ranks_add_up_where_a_module_is_used(base, unlike_modules):
    stack = ModuleStack.build(unlike_modules, base).composed_by("deltas")
    ranks = {target.name: 0 for target in stack.targets}
    for k in (0, 1, 3):
        for target, factors in unlike_modules[k].factors.items():
            ranks[target] += factors.rank
    c = torch.tensor([0.5, -1.0, 0, 1e-3, 0], dtype=torch.float64)
    found = stack.composed_module(c, "composed").factors
    assert {target: factors.rank for target, factors in found.items()} == ranks
    nothing = stack.composed_module(0 * c, "composed").factors.values()
    assert [(f.rank, bool(f.delta().any())) for f in nothing] == [(1, False)] * len(stack.targets)


def test_by_rule_deltas_signs_flipped_give_the_delta_flipped(base, unlike_modules):
    stack = ModuleStack.build(unlike_modules, base)
    c = np.array([0.3, -1.1, 0.7, 0.2, 1.4])
    there, back = summed(stack, c), summed(stack, -c)
    for target, delta_there in there.items():
        assert torch.equal(delta_there, -back[target])
        assert delta_there.any()


def test_a_sum_of_many_deltas_has_no_more_rank_than_its_layer(bases, base, tmp_path):
    """A module of more could not be read again: it would be larger than the layer."""
    folders = [tiny.save_module(bases["t5"], tmp_path / f"m{k}", "t5", seed=k, r=16) for k in range(5)]
    modules = [read_module(folder) for folder in folders]
    stack = ModuleStack.build(modules, base).composed_by("deltas")
    composed = stack.composed_module(torch.ones(5), "composed")
    for target, factors in composed.factors.items():
        assert factors.rank == 32
        expected = sum(m.factors[target].delta() for m in modules)
        torch.testing.assert_close(factors.delta(), expected, rtol=1e-4, atol=1e-5)


def test_order_of_modules_does_not_matter(base, unlike_modules):
    c = [0.3, -1.1, 0.7, 0.2, 1.4]
    there = ModuleStack.build(unlike_modules, base)
    back = ModuleStack.build(unlike_modules[::-1], base)
    for target in there.targets:
        # the common scaling is another one, so float32 rounds differently
        torch.testing.assert_close(
            delta(there, c, target.name), delta(back, c[::-1], target.name), rtol=1e-4, atol=1e-5
        )


def test_modules_for_another_base_are_refused_with_module_target_and_shapes(bases, module_folders, base, tmp_path):
    with pytest.raises(IncompatibleModules, match=r"'m0' changes 'model\.layers.*another base"):
        ModuleStack.build(load_modules(module_folders["llama"]), base)
    wide = tiny.save_model(_wide_t5(), tmp_path / "wide", "t5")
    module = read_module(tiny.save_module(wide, tmp_path / "w", "t5", seed=0))
    with pytest.raises(IncompatibleModules, match=r"'w' at '.*': expected .*\(32, 32\).*received \(32, 48\)"):
        ModuleStack.build([module], base)


def _wide_t5():
    from transformers import AutoModelForSeq2SeqLM, T5Config

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tiny.WORDS), d_model=48, d_kv=8, num_heads=4, d_ff=64, num_layers=2,
        feed_forward_proj="gated-gelu", decoder_start_token_id=0,
    )  # fmt: skip
    return AutoModelForSeq2SeqLM.from_config(config)


def test_no_modules_or_the_same_twice_is_refused(base, module_folders):
    with pytest.raises(IncompatibleModules, match="no LoRA modules"):
        ModuleStack.build([], base)
    module = read_module(module_folders["t5"] / "m0")
    with pytest.raises(IncompatibleModules, match="'m0' occurs twice"):
        ModuleStack.build([module, module], base)


def test_random_modules_have_the_size_of_the_real_ones_and_nothing_else_of_them(base, unlike_modules):
    stack = ModuleStack.build(unlike_modules, base)
    null = random_modules(stack, seed=3)
    for target in stack.targets:
        real, noise = target.A(stack.rows(slice(None))), target.A(null.rows(slice(None)))
        # rms of a few hundred Gaussian numbers scatters by about 1/sqrt(2 n)
        expected, received = (values.square().mean((1, 2)).sqrt() for values in (real, noise))
        torch.testing.assert_close(received, expected, rtol=6 / (2 * real[0].numel()) ** 0.5, atol=0)
    assert torch.equal(null.values, random_modules(stack, seed=3).values)
    assert not torch.equal(null.values, random_modules(stack, seed=4).values)
    assert abs(torch.corrcoef(torch.stack([stack.rows(slice(None))[0], null.rows(slice(None))[0]]))[0, 1]) < 0.1


def test_every_factor_starts_at_a_block_and_padding_is_zero(base, unlike_modules):
    stack = ModuleStack.build(unlike_modules, base)
    rows, is_used = stack.rows(slice(None)), torch.zeros(stack.rows(slice(None)).shape[1], dtype=torch.bool)
    for target in stack.targets:
        assert target.a_offset % BLOCK == target.b_offset % BLOCK == 0
        for blocks, factor in ((target.a_blocks, target.A(rows)), (target.b_blocks, target.B(rows))):
            n_values = factor[0].numel()
            assert torch.equal(stack.rows(blocks)[:, :n_values], factor.flatten(1))
            assert not is_used[blocks.start * BLOCK : blocks.stop * BLOCK].any()
            is_used[blocks.start * BLOCK : blocks.start * BLOCK + n_values] = True
    assert not is_used.all()
    assert not rows[:, ~is_used].any()


def test_specs_name_folders_collections_and_list_files(module_folders, tmp_path):
    root = module_folders["t5"]
    assert [m.name for m in load_modules(root)] == ["m0", "m1", "m2", "m3"]
    assert [m.name for m in load_modules([str(root / "m2"), root / "m0"])] == ["m2", "m0"]
    listing = tmp_path / "modules.txt"
    listing.write_text(f"# my hub\n{root / 'm3'}\n\n{root / 'm1'}  # a good one\n")
    assert [m.name for m in load_modules(str(listing))] == ["m3", "m1"]


def test_a_list_file_may_name_folders_beside_itself(module_folders, tmp_path):
    import shutil

    shutil.copytree(module_folders["t5"] / "m0", tmp_path / "hub" / "lora")
    (tmp_path / "hub" / "list.txt").write_text("lora\n")
    assert [m.name for m in load_modules(tmp_path / "hub" / "list.txt")] == ["lora"]


def test_folders_of_one_name_are_told_apart_by_their_parents(module_folders, tmp_path):
    import shutil

    for task in ("cola", "sst2"):
        shutil.copytree(module_folders["t5"] / "m0", tmp_path / task / "lora")
    names = [m.name for m in load_modules([tmp_path / "cola" / "lora", tmp_path / "sst2" / "lora"])]
    assert names == ["cola/lora", "sst2/lora"]
    shutil.copytree(tmp_path / "cola", tmp_path / "again" / "cola")
    specs = [tmp_path / "cola" / "lora", tmp_path / "again" / "cola" / "lora"]
    assert [m.name for m in load_modules(specs)] == [str(s) for s in specs]


@pytest.mark.parametrize("spec", ["nowhere", "./nowhere", "pocket/no_such_module", "a b c"])
def test_an_unknown_spec_is_refused_with_what_was_expected(spec, monkeypatch):
    monkeypatch.setattr("lorahub_edge.sources._download", _no_hub)
    with pytest.raises(InvalidInput, match=r"module '.*"):
        load_modules(spec)


def _no_hub(spec: str, *_: object) -> None:
    raise InvalidInput(f"module '{spec}': the Hub did not deliver it")


def test_an_empty_folder_is_refused(tmp_path: Path):
    with pytest.raises(InvalidInput, match=r"has no adapter_config\.json, and neither has any folder in it"):
        load_modules(tmp_path)
