"""Data and helpers for the kernels' tests."""

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lorahub_edge.kernels import ops, reference
from tests import tolerances

SIZES = (0, 1, 3, 31, 32, 33, 257)


def hard_matrix(n_rows: int, n_columns: int, *, seed: int) -> NDArray[np.float32]:
    """A matrix on which indexing errors show: scales per row over ten orders of magnitude, a zero row, a huge value."""
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((n_rows, n_columns)) * 10.0 ** rng.uniform(-5, 5, (n_rows, 1))
    if n_rows > 2:
        matrix[1] = 0
    if n_rows and n_columns:
        matrix[-1, n_columns // 2] = 1e9
    return matrix.astype(np.float32)


@dataclass(frozen=True)
class Stack:
    """A module stack as ops take it: floats, or codes with their scales."""

    values: torch.Tensor
    scales: torch.Tensor | None = None

    def compose(self, coefficients: Any, **options: Any) -> torch.Tensor:
        return ops.compose_factors(self.values, coefficients, scales=self.scales, **options)

    def twin(self, coefficients: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.scales is None:
            return reference.compose_factors(self.values.float().numpy(), coefficients)
        return reference.compose_factors(self.values.numpy(), coefficients, scales=self.scales.numpy())

    def rows(self) -> NDArray[np.float64]:
        """Exact values, (n_modules, n_values)."""
        values = self.values.double() if self.scales is None else self.values.double() * self.scales[..., None].double()
        return values.transpose(0, 1).flatten(1).numpy()

    def error(self, magnitude: NDArray[np.float64], *, more_roundings: int = 0) -> NDArray[np.float64]:
        """Of the composed sums, whose terms have absolute values that sum up to `magnitude`."""
        error_of = tolerances.dot_error if self.scales is None else tolerances.scaled_dot_error
        return error_of(magnitude, self.values.shape[1] + more_roundings)


def stack_from(values: torch.Tensor, dtype: torch.dtype) -> Stack:
    """Float (n_blocks, n_modules, block) as a stack of float32, bfloat16 or int8."""
    if dtype != torch.int8:
        return Stack(values.to(dtype))
    n_blocks, n_modules, block = values.shape
    codes, scales = ops.quantize_rows(values.reshape(n_blocks * n_modules, block))
    return Stack(codes.view(values.shape), scales.view(n_blocks, n_modules))


def assert_within(actual: NDArray[np.float32], expected: NDArray[np.floating], bound: NDArray[np.float64]) -> None:
    """Every element of `actual` is within its own bound of `expected`."""
    assert actual.shape == expected.shape
    assert actual.dtype == np.float32
    error = np.abs(actual.astype(np.float64) - expected)
    wrong = np.argwhere(~(error <= bound))
    assert not len(wrong), f"{len(wrong)} elements off, the first at {wrong[0]}: {error[tuple(wrong[0])]}"


def run_with_isa(isa: str, script: str) -> None:
    """Run a script in a process that uses one instruction set: the choice is made once per process.

    It must print nothing but "checked" and the instruction set that it saw, so that a script that checks nothing fails.
    """
    environment = {**os.environ, "LORAHUB_EDGE_ISA": isa}
    script += '\nfrom lorahub_edge.kernels import ops\nprint("checked", ops.isa())\n'
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"checked {isa}\n"


def assert_same_bytes(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    assert torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def assert_outputs(
    y: torch.Tensor,
    scaled: torch.Tensor,
    magnitude: torch.Tensor,
    *,
    n_blocks: int,
    bias: torch.Tensor | None,
    side: ops.SidePath | None,
) -> None:
    """An int8 layer's output is the exact sum of its terms, to within rounding.

    Args:
        y: float32 or bfloat16 (n_rows, out_features), computed.
        scaled: float64, products with their scales.
        magnitude: float64, the sum of what was added up for `scaled`, taken absolutely.
        n_blocks: of features that were added up.
        bias, side: as given to the op.
    """
    exact, rank = scaled, 0
    if bias is not None:
        exact, magnitude = exact + bias.double(), magnitude + bias.double().abs()
    if side is not None:
        rank = side.inner.shape[1]
        terms = side.inner.double()[:, None] * side.B.double().repeat_interleave(len(y) // len(side.B), 0)
        exact, magnitude = exact + terms.sum(2), magnitude + terms.abs().sum(2)
    bound = tolerances.int8_output_error(magnitude.numpy(), n_blocks, rank)
    if y.dtype == torch.bfloat16:
        bound = bound + tolerances.ROUNDOFF_BFLOAT16 * (exact.abs().numpy() + bound)
    error = np.abs(y.double().numpy() - exact.numpy())
    wrong = np.argwhere(~(error <= bound))
    assert not len(wrong), f"{len(wrong)} elements off, the first at {wrong[0]}"
