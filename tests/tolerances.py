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


def dot_difference(magnitude: Float64, n_terms: int) -> Float64:
    """Two float32 sums of the same products against each other: each may be off by `dot_error`, in opposite ways."""
    return 2 * dot_error(magnitude, n_terms)


def int8_rows_error(row_scale: Float64, absmax: Float64) -> Float64:
    """Values of int8 rows against the float32 weight: half a step, and the float32 roundings on the way.

    The three roundings: of absmax/127, of weight/row_scale (which may carry a value over a tie), of code * row_scale.
    Each is relative to at most absmax; a row_scale that underflows adds 127 halves of the smallest float32.
    """
    return row_scale / 2 + 3 * ROUNDOFF_FLOAT32 * absmax + 127 * TINY_FLOAT32
