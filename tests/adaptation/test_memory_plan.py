"""The plan: known before weights are read, right about what is loaded, and kept to."""

import dataclasses

import pytest
import torch

import lorahub_edge
from bench.t5_large import SHAPES
from lorahub_edge.adaptation import MemoryExceeded, choose_plan, memory_plan
from lorahub_edge.adaptation.buckets import CallLimits, bucket_rows
from lorahub_edge.adaptation.memory_plan import MemoryPlan, check_use, memory_errors
from lorahub_edge.base import load_base, open_base
from lorahub_edge.errors import InvalidInput
from lorahub_edge.measure import parse_bytes
from lorahub_edge.modules import ModuleStack, find_modules
from lorahub_edge.tasks import EncodedExample, Example, PromptFormat
from tests import tiny
from tests.hollow import write_hollow_base, write_hollow_modules

FAST = {"budget": 3, "null_control": False}
LONG_ROWS = [
    {"input": "a red cat " * 29 + f"a red {word}", "target": "a"} for word in ("cat", "dog", "fish", "yes", "no")
]


@pytest.mark.parametrize("precision", ["int8", "fp32", "bf16"])
@pytest.mark.parametrize("kind", ["t5", "t5-tied", "llama", "llama-tied", "gemma2", "gemma3"])
def test_an_open_base_knows_the_shapes_and_bytes_of_the_loaded_one(bases, kind, precision):
    opened = open_base(str(bases[kind]), precision=precision, device="cpu")
    base = load_base(str(bases[kind]), precision=precision, device="cpu")
    assert opened.linear_shapes() == base.linear_shapes()
    # what a model computes from its config (rotary frequencies, Gemma's embedding scale) is a few floats
    assert 0 <= base.weight_bytes() - opened.weight_bytes() < 256


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
def test_the_planned_stack_is_the_stack(bases, module_folders, dtype):
    plan = lorahub_edge.plan(str(bases["t5"]), module_folders["t5"], tiny.ROWS, stack_dtype=dtype)[0]
    stack = ModuleStack.build(find_modules(module_folders["t5"]), load_base(str(bases["t5"])), dtype=dtype)
    assert plan.stack_bytes == stack.n_bytes
    assert plan.peak_bytes == plan.runtime_bytes + plan.base_bytes + plan.stack_bytes + plan.workspace_bytes


def test_the_first_plan_gives_up_nothing_and_later_ones_need_less(bases, module_folders):
    plans = lorahub_edge.plan(str(bases["t5"]), module_folders["t5"], tiny.ROWS)
    assert (plans[0].stack_dtype, plans[0].mapping) == ("fp32", "resident")
    assert choose_plan(plans) is plans[0]
    assert {(p.stack_dtype, p.mapping) for p in plans} == {
        (d, m) for d in ("fp32", "bf16", "int8") for m in ("resident", "mmap")
    }
    assert min(p.needed_bytes for p in plans) < plans[0].needed_bytes
    assert {p.mapping for p in lorahub_edge.plan(str(bases["t5"]), module_folders["t5"], tiny.ROWS, cache=False)} == {
        "resident"
    }


def plan_of(**changes):
    parts = {"runtime_bytes": 10, "base_bytes": 20, "stack_bytes": 30, "workspace_bytes": 40}
    return MemoryPlan("cpu", **parts, stack_dtype="bf16", mapping="resident", tokens_per_call=640, **changes)


def test_a_plan_fits_what_it_needs_and_not_a_byte_less():
    assert plan_of().fits
    assert plan_of(budget_bytes=100).fits
    assert not plan_of(budget_bytes=99).fits
    mapped = dataclasses.replace(plan_of(budget_bytes=70), mapping="mmap")
    assert mapped.fits
    assert mapped.peak_bytes == 100
    frugal = dataclasses.replace(plan_of(budget_bytes=50), workspace_bytes=1)
    assert choose_plan([plan_of(budget_bytes=50), frugal]) is frugal


