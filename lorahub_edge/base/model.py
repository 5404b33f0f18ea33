"""Base: a frozen model, ready to be evaluated."""

from __future__ import annotations

import copy
import dataclasses
import threading
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorahub_edge.base.families import Family
from lorahub_edge.base.int8 import Int8Linear
from lorahub_edge.sources import Source


@dataclass(frozen=True)
class Base:
    """A frozen model, ready to be evaluated.

    Attributes:
        model: the transformers model. Its linears and embeddings are Int8Linear / Int8Embedding for "int8".
        tokenizer: the source's tokenizer.
        family: what is special about this kind of model.
        source: where it came from.
        precision: "int8", "bf16" or "fp32".
        device: where it computes.
        weight_files: the files that held the tensors.
        layer_engines: engine name -> number of int8 linears that use it.
        turn: held by whoever has put a side path, scratch codes or gradients into the model: one at a time, so a base
            may be shared by threads. A forward of `model` itself does not take it.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    family: Family
    source: Source
    precision: str
    device: torch.device
    weight_files: tuple[Path, ...]
    layer_engines: dict[str, int] = field(default_factory=dict)
    turn: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)

    @property
    def compute_dtype(self) -> torch.dtype:
        """Of the states between layers."""
        return next(p.dtype for p in self.model.parameters() if p.is_floating_point())

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """Module path -> (out_features, in_features) of every linear layer: what a LoRA module can target."""
        layers = (nn.Linear, Int8Linear)
        with self.turn:
            return {n: (m.out_features, m.in_features) for n, m in self.model.named_modules() if isinstance(m, layers)}

    def replica(self) -> Base:
        """The same base with modules of its own over the same tensors: what a thread may give side paths to."""
        with self.turn:
            tensors = [*self.model.parameters(), *self.model.buffers()]
            model = copy.deepcopy(self.model, {id(t): t for t in tensors})
        return dataclasses.replace(self, model=model, turn=threading.RLock())

    def weight_bytes(self) -> int:
        """Bytes of all weights as they lie in memory, a shared tensor counted once."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())

    def __repr__(self) -> str:
        return f"Base({self.source.spec}, {self.family.name}, {self.precision}, {self.weight_bytes() / 1e6:.1f} MB)"


def head_is_tied(model: nn.Module, family: Family) -> bool:
    """Whether the output layer and the embedding are one tensor."""
    head, embedding = (getattr(model.get_submodule(path), "weight") for path in (family.head, family.embedding))  # noqa: B009
    return bool(head.data_ptr() == embedding.data_ptr())
