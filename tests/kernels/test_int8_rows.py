"""quantize_rows and dequantize_rows: the kernels against the NumPy twins, hand-worked integers, and bitsandbytes."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from lorahub_edge import _native
from lorahub_edge.kernels import ops, reference
from tests import tolerances
from tests.kernels.helpers import SIZES, assert_same_bytes, assert_within, hard_matrix, run_with_isa

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def weight_of(n_rows: int, n_columns: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Hard data, within the range of float16 where that is the dtype."""
    matrix = hard_matrix(n_rows, n_columns, seed=0)
    return torch.from_numpy(matrix.clip(-6e4, 6e4) if dtype == torch.float16 else matrix).to(dtype)


def assert_quantized_as_twin(weight: torch.Tensor) -> None:
    """Codes and scales of `weight` equal the twin's exactly, and their values are within half a step of the weight."""
    codes, row_scale = ops.quantize_rows(weight)
    values = weight.to(torch.float32).numpy()
    twin_codes, twin_scale = reference.quantize_rows(values)
    assert codes.dtype == torch.int8
    assert row_scale.dtype == torch.float32
    np.testing.assert_array_equal(codes, twin_codes, strict=True)
    np.testing.assert_array_equal(row_scale, twin_scale, strict=True)
    restored = ops.dequantize_rows(codes, row_scale).numpy()
    np.testing.assert_array_equal(restored, reference.dequantize_rows(twin_codes, twin_scale), strict=True)
    scale = row_scale.numpy().astype(np.float64)[:, None]
    absmax = np.abs(values).astype(np.float64).max(axis=1, initial=0, keepdims=True)
    assert_within(restored, values, np.broadcast_to(tolerances.int8_rows_error(scale, absmax), values.shape))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_columns", SIZES)
@pytest.mark.parametrize("n_rows", SIZES)
def test_equals_twin(n_rows: int, n_columns: int, dtype: torch.dtype) -> None:
    assert_quantized_as_twin(weight_of(n_rows, n_columns, dtype))


@pytest.mark.parametrize("isa", _native.runnable_isas())
def test_each_instruction_set(isa: str) -> None:
    script = """
import numpy as np
import torch
from tests.kernels.test_int8_rows import assert_quantized_as_twin, test_values_are_rounded_once_to_the_dtype, weight_of
for dtype in (torch.float32, torch.bfloat16):
    for shape in ((3, 1), (33, 31), (33, 257), (2, 4099)):
        assert_quantized_as_twin(weight_of(*shape, dtype))
    test_values_are_rounded_once_to_the_dtype(dtype)
smallest = float(np.finfo(np.float32).smallest_subnormal)
assert_quantized_as_twin(torch.tensor([[63.0, 0.0], [64.0, -1.0], [190.0, -190.0]]) * smallest)
"""
    run_with_isa(isa, script)


