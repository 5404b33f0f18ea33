"""Bytes of what a forward makes: per token from the model's config, per candidate from the modules' layout."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lorahub_edge.base import Base, OpenBase
from lorahub_edge.base.attention import keeps_pairs
from lorahub_edge.modules import StackLayout
from lorahub_edge.modules.layout import BLOCK


@dataclass(frozen=True)
class FactorSizes:
    """Bytes of what is made from the stack, on the way from coefficients to outputs.

    Attributes:
        composed_bytes: of each candidate's own factors, float32.
        cast_bytes: of the same in the base's dtype, where that is another.
        shared_bytes: of the factors that all candidates share, of all modules at most, and of one target's on the way.
        inner_bytes: of the inner products of one row, where they are wide.
        module_bytes: of the composed module.
    """

    composed_bytes: int
    cast_bytes: int
    shared_bytes: int
    inner_bytes: int
    module_bytes: int

    @classmethod
    def of(cls, layout: StackLayout, composition: str, dtype: torch.dtype) -> FactorSizes:
        values = 4 * BLOCK * layout.n_blocks
        if composition == "factors":
            cast = 0 if dtype == torch.float32 else values // 4 * dtype.itemsize
            return cls(values, cast, 0, 0, values)
        n = len(layout.names)
        widest = max((t.rank * max(t.in_features, t.out_features) for t in layout.targets), default=0)
        on_the_way = 3 * 4 * n * widest  # as picked, as rows, and as one matrix
        ranks = [(min(n * t.rank, t.in_features, t.out_features), t) for t in layout.targets]
        module = sum(4 * rank * (t.in_features + t.out_features) for rank, t in ranks)
        inner = 2 * 4 * n * max((t.rank for t in layout.targets), default=0)  # and once more as float32
        return cls(0, 0, n * values + on_the_way, inner, module)


@dataclass(frozen=True)
class ModelSizes:
    """Bytes per token of what a forward keeps at once, from the model's config.

    Attributes:
        activation_bytes: in the widest place, a gated layer: state and its norm, codes, the float output of a wide
            layer, and another's or what is left of a split input.
        cache_bytes: keys and values of all decoder layers.
        pair_bytes, padded_bytes: per pair of positions, without and with padding: T5's position bias, and the sum with
            a mask.
        vocab: size of the output layer.
    """

    activation_bytes: int
    cache_bytes: int
    pair_bytes: int
    padded_bytes: int
    vocab: int

    @classmethod
    def of(cls, base: Base | OpenBase) -> ModelSizes:
        config = base.model.config
        d_model, d_ff = config.hidden_size, getattr(config, "d_ff", None) or config.intermediate_size
        n_heads = config.num_attention_heads
        head = getattr(config, "d_kv", None) or getattr(config, "head_dim", None) or d_model // n_heads
        n_layers = getattr(config, "num_decoder_layers", None) or config.num_hidden_layers
        kv_heads = getattr(config, "num_key_value_heads", n_heads)
        activations = 4 * (4 * d_model + 4 * n_heads * head + 2 * d_ff)
        cache = 4 * 2 * n_layers * kv_heads * head
        bias = 2 * 4 * n_heads if base.family.is_seq2seq else 4
        return cls(activations, cache, bias if keeps_pairs(base) else 0, bias, config.vocab_size)
