"""Twins of what is done to weights: composing factors, injecting deltas, int8 rows."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Codes = NDArray[np.int8]

# Largest code: the range is symmetric, -128 is never used.
MAX_CODE = 127


def compose_factors(stack: Float32 | Codes, coefficients: Float32, *, scales: Float32 | None = None) -> Float32:
    """Weighted sums of the modules' stacked factors, for several candidates.

    Meaning, in float32, the sum taken from the first module to the last; the scales are those of an int8 stack:

        out[c, b * block + j] = sum_k(coefficients[c, k] * stack[b, k, j])
        out[c, b * block + j] = sum_k((coefficients[c, k] * scales[b, k]) * stack[b, k, j])

    Args:
        stack: float32 or int8 (n_blocks, n_modules, block). A bfloat16 stack is widened before, which is exact.
        coefficients: float32 (n_candidates, n_modules).
        scales: float32 (n_blocks, n_modules) of an int8 stack, or None.

    Returns:
        float32 (n_candidates, n_blocks * block).
    """
    n_blocks, n_modules, block = stack.shape
    out = np.zeros((len(coefficients), n_blocks, block), np.float32)
    for k in range(n_modules):
        of_blocks = coefficients[:, k, None]
        if scales is not None:
            of_blocks = of_blocks * scales[:, k]
        out += of_blocks[..., None] * stack[:, k]
    return out.reshape(len(coefficients), n_blocks * block)


def inject_delta(
    codes: Codes,
    row_scale: Float32,
    A: Float32,
    B: Float32,
    *,
    scaling: float,
    dtype: str = "int8",
    seed: int | None = None,
) -> tuple[Codes | Float32, Float32, Float32]:
    """Add one layer's delta to its int8 base and round once.

    Meaning, in float32, for each row i, the sum taken from the first k to the last:

        delta[i]     = sum_k((scaling * B[i, k]) * A[k])
        value[i]     = codes[i] * row_scale[i] + delta[i]
        new_scale[i] = max(abs(value[i])) / 127                      1 where that is 0
        new_codes[i] = clip(round(value[i] / new_scale[i]), -127, 127)

    and a row whose delta is zero everywhere keeps the base's codes and scale.

    Args:
        codes: int8 (out_features, in_features).
        row_scale: float32 (out_features,).
        A: float32 (rank, in_features).
        B: float32 (out_features, rank).
        scaling: of the delta; taken as float32.
        dtype: "int8"; or "float32", or "bfloat16" (as float32 numbers), for `value` itself.
        seed: None rounds half to even; a number rounds up with a probability equal to the fraction.

    Returns:
        New codes or values, new_scale, and the report, float32 (4, out_features): the delta's rms in steps, the
        relative error, the share of the delta that survived, and the number of clipped codes.
    """
    delta = np.zeros(codes.shape, np.float32)
    for k in range(len(A)):
        delta += (np.float32(scaling) * B[:, k])[:, None] * A[k]
    value = dequantize_rows(codes, row_scale) + delta
    new_scale = row_scale_of(np.abs(value).max(axis=1, initial=0))
    keep = ~delta.any(axis=1)
    values: Codes | Float32
    if dtype == "int8":
        values, error, n_clipped = _rounded_codes(value / new_scale[:, None], seed)
        values[keep] = codes[keep]
    else:
        values = value if dtype == "float32" else round_to_bfloat16(value)
        error, n_clipped = np.subtract(values, value) / new_scale[:, None], np.zeros(len(codes), np.int64)
    report = _inject_report(delta / new_scale[:, None], error, n_clipped)
    report[:, keep] = np.array([[0], [0], [1], [0]], np.float32)
    return values, np.where(keep, row_scale, new_scale), report


def _rounded_codes(steps: Float32, seed: int | None) -> tuple[Codes, Float32, NDArray[np.int64]]:
    """Codes of values in steps, what rounding did to each, and how many of a row lie outside the codes' range."""
    whole = np.rint(steps) if seed is None else _round_stochastically(steps, seed)
    clipped = np.clip(whole, -MAX_CODE, MAX_CODE)
    return clipped.astype(np.int8), clipped - steps, (np.abs(steps) > MAX_CODE + 0.5).sum(axis=1)


def _inject_report(delta: Float32, error: Float32, n_clipped: NDArray[np.int64]) -> Float32:
    """The report's rows from deltas and errors in steps; a delta too small for its square counts as lost."""
    squares = (delta * delta).sum(axis=1)
    safe = np.where(squares == 0, np.float32(1), squares)
    rms = np.sqrt(squares / np.float32(max(1, delta.shape[1])))
    relative = np.where(squares == 0, 1, np.sqrt((error * error).sum(axis=1) / safe))
    survived = np.where(squares == 0, 0, 1 + (error * delta).sum(axis=1) / safe)
    return np.stack([rms, relative, survived, n_clipped]).astype(np.float32)


def _round_stochastically(steps: Float32, seed: int) -> Float32:
    """Down, or up where a random number in [0, 1) is below the fraction."""
    down = np.floor(steps)
    rounded: Float32 = np.where(uniform(steps.shape, seed) < steps - down, down + np.float32(1), down)
    return rounded


def uniform(shape: tuple[int, ...], seed: int) -> Float32:
    """24 random bits per element, as multiples of 2^-24: a hash of seed, row and column, so that order is no matter.

    Source: the constants of the 32-bit mixer are those of C. Wellons' hash-prospector ("lowbias32").
    """
    key = _mixed(_mixed(np.uint32(seed & 0xFFFFFFFF)) ^ np.uint32(seed >> 32))
    rows = _mixed(key ^ np.arange(shape[0], dtype=np.uint32))
    bits = _mixed(rows[:, None] ^ np.arange(shape[1], dtype=np.uint32))
    numbers: Float32 = (bits >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
    return numbers


def _mixed(x: Any) -> Any:
    """32 bits from 32 bits, each bit of the result a mix of all."""
    with np.errstate(over="ignore"):
        x = x ^ (x >> np.uint32(16))
        x = x * np.uint32(0x7FEB352D)
        x = x ^ (x >> np.uint32(15))
        x = x * np.uint32(0x846CA68B)
        return x ^ (x >> np.uint32(16))


def round_to_bfloat16(values: Float32) -> Float32:
    """The nearest bfloat16 numbers, ties to even; for numbers, not NaN."""
    bits = values.view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    nearest: Float32 = (rounded & np.uint32(0xFFFF0000)).view(np.float32)
    return nearest


def row_scale_of(absmax: Float32) -> Float32:
    """absmax / 127, and 1 where that is 0."""
    row_scale: Float32 = absmax / np.float32(MAX_CODE)
    row_scale[row_scale == 0] = 1
    return row_scale


def quantize_rows(weight: Float32) -> tuple[Codes, Float32]:
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
    row_scale = row_scale_of(np.abs(weight).max(axis=1, initial=0))
    return np.clip(np.rint(weight / row_scale[:, None]), -MAX_CODE, MAX_CODE).astype(np.int8), row_scale


def dequantize_rows(codes: Codes, row_scale: Float32) -> Float32:
    """Values of int8 rows: codes[i, j] * row_scale[i], in float32.

    Args:
        codes: int8 (out_features, in_features).
        row_scale: float32 (out_features,).

    Returns:
        float32 (out_features, in_features).
    """
    return codes.astype(np.float32) * row_scale[:, None]