def test_room_is_left_for_the_composed_module(bases, module_folders, monkeypatch):
    """The null control searches while it is there."""
    monkeypatch.setattr("lorahub_edge.adaptation.memory_plan._call_bytes", lambda *_: 10**9)
    plan = lorahub_edge.plan(str(bases["t5"]), module_folders["t5"], tiny.ROWS, device="cpu", stack_dtype="fp32")[0]
    stack = ModuleStack.build(find_modules(module_folders["t5"]), load_base(str(bases["t5"]), device="cpu"))
    assert plan.workspace_bytes == 10**9 + 4 * stack.n_values


def test_room_is_left_for_the_factors_that_candidates_share(bases, module_folders, monkeypatch):
    """By rule "deltas": of all modules, since the uniform mean uses all; once, however many lanes there are."""
    monkeypatch.setattr("lorahub_edge.adaptation.memory_plan._call_bytes", lambda *_: 0)
    arguments = (str(bases["t5"]), module_folders["t5"], tiny.ROWS)
    base = load_base(str(bases["t5"]), device="cpu")
    stack = ModuleStack.build(find_modules(module_folders["t5"]), base).composed_by("deltas")
    module = stack.composed_module(torch.ones(4), "composed")
    for dtype in ("fp32", "int8"):
        plan = lorahub_edge.plan(*arguments, device="cpu", stack_dtype=dtype, composition="deltas")[0]
        module_bytes = sum(4 * (f.A.numel() + f.B.numel()) for f in module.factors.values())
        one_target = 3 * 4 * 4 * (4 * 32)  # three copies of four modules' A or B of rank 4
        assert plan.workspace_bytes == 4 * 4 * stack.n_values + one_target + module_bytes


def test_wide_inner_products_are_planned(bases, module_folders):
    arguments = (str(bases["t5"]), module_folders["t5"], LONG_ROWS)

    def workspace(composition, n_modules):
        folders = [str(module_folders["t5"] / f"m{k}") for k in range(n_modules)]
        plans = lorahub_edge.plan(arguments[0], folders, arguments[2], device="cpu", composition=composition)
        return plans[0].workspace_bytes

    shared = 4 * ModuleStack.build(find_modules(module_folders["t5"]), load_base(arguments[0], device="cpu")).n_values
    grown = workspace("deltas", 4) - workspace("deltas", 1)
    assert grown > 3 * shared + 3 * shared  # factors in use, the composed module, and 12 ranks of inner products a row
    assert workspace("factors", 4) == workspace("factors", 1)


def test_room_is_left_for_recordings_of_calls(bases, module_folders, monkeypatch):
    """What a CUDA graph computes stays in its place, beside what the next call computes; the factors are there once."""

    def workspace(n_kept):
        monkeypatch.setattr(memory_plan, "graphs_on", lambda *_: object() if n_kept == 2 else None)
        monkeypatch.setattr(memory_plan, "_call_bytes", lambda *of: call_bytes(*of[:-1], n_kept and of[-1]))
        return lorahub_edge.plan(str(bases["t5"]), module_folders["t5"], LONG_ROWS, device="cpu")[0].workspace_bytes

    call_bytes = memory_plan._call_bytes
    factors, launched, recorded = map(workspace, (0, 1, 2))
    assert factors < launched
    assert recorded - launched == launched - factors


def test_nothing_is_planned_per_pair_of_tokens_where_our_attention_computes(bases, module_folders, monkeypatch):
    """A float base, and another instruction set, have T5's bias written out: twice four bytes per head and pair."""

    def workspace_bytes(precision):
        plans = lorahub_edge.plan(str(bases["t5"]), module_folders["t5"], LONG_ROWS, device="cpu", precision=precision)
        return plans[0].workspace_bytes

    monkeypatch.setattr("lorahub_edge.base.attention._is_fast_on", lambda device: True)
    by_distance, written_out = workspace_bytes("int8"), workspace_bytes("fp32")
    monkeypatch.setattr("lorahub_edge.base.attention._is_fast_on", lambda device: False)
    assert workspace_bytes("int8") == workspace_bytes("fp32") == written_out
    base = open_base(str(bases["t5"]), precision="int8", device="cpu")
    example = PromptFormat.for_base(base).encode_all([Example("a red cat " * 30, "a")])[0]
    n_pairs = (len(example.input_ids) + len(example.target_ids)) ** 2
    assert written_out - by_distance == 2 * 4 * base.model.config.num_heads * n_pairs


