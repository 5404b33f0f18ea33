"""Twins of what a layer computes: products with int8 codes, gates, attention."""

import numpy as np
from numpy.typing import NDArray

from lorahub_edge.kernels.reference.factors import Codes, Float32


def gated_activation(gate: Float32, up: Float32, *, activation: str) -> Float32:
    """activation(gate) * up, the inner part of a gated feed-forward layer.

    Meaning, per element, in float32:

        gate / (1 + exp(-z)) * up               z = gate for "silu",
                                                z = 2 sqrt(2/pi) (gate + 0.044715 gate^3) for "gelu_tanh"

    with z taken within -87 and 87.

    Args:
        gate, up: float32, of one shape.
        activation: "silu" or "gelu_tanh".

    Returns:
        float32, of the same shape.
    """
    one = np.float32(1)
    z = gate
    if activation == "gelu_tanh":
        z = np.float32(2 * np.sqrt(2 / np.pi)) * gate * (np.float32(0.044715) * gate * gate + one)
    result: Float32 = gate / (one + np.exp(-np.clip(z, -87, 87, dtype=np.float32))) * up
    return result


def int8_epilogue(
    product: NDArray[np.int32],
    x_scale: Float32,
    row_scale: Float32,
    bias: Float32 | None = None,
    side: tuple[Float32, Float32] | None = None,
) -> Float32:
    """The output of an int8 layer from the int32 product of its codes.

    Meaning, in float32, factors and terms in this order, for row m of group g:

        y[m, o] = product[m, o] * x_scale[m] * row_scale[o] + bias[o] + sum_k(inner[m, k] * B[g, o, k])

    Args:
        product: int32 (n_rows, out_features).
        x_scale: float32 (n_rows,).
        row_scale: float32 (out_features,).
        bias: float32 (out_features,), or None.
        side: inner, float32 (n_rows, rank), and B, float32 (n_groups, out_features, rank), or None. The rows are
            n_groups equal runs, in order.

    Returns:
        float32 (n_rows, out_features).
    """
    return _add_terms(product.astype(np.float32) * x_scale[:, None] * row_scale, bias, side)


def int8_linear(
    x: Codes,
    x_scale: Float32,
    w: Codes,
    row_scale: Float32,
    bias: Float32 | None = None,
    side: tuple[Float32, Float32] | None = None,
    gate: tuple[Float32, str] | None = None,
) -> Float32:
    """The output of an int8 layer from int8 inputs.

    Meaning, for blocks b of in_features / n_blocks features, each dot product exact and what follows in float32,
    blocks, factors and terms in this order, with bias and side path as in `int8_epilogue`:

        y[m, o] = sum_b(x_scale[m, b] * dot(x[m, b], w[o, b])) * row_scale[o] + ...

    and with a gate the output is activation(gate[m, o]) * y[m, o]; see `gated_activation`.

    Args:
        x: int8 (n_rows, in_features).
        x_scale: float32 (n_rows, n_blocks).
        w: int8 (out_features, in_features).
        row_scale, bias, side: see `int8_epilogue`.
        gate: float32 (n_rows, out_features) and the activation's name, or None.

    Returns:
        float32 (n_rows, out_features).
    """
    scaled = np.zeros((len(x), len(w)), np.float32)
    blocks = (np.split(codes.astype(np.float64), x_scale.shape[1], axis=1) for codes in (x, w))
    for b, (x_block, w_block) in enumerate(zip(*blocks, strict=True)):
        scaled += (x_block @ w_block.T).astype(np.float32) * x_scale[:, b, None]  # whole numbers: exact in float64
    y = _add_terms(scaled * row_scale, bias, side)
    return y if gate is None else gated_activation(gate[0], y, activation=gate[1])


def _add_terms(y: Float32, bias: Float32 | None, side: tuple[Float32, Float32] | None) -> Float32:
    if bias is not None:
        y += bias
    if side is not None:
        inner, B = side
        group = np.arange(len(y)) // max(1, len(y) // len(B))
        for k in range(inner.shape[1]):
            y += inner[:, k, None] * B[group, :, k]
    return y


def attention(
    query: Float32,
    key: Float32,
    value: Float32,
    *,
    scaling: float,
    bias: Float32 | None = None,
    causal: bool = False,
) -> Float32:
    """For every query the mean of the values, weighted by how well it meets their keys.

    Meaning, in float32, for query i of head h, with key head g = h // (n_heads / n_key_heads) and the keys j that it
    sees: all, or with `causal` those up to i + n_keys - n_queries:

        s[j]      = scaling * dot(query[i, h], key[j, g]) + bias[h, i, j]
        p[j]      = exp(max(s[j] - max_j(s[j]), -87))
        out[i, h] = sum_j(p[j] * value[j, g]) / sum_j(p[j])

    Args:
        query: float32 (batch, n_queries, n_heads, head_features).
        key, value: float32 (batch, n_keys, n_key_heads, head_features).
        scaling: of the dot products.
        bias: float32 (n_heads, n_queries, n_keys), or by distance (n_heads, n_queries + n_keys - 1), where entry
            j - i + n_queries - 1 is that of query i and key j. None for none.
        causal: whether queries see no later keys. The last query is as late as the last key.

    Returns:
        float32 (batch, n_queries, n_heads, head_features).
    """
    n_queries, n_keys, n_heads_each = query.shape[1], key.shape[1], query.shape[2] // key.shape[2]
    i, j = np.arange(n_queries)[:, None], np.arange(n_keys)
    key, value = np.repeat(key, n_heads_each, 2), np.repeat(value, n_heads_each, 2)
    scores = np.float32(scaling) * np.einsum("bihf,bjhf->bhij", query, key)
    if bias is not None:
        scores += bias if bias.ndim == 3 else bias[:, j - i + n_queries - 1]
    seen = (j <= i + n_keys - n_queries) | (not causal)
    scores = np.where(seen, scores, np.float32(-np.inf))
    weights = np.exp(np.maximum(scores - scores.max(axis=3, keepdims=True), np.float32(-87))) * seen
    out: Float32 = np.einsum("bhij,bjhf->bihf", weights / weights.sum(axis=3, keepdims=True), value)
    return out
