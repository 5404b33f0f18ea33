"""Survival: how much of each target's delta is still there after the merged weight was rounded.

With W the weight before, W' the weight after and D the delta, all as float values:

    survived    = <W' - W, D> / norm(D)**2        1 if all of it is there, 0 if rounding swallowed it
    delta_steps = rms(D / step)                   step: distance of neighbouring values, per row
    error       = norm(W' - W - D) / norm(D)

Rounding an int8 weight that is already on its grid has a dead zone: a delta well under half a step leaves no trace.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from lorahub_edge.kernels.ops import InjectReport


@dataclass(frozen=True)
class LayerSurvival:
    """One target's part of the report.

    Attributes:
        target: module path.
        delta_norm: Frobenius norm of the delta.
        delta_steps: rms of the delta in steps of the merged weight.
        survived: share of the delta that is left, rows weighted by the square of their delta.
        error: norm of what differs from the exact sum, relative to the delta.
        n_clipped: values that fell outside the grid.
    """

    target: str
    delta_norm: float
    delta_steps: float
    survived: float
    error: float
    n_clipped: int

    @classmethod
    def from_rows(cls, target: str, rows: InjectReport, step: torch.Tensor, in_features: int) -> LayerSurvival:
        """Sum up a target's rows.

        Args:
            rows: what became of each row's delta.
            step: float32 (out_features,): the rows' steps, so that delta_rms * step is the rms of the delta itself.
            in_features: values per row.
        """
        delta_rms, error, survived, step = (t.double() for t in (rows.delta_rms, rows.error, rows.survived, step))
        squares = in_features * (delta_rms * step) ** 2
        total = float(squares.sum())
        share = squares / total if total > 0 else torch.zeros_like(squares)
        return cls(
            target,
            delta_norm=math.sqrt(total),
            delta_steps=float((delta_rms**2).mean().sqrt()),
            survived=float((share * survived).sum()) if total > 0 else 1.0,
            error=math.sqrt(float((share * error**2).sum())),
            n_clipped=int(rows.n_clipped.sum()),
        )


@dataclass(frozen=True)
class Survival:
    """The report on all targets of a merge."""

    layers: tuple[LayerSurvival, ...]

    @property
    def survived(self) -> float:
        """Share of the whole delta that is left: targets weighted by the square of their norm."""
        return _weighted(self.layers)

    @property
    def weakest(self) -> LayerSurvival | None:
        """The target that lost most of its delta; None without targets."""
        return min(self.layers, key=lambda layer: layer.survived, default=None)

    @property
    def n_clipped(self) -> int:
        """Values outside the grid, over all targets."""
        return sum(layer.n_clipped for layer in self.layers)

    def headline(self) -> str:
        """The report in one line."""
        if self.weakest is None:
            return "nothing to merge: no target"
        steps = sorted(layer.delta_steps for layer in self.layers)
        return (
            f"{100 * self.survived:.1f} % of the delta survived in {len(self.layers)} targets "
            f"(least {100 * self.weakest.survived:.1f} % at {self.weakest.target}); rms of the delta "
            f"{steps[0]:.3g} to {steps[-1]:.3g} steps; {self.n_clipped} values clipped"
        )

    def as_record(self) -> dict[str, Any]:
        """Plain data for survival.json and --json."""
        return {
            "survived": self.survived,
            "n_targets": len(self.layers),
            "n_clipped": self.n_clipped,
            "layers": [asdict(layer) for layer in self.layers],
        }

    def __repr__(self) -> str:
        return f"Survival({self.headline()})"


def _weighted(layers: Sequence[LayerSurvival]) -> float:
    total = sum(layer.delta_norm**2 for layer in layers)
    return sum(layer.survived * layer.delta_norm**2 for layer in layers) / total if total else 1.0