def test_result_does_not_depend_on_threads() -> None:
    weight = weight_of(257, 1027)
    alone = ops.quantize_rows(weight, n_threads=1)
    for n_threads in (2, 3, 16):
        shared = ops.quantize_rows(weight, n_threads=n_threads)
        for a, b in zip(alone, shared, strict=True):
            assert_same_bytes(a, b)
        assert_same_bytes(ops.dequantize_rows(*alone, n_threads=n_threads), ops.dequantize_rows(*alone, n_threads=1))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n_columns", [1, 5, 16, 257])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_that_are_not_finite_show_in_their_scale(dtype: torch.dtype, n_columns: int, value: float) -> None:
    """Wherever in the row they stand, also before and behind larger numbers; other rows are as they were."""
    for column in {0, n_columns // 2, n_columns - 1}:
        x = torch.ones(3, n_columns, dtype=dtype)
        x[1, column] = value
        _, row_scale = ops.quantize_activations(x)
        assert torch.isfinite(row_scale).tolist() == [True, False, True]


@pytest.mark.parametrize("layout", [lambda w: w.T, lambda w: w[:, ::3], lambda w: w[1::2], lambda w: w[:, 5:20]])
def test_accepts_any_layout(layout: Callable[[torch.Tensor], torch.Tensor]) -> None:
    weight = layout(weight_of(33, 31))
    assert_quantized_as_twin(weight)


@given(
    npst.arrays(
        np.float32,
        npst.array_shapes(min_dims=2, max_dims=2),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    )
)
def test_equals_twin_for_any_floats(weight: NDArray[np.float32]) -> None:
    """Subnormal numbers, scales that underflow and values at the end of the range among them."""
    assert_quantized_as_twin(torch.from_numpy(weight))


def test_hand_worked_integers() -> None:
    """Steps of 1, of 0.5 with ties (which go to the even code), a row of zeros, the largest float32."""
    largest = float(np.finfo(np.float32).max)
    weight = torch.tensor(
        [
            [127.0, -127.0, 1.0, -1.4, 0.0],
            [63.5, 0.25, 0.75, -0.25, -0.75],
            [0.0, 0.0, 0.0, 0.0, -0.0],
            [largest, -largest, largest / 4, 0.0, 1.0],
        ]
    )
    codes, row_scale = ops.quantize_rows(weight)
    assert codes.tolist() == [[127, -127, 1, -1, 0], [127, 0, 2, 0, -2], [0, 0, 0, 0, 0], [127, -127, 32, 0, 0]]
    assert row_scale.tolist()[:3] == [1.0, 0.5, 1.0]
    assert row_scale[3].item() == float(np.float32(largest) / np.float32(127))


def test_scales_at_the_smallest_float32() -> None:
    """63/127 of it rounds to 0: a row of zeros. 64/127 and 190/127 round to 1; 190 such steps must not wrap."""
    smallest = tolerances.TINY_FLOAT32
    codes, row_scale = ops.quantize_rows(torch.tensor([[63.0, 0.0], [64.0, -1.0], [190.0, -190.0]]) * smallest)
    assert codes.tolist() == [[0, 0], [64, -1], [127, -127]]
    assert row_scale.tolist() == [1.0, smallest, smallest]


def test_quantising_values_again_changes_nothing() -> None:
    codes, row_scale = ops.quantize_rows(weight_of(257, 257))
    again, again_scale = ops.quantize_rows(ops.dequantize_rows(codes, row_scale))
    assert torch.equal(again, codes)
    relative = (again_scale - row_scale).abs() / row_scale
    assert relative.max().item() <= 2 * tolerances.ROUNDOFF_FLOAT32


def test_weight_is_not_changed() -> None:
    weight = weight_of(33, 31)
    before = weight.clone()
    ops.quantize_rows(weight)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_are_rounded_once_to_the_dtype(dtype: torch.dtype) -> None:
    codes, row_scale = ops.quantize_rows(weight_of(33, 31, torch.float16))
    expected = torch.from_numpy(reference.dequantize_rows(codes.numpy(), row_scale.numpy())).to(dtype)
    actual = ops.dequantize_rows(codes, row_scale, dtype=dtype)
    assert actual.dtype == dtype
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_refuses_what_is_not_finite(value: float) -> None:
    weight = weight_of(33, 31)
    weight[17, 30] = value
    with pytest.raises(ValueError, match=r"quantize_rows: expected finite values, received (nan|inf) in row 17"):
        ops.quantize_rows(weight)


def test_refuses_float64_beyond_float32() -> None:
    with pytest.raises(ValueError, match="expected finite values, received inf in row 1"):
        ops.quantize_rows(torch.tensor([[1.0], [1e39]], dtype=torch.float64))


def test_refuses_types_and_shapes() -> None:
    with pytest.raises(TypeError, match="quantize_rows: expected a float tensor, received int8"):
        ops.quantize_rows(torch.zeros(2, 2, dtype=torch.int8))
    with pytest.raises(ValueError, match=r"quantize_rows: expected a tensor of shape .*, received \(2,\)"):
        ops.quantize_rows(torch.zeros(2))
    codes, row_scale = ops.quantize_rows(torch.ones(2, 3))
    with pytest.raises(TypeError, match=r"dequantize_rows: .*, received float32, float32, float32"):
        ops.dequantize_rows(codes.float(), row_scale)
    with pytest.raises(ValueError, match=r"dequantize_rows: .*, received \(2, 3\) and \(3,\)"):
        ops.dequantize_rows(codes, torch.ones(3))


@pytest.mark.parametrize("seed", range(3))
def test_layout_is_that_of_bitsandbytes(seed: int) -> None:
    """Same absmax, and codes that differ at most at ties.

    bitsandbytes quantises float16; our input is rounded to float16 first, so that the absmax is the same number. It
    then multiplies by 127/absmax in float16, two roundings of half a unit in the last place of a number up to 127,
    which carries a value over a tie where it is within 127 * 2 * ROUNDOFF_FLOAT16 of one.
    """
    functional = pytest.importorskip("bitsandbytes").functional
    rng = np.random.default_rng(seed)
    weight = torch.from_numpy(rng.standard_normal((33, 257)) * 10.0 ** rng.uniform(-2, 2, (33, 1))).half()
    codes, row_scale = ops.quantize_rows(weight)
    bnb_codes, bnb_absmax, _ = functional.int8_vectorwise_quant(weight.clone())
    np.testing.assert_array_equal(row_scale, bnb_absmax / 127)
    steps = weight.double() / row_scale.double()[:, None]
    is_near_tie = ((steps - steps.floor()) - 0.5).abs() <= 127 * 2 * tolerances.ROUNDOFF_FLOAT16
    assert int((codes.int() - bnb_codes.int()).abs().max()) <= 1
    assert not bool(((codes != bnb_codes) & ~is_near_tie).any())
