"""NumPy twins of the kernels: the specification, the fallback, and the other side of the tests.

Each function has the arguments of its namesake in `ops`, as NumPy arrays, and favours plainness over speed. Nothing
here knows of torch or of the native extension, and nothing is checked: `ops` does that.
"""

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

# Largest code: the range is symmetric, -128 is never used.
MAX_CODE = 127


def compose_factors(stack: Float32, coefficients: Float32) -> Float32:
    """Weighted sums of the modules' stacked factors, for several candidates.

    Meaning, in float32, the sum taken from the first module to the last:

        out[c, j] = sum_k(coefficients[c, k] * stack[k, j])

    Args:
        stack: float32 (n_modules, n_values). A bfloat16 stack is widened before, which is exact.
        coefficients: float32 (n_candidates, n_modules).

    Returns:
        float32 (n_candidates, n_values).
    """
    out = np.zeros((coefficients.shape[0], stack.shape[1]), np.float32)
    for k, row in enumerate(stack):
        out += coefficients[:, k, None] * row
    return out


def quantize_rows(weight: Float32) -> tuple[NDArray[np.int8], Float32]:
    """Quantise each row to int8 with its own scale.

    Meaning, in float32, for each row i:

        row_scale[i] = max(abs(weight[i])) / 127        1 where that is 0
        codes[i, j]  = clip(round_half_even(weight[i, j] / row_scale[i]), -127, 127)

    so that codes[i, j] * row_scale[i] is weight[i, j] to within half a step. A row of zeros has codes 0. So has a row
    whose absmax is under 127 times the smallest float32 and whose scale would therefore be 0.

    Args:
        weight: float32 (out_features, in_features), finite.

    Returns:
        codes int8 (out_features, in_features) and row_scale float32 (out_features,).

    Source: the layout of bitsandbytes' int8 rows, which stores absmax = 127 * row_scale.
    """
    absmax = np.abs(weight).max(axis=1, initial=0)
    row_scale = absmax / np.float32(MAX_CODE)
    row_scale[row_scale == 0] = 1
    return np.clip(np.rint(weight / row_scale[:, None]), -MAX_CODE, MAX_CODE).astype(np.int8), row_scale


def dequantize_rows(codes: NDArray[np.int8], row_scale: Float32) -> Float32:
    """Values of int8 rows: codes[i, j] * row_scale[i], in float32.

    Args:
        codes: int8 (out_features, in_features).
        row_scale: float32 (out_features,).

    Returns:
        float32 (out_features, in_features).
    """
    return codes.astype(np.float32) * row_scale[:, None]
