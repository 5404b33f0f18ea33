"""attention: arguments checked, then handed to the route that computes (see routes.py)."""

import torch

from lorahub_edge.kernels import reference
from lorahub_edge.kernels.checks import expect, expect_tensor, expect_threads
from lorahub_edge.kernels.routes import native_for

_OP = "attention"
_DTYPES = (torch.float32,)
_CPU = torch.device("cpu")


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scaling: float,
    bias: torch.Tensor | None = None,
    causal: bool = False,
    n_threads: int | None = None,
) -> torch.Tensor:
    """For every query the mean of the values, weighted by how well it meets their keys. On the CPU only.

    Meaning, in float32, for query i of head h, with key head g = h // (n_heads / n_key_heads) and the keys j that it
    sees: all, or with `causal` those up to i + n_keys - n_queries:

        s[j]      = scaling * dot(query[i, h], key[j, g]) + bias[h, i, j]
        p[j]      = exp(max(s[j] - max_j(s[j]), -87))
        out[i, h] = sum_j(p[j] * value[j, g]) / sum_j(p[j])

    Args:
        query: float32 (batch, n_queries, n_heads, head_features), C-contiguous.
        key, value: float32 (batch, n_keys, n_key_heads, head_features), C-contiguous; n_key_heads divides n_heads.
            There is at least one key, and with `causal` one per query.
        scaling: of the dot products.
        bias: float32 (n_heads, n_queries, n_keys), or by distance (n_heads, n_queries + n_keys - 1), where entry
            j - i + n_queries - 1 is that of query i and key j; C-contiguous. None for none.
        causal: whether queries see no later keys. The last query is as late as the last key. A value that is not
            finite may spoil a few queries before its key too.
        n_threads: CPU threads, at least 1; torch.get_num_threads() if None. The result does not depend on it.

    Returns:
        A new tensor like query. A query's result does not depend on other queries. Not differentiable.

    Raises:
        ValueError: a shape, layout or device is not as above.
        TypeError: a dtype is not as above.
        KernelUnavailable, InvalidInput: see `route` and `isa`.

    Cost: per thread, copies of the keys and values of one head, and the scores of a few queries.
    """
    _check(query, key, value, bias, causal)
    expect_threads(_OP, n_threads)
    query, key, value = query.detach(), key.detach(), value.detach()
    bias = None if bias is None else bias.detach()
    native = native_for(_CPU, n_threads)
    if native is None:
        arrays = (query.numpy(), key.numpy(), value.numpy())
        of_bias = None if bias is None else bias.numpy()
        return torch.from_numpy(reference.attention(*arrays, scaling=scaling, bias=of_bias, causal=causal))
    out = torch.empty_like(query)
    native.module.attention(query, key, value, bias, out, scaling, causal, native.where)
    return out


def _check(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None, causal: bool
) -> None:
    shape = ("batch", "n_queries", "n_heads", "head_features")
    expect_tensor(_OP, "query", query, dtypes=_DTYPES, shape=shape, device=_CPU)
    batch, n_queries, n_heads, n_features = query.shape
    shape = (batch, "n_keys", "n_key_heads", n_features)  # type: ignore[assignment]
    expect_tensor(_OP, "key", key, dtypes=_DTYPES, shape=shape, device=_CPU)
    expect_tensor(_OP, "value", value, dtypes=_DTYPES, shape=tuple(key.shape), device=_CPU)
    n_keys, n_key_heads = key.shape[1:3]
    divides = n_key_heads > 0 and n_heads % n_key_heads == 0
    expect(divides, _OP, f"a number of key heads that divides {n_heads}", n_key_heads)
    least = max(1, n_queries) if causal else 1
    expect(n_keys >= least, _OP, f"at least {least} keys", n_keys)
    if bias is not None:
        by_distance = isinstance(bias, torch.Tensor) and bias.dim() == 2
        sizes = (n_queries + n_keys - 1,) if by_distance else (n_queries, n_keys)
        expect_tensor(_OP, "bias", bias, dtypes=_DTYPES, shape=(n_heads, *sizes), device=_CPU)
