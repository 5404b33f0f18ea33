"""compose_factors: the native kernel against its NumPy twin and against exact sums."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lorahub_edge import _native
from lorahub_edge.kernels import compose_factors, ops
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

DTYPES = (torch.float32, torch.bfloat16, torch.int8)


def values_of(n_modules: int, block: int, *, n_blocks: int = 2, seed: int = 0) -> torch.Tensor:
    """(n_blocks, n_modules, block): modules and, by less, blocks have orders of magnitude of their own."""
    rows = hard_matrix(n_modules, n_blocks * block, seed=seed).reshape(n_modules, n_blocks, block)
    rows *= 10.0 ** np.linspace(-1, 1, n_blocks)[:, None]
    return torch.from_numpy(rows.transpose(1, 0, 2).copy())


def stack_of(n_modules: int, block: int, dtype: torch.dtype, *, n_blocks: int = 2, seed: int = 0) -> Stack:
    """`values_of` as a stack."""
    return stack_from(values_of(n_modules, block, n_blocks=n_blocks, seed=seed), dtype)


def coefficients_of(n_candidates: int, n_modules: int, *, seed: int = 1) -> NDArray[np.float32]:
    """Within LoRAHub's box, some exactly zero."""
    rng = np.random.default_rng(seed)
    coefficients = rng.uniform(-1.5, 1.5, (n_candidates, n_modules)).astype(np.float32)
    return np.where(rng.random(coefficients.shape) < 0.2, np.float32(0), coefficients)


def assert_composed(actual: torch.Tensor, stack: Stack, coefficients: NDArray[np.float32]) -> None:
    """`actual` equals the twin and the exact sums, each within its bound."""
    rows, exactly = stack.rows(), coefficients.astype(np.float64)
    bound = stack.error(np.abs(exactly) @ np.abs(rows))
    assert_within(actual.numpy(), exactly @ rows, bound)
    assert_within(actual.numpy(), stack.twin(coefficients), 2 * bound)  # each may be off, in opposite ways


# -- Against the twin -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", SIZES)
@pytest.mark.parametrize("n_modules", SIZES)
@pytest.mark.parametrize("n_blocks", [0, 1, 3])
def test_equals_twin(n_blocks: int, n_modules: int, block: int, dtype: torch.dtype) -> None:
    stack, coefficients = stack_of(n_modules, block, dtype, n_blocks=n_blocks), coefficients_of(3, n_modules)
    assert_composed(stack.compose(coefficients), stack, coefficients)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", [127, 128, 257])
@pytest.mark.parametrize("n_candidates", [*range(34), 257])
def test_equals_twin_for_any_number_of_candidates(n_candidates: int, block: int, dtype: torch.dtype) -> None:
    """Candidates go in groups of several sizes, columns in vectors of several lengths."""
    stack, coefficients = stack_of(20, block, dtype, n_blocks=3), coefficients_of(n_candidates, 20)
    assert_composed(stack.compose(coefficients), stack, coefficients)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_candidates", [1, 13, 33])
def test_result_does_not_depend_on_threads(n_candidates: int, dtype: torch.dtype) -> None:
    """Large enough that the work is really shared, and not a multiple of anything."""
    stack, coefficients = stack_of(33, 127, dtype, n_blocks=1201), coefficients_of(n_candidates, 33)
    alone = stack.compose(coefficients, n_threads=1)
    assert_composed(alone, stack, coefficients)
    for n_threads in (2, 3, 16):
        assert_same_bytes(stack.compose(coefficients, n_threads=n_threads), alone)


@pytest.mark.parametrize("dtype", DTYPES)
def test_result_does_not_depend_on_other_candidates(dtype: torch.dtype) -> None:
    stack, coefficients = stack_of(20, 750, dtype), coefficients_of(33, 20)
    together = stack.compose(coefficients)
    for c in range(33):
        assert_same_bytes(stack.compose(coefficients[c : c + 1]), together[c : c + 1])


@pytest.mark.parametrize("isa", _native.runnable_isas())
def test_each_instruction_set(isa: str) -> None:
    """Without fused multiply-add: equal to the bit."""
    script = """
import torch
from lorahub_edge.kernels import ops
from tests.kernels.helpers import assert_same_bytes
from tests.kernels.test_compose_factors import DTYPES, assert_composed, coefficients_of, stack_of
for dtype in DTYPES:
    for n_candidates in (1, 2, 3, 6, 7, 12, 13, 14, 26, 33):
        for block in (1, 33, 128, 1027):
            stack, coefficients = stack_of(33, block, dtype), coefficients_of(n_candidates, 33)
            actual = stack.compose(coefficients)
            assert_composed(actual, stack, coefficients)
            if ops.isa() == "baseline":
                assert_same_bytes(actual, torch.from_numpy(stack.twin(coefficients)))
"""
    run_with_isa(isa, script)


