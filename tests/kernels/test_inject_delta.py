"""inject_delta and its form on a stack: against exact sums, the NumPy twin, and each other."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lorahub_edge import _native
from lorahub_edge.kernels import ops, reference
from tests import tolerances
from tests.kernels.helpers import (
    SIZES,
    Stack,
    assert_same_bytes,
    assert_within,
    hard_matrix,
    run_with_isa,
    stack_from,
)

DTYPES = (torch.int8, torch.bfloat16, torch.float32)
STACK_DTYPES = (torch.float32, torch.bfloat16, torch.int8)
STOCHASTIC = ops.Rounding("stochastic", seed=7)
ROUNDINGS = (ops.Rounding(), STOCHASTIC)
SCALING = 0.75


@dataclass(frozen=True)
class Layer:
    codes: torch.Tensor
    row_scale: torch.Tensor
    A: torch.Tensor
    B: torch.Tensor

    def inject(self, **options) -> ops.Injected:
        return ops.inject_delta(self.codes, self.row_scale, self.A, self.B, scaling=SCALING, **options)

    def exact_delta(self) -> NDArray[np.float64]:
        return SCALING * self.B.double().numpy() @ self.A.double().numpy()


def layer_of(out_features: int, in_features: int, rank: int, *, seed: int = 0) -> Layer:
    """Rows over ten orders of magnitude, a row of zeros, a huge value; deltas of 0.01 to 100 steps, some rows none."""
    rng = np.random.default_rng(seed)
    codes, row_scale = ops.quantize_rows(torch.from_numpy(hard_matrix(out_features, in_features, seed=seed)))
    steps = row_scale.numpy() * 10.0 ** rng.uniform(-2, 2, out_features)
    B = rng.standard_normal((out_features, rank)) * steps[:, None]
    B[2::5] = 0
    A = rng.standard_normal((rank, in_features))
    return Layer(codes, row_scale, torch.from_numpy(A).float(), torch.from_numpy(B).float())


def assert_injected(injected: ops.Injected, layer: Layer, rounding: ops.Rounding) -> None:
    """Values, scales and report are within their bounds of exact sums; rows without a delta are the base's."""
    base = layer.codes.double().numpy() * layer.row_scale.double().numpy()[:, None]
    delta = layer.exact_delta()
    magnitude = SCALING * layer.B.abs().double().numpy() @ layer.A.abs().double().numpy()
    error = tolerances.injected_value_error(np.abs(base), magnitude, layer.A.shape[0])
    is_int8 = injected.values.dtype == torch.int8
    step = injected.row_scale.double().numpy()[:, None]
    values = injected.values.double().numpy() * (step if is_int8 else 1)
    if is_int8:
        error_of_value = tolerances.injected_code_error(error, step, stochastic=rounding.kind == "stochastic")
    else:
        roundoff = tolerances.ROUNDOFF_BFLOAT16 if injected.values.dtype == torch.bfloat16 else 0
        error_of_value = error + roundoff * (np.abs(base + delta) + error)
    assert_close(values, base + delta, error_of_value)
    assert_scales(injected, layer, base + delta, error)
    assert_report(injected, values - base, delta, error, step)


def assert_close(actual: NDArray, expected: NDArray, bound: NDArray) -> None:
    wrong = np.argwhere(~(np.abs(actual - expected) <= bound))
    assert not len(wrong), f"{len(wrong)} elements off, the first at {wrong[0]}"


def assert_scales(injected: ops.Injected, layer: Layer, exact: NDArray, error: NDArray) -> None:
    is_kept = ~(layer.B.bool().any(1).numpy() & layer.A.bool().any().item()) | (exact.shape[1] == 0)
    absmax = np.abs(exact).max(axis=1, initial=0)
    expected = np.where(is_kept, layer.row_scale.double().numpy(), np.where(absmax == 0, 1, absmax / 127))
    bound = error.max(axis=1, initial=0) / 127 + 2 * tolerances.ROUNDOFF_FLOAT32 * expected
    assert_within(injected.row_scale.numpy(), expected, bound)
    assert_same_bytes(injected.row_scale[is_kept], layer.row_scale[is_kept])
    if injected.values.dtype == torch.int8:
        assert_same_bytes(injected.values[is_kept], layer.codes[is_kept])


