"""FactorsInUse: what candidates of rule "deltas" share, the factors of the modules that any of them uses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from lorahub_edge.modules.layout import Target
from lorahub_edge.modules.stack import ModuleStack


class FactorsInUse:
    """Per target A of some modules stacked and B side by side, in memory that stays in its place.

    The place has room for all modules: a CUDA graph goes on reading there when others are taken, and pages that are
    never written cost a CPU nothing.

    Args:
        stack: of which the modules are taken.
        A_dtype: what A is rounded to.
    """

    def __init__(self, stack: ModuleStack, A_dtype: torch.dtype) -> None:
        self._stack = stack
        self.device = stack.values.device
        ranks = [len(stack.names) * t.rank for t in stack.targets]
        sizes = [(r * t.in_features, r * t.out_features) for r, t in zip(ranks, stack.targets, strict=True)]
        self._A = [torch.empty(n_A, dtype=A_dtype, device=self.device) for n_A, _ in sizes]
        self._B = [torch.empty(n_B, device=self.device) for _, n_B in sizes]
        #: places of the modules that were taken last
        self.modules: list[int] = []

    def take(self, modules: Sequence[int]) -> None:
        """Put these modules' factors in place, from now on; nobody may compute with the earlier ones meanwhile."""
        if self.modules == list(modules):
            return
        self.modules = []  # if it fails half way, nothing is there
        for target, A, B in self._places(len(modules)):
            rows, columns = self._stack.side_by_side(target, modules)
            A.copy_(rows)
            B.view(columns.shape).copy_(columns)
        self.modules = list(modules)

    def __iter__(self) -> Iterator[tuple[Target, torch.Tensor, torch.Tensor]]:
        """Each target with A (rank, in_features) and float32 B (out_features, rank), the rank being that of all."""
        return self._places(len(self.modules))

    def _places(self, n_modules: int) -> Iterator[tuple[Target, torch.Tensor, torch.Tensor]]:
        for target, A, B in zip(self._stack.targets, self._A, self._B, strict=True):
            rank = n_modules * target.rank
            yield (
                target,
                A[: rank * target.in_features].view(rank, target.in_features),
                B[: rank * target.out_features].view(target.out_features, rank),
            )
