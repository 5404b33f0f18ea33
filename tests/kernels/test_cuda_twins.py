"""compose_factors, quantize_rows, dequantize_rows and int8_epilogue on CUDA: exact sums and the NumPy twins beside."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from lorahub_edge.kernels import ops, reference, routes
from tests.kernels import test_compose_factors as compose
from tests.kernels import test_int8_epilogue as epilogue
from tests.kernels.cuda_helpers import DEVICE, FLOATS, moved, needs_gpu, on_gpu, shifted
from tests.kernels.helpers import SIZES, Stack, assert_same_bytes, hard_matrix

pytestmark = needs_gpu

LAYOUTS: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (lambda tensor: tensor, shifted)

# -- compose_factors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", compose.DTYPES)
@pytest.mark.parametrize("block", SIZES)
@pytest.mark.parametrize("n_modules", SIZES)
@pytest.mark.parametrize("n_blocks", [0, 3])
def test_compose_sizes(n_blocks: int, n_modules: int, block: int, dtype: torch.dtype) -> None:
    stack = compose.stack_of(n_modules, block, dtype, n_blocks=n_blocks)
    coefficients = compose.coefficients_of(5, n_modules)
    compose.assert_composed(on_gpu(stack).compose(coefficients).cpu(), stack, coefficients)


@pytest.mark.parametrize("dtype", compose.DTYPES)
@pytest.mark.parametrize("block", [127, 128])
@pytest.mark.parametrize("n_candidates", [*range(18), 31, 32, 33, 65])
def test_compose_any_number_of_candidates(n_candidates: int, block: int, dtype: torch.dtype) -> None:
    """A candidate's sums do not depend on which others are there."""
    stack, coefficients = compose.stack_of(20, block, dtype, n_blocks=7), compose.coefficients_of(n_candidates, 20)
    together = on_gpu(stack).compose(coefficients).cpu()
    compose.assert_composed(together, stack, coefficients)
    for c in range(n_candidates):
        alone = on_gpu(stack).compose(coefficients[c : c + 1]).cpu()
        assert_same_bytes(alone, together[c : c + 1])


@pytest.mark.parametrize("dtype", compose.DTYPES)
@pytest.mark.parametrize("n_modules", [256, 257, 700])
def test_compose_more_modules_than_one_launch_takes(n_modules: int, dtype: torch.dtype) -> None:
    stack, coefficients = compose.stack_of(n_modules, 64, dtype), compose.coefficients_of(17, n_modules)
    compose.assert_composed(on_gpu(stack).compose(coefficients).cpu(), stack, coefficients)


@pytest.mark.parametrize("dtype", compose.DTYPES)
def test_compose_misaligned_equals_aligned(dtype: torch.dtype) -> None:
    stack, coefficients = on_gpu(compose.stack_of(20, 128, dtype, n_blocks=5)), compose.coefficients_of(13, 20)
    aligned = stack.compose(coefficients)
    misaligned = Stack(shifted(stack.values), None if stack.scales is None else shifted(stack.scales))
    assert_same_bytes(misaligned.compose(coefficients), aligned)
    out = shifted(torch.full_like(aligned, torch.nan))
    assert stack.compose(coefficients, out=out) is out
    assert_same_bytes(out, aligned)


@pytest.mark.parametrize("dtype", compose.DTYPES)
def test_compose_writes_zeros_for_zero_coefficients_and_nothing_beside_its_output(dtype: torch.dtype) -> None:
    memory = torch.full((15, 5 * 128), 7.0, device=DEVICE)
    on_gpu(compose.stack_of(20, 128, dtype, n_blocks=5)).compose(np.zeros((13, 20)), out=memory[1:14])
    assert torch.equal(memory.cpu(), torch.tensor([7.0, *[0.0] * 13, 7.0])[:, None].expand(15, 5 * 128))


