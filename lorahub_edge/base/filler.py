"""Fill an empty model from a checkpoint, tensor by tensor: the float model is never whole in memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from lorahub_edge.base.checkpoint import Checkpoint
from lorahub_edge.base.contents import match_tensors
from lorahub_edge.base.int8 import Int8Embedding, Int8Linear, Int8Weight
from lorahub_edge.base.open import OpenBase, is_quantised
from lorahub_edge.errors import UnsupportedFormat, refused_as

# Called with each tensor's name and value as it is read, before anything is rounded; returns what to take instead.
Adjust = Callable[[str, torch.Tensor], torch.Tensor]


class Filler:
    """Puts a checkpoint's tensors into an empty model, one at a time."""

    def __init__(
        self,
        opened: OpenBase,
        checkpoint: Checkpoint,
        *,
        adjust: Adjust | None = None,
        head_is_tied: bool | None = None,
    ) -> None:
        self.model: nn.Module = opened.model
        self.family = opened.family
        self.checkpoint = checkpoint
        self.stored = match_tensors(opened.model, opened.family, checkpoint, head_is_tied=head_is_tied)
        # tensors go to their device as they are read: a later move would part a tied head from its embedding
        self.device = opened.device
        self.dtype = opened.dtype
        self.quantize = opened.precision == "int8"
        self.adjust = adjust
        self.head_is_tied = head_is_tied  # None: what the tensors say

    def fill(self) -> None:
        """Fill every parameter; afterwards none is left empty."""
        for path, module in list(self.model.named_modules()):
            if path in self.family.embedding_copies or path == self.family.head:
                continue
            self._fill_module(path, module)
        for copy in self.family.embedding_copies:
            self.model.set_submodule(copy, self.model.get_submodule(self.family.embedding))
        self._fill_head()

    def _fill_module(self, path: str, module: nn.Module) -> None:
        if self.quantize and is_quantised(path, module, self.family):
            weight = self._int8(f"{path}.weight")
            self.model.set_submodule(path, self._int8_module(path, module, weight))
            return
        for name, _ in list(module.named_parameters(recurse=False)):
            tensor = self._float(f"{path}.{name}" if path else name)
            module.register_parameter(name, nn.Parameter(tensor, requires_grad=False))

    def _fill_head(self) -> None:
        """The output layer: its own tensor if the checkpoint has one, else the embedding's."""
        head, embedding = self.family.head, self.model.get_submodule(self.family.embedding)
        module = self.model.get_submodule(head)
        if self._has_its_own_head():
            self._fill_module(head, module)
        elif isinstance(embedding, Int8Embedding):
            self.model.set_submodule(head, self._int8_module(head, module, embedding.int8_weight))
        else:
            module.register_parameter("weight", embedding.weight)  # type: ignore[arg-type]

    def _has_its_own_head(self) -> bool:
        """Not if the file merely repeats the embedding there, as a full state_dict of a tied model does."""
        if self.head_is_tied is not None:
            return not self.head_is_tied
        name = f"{self.family.head}.weight"
        if name not in self.stored:
            return False
        head, embedding = self._raw(name), self._raw(f"{self.family.embedding}.weight")
        return head.dtype == torch.int8 or not torch.equal(head, embedding)

    def _int8_module(self, path: str, module: nn.Module, weight: Int8Weight) -> nn.Module:
        if isinstance(module, nn.Embedding):
            return Int8Embedding(weight, embed_scale=getattr(module, "embed_scale", None), dtype=self.dtype)
        bias = self._float(f"{path}.bias") if getattr(module, "bias", None) is not None else None
        return Int8Linear(weight, bias)

    def _int8(self, name: str) -> Int8Weight:
        tensor = self._read(name)
        try:
            if tensor.dtype == torch.int8:  # saved by us or by transformers with bitsandbytes
                weight = Int8Weight.from_absmax(tensor, self._absmax(name))
            else:
                weight = Int8Weight.from_float(tensor)
        except ValueError as error:
            raise UnsupportedFormat(f"base checkpoint, tensor {name}: {error}") from error
        return weight.to(self.device)

    def _float(self, name: str) -> torch.Tensor:
        tensor = self._read(name)
        if tensor.dtype == torch.int8:
            return Int8Weight.from_absmax(tensor, self._absmax(name)).to_float(self.dtype).to(self.device)
        return tensor.to(self.device, self.dtype, copy=True)  # a copy of its own: the file need not stay mapped

    def _read(self, name: str) -> torch.Tensor:
        tensor = self._raw(name)
        return tensor if self.adjust is None else self.adjust(name, tensor)

    def _raw(self, name: str) -> torch.Tensor:
        with refused_as(f"base checkpoint, tensor {name} cannot be read"):
            return self.checkpoint.read(self.stored[name])

    def _absmax(self, name: str) -> torch.Tensor:
        with refused_as(f"base checkpoint, tensor {name} cannot be read"):
            return self.checkpoint.read(self.stored[name].removesuffix("weight") + "SCB")