def assert_report(injected: ops.Injected, realised: NDArray, delta: NDArray, error: NDArray, step: NDArray) -> None:
    squares = (delta**2).sum(axis=1)
    has_delta = squares > 0
    safe = np.where(has_delta, squares, 1)
    lost = realised - delta
    exact = np.stack(
        [
            np.sqrt(squares / max(1, delta.shape[1])) / step[:, 0],
            np.sqrt((lost**2).sum(axis=1) / safe),
            1 + (lost * delta).sum(axis=1) / safe,
        ]
    )
    bound = tolerances.injected_report_error(exact, error, step, delta, delta.shape[1])
    report = injected.report
    for row, name in enumerate(("delta_rms", "error", "survived")):
        received = getattr(report, name).numpy()
        assert_within(received[has_delta], exact[row, has_delta], bound[row, has_delta])
        assert (received[~has_delta] == (0, 0, 1)[row]).all()
    assert not report.n_clipped.any()


# -- Against exact sums and the twin ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rounding", ROUNDINGS, ids=lambda r: r.kind)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("in_features", SIZES)
@pytest.mark.parametrize("out_features", SIZES)
def test_sizes(out_features: int, in_features: int, dtype: torch.dtype, rounding: ops.Rounding) -> None:
    layer = layer_of(out_features, in_features, 4)
    assert_injected(layer.inject(dtype=dtype, rounding=rounding), layer, rounding)


@pytest.mark.parametrize("rank", [*SIZES, 96, 416])
def test_ranks(rank: int) -> None:
    layer = layer_of(33, 257, rank)
    for dtype in DTYPES:
        assert_injected(layer.inject(dtype=dtype), layer, ops.Rounding())


@pytest.mark.parametrize("isa", _native.runnable_isas())
def test_each_instruction_set(isa: str) -> None:
    """Without fused multiply-add, codes and scales equal the twin's to the bit."""
    script = """
from tests.kernels.test_inject_delta import *
for rounding in ROUNDINGS:
    for dtype in DTYPES:
        for shape in ((5, 1, 3), (33, 257, 16), (6, 1027, 33), (257, 128, 4)):
            layer = layer_of(*shape)
            injected = layer.inject(dtype=dtype, rounding=rounding)
            assert_injected(injected, layer, rounding)
            if ops.isa() == "baseline":
                assert_equals_twin(injected, layer, rounding)
"""
    run_with_isa(isa, script)


def assert_equals_twin(injected: ops.Injected, layer: Layer, rounding: ops.Rounding) -> None:
    values, row_scale, _ = reference.inject_delta(
        layer.codes.numpy(),
        layer.row_scale.numpy(),
        layer.A.numpy(),
        layer.B.numpy(),
        scaling=SCALING,
        dtype=str(injected.values.dtype).removeprefix("torch."),
        seed=rounding.seed if rounding.kind == "stochastic" else None,
    )
    assert_same_bytes(injected.values, torch.from_numpy(values).to(injected.values.dtype))
    assert_same_bytes(injected.row_scale, torch.from_numpy(row_scale))


@pytest.mark.parametrize("rounding", ROUNDINGS, ids=lambda r: r.kind)
def test_twin_is_within_the_same_bounds(monkeypatch: pytest.MonkeyPatch, rounding: ops.Rounding) -> None:
    monkeypatch.setenv("LORAHUB_EDGE_KERNELS", "reference")
    for dtype in DTYPES:
        layer = layer_of(33, 257, 16)
        injected = layer.inject(dtype=dtype, rounding=rounding)
        assert_injected(injected, layer, rounding)
        assert_equals_twin(injected, layer, rounding)