# -- quantize_rows, dequantize_rows -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n_columns", [*SIZES, 1032])
@pytest.mark.parametrize("n_rows", SIZES)
def test_int8_rows_equal_twin(n_rows: int, n_columns: int, dtype: torch.dtype) -> None:
    """To the bit: no sum is taken on the way."""
    values = torch.from_numpy(hard_matrix(n_rows, n_columns, seed=3)).to(dtype)
    twin_codes, twin_scale = reference.quantize_rows(values.float().numpy())
    back = torch.tensor(reference.dequantize_rows(twin_codes, twin_scale)).flatten().to(dtype)
    for layout in LAYOUTS:
        codes, row_scale = ops.quantize_rows(layout(on_gpu(values)))
        assert codes.shape == values.shape
        assert_same_bytes(codes.cpu().flatten(), torch.tensor(twin_codes).flatten())
        assert_same_bytes(row_scale.cpu(), torch.tensor(twin_scale.tolist()))
        assert_same_bytes(ops.dequantize_rows(layout(codes), row_scale, dtype=dtype).cpu().flatten(), back)


def test_dequantize_rounds_half_to_even() -> None:
    """257/256 and its doubles lie in the middle between two bfloat16 numbers."""
    codes = torch.tensor([[1, 2, 4, 8, 16, 32, 64, 0], [-1, -2, -4, -8, -16, -32, -64, 3]], dtype=torch.int8)
    values = ops.dequantize_rows(on_gpu(codes), on_gpu(torch.tensor([257 / 256, 257 / 256])), dtype=torch.bfloat16)
    assert values[:, :7].tolist() == codes[:, :7].tolist()


def test_quantize_into_misaligned_codes() -> None:
    """`ops` makes its own output, so the kernel is called directly."""
    values = on_gpu(torch.from_numpy(hard_matrix(33, 256, seed=3)))
    codes, row_scale = ops.quantize_rows(values)
    native, out = routes.need_native("test", values.device, None), shifted(torch.zeros_like(codes))
    native.module.quantize_rows(values, out, row_scale, native.where)
    assert_same_bytes(out, codes)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_quantize_shows_values_that_are_not_finite_in_the_scale(bad: float) -> None:
    values = torch.ones(3, 257)
    values[1, 200] = bad
    _, row_scale = ops.quantize_activations(on_gpu(values))
    assert torch.isfinite(row_scale).tolist() == [True, False, True]


# -- int8_epilogue ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("out_features", [*SIZES, 260])
@pytest.mark.parametrize("n_rows", SIZES)
def test_epilogue_sizes(n_rows: int, out_features: int, dtype: torch.dtype) -> None:
    for options in ({}, {"bias": True}, {"rank": 3, "bias": True}):
        layer = epilogue.layer_of(n_rows, out_features, **options)
        epilogue.assert_output(on_gpu(layer).output(dtype=dtype).cpu(), layer)


@pytest.mark.parametrize("out_features", [128, 129])
@pytest.mark.parametrize("n_groups", [1, 2, 3, 6, 66])
@pytest.mark.parametrize("rank", [*SIZES, 64, 65])
def test_epilogue_groups_have_their_own_side_paths(rank: int, n_groups: int, out_features: int) -> None:
    layer = epilogue.layer_of(66, out_features, rank=rank, n_groups=n_groups)
    epilogue.assert_output(on_gpu(layer).output().cpu(), layer)


@pytest.mark.parametrize("dtype", FLOATS)
def test_epilogue_misaligned_equals_aligned(dtype: torch.dtype) -> None:
    layer = on_gpu(epilogue.layer_of(66, 256, rank=33, n_groups=2, bias=True))
    side = ops.SidePath(shifted(layer.side.inner), shifted(layer.side.B))
    parts = {name: shifted(getattr(layer, name)) for name in ("product", "x_scale", "row_scale", "bias")}
    misaligned = replace(layer, **parts, side=side)
    assert_same_bytes(misaligned.output(dtype=dtype), layer.output(dtype=dtype))
    assert_same_bytes(moved(misaligned, "cpu").product, moved(layer, "cpu").product)


def test_epilogue_rows_do_not_depend_on_other_rows() -> None:
    layer = on_gpu(epilogue.layer_of(66, 256, rank=16, n_groups=6, bias=True))
    together = layer.output()
    for group in range(6):
        rows = slice(11 * group, 11 * group + 11)
        side = ops.SidePath(layer.side.inner[rows], layer.side.B[group : group + 1])
        part = replace(layer, product=layer.product[rows], x_scale=layer.x_scale[rows], side=side)
        assert_same_bytes(part.output(), together[rows])