@pytest.mark.parametrize("dtype", DTYPES)
def test_plain_torch_is_within_the_same_bounds(dtype: torch.dtype) -> None:
    """What computes on devices without kernels; called directly, as the tests have no such device."""
    stack, coefficients = stack_of(20, 33, dtype, n_blocks=3), coefficients_of(13, 20)
    by_torch = compose_factors._by_torch(stack.values, torch.from_numpy(coefficients), stack.scales)
    assert_composed(by_torch, stack, coefficients)


def test_unknown_instruction_set_is_an_error() -> None:
    script = "from lorahub_edge.kernels import ops; import torch; ops.compose_factors(torch.zeros(1, 1, 1), [[1.0]])"
    environment = {**os.environ, "LORAHUB_EDGE_ISA": "mmx"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "InvalidInput: LORAHUB_EDGE_ISA: expected one that this build and machine run" in done.stderr
    assert "received 'mmx'" in done.stderr


# -- Properties -------------------------------------------------------------------------------------------------------

shapes = st.tuples(st.integers(1, 9), st.integers(1, 70))  # modules, values in a block
factors = st.floats(-1.5, 1.5, width=32)


@given(shapes, factors, factors, st.sampled_from(DTYPES), st.integers(0, 99))
def test_linear_in_coefficients(shape: tuple[int, int], a: float, b: float, dtype: torch.dtype, seed: int) -> None:
    stack = stack_of(*shape, dtype, seed=seed)
    x, y = (coefficients_of(1, shape[0], seed=seed + i).astype(np.float64) for i in (1, 2))
    left = stack.compose(a * x + b * y).numpy()
    parts = stack.compose(np.concatenate([x, y])).numpy().astype(np.float64)
    # Left: the coefficients are rounded once more than on the right, one more rounding per term.
    magnitude = (np.abs(a * x) + np.abs(b * y)) @ np.abs(stack.rows())
    assert_within(left, a * parts[:1] + b * parts[1:], 2 * stack.error(magnitude, more_roundings=1))


@given(shapes, st.sampled_from(DTYPES), st.integers(0, 99))
def test_unit_coefficients_give_each_module(shape: tuple[int, int], dtype: torch.dtype, seed: int) -> None:
    stack = stack_of(*shape, dtype, seed=seed)
    assert torch.equal(stack.compose(np.eye(shape[0])), torch.from_numpy(stack.rows().astype(np.float32)))


@given(shapes, st.sampled_from(DTYPES), st.randoms(use_true_random=False), st.integers(0, 99))
def test_order_of_modules_does_not_matter(
    shape: tuple[int, int], dtype: torch.dtype, random: Random, seed: int
) -> None:
    stack, coefficients = stack_of(*shape, dtype, seed=seed), coefficients_of(2, shape[0], seed=seed)
    order = random.sample(range(shape[0]), shape[0])
    scales = None if stack.scales is None else stack.scales[:, order]
    shuffled = Stack(stack.values[:, order], scales).compose(coefficients[:, order]).numpy()
    magnitude = np.abs(coefficients).astype(np.float64) @ np.abs(stack.rows())
    assert_within(shuffled, stack.compose(coefficients).numpy(), 2 * stack.error(magnitude))


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_coefficients_give_exact_zeros(dtype: torch.dtype) -> None:
    assert torch.equal(stack_of(20, 750, dtype).compose(np.zeros((13, 20))), torch.zeros(13, 1500))


def test_quantize_rows_makes_an_int8_stack() -> None:
    """All rows at once or one module's blocks: the same codes and scales, and each module to within half a step."""
    values, stack = values_of(5, 128, n_blocks=3), stack_of(5, 128, torch.int8, n_blocks=3)
    for k in range(5):
        codes, scales = ops.quantize_rows(values[:, k])
        assert_same_bytes(stack.values[:, k], codes)
        assert_same_bytes(stack.scales[:, k], scales)
    assert torch.equal(stack.scales[:, 1], torch.ones(3))  # a module of zeros
    steps, absmax = stack.scales.double()[..., None], values.abs().amax(2, keepdim=True).double()
    bound = tolerances.int8_rows_error(steps.numpy(), absmax.numpy()) * np.ones(128)
    composed = stack.compose(np.eye(5)).view(5, 3, 128).transpose(0, 1)
    assert_within(composed.numpy(), values.numpy(), bound)


def test_coefficients_are_rounded_once() -> None:
    """A float64 beside a tie of float32: rounding by way of another type would go wrong."""
    value = 1 + 2.0**-24 + 2.0**-50
    composed = ops.compose_factors(torch.ones(1, 1, 1), torch.tensor([[value]], dtype=torch.float64))
    assert composed.item() == 1 + 2.0**-23


# -- The output -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_candidates", [1, 3, 13, 33])
def test_large_outputs_are_written_past_the_caches(n_candidates: int) -> None:
    """The same values as a small call gives, in blocks that do and do not fit whole vectors."""
    for block in (128, 120):
        stack, coefficients = stack_of(2, block, torch.float32, n_blocks=9000), coefficients_of(n_candidates, 2)
        large = stack.compose(coefficients)
        assert large.nbytes >= 4 << 20
        small = Stack(stack.values[-3:]).compose(coefficients)
        assert_same_bytes(large[:, -3 * block :], small)
        assert_composed(large, stack, coefficients)


def test_out_is_written_and_returned() -> None:
    stack, coefficients = stack_of(20, 750, torch.float32), coefficients_of(13, 20)
    out = torch.full((13, 1500), torch.nan)
    assert stack.compose(coefficients, out=out) is out
    assert_composed(out, stack, coefficients)


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_out_is_written(dtype: torch.dtype) -> None:
    """A guard band around the output, and inputs with their bytes unchanged."""
    stack, coefficients = stack_of(20, 1027, dtype, n_blocks=1), torch.from_numpy(coefficients_of(13, 20))
    inputs = [tensor for tensor in (stack.values, stack.scales, coefficients) if tensor is not None]
    before = [tensor.clone() for tensor in inputs]
    memory = torch.full((15, 1027), 7.0)
    stack.compose(coefficients, out=memory[1:14])
    assert_composed(memory[1:14], stack, coefficients.numpy())
    assert torch.equal(memory[[0, 14]], torch.full((2, 1027), 7.0))
    for tensor, copy in zip(inputs, before, strict=True):
        assert_same_bytes(tensor, copy)


def test_stack_may_be_memory_mapped_read_only(tmp_path: Path) -> None:
    values = values_of(3, 1027).numpy()
    values.tofile(tmp_path / "stack")
    mapped = torch.from_file(str(tmp_path / "stack"), shared=False, size=values.size).reshape(values.shape)
    coefficients = coefficients_of(2, 3)
    assert_composed(Stack(mapped).compose(coefficients), Stack(torch.from_numpy(values)), coefficients)


def test_calls_from_several_threads() -> None:
    """The GIL is released during the kernel: calls at the same time must not disturb each other, nor lose parts.

    Outputs start as NaN: memory that an earlier call has filled would hide a part that nobody computed.
    """
    stack, coefficients = stack_of(20, 127, torch.float32, n_blocks=2000), coefficients_of(13, 20)
    expected = stack.compose(coefficients)
    outs = [torch.full_like(expected, torch.nan) for _ in range(16)]
    start = threading.Barrier(4)

    def compose(some: list[torch.Tensor]) -> None:
        start.wait()
        for out in some:
            stack.compose(coefficients, out=out, n_threads=2)

    threads = [threading.Thread(target=compose, args=(outs[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for out in outs:
        assert_same_bytes(out, expected)


# -- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stack", "message"),
    [
        (np.zeros((1, 2, 4), np.float32), "expected stack to be a torch.Tensor, received ndarray"),
        (
            torch.zeros(1, 2, 4, dtype=torch.float16),
            "expected stack of dtype float32 or bfloat16 or int8, received float16",
        ),
        (
            torch.zeros(1, 2, 4, dtype=torch.int32),
            "expected stack of dtype float32 or bfloat16 or int8, received int32",
        ),
    ],
)
def test_refuses_stack_of_wrong_type(stack: torch.Tensor, message: str) -> None:
    with pytest.raises(TypeError, match=f"compose_factors: {message}"):
        ops.compose_factors(stack, [[1.0, 2.0]])


@pytest.mark.parametrize(
    ("stack", "message"),
    [
        (torch.zeros(2, 4), r"expected stack of shape \(n_blocks, n_modules, block\), received \(2, 4\)"),
        (torch.zeros(1, 4, 2).mT, r"expected a C-contiguous stack, received strides \(8, 1, 2\) for \(1, 2, 4\)"),
        (torch.zeros(1, 2, 8)[..., ::2], "expected a C-contiguous stack"),
        (torch.zeros(1, 2, 8)[..., :4], "expected a C-contiguous stack"),
        (torch.zeros(4, 2, 4)[::2], "expected a C-contiguous stack"),
    ],
)
def test_refuses_stack_of_wrong_layout(stack: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=f"compose_factors: {message}"):
        ops.compose_factors(stack, [[1.0, 2.0]])


@pytest.mark.parametrize(
    ("dtype", "scales", "error", "message"),
    [
        (torch.int8, None, ValueError, "with an int8 stack, received None; quantize_rows makes codes and scales"),
        (
            torch.float32,
            torch.ones(1, 2),
            ValueError,
            "with an int8 stack only, received some with a float32 one; leave",
        ),
        (
            torch.bfloat16,
            torch.ones(1, 2),
            ValueError,
            "with an int8 stack only, received some with a bfloat16 one; le",
        ),
        (torch.int8, np.ones((1, 2), np.float32), TypeError, "to be a torch.Tensor, received ndarray"),
        (torch.int8, torch.ones(1, 2).double(), TypeError, "of dtype float32, received float64"),
        (torch.int8, torch.ones(2, 1), ValueError, r"of shape \(1, 2\), received \(2, 1\)"),
    ],
)
def test_refuses_scales(dtype: torch.dtype, scales: torch.Tensor | None, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"compose_factors: expected scales {message}"):
        ops.compose_factors(torch.zeros(1, 2, 4, dtype=dtype), [[1.0, 2.0]], scales=scales)


def test_refuses_scales_of_wrong_layout() -> None:
    with pytest.raises(ValueError, match=r"expected a C-contiguous scales, received strides \(4, 2\)"):
        ops.compose_factors(torch.zeros(1, 2, 4, dtype=torch.int8), [[1.0, 2.0]], scales=torch.ones(1, 4)[:, ::2])


@pytest.mark.parametrize(
    ("coefficients", "message"),
    [
        ([1.0, 2.0], r"expected coefficients of shape \(n_candidates, 2\), received \(2,\)"),
        ([[1.0, 2.0, 3.0]], r"expected coefficients of shape \(n_candidates, 2\), received \(1, 3\)"),
        ([[1.0, 2.0], [3.0, np.nan]], r"expected finite coefficients, received nan at \(1, 1\)"),
        ([[1e39, 2.0]], r"expected finite coefficients, received 1e\+39 at \(0, 0\)"),
    ],
)
def test_refuses_coefficients(coefficients: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=f"compose_factors: {message}"):
        ops.compose_factors(torch.zeros(1, 2, 4), coefficients)


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (torch.zeros(1, 4, dtype=torch.float64), TypeError, "expected out of dtype float32, received float64"),
        (torch.zeros(2, 4), ValueError, r"expected out of shape \(1, 4\), received \(2, 4\)"),
        (torch.zeros(1, 8)[:, ::2], ValueError, "expected a C-contiguous out"),
    ],
)
def test_refuses_out(out: torch.Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"compose_factors: {message}"):
        ops.compose_factors(torch.zeros(1, 2, 4), [[1.0, 2.0]], out=out)


def test_refuses_out_that_overlaps_the_stack() -> None:
    memory = torch.zeros(3, 4)
    with pytest.raises(ValueError, match="expected out and stack in separate memory"):
        ops.compose_factors(memory[:2].view(1, 2, 4), [[1.0, 2.0]], out=memory[1:2])


def test_refuses_out_that_overlaps_the_scales() -> None:
    memory, stack = torch.zeros(4), torch.zeros(1, 2, 3, dtype=torch.int8)
    with pytest.raises(ValueError, match="expected out and scales in separate memory"):
        ops.compose_factors(stack, [[1.0, 2.0]], scales=memory[:2].view(1, 2), out=memory[1:].view(1, 3))


@pytest.mark.parametrize("coefficients", [np.ones((1, 2), np.complex64), torch.ones(1, 2, dtype=torch.complex64)])
def test_refuses_complex_coefficients(coefficients: object) -> None:
    with pytest.raises(TypeError, match="compose_factors: expected real coefficients, received complex64"):
        ops.compose_factors(torch.zeros(1, 2, 4), coefficients)


def test_refuses_no_threads() -> None:
    with pytest.raises(ValueError, match="expected n_threads of at least 1, received 0"):
        ops.compose_factors(torch.zeros(1, 2, 4), [[1.0, 2.0]], n_threads=0)
