"""T5's relative position bias by distance: one value per head and distance, not one per query and key.

It depends on nothing else, so for 1,024 tokens and 16 heads 0.1 MB say what transformers writes out in 67.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn


def give_biases_by_distance(model: nn.Module) -> None:
    """Let every layer with a table of relative biases give (1, heads, 1, queries + keys - 1); see `every_pair`."""
    for module in model.modules():
        if hasattr(module, "relative_attention_bias"):
            module.compute_bias = MethodType(_bias_by_distance, module)  # type: ignore[assignment]


def _bias_by_distance(
    layer: Any, query_length: int, key_length: int, device: torch.device | None = None, past_seen_tokens: int = 0
) -> torch.Tensor:
    """What the last query of all would have, were there as many keys as there are distances."""
    before = past_seen_tokens + query_length - 1
    bias: torch.Tensor = type(layer).compute_bias(layer, 1, query_length + key_length - 1, device, before)
    return bias.contiguous()


def every_pair(bias: torch.Tensor, n_queries: int, n_keys: int) -> torch.Tensor:
    """The bias of every query and key, (1, heads, n_queries, n_keys).

    Args:
        bias: that already, or by distance (1, heads, 1, n_queries + n_keys - 1): entry j - i + n_queries - 1 is that of
            query i and key j. For one query both are the same.
    """
    return bias if bias.shape[2] == n_queries else bias[:, :, 0].unfold(2, n_keys, 1).flip(2)