@pytest.fixture
def long_examples():
    """Of 81 and 7 tokens, as the benches have them."""
    return [(" ".join(f"w{3 + 80 * k + i}" for i in range(80)), "w3 w4 w5 w6 w7 w8") for k in range(5)]


@pytest.mark.parametrize(("shape", "n_modules", "limit"), [("xl", 20, "5GB"), ("large", 196, "3.5GB")])
def test_flan_t5_is_planned_for_a_card_that_is_not_there(shape, n_modules, limit, long_examples, tmp_path):
    """The issue's bounds; no weight is read: there is none."""
    base = write_hollow_base(tmp_path / "base", SHAPES[shape]())
    modules = write_hollow_modules(tmp_path / "modules", base, n_modules)
    plans = lorahub_edge.plan(base, modules, long_examples, device="cuda", max_memory=limit, cache=False)
    chosen = choose_plan(plans)
    assert chosen.fits
    assert (chosen.device, chosen.runtime_bytes) == ("cuda", 0)
    assert chosen.headline().endswith("on the GPU, beside what CUDA itself takes")


def test_what_a_card_holds_is_counted_part_by_part(long_examples, tmp_path):
    config = SHAPES["small"]()
    base = write_hollow_base(tmp_path / "base", config)
    modules = write_hollow_modules(tmp_path / "modules", base, 3)
    plan = lorahub_edge.plan(base, modules, long_examples, device="cuda", cache=False)[0]
    d, ff, inner, vocab, n, rank, n_examples, n_tokens = 512, 1024, 6 * 64, 32128, 8, 16, 5, 81 + 7
    attention = (4 * inner * d, 3 * inner + d)  # values of q, k, v and o, and their rows
    gated = (3 * ff * d, 2 * ff + d)
    weights, rows = (3 * n * a + 2 * n * g for a, g in zip(attention, gated, strict=True))
    norms, biases = 5 * n * d + 2 * d, 2 * 32 * 6
    assert plan.base_bytes == weights + 4 * rows + 2 * (d + 4) * vocab + 2 * (norms + biases)
    blocks = 2 * 3 * n * (rank * d // 128 + rank * inner // 128)
    assert plan.stack_bytes == 3 * 4 * 128 * blocks
    n_candidates = min(8192 // (n_examples * n_tokens), (1 << 30) // (6 * 128 * blocks))
    composed = 4 * 128 * blocks * n_candidates
    activations = 4 * (4 * d + 4 * inner + 2 * ff)
    logits = 2 * 4 * vocab * n_candidates * n_examples * 7
    pairs = 2 * 4 * 6 * n_tokens**2  # position bias in both stacks
    factors = composed // 2 + composed // 2  # B without gaps, and all of them as bfloat16
    call = factors + logits + n_candidates * n_examples * n_tokens * activations + pairs
    assert plan.workspace_bytes == composed + 2 * call  # a recorded call beside a launched one


def test_only_planning_needs_no_card(bases, module_folders):
    for compute in (lorahub_edge.adapt, lambda *of, **options: load_base(of[0], **options)):
        with pytest.raises(InvalidInput, match="torch sees no CUDA device"):
            compute(str(bases["t5"]), module_folders["t5"], tiny.ROWS, device="cuda")


def test_adapt_takes_what_the_budget_leaves_room_for(bases, module_folders, example_file, tmp_path):
    """Planned in one process, whose own size is most of it: between the two stacks' sizes lies the budget."""
    arguments = (str(bases["t5"]), module_folders["t5"], example_file)
    plans = lorahub_edge.plan(*arguments)
    run = lorahub_edge.adapt(*arguments, **FAST, out=tmp_path / "run")
    assert run.manifest["memory_plan"]["stack_dtype"] == plans[0].stack_dtype == "fp32"
    run = lorahub_edge.adapt(*arguments, **FAST, stack_dtype="int8", max_memory="500GB")
    assert run.manifest["memory_plan"]["stack_dtype"] == "int8"
    assert run.manifest["memory_plan"]["budget_bytes"] == 500 * 10**9


@pytest.mark.parametrize("mapping", ["resident", "mmap"])
def test_a_mapped_stack_searches_like_a_resident_one(bases, module_folders, example_file, mapping, monkeypatch):
    def only(plans):
        return next(p for p in plans if p.mapping == mapping and p.stack_dtype == "fp32")

    monkeypatch.setattr("lorahub_edge.adaptation.entry.choose_plan", only)
    run = lorahub_edge.adapt(str(bases["t5"]), module_folders["t5"], example_file, **FAST)
    monkeypatch.setattr("lorahub_edge.adaptation.entry.choose_plan", choose_plan)
    plain = lorahub_edge.adapt(str(bases["t5"]), module_folders["t5"], example_file, **FAST, cache=False)
    assert run.manifest["memory_plan"]["mapping"] == mapping
    assert run.loss == plain.loss


def test_what_cannot_fit_is_refused_before_anything_is_loaded(
    bases, module_folders, example_file, monkeypatch, tmp_path
):
    monkeypatch.setattr("lorahub_edge.adaptation.job.load_opened", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(
        MemoryExceeded, match=r"does not fit 1 MB: at least .* is needed, of which the base alone takes"
    ):
        lorahub_edge.adapt(str(bases["t5"]), module_folders["t5"], example_file, max_memory="1MB", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_leaves_its_budget_stops(monkeypatch):
    monkeypatch.setattr("lorahub_edge.adaptation.memory_plan.resident_bytes", lambda: 101)
    check_use(plan_of(budget_bytes=101))
    check_use(plan_of())
    with pytest.raises(MemoryExceeded, match="are in use"):
        check_use(plan_of(budget_bytes=100))
    check_use(dataclasses.replace(plan_of(budget_bytes=71), mapping="mmap"))


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("can't allocate memory: 8")]
)
def test_an_allocation_that_fails_says_what_would_help(error):
    with pytest.raises(MemoryExceeded, match="no more memory"), memory_errors(plan_of()):
        raise error
    with pytest.raises(RuntimeError, match="something else"), memory_errors(plan_of()):
        raise RuntimeError("something else")


def test_an_allocation_of_torch_that_cannot_be_met_is_such_an_error():
    with pytest.raises(MemoryExceeded), memory_errors(plan_of()):
        torch.empty(1 << 60, dtype=torch.int8)


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("5GiB", 5 << 30), ("1.5 GB", 1_500_000_000), ("800M", 800_000_000), ("2k", 2000), ("7", 7), ("1MiB", 1 << 20)],
)
def test_sizes_are_read_as_people_write_them(text, n_bytes):
    assert parse_bytes(text) == n_bytes


@pytest.mark.parametrize("text", ["", "GB", "1XB", "-1GB", "0", "nan", "inf", "1 2", "0x10"])
def test_other_sizes_are_refused(text):
    with pytest.raises(InvalidInput, match="expected a size such as 5GiB"):
        parse_bytes(text)


def example(n_input, n_target):
    return EncodedExample((5,) * n_input, (6,) * n_target, was_cut=False)


def test_calls_stay_within_their_limits():
    limits = CallLimits(tokens=100, composed_bytes=6 * 1000 * 3)
    examples = [example(20, 5), example(20, 10), example(30, 5), example(20, 5), example(20, 5), example(200, 5)]
    rows = list(bucket_rows(examples, limits, is_seq2seq=True))
    assert rows == [[0, 1, 3], [4], [2], [5]]
    assert list(bucket_rows(examples, limits, is_seq2seq=False)) == [[0, 3, 4], [1], [2], [5]]
    assert limits.n_candidates(10, 1) == 10, "as many as the tokens allow"
    assert limits.n_candidates(10, 1000) == 3, "or as the composed factors allow"
    assert limits.n_candidates(1000, 10**9) == 1, "and always one"