@pytest.mark.parametrize("rounding", ROUNDINGS, ids=lambda r: r.kind)
@pytest.mark.parametrize("dtype", DTYPES)
def test_result_does_not_depend_on_threads(dtype: torch.dtype, rounding: ops.Rounding) -> None:
    layer = layer_of(257, 1027, 33)
    alone = layer.inject(dtype=dtype, rounding=rounding, n_threads=1)
    assert_injected(alone, layer, rounding)
    for n_threads in (2, 3, 16):
        shared = layer.inject(dtype=dtype, rounding=rounding, n_threads=n_threads)
        assert_same_bytes(shared.values, alone.values)
        assert_same_bytes(shared.row_scale, alone.row_scale)
        assert_same_bytes(shared.report.error, alone.report.error)


# -- What the issue promises ------------------------------------------------------------------------------------------


def test_zero_coefficients_give_the_base_bit_for_bit() -> None:
    """Also for a base that was not made by our quantiser: a row whose largest code is not 127."""
    layer = layer_of(33, 257, 4)
    codes = (layer.codes // 2).contiguous()
    for A, B in ((torch.zeros_like(layer.A), layer.B), (layer.A, torch.zeros_like(layer.B)), (layer.A, -0.0 * layer.B)):
        injected = ops.inject_delta(codes, layer.row_scale, A, B, rounding=STOCHASTIC)
        assert_same_bytes(injected.values, codes)
        assert_same_bytes(injected.row_scale, layer.row_scale)


def test_equal_inputs_give_equal_bytes_and_inputs_stay() -> None:
    layer = layer_of(33, 257, 4)
    before = [t.clone() for t in (layer.codes, layer.row_scale, layer.A, layer.B)]
    first = layer.inject()
    layer_of(257, 33, 3, seed=5).inject()
    assert_same_bytes(layer.inject().values, first.values)
    for tensor, copy in zip((layer.codes, layer.row_scale, layer.A, layer.B), before, strict=True):
        assert_same_bytes(tensor, copy)


@pytest.mark.parametrize(
    ("steps", "least", "most"), [(0.04, 0, 0.01), (0.11, 0, 0.03), (0.37, 0.8, 0.95), (1.1, 0.99, 1.01)]
)
def test_nearest_rounding_loses_small_deltas(steps: float, least: float, most: float) -> None:
    """The dead zone of FACTS: 0.1, 0.8, 87 and 100 % of a delta survive at these sizes."""
    assert least <= _survived(steps, ops.Rounding()) <= most


@pytest.mark.parametrize("steps", [0.04, 0.37])
def test_stochastic_rounding_keeps_small_deltas_on_average(steps: float) -> None:
    """65,536 elements: the mean share scatters by 0.5 / (steps * 256), five times which is allowed."""
    assert abs(_survived(steps, STOCHASTIC) - 1) <= 5 * 0.5 / (steps * 256)


def _survived(steps: float, rounding: ops.Rounding) -> float:
    """Share of a Gaussian delta that survives in a Gaussian layer of 256 x 256."""
    rng = torch.Generator().manual_seed(0)
    codes, row_scale = ops.quantize_rows(torch.randn(256, 256, generator=rng))
    A, B = torch.randn(16, 256, generator=rng), torch.randn(256, 16, generator=rng)
    B = B / (B @ A).square().mean(1, keepdim=True).sqrt() * row_scale[:, None] * steps
    injected = ops.inject_delta(codes, row_scale, A, B, rounding=rounding)
    torch.testing.assert_close(injected.report.delta_rms, torch.full((256,), steps), rtol=0.2, atol=0)
    return float(injected.report.survived.mean())


def test_seeds_make_the_noise() -> None:
    layer = layer_of(33, 257, 4)
    first = layer.inject(rounding=ops.Rounding("stochastic", 2**64 - 1))
    assert_same_bytes(layer.inject(rounding=ops.Rounding("stochastic", 2**64 - 1)).values, first.values)
    for seed in (0, 2**32 - 1, 2**63):
        assert not torch.equal(layer.inject(rounding=ops.Rounding("stochastic", seed)).values, first.values)


def test_random_numbers_are_uniform_and_those_of_the_formula() -> None:
    """One number worked by hand from the mixer; mean and variance of 2^16 within five standard errors."""
    numbers = reference.uniform((256, 256), 0)
    assert 0 <= numbers.min() < numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 5 * (1 / 12) ** 0.5 / 256
    assert abs(numbers.var() - 1 / 12) < 5 * (1 / 180) ** 0.5 / 256

    def mixed(x: int) -> int:
        x ^= x >> 16
        x = x * 0x7FEB352D & 0xFFFFFFFF
        x ^= x >> 15
        x = x * 0x846CA68B & 0xFFFFFFFF
        return x ^ x >> 16

    key = mixed(mixed(5) ^ 9)
    assert reference.uniform((4, 8), 9 << 32 | 5)[3, 6] == (mixed(mixed(key ^ 3) ^ 6) >> 8) / 2**24


def test_values_beyond_the_codes_are_cut_and_counted() -> None:
    """190 times the smallest float32: a scale of 1.5 of it rounds to 1, or 2; steps of 190 of the first are cut."""
    smallest = tolerances.TINY_FLOAT32
    codes, row_scale = torch.zeros(1, 3, dtype=torch.int8), torch.ones(1)
    A = torch.tensor([[190.0, -190.0, 1.0]]) * smallest
    injected = ops.inject_delta(codes, row_scale, A, torch.ones(1, 1))
    assert injected.row_scale.item() == smallest
    assert injected.values.tolist() == [[127, -127, 1]]
    assert injected.report.n_clipped.item() == 2


# -- From a stack -----------------------------------------------------------------------------------------------------


def interleaved(rows: NDArray[np.float64], block: int, dtype: torch.dtype) -> Stack:
    """(n_modules, n_values) as (n_blocks, n_modules, block), padded with zeros; blocks differ in magnitude."""
    n_blocks = -(-rows.shape[1] // block)
    padded = np.zeros((len(rows), n_blocks * block))
    padded[:, : rows.shape[1]] = rows
    blocks = padded.reshape(len(rows), n_blocks, block) * np.linspace(0.5, 2, n_blocks)[:, None]
    return stack_from(torch.from_numpy(blocks.swapaxes(0, 1).copy()), dtype)


def inject_stacks(layer: Layer, A: Stack, B: Stack, c: NDArray[np.float64], **options) -> ops.Injected:
    scales = {"A_scales": A.scales, "B_scales": B.scales}
    return ops.inject_delta_from_stack(layer.codes, layer.row_scale, A.values, B.values, c, **scales, **options)


@pytest.mark.parametrize("stack_dtype", STACK_DTYPES)
@pytest.mark.parametrize("block", [1, 33, 128])
@pytest.mark.parametrize("shape", [(33, 31, 3), (257, 33, 16), (1, 257, 1), (130, 64, 0), (0, 3, 4)])
def test_from_stack_is_compose_then_inject(shape: tuple, block: int, stack_dtype: torch.dtype) -> None:
    out_features, in_features, rank = shape
    layer = layer_of(*shape)
    rng = np.random.default_rng(1)
    c = rng.uniform(-1.5, 1.5, 5)
    stacks = [interleaved(rng.standard_normal((5, n * rank)), block, stack_dtype) for n in (in_features, out_features)]
    A, B = (stack.compose(c[None])[0] for stack in stacks)
    A = A[: rank * in_features].view(rank, in_features).contiguous()
    B = B[: rank * out_features].view(out_features, rank).contiguous()
    expected = ops.inject_delta(layer.codes, layer.row_scale, A, B, scaling=SCALING)
    for n_threads in (1, 3):
        actual = inject_stacks(layer, *stacks, c, rank=rank, scaling=SCALING, n_threads=n_threads)
        assert_same_bytes(actual.values, expected.values)
        assert_same_bytes(actual.row_scale, expected.row_scale)
        assert_same_bytes(actual.report.survived, expected.report.survived)


@pytest.mark.parametrize("stack_dtype", STACK_DTYPES)
def test_from_stack_on_the_reference(monkeypatch: pytest.MonkeyPatch, stack_dtype: torch.dtype) -> None:
    layer = layer_of(33, 31, 3)
    rng = np.random.default_rng(1)
    stacks = [interleaved(rng.standard_normal((5, n * 3)), 32, stack_dtype) for n in (31, 33)]
    native = inject_stacks(layer, *stacks, np.ones(5), rank=3, dtype=torch.float32)
    monkeypatch.setenv("LORAHUB_EDGE_KERNELS", "reference")
    twin = inject_stacks(layer, *stacks, np.ones(5), rank=3, dtype=torch.float32)
    # 5 terms per factor, 3 per delta, with cross terms: far under what a wrong module or block would change
    torch.testing.assert_close(twin.values, native.values, rtol=1e-4, atol=1e-4)


# -- The output, and what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_out_is_written_inside_its_bounds_and_returned(dtype: torch.dtype) -> None:
    layer = layer_of(33, 31, 4)
    memory = torch.full((35, 31), 7, dtype=dtype)
    out = memory[1:34]
    assert layer.inject(dtype=dtype, out=out).values is out
    assert_same_bytes(out, layer.inject(dtype=dtype).values)
    assert (memory[[0, 34]] == 7).all()


def arguments() -> dict:
    layer = layer_of(4, 8, 2)
    return {"codes": layer.codes, "row_scale": layer.row_scale, "A": layer.A, "B": layer.B}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"codes": torch.zeros(4, 8)}, TypeError, "expected codes of dtype int8, received float32"),
        ({"codes": torch.zeros(8, dtype=torch.int8)}, ValueError, r"expected codes of shape \(out_features, in_fea"),
        ({"codes": torch.zeros(8, 4, dtype=torch.int8).T}, ValueError, "expected a C-contiguous codes"),
        ({"row_scale": torch.ones(3)}, ValueError, r"expected row_scale of shape \(4\), received \(3,\)"),
        ({"A": torch.zeros(2, 7)}, ValueError, r"expected A of shape \(rank, 8\), received \(2, 7\)"),
        ({"A": torch.zeros(2, 8).double()}, TypeError, "expected A of dtype float32, received float64"),
        ({"B": torch.zeros(4, 3)}, ValueError, r"expected B of shape \(4, 2\), received \(4, 3\)"),
        ({"dtype": torch.float16}, TypeError, "expected dtype int8, bfloat16 or float32, received torch.float16"),
        ({"out": torch.zeros(4, 8)}, TypeError, "expected out of dtype int8, received float32"),
        ({"n_threads": 0}, ValueError, "expected n_threads of at least 1, received 0"),
    ],
)
def test_refuses(changes: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"inject_delta: {message}"):
        ops.inject_delta(**{**arguments(), **changes})


