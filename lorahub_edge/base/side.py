"""What a layer adds to its output for candidates: low-rank paths, by one rule or the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch


@dataclass(frozen=True)
class SideFactors:
    """The composed factors that a layer adds to its output, one pair per candidate.

    Attributes:
        A_t: float (n_candidates, in_features, rank), transposed.
        B: float32 (n_candidates, out_features, rank), contiguous.
        scaling: of the delta.
    """

    A_t: torch.Tensor
    B: torch.Tensor
    scaling: float

    def inner(self, x: torch.Tensor) -> torch.Tensor:
        """scaling * x @ A.T: (n_candidates, rows of each, rank). Candidate c owns the c-th of equal runs of rows."""
        rows = x.reshape(len(self.A_t), -1, x.shape[-1])
        return torch.bmm(rows, self.A_t).mul_(self.scaling)


@dataclass(frozen=True)
class SideDeltas:
    """Several modules' factors that a layer adds to its output; each candidate weighs the modules in its own way.

    Attributes:
        A_t: float (in_features, rank), of all modules together, transposed.
        B: float32 (1, out_features, rank), contiguous: one for all candidates.
        weighing: float32 (n_candidates, rank): the scaling times the coefficient of the rank's module.
    """

    A_t: torch.Tensor
    B: torch.Tensor
    weighing: torch.Tensor

    def inner(self, x: torch.Tensor) -> torch.Tensor:
        """x @ A.T, weighed: (1, rows of all, rank). Candidate c owns the c-th of equal runs of rows."""
        inner = x.reshape(-1, x.shape[-1]) @ self.A_t
        weighing = self.weighing[:, None]
        by_candidate = inner.view(len(weighing), -1, inner.shape[-1]).mul_(weighing)
        # a module that overflows must not show in candidates without it
        return by_candidate.masked_fill_(weighing == 0, 0.0).view(1, *inner.shape)


Side: TypeAlias = SideFactors | SideDeltas
