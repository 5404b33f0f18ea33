"""Attention of an int8 base on a CPU: our kernel where it is faster than torch's, torch's elsewhere.

A base takes part by the name of its attention in transformers' table; its masks are those that torch's would get.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lorahub_edge.base.model import Base
from lorahub_edge.base.open import OpenBase
from lorahub_edge.base.relative_bias import every_pair, give_biases_by_distance
from lorahub_edge.kernels import ops

NAME = "lorahub_edge"

# A single one does not pay for packing its keys.
_LEAST_QUERIES = 2

# What a layer may ask for that our kernel does not know; torch's says what it leaves out.
_TORCHS_OWN = ("output_attentions", "cache")


def use_own_attention(model: PreTrainedModel) -> None:
    """Let a model whose attention is torch's, as one operation, compute it here."""
    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        for part in model.modules():
            if isinstance(part, PreTrainedModel):  # up to transformers 5.19, T5 does not hand it on to its two stacks
                part.set_attn_implementation(NAME)
        give_biases_by_distance(model)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in every layer.

    Args:
        module: the layer.
        query: (batch, heads, queries, features of a head).
        key, value: (batch, key heads, keys, features of a head).
        attention_mask: bool (batch, 1, queries, keys), or None where all keys are seen, or by `is_causal` all earlier.
        scaling: of the dot products.
        is_causal: as the layer says if None.
        position_bias: float (1, heads, queries, keys), or by distance; see relative_bias.py.
        others: see transformers' interface.

    Returns:
        (batch, queries, heads, features of a head), and None where others return their weights.

    Raises:
        ValueError: a softcap is asked for, which neither kernel has; open.py gives such a base another attention.
    """
    if others.get("softcap") is not None:
        raise ValueError(f"attention: expected no softcap, received {others['softcap']}; use transformers' 'eager'")
    n_queries, n_keys = query.shape[2], key.shape[2]
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    seen_by_rule = attention_mask is None and (not causal or n_queries == n_keys)
    if seen_by_rule and scaling is not None and _is_faster_here(query) and not any(map(others.get, _TORCHS_OWN)):
        q, k, v = (t.transpose(1, 2).contiguous() for t in (query, key, value))
        bias = None if position_bias is None else position_bias[0].squeeze(1)
        return ops.attention(q, k, v, scaling=scaling, bias=bias, causal=causal), None
    if position_bias is not None:
        position_bias = every_pair(position_bias, n_queries, n_keys)
    terms = {"scaling": scaling, "is_causal": is_causal, "position_bias": position_bias, **others}
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **terms)
    return output, None


def _is_faster_here(query: torch.Tensor) -> bool:
    return query.dtype == torch.float32 and query.shape[2] >= _LEAST_QUERIES and _is_fast_on(query.device)


def _is_fast_on(device: torch.device) -> bool:
    return device.type == "cpu" and ops.has_wide_floats()


def keeps_pairs(base: Base | OpenBase) -> bool:
    """Whether a forward without padding keeps something for every pair of tokens, as torch's attention does."""
    is_ours = base.precision == "int8" and base.model.config._attn_implementation in ("sdpa", NAME)
    return not (is_ours and _is_fast_on(base.device))