def test_refuses_to_write_over_its_input() -> None:
    given = arguments()
    with pytest.raises(ValueError, match="inject_delta: expected out and codes in separate memory"):
        ops.inject_delta(**given, out=given["codes"])


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_names_the_row_that_is_not_finite(value: float) -> None:
    given = arguments()
    given["B"] = given["B"].clone()
    given["B"][3] = value
    given["A"] = torch.full_like(given["A"], 2.0)
    with pytest.raises(ValueError, match=r"inject_delta: expected finite values, received (nan|inf) in row 3"):
        ops.inject_delta(**given)


def test_refuses_rounding() -> None:
    with pytest.raises(ValueError, match="expected rounding 'nearest' or 'stochastic', received 'up'"):
        ops.Rounding("up")
    with pytest.raises(ValueError, match=r"expected a seed from 0 to 2\^64 - 1, received -1"):
        ops.Rounding("stochastic", -1)


def test_refuses_stacks() -> None:
    layer = layer_of(4, 8, 2)
    stack = torch.zeros(1, 3, 8)
    for A, B, message in (
        (stack, stack.bfloat16(), "expected B_stack of dtype float32, received bfloat16"),
        (stack, torch.zeros(1, 4, 8), r"expected B_stack of shape \(n_blocks, 3, 8\), received \(1, 4, 8\)"),
        (stack, stack, "expected A_stack with room for 16 values of each module, received 8"),
    ):
        with pytest.raises((ValueError, TypeError), match=f"inject_delta: {message}"):
            ops.inject_delta_from_stack(layer.codes, layer.row_scale, A, B, [1.0, 2.0, 3.0], rank=2)


