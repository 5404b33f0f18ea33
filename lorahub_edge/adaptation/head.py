"""A base's output layer on its own: what it makes of states that it has or has not seen."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lorahub_edge.base import Base


@dataclass(frozen=True)
class Head:
    """A base's output layer.

    Attributes:
        layer: features -> vocabulary.
        cap: what logits are kept under (Gemma 2), or None.
        dtype, device: of its inputs.
    """

    layer: torch.nn.Module
    cap: float | None
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, base: Base) -> Head:
        """The base's."""
        cap = getattr(base.model.config, "final_logit_softcapping", None)
        return cls(base.model.get_submodule(base.family.head), cap, base.compute_dtype, base.device)

    @property
    def in_features(self) -> int:
        """What it reads."""
        return int(self.layer.in_features)  # type: ignore[arg-type]

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """float32 (n, vocabulary), on the CPU, of states (n, features)."""
        logits = self.layer(states.to(self.device, self.dtype)[None])[0].float().cpu()
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap
