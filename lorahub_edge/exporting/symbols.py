"""A model without its big weights: linears and embeddings become named symbols that the tracer carries into the graph.

What is traced is transformers' own forward; `emit.py` puts each layer's stored weight in the place of its symbol. So no
float copy of a weight ever exists, and tracing costs the same for every size.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from torch.onnx.ops import symbolic, symbolic_multi_out

from lorahub_edge.base import Base, Int8Embedding, Int8Linear
from lorahub_edge.base.model import head_is_tied
from lorahub_edge.exporting.attention import use_grouped_attention

DOMAIN = "lorahub_edge"
LINEAR, EMBEDDING, CROSS, LATER = "Linear", "Embedding", "CrossAttention", "Later"


class SymbolicLinear(nn.Module):
    """y = linear(x) of the layer `target`, whatever form its weight will have."""

    def __init__(self, target: str, out_features: int) -> None:
        super().__init__()
        self.target = target
        self.out_features = out_features
        # transformers asks a layer for its weight's dtype
        self.register_buffer("weight", torch.empty(1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return symbolic(
            f"{DOMAIN}::{LINEAR}",
            (x,),
            attrs={"target": self.target},
            dtype=torch.float32,
            shape=(*x.shape[:-1], self.out_features),
            version=1,
        )


class SymbolicEmbedding(nn.Module):
    """Rows of the embedding `target` for token ids."""

    def __init__(self, target: str, width: int, embed_scale: torch.Tensor | None) -> None:
        super().__init__()
        self.target = target
        self.width = width
        self.embed_scale = None if embed_scale is None else float(embed_scale)
        self.register_buffer("weight", torch.empty(1), persistent=False)

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        rows = symbolic(
            f"{DOMAIN}::{EMBEDDING}",
            (token_ids,),
            attrs={"target": self.target},
            dtype=torch.float32,
            shape=(*token_ids.shape, self.width),
            version=1,
        )
        return rows if self.embed_scale is None else rows * self.embed_scale


def cross_attention(
    use_cache_branch: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    past: list[tuple[torch.Tensor, ...]],
    targets: list[str],
    n_encoder_tokens: Any,
) -> list[torch.Tensor]:
    """What self- and cross-attention take from earlier steps, as one symbol: the only part of a decoder that branches.

    Args:
        use_cache_branch: bool (1,): whether `past` holds anything.
        encoder_hidden_states: (b, s, d).
        past: per layer decoder key and value (b, heads, p, d_kv) and encoder key and value (b, heads, s, d_kv).
        targets: per layer the paths of the cross-attention's key and value layer.
        n_encoder_tokens: s.

    Returns:
        Per layer the four tensors again: as given if `use_cache_branch`, else empty decoder parts and the projections
        of `encoder_hidden_states`.
    """
    flat = [tensor for layer in past for tensor in layer]
    shapes = []
    for layer in past:
        (b, heads, _, width) = layer[0].shape
        shapes += [tuple(t.shape) for t in layer[:2]] + [(b, heads, n_encoder_tokens, width)] * 2
    return list(
        symbolic_multi_out(
            f"{DOMAIN}::{CROSS}",
            (use_cache_branch, encoder_hidden_states, *flat),
            attrs={"targets": targets, "n_heads": past[0][0].shape[1], "head_width": past[0][0].shape[3]},
            dtypes=[torch.float32] * len(flat),
            shapes=shapes,
            version=1,
        )
    )


def later(values: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """values[first:] for int64 (n,) and (1,), traced as if all n were left."""
    return symbolic(f"{DOMAIN}::{LATER}", (values, first), dtype=torch.int64, shape=values.shape, version=1)


def skeleton(base: Base) -> Any:
    """A base's model with symbols for linears and embeddings, its own small tensors, and attention in plain operators.

    torch's attention as one operation cannot be traced for every length (docs/decisions/0008-export.md).
    """
    config = copy.deepcopy(base.model.config)
    attention = "eager" if base.family.is_seq2seq else use_grouped_attention()
    with init_empty_weights(include_buffers=False):
        model = base.family.auto_class.from_config(config, attn_implementation=attention, dtype=torch.float32)
    family = base.family
    for path, module in list(base.model.named_modules(remove_duplicate=False)):
        if isinstance(module, (Int8Linear, nn.Linear)):
            model.set_submodule(path, SymbolicLinear(weight_path(base, path), module.out_features))
        elif isinstance(module, (Int8Embedding, nn.Embedding)) and not path.endswith(family.float_tensors or ("\0",)):
            scale = getattr(module, "embed_scale", None)
            model.set_submodule(path, SymbolicEmbedding(family.embedding, module.embedding_dim, scale))
        else:
            for name, parameter in module.named_parameters(recurse=False):
                tensor = parameter.detach().float()
                model.get_submodule(path).register_parameter(name, nn.Parameter(tensor, requires_grad=False))
    return model.eval().requires_grad_(False)


def weight_path(base: Base, path: str) -> str:
    """Under which path a layer's weight is stored: a head that is the embedding goes by the embedding's."""
    if path == base.family.head and head_is_tied(base.model, base.family):
        return base.family.embedding
    return path