@pytest.mark.parametrize(
    ("dtype", "A_scales", "B_scales", "message"),
    [
        (torch.int8, None, torch.ones(2, 3), "expected A_scales with an int8 stack, received None; quantize_rows"),
        (torch.int8, torch.ones(2, 3), None, "expected B_scales with an int8 stack, received None; quantize_rows"),
        (torch.int8, torch.ones(2, 3), torch.ones(1, 3), r"expected B_scales of shape \(2, 3\), received \(1, 3\)"),
        (torch.float32, torch.ones(2, 3), None, "expected A_scales with an int8 stack only, received some with a fl"),
        (torch.bfloat16, None, torch.ones(2, 3), "expected B_scales with an int8 stack only, received some with a bf"),
    ],
)
def test_refuses_scales_of_stacks(
    dtype: torch.dtype, A_scales: torch.Tensor | None, B_scales: torch.Tensor | None, message: str
) -> None:
    layer, values = layer_of(4, 8, 2), torch.zeros(2, 3, 8, dtype=dtype)
    with pytest.raises(ValueError, match=f"inject_delta: {message}"):
        inject_stacks(layer, Stack(values, A_scales), Stack(values, B_scales), np.ones(3), rank=2)


@pytest.mark.parametrize("named", ["A_scales", "B_scales"])
def test_refuses_to_write_over_scales(named: str) -> None:
    layer, values = layer_of(4, 8, 2), torch.zeros(2, 3, 8, dtype=torch.int8)
    scales = {name: torch.ones(2, 3) for name in ("A_scales", "B_scales")}
    out = scales[named].view(torch.int8).new_empty(0).set_(scales[named].untyped_storage(), 0, (4, 8))
    with pytest.raises(ValueError, match=f"inject_delta: expected out and {named} in separate memory"):
        ops.inject_delta_from_stack(layer.codes, layer.row_scale, values, values, np.ones(3), rank=2, out=out, **scales)


@pytest.mark.parametrize(("n_blocks_A", "n_blocks_B", "named"), [(1, 2, "A_stack"), (5, 1, "B_stack")])
def test_the_extension_itself_reads_no_block_that_is_not_there(n_blocks_A: int, n_blocks_B: int, named: str) -> None:
    """`ops` checks this before; the native guard is what stands between another caller and foreign memory."""
    layer = layer_of(4, 16, 4)
    A, B = (torch.zeros(n, 3, 16) for n in (n_blocks_A, n_blocks_B))
    outputs = torch.empty(4, 16, dtype=torch.int8), torch.empty(4), torch.empty(4, 4)
    with pytest.raises(ValueError, match=f"inject_delta: {named}: too few blocks"):
        _native.inject_delta_from_stack(
            layer.codes,
            layer.row_scale,
            A,
            B,
            torch.ones(3),
            None,
            None,
            torch.empty(0),
            *outputs,
            5,
            1.0,
            "nearest",
            0,
            1,
        )
