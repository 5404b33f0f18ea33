"""Every tolerance of the tests, each derived. A test that needs another number adds it here, with its reason.

Bounds are per element: the largest allowed error of that element, as an array of the result's shape.
"""

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

# Unit roundoff: the largest relative error of one rounding to nearest.
ROUNDOFF_FLOAT32 = 2.0**-24
ROUNDOFF_BFLOAT16 = 2.0**-8
ROUNDOFF_FLOAT16 = 2.0**-11

# Smallest positive float32: what an underflowing product may lose at most.
TINY_FLOAT32 = 2.0**-149


def dot_error(magnitude: Float64, n_terms: int) -> Float64:
    """A float32 sum of n products, in any order, against the exact sum.

    Each term passes at most n roundings (its product, then n - 1 additions), so the error is at most
    gamma(n) * sum(abs(terms)) with gamma(n) = n u / (1 - n u). Fused multiply-adds only make it smaller.

    Args:
        magnitude: sum of the terms' absolute values, per element.
        n_terms: terms per sum.
    """
    gamma = n_terms * ROUNDOFF_FLOAT32 / (1 - n_terms * ROUNDOFF_FLOAT32)
    return gamma * magnitude + n_terms * TINY_FLOAT32


def scaled_dot_error(magnitude: Float64, n_terms: int) -> Float64:
    """`dot_error` of products with int8 codes, (coefficient * scale) * code: one rounding more per term.

    Where coefficient * scale underflows it loses at most half the smallest float32, and the code makes 127 of it.
    """
    return dot_error(magnitude, n_terms + 1) + n_terms * 127 * TINY_FLOAT32


def int8_rows_error(row_scale: Float64, absmax: Float64) -> Float64:
    """Values of int8 rows against the float32 weight: half a step, and the float32 roundings on the way.

    The three roundings: of absmax/127, of weight/row_scale (which may carry a value over a tie), of code * row_scale.
    Each is relative to at most absmax; a row_scale that underflows adds 127 halves of the smallest float32.
    """
    return row_scale / 2 + 3 * ROUNDOFF_FLOAT32 * absmax + 127 * TINY_FLOAT32


def injected_value_error(base: Float64, magnitude: Float64, rank: int) -> Float64:
    """base + delta in float32, as inject_delta computes it, against the exact sum.

    Per term scaling * B, times A, and the sum over the rank; then code * row_scale, and the last addition: no term
    passes more than rank + 3 roundings.

    Args:
        base: abs(code * row_scale), per element.
        magnitude: sum over the rank of abs(scaling * B * A), per element.
        rank: of the delta.
    """
    return dot_error(base + magnitude, rank + 3)


def injected_code_error(value_error: Float64, step: Float64, *, stochastic: bool) -> Float64:
    """A new int8 value against the exact sum: what the float32 value may be off, and half a step, or a whole one.

    value / step and code * step are rounded, each by at most a unit roundoff of 127 steps; a value up to 127.5 steps
    of a scale that was rounded down.
    """
    return value_error + step * ((1.0 if stochastic else 0.5) + 4 * 127 * ROUNDOFF_FLOAT32)


def injected_report_error(
    report: Float64, value_error: Float64, step: Float64, delta: Float64, n_columns: int
) -> Float64:
    """The report of inject_delta against the same numbers in float64 from exact deltas and the values received.

    With q the norm of all elementwise errors (the value's, and 4 roundings of 127 steps) over the norm of the delta,
    and g the error of a float32 sum over the columns and of the few operations on it:

        rms       off by (q + g) rms
        error     off by q, and by (q + g) of itself
        survived  off by q + q error, and by (2 q + g) of its term in the error

    Args:
        report: rows rms, error, survived in float64, (3, rows).
        value_error: `injected_value_error`, (rows, columns).
        step: new scales, (rows, 1).
        delta: exact, (rows, columns).
        n_columns: terms of the sums.
    """
    norm = np.sqrt((delta**2).sum(axis=1))
    per_element = value_error + 4 * 127 * ROUNDOFF_FLOAT32 * step
    q = np.sqrt((per_element**2).sum(axis=1)) / np.where(norm == 0, 1, norm)
    g = (n_columns + 8) * ROUNDOFF_FLOAT32
    rms, error, survived = report
    return np.stack([(q + g) * rms, q + (q + g) * error, q * (1 + error) + (2 * q + g) * np.abs(survived - 1) + g])


def int8_output_error(magnitude: Float64, n_blocks: int, rank: int) -> Float64:
    """int8_epilogue, int8_linear: product to float32, sum over blocks, scales, bias, sum over the rank, all rounded."""
    return dot_error(magnitude, rank + n_blocks + 3)


def gated_activation_error(gate: Float64, up: Float64, exact: Float64, *, z: Float64) -> Float64:
    """gated_activation in float32 against the exact value.

    z passes at most 6 roundings, so exp(-z) is off by 6 abs(z) roundings and 8 of its own (its argument's reduction,
    the series, the scaling); the sum, the quotient and the product with up are three more. The inverse of
    1 + exp(-z) is relatively no further off than exp(-z). Beyond 87 z stops, where the value is below
    2^-125 abs(gate * up).

    Args:
        gate, up: float32 inputs.
        exact: the result in float64.
        z: in float64.
    """
    relative = (6 * np.minimum(np.abs(z), 87.0) + 11) * ROUNDOFF_FLOAT32
    return relative * np.abs(exact) + 2.0**-125 * np.abs(gate * up) + TINY_FLOAT32


def attention_error(score_error: Float64, weighted: Float64, n_keys: int) -> Float64:
    """attention in float32 against the exact value.

    A weight exp(s - m) is relatively off by what its score is (m, the same for all, cancels), by the rounding of the
    difference, at most 87, and by 8 roundings of exp's own. Sums of weights and of weights times values add n
    roundings, the division and the two products with its result at most four. Weights are positive, so what each is
    off by bounds numerator and denominator alike.

    Args:
        score_error: largest error of a score that the query sees, in the result's shape; see `dot_error`.
        weighted: sum over the keys of abs(weight * value), per element.
        n_keys: keys seen at most.
    """
    off = np.expm1(score_error + (87 + 8) * ROUNDOFF_FLOAT32) + n_keys * ROUNDOFF_FLOAT32
    relative = (1 + off) / (1 - off) * (1 + 4 * ROUNDOFF_FLOAT32) - 1
    return relative * weighted + n_keys * TINY_FLOAT32
