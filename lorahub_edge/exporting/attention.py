"""Attention as decoder-only models are traced: eager, but heads that share keys and values take them as they are.

transformers' own repeats the cache for each head of a group, in every step and layer. Here the queries of a group stand
in rows below one another, so one product with the group's keys serves them all. Same mathematics, standard operators.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

NAME = "lorahub_edge_grouped"


def use_grouped_attention() -> str:
    """Tell transformers of it; returns the name that a config asks for it by."""
    AttentionInterface.register(NAME, grouped_attention)
    AttentionMaskInterface.register(NAME, eager_mask)
    return NAME


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    softcap: float | None = None,
    **_others: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in every layer.

    Args:
        module: the layer.
        query: (b, heads, t, width).
        key, value: (b, kv heads, n, width); the heads of a group stand together.
        attention_mask: float (b, 1, t, n), added to the scores; None where all is seen.
        scaling: of the dot products.
        softcap: scores become softcap * tanh(scores / softcap).

    Returns:
        (b, t, heads, width), and None where others return their weights.
    """
    b, heads, t, width = query.shape
    kv_heads, n = key.shape[1:3]
    rows = query.reshape(b, kv_heads, heads // kv_heads * t, width)
    scores = (torch.matmul(rows, key.transpose(2, 3)) * scaling).reshape(b, heads, t, n)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = scores + attention_mask
    shares = torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype)
    output = torch.matmul(shares.reshape(b, kv_heads, heads // kv_heads * t, n), value)
    return output.reshape(b, heads, t, width).transpose(1, 2), None
