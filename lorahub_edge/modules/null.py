"""The null control's modules: noise in place of everything that training has put into the factors."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lorahub_edge.modules.layout import BLOCK, StackLayout
from lorahub_edge.modules.stack import ModuleStack


@dataclass(frozen=True)
class NullModules:
    """All that the null control takes from real modules; the real stack can go before the null's is drawn.

    Attributes:
        layout, dtype, device, composition: of the real stack.
        rms: root mean square of each target's A and B, in order: float32 (2 * n_targets, n_modules).
    """

    layout: StackLayout
    dtype: str
    device: torch.device
    composition: str
    rms: torch.Tensor

    @classmethod
    def like(cls, stack: ModuleStack) -> NullModules:
        """Of the shape and size of these modules."""
        rms = [
            stack.rows(blocks)[:, :n_values].square().mean(dim=1).sqrt() for blocks, n_values in _factors(stack.layout)
        ]
        return cls(stack.layout, stack.dtype, stack.values.device, stack.composition, torch.stack(rms).cpu())

    def draw(self, seed: int) -> ModuleStack:
        """Gaussian noise, of the same root mean square in every factor.

        Source: arXiv:2602.12323 finds that randomly initialised LoRAs merge about as well as trained ones.
        """
        rng = torch.Generator().manual_seed(seed)
        stack = ModuleStack.empty(self.layout, self.dtype)
        for (blocks, n_values), rms in zip(_factors(self.layout), self.rms, strict=True):
            noise = torch.zeros(len(rms), BLOCK * (blocks.stop - blocks.start))
            noise[:, :n_values] = torch.randn((len(rms), n_values), generator=rng) * rms[:, None]
            for k, row in enumerate(noise):
                stack.write(k, blocks, row.view(-1, BLOCK))
        return stack.composed_by(self.composition).to(self.device)


def _factors(layout: StackLayout) -> list[tuple[slice, int]]:
    """Blocks and number of values of every factor, A before B."""
    return [
        place
        for t in layout.targets
        for place in ((t.a_blocks, t.rank * t.in_features), (t.b_blocks, t.rank * t.out_features))
    ]


def random_modules(stack: ModuleStack, seed: int) -> ModuleStack:
    """The null control's stack for this one; see `NullModules`."""
    return NullModules.like(stack).draw(seed)
