"""inject_delta on CUDA against exact sums, and its rounding against the NumPy twin's random numbers."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from lorahub_edge.kernels import ops, reference
from tests import tolerances
from tests.kernels import test_compose_factors as compose
from tests.kernels.cuda_helpers import DEVICE, FLOATS, moved, needs_gpu, on_gpu, shifted
from tests.kernels.helpers import SIZES, Stack, assert_same_bytes, stack_from
from tests.kernels.test_inject_delta import SCALING, STACK_DTYPES, Layer, assert_injected, inject_stacks, layer_of
from tests.kernels.test_inject_layers import SHAPES, assert_same_result, to_inject

pytestmark = needs_gpu

DTYPES = (torch.int8, *FLOATS)
ROUNDINGS = (ops.Rounding(), ops.Rounding("stochastic", seed=2**40 + 7))


def assert_rounded(injected: ops.Injected, layer: Layer, rounding: ops.Rounding) -> None:
    """Each code lies between those of the lowest and the highest number of steps that float32 may have come to.

    Rounding is monotone, also with the random number of an element, which is the twin's: up where it is below the
    fraction, hence ceil(steps - number).
    """
    base = layer.codes.double().numpy() * layer.row_scale.double().numpy()[:, None]
    magnitude = SCALING * layer.B.abs().double().numpy() @ layer.A.abs().double().numpy()
    step = injected.row_scale.double().numpy()[:, None]
    off = tolerances.injected_value_error(np.abs(base), magnitude, layer.A.shape[0]) / step
    off += 128 * tolerances.ROUNDOFF_FLOAT32
    steps = (base + layer.exact_delta()) / step
    number = reference.uniform(steps.shape, rounding.seed)
    round_: Callable[[np.ndarray], np.ndarray] = (
        np.rint if rounding.kind == "nearest" else lambda value: np.ceil(value - number)
    )
    codes = injected.values.numpy()
    wrong = (codes < round_(steps - off).clip(-127, 127)) | (codes > round_(steps + off).clip(-127, 127))
    assert not wrong[layer.exact_delta().any(axis=1)].any()


@pytest.mark.parametrize("rounding", ROUNDINGS, ids=lambda r: r.kind)
@pytest.mark.parametrize("in_features", [*SIZES, 1028])
@pytest.mark.parametrize("out_features", SIZES)
def test_sizes(out_features: int, in_features: int, rounding: ops.Rounding) -> None:
    layer = layer_of(out_features, in_features, 4)
    for dtype in DTYPES:
        injected = moved(on_gpu(layer).inject(dtype=dtype, rounding=rounding), "cpu")
        assert_injected(injected, layer, rounding)
        if dtype == torch.int8:
            assert_rounded(injected, layer, rounding)


@pytest.mark.parametrize("in_features", [256, 257])
@pytest.mark.parametrize("rank", [*SIZES, 16, 2048])
def test_ranks(rank: int, in_features: int) -> None:
    layer = layer_of(7, in_features, rank)
    for dtype in DTYPES:
        assert_injected(moved(on_gpu(layer).inject(dtype=dtype), "cpu"), layer, ROUNDINGS[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("in_features", [256, 257])
def test_without_delta_gives_the_base_bit_for_bit(in_features: int, dtype: torch.dtype) -> None:
    """Also for a base that was not made by our quantiser: a row whose largest code is not 127, a code of -128."""
    layer = layer_of(33, in_features, 16)
    codes = (layer.codes // 2).contiguous()
    codes[5, 7] = -128
    base = codes if dtype == torch.int8 else ops.dequantize_rows(codes, layer.row_scale, dtype=dtype)
    for A, B in ((0 * layer.A, layer.B), (layer.A, 0 * layer.B), (layer.A, -0.0 * layer.B)):
        arguments = map(on_gpu, (codes, layer.row_scale, A, B))
        injected = moved(ops.inject_delta(*arguments, dtype=dtype, rounding=ROUNDINGS[1]), "cpu")
        assert_same_bytes(injected.values, base)
        assert_same_bytes(injected.row_scale, layer.row_scale)
        report = injected.report
        rows = torch.stack([report.delta_rms, report.error, report.survived, report.n_clipped])
        assert torch.equal(rows, torch.tensor([0.0, 0, 1, 0])[:, None].expand(4, 33))


@pytest.mark.parametrize("rounding", ROUNDINGS, ids=lambda r: r.kind)
@pytest.mark.parametrize("dtype", DTYPES)
def test_misaligned_equals_aligned(dtype: torch.dtype, rounding: ops.Rounding) -> None:
    """The report is not compared: its sums are taken in another order there."""
    layer = on_gpu(layer_of(33, 256, 16))
    out = shifted(torch.zeros(33, 256, dtype=dtype, device=DEVICE))
    misaligned = Layer(*map(shifted, (layer.codes, layer.row_scale, layer.A, layer.B)))
    received, expected = (
        misaligned.inject(dtype=dtype, rounding=rounding, out=out),
        layer.inject(dtype=dtype, rounding=rounding),
    )
    assert_same_bytes(received.values, expected.values)
    assert_same_bytes(received.row_scale, expected.row_scale)


def test_writes_nothing_beside_its_output() -> None:
    memory = torch.full((39, 257), 99, dtype=torch.int8, device=DEVICE)
    layer = on_gpu(layer_of(33, 257, 16))
    layer.inject(out=memory[3:36])
    assert_same_bytes(memory[3:36], layer.inject().values)
    assert bool((memory[[0, 1, 2, 36, 37, 38]] == 99).all())


def part_of(stack: Stack, blocks: slice) -> Stack:
    return Stack(stack.values[blocks], None if stack.scales is None else stack.scales[blocks])


def copied(stack: Stack) -> Stack:
    return Stack(stack.values.clone(), None if stack.scales is None else stack.scales.clone())


@pytest.mark.parametrize("side_by_side", [True, False])
@pytest.mark.parametrize("dtype", STACK_DTYPES)
def test_from_stack_equals_compose_then_inject(dtype: torch.dtype, side_by_side: bool) -> None:
    """A and B that lie side by side in the stack are composed in one launch, others in two."""
    layer, rank, block = on_gpu(layer_of(33, 257, 5)), 5, 128
    n_A, n_B = -(-rank * 257 // block), -(-rank * 33 // block)
    stack = on_gpu(stack_from(1e-3 * compose.values_of(20, block, n_blocks=n_A + n_B), dtype))
    parts = [part_of(stack, blocks) for blocks in (slice(n_A), slice(n_A, None))]
    A_stack, B_stack = parts if side_by_side else map(copied, parts)
    coefficients = compose.coefficients_of(1, 20)[0]
    factors = stack.compose(coefficients[None])[0]
    A, B = factors[: rank * 257].view(rank, 257), factors[n_A * block :][: rank * 33].view(33, rank)
    fused = inject_stacks(layer, A_stack, B_stack, coefficients, rank=rank, scaling=2.0)
    assert_same_result(fused, ops.inject_delta(layer.codes, layer.row_scale, A, B, scaling=2.0))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_show_in_the_scale(bad: float) -> None:
    layer = layer_of(7, 257, 16)
    layer.B[5, 3] = bad
    scale = on_gpu(layer).inject().row_scale.cpu()
    assert torch.isfinite(scale).tolist() == [row != 5 for row in range(7)]


def test_values_beyond_the_codes_are_cut_and_counted() -> None:
    """As on the CPU, with numbers near the smallest float32: they are not flushed to zero."""
    smallest = tolerances.TINY_FLOAT32
    codes, row_scale = torch.zeros(1, 3, dtype=torch.int8), torch.ones(1)
    A = torch.tensor([[190.0, -190.0, 1.0]]) * smallest
    injected = moved(ops.inject_delta(*map(on_gpu, (codes, row_scale, A, torch.ones(1, 1)))), "cpu")
    assert injected.row_scale.item() == smallest
    assert injected.values.tolist() == [[127, -127, 1]]
    assert injected.report.n_clipped.item() == 2


@pytest.mark.parametrize("rounding", ROUNDINGS, ids=lambda r: r.kind)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shapes", [SHAPES, (*SHAPES, (5, 257, 3))], ids=["wide", "one layer is narrow"])
def test_layers_together_equal_layers_alone(shapes, dtype: torch.dtype, rounding: ops.Rounding) -> None:
    """The report is compared where the layer's columns are read alike: elsewhere its sums have another order."""
    layers = [on_gpu(layer_of(*shape, seed=seed)) for seed, shape in enumerate(shapes)]
    together = ops.InjectLayers([to_inject(layer, dtype) for layer in layers], rounding=rounding)
    for scale in (1.0, -0.5):
        for layer in layers:
            layer.A.mul_(scale)
        for layer, received in zip(layers, together.inject(), strict=True):
            expected = layer.inject(dtype=dtype, rounding=rounding)
            assert_same_bytes(received.values, expected.values)
            assert_same_bytes(received.row_scale, expected.row_scale)
            if shapes == SHAPES:
                assert_same_result(received, expected)
