"""T5's relative position bias in the order in which attention reads it.

transformers looks it up as (query, key, head), views that as (head, query, key), and copies the view into order in
every layer. A table that answers in the order of heads makes the view contiguous, and the copies nothing.
"""

from __future__ import annotations

import torch
from torch import nn

_NAME = "relative_attention_bias"


class HeadMajorEmbedding(nn.Embedding):
    """An embedding whose result (..., embedding_dim) lies in memory as (embedding_dim, ...)."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The rows of `input`, int64 (...): float (..., embedding_dim)."""
        return self.weight.t()[:, input].movedim(0, -1)


def lay_out_relative_biases(model: nn.Module) -> None:
    """Put a HeadMajorEmbedding over the same weight in the place of every table of relative biases."""
    for path, module in list(model.named_modules()):
        if path.endswith(_NAME) and type(module) is nn.Embedding:
            table = HeadMajorEmbedding(module.num_embeddings, module.embedding_dim, device="meta")
            table.weight = module.weight
            model.set_submodule(path, table)
