"""ModuleStack: all A and B factors of all modules in one block of memory, laid out for the compose kernel.

A module's values stand in a row: the factors of one target after the other, each padded with zeros to whole blocks of
BLOCK values. In memory the rows are interleaved block by block, so that composing reads one sequential stream.

LoRAHub's rule needs one rank and one scaling per target. Modules that differ are brought to a common form without
changing what any of them does alone: ranks by rows of zeros, scalings by moving the ratio into the factors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lorahub_edge.base import Base
from lorahub_edge.errors import IncompatibleModules
from lorahub_edge.kernels import memory, ops
from lorahub_edge.modules.files import LoraFactors, LoraModule

BLOCK = 128


@dataclass(frozen=True)
class Target:
    """Where one target's factors lie in a row of the stack.

    Attributes:
        name: module path in the base.
        rank: the largest rank among the modules.
        scaling: common to all modules of this target.
        a_offset, b_offset: first value of A (rank * in_features) and of B (out_features * rank) in a row; multiples
            of BLOCK.
    """

    name: str
    rank: int
    in_features: int
    out_features: int
    scaling: float
    a_offset: int
    b_offset: int

    @property
    def a_blocks(self) -> slice:
        """The blocks of a row that hold A."""
        return slice(self.a_offset // BLOCK, _n_blocks(self.a_offset + self.rank * self.in_features))

    @property
    def b_blocks(self) -> slice:
        """The blocks of a row that hold B."""
        return slice(self.b_offset // BLOCK, _n_blocks(self.b_offset + self.rank * self.out_features))

    def A(self, rows: torch.Tensor) -> torch.Tensor:
        """View of the A factors: (n, values) -> (n, rank, in_features)."""
        stop = self.a_offset + self.rank * self.in_features
        return rows[:, self.a_offset : stop].view(-1, self.rank, self.in_features)

    def B(self, rows: torch.Tensor) -> torch.Tensor:
        """View of the B factors: (n, values) -> (n, out_features, rank)."""
        stop = self.b_offset + self.rank * self.out_features
        return rows[:, self.b_offset : stop].view(-1, self.out_features, self.rank)


@dataclass(frozen=True)
class ModuleStack:
    """n modules for one base.

    Attributes:
        names: module names, row order.
        targets: every target that any module changes, in the base's order.
        values: float32 (n_blocks, n_modules, BLOCK), on the base's device.
    """

    names: tuple[str, ...]
    targets: tuple[Target, ...]
    values: torch.Tensor

    @classmethod
    def build(cls, modules: Sequence[LoraModule], base: Base) -> ModuleStack:
        """Check the modules against the base and lay them out.

        Raises:
            IncompatibleModules: no modules, a name twice, or a module for another base: names module and target.
        """
        _check(modules, base)
        targets = _layout(modules, base)
        n_blocks = targets[-1].b_blocks.stop if targets else 0
        values = memory.zeros((n_blocks, len(modules), BLOCK), torch.float32)
        row = torch.empty(1, n_blocks * BLOCK)
        for k, module in enumerate(modules):
            row.zero_()
            for target in targets:
                if target.name in module.factors:
                    _place(row, target, module.factors[target.name])
            values[:, k] = row.view(n_blocks, BLOCK)
        return cls(tuple(m.name for m in modules), tuple(targets), values.to(base.device))

    @property
    def n_values(self) -> int:
        """Values in a row, padding included."""
        return self.values.shape[0] * BLOCK

    def compose(self, coefficients: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """Factor-wise sums for each candidate: float32 (n_candidates, n_blocks * BLOCK), rows as `Target` reads them.

        Meaning, per target: A(c) = sum_k c[k] A[k], B(c) = sum_k c[k] B[k], delta = scaling * B(c) @ A(c).

        Args:
            coefficients: float (n_candidates, n_modules). Used as given, never normalised.
            out: float32 (n_candidates, n_values), written and returned; a new tensor if None.

        Source: LoRAHub, arXiv:2307.13269, as its code composes.
        """
        return ops.compose_factors(self.values, coefficients, out=out)

    def composed_module(self, coefficients: torch.Tensor, name: str) -> LoraModule:
        """The one module that `coefficients` (n_modules,) stand for, on the CPU."""
        row = self.compose(coefficients[None]).cpu()
        factors = {t.name: LoraFactors(t.A(row)[0].clone(), t.B(row)[0].clone(), t.scaling) for t in self.targets}
        return LoraModule(name, factors)

    def __repr__(self) -> str:
        return f"ModuleStack({len(self.names)} modules, {len(self.targets)} targets, {self.values.nbytes / 1e6:.1f} MB)"


def _check(modules: Sequence[LoraModule], base: Base) -> None:
    if not modules:
        raise IncompatibleModules("no LoRA modules were given; expected at least one")
    names = [m.name for m in modules]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise IncompatibleModules(f"module name '{twice[0]}' occurs twice; give each module once")
    shapes = base.linear_shapes()
    for module in modules:
        for target, factors in module.factors.items():
            if target not in shapes:
                raise IncompatibleModules(
                    f"module '{module.name}' changes '{target}', which base '{base.source.spec}' does not have; "
                    "it was trained for another base"
                )
            received = (factors.B.shape[0], factors.A.shape[1])
            if received != shapes[target]:
                raise IncompatibleModules(
                    f"module '{module.name}' at '{target}': expected (out_features, in_features) {shapes[target]} "
                    f"from base '{base.source.spec}', received {received}; it was trained for another base"
                )


def _layout(modules: Sequence[LoraModule], base: Base) -> list[Target]:
    targets = []
    offset = 0
    for name, (out_features, in_features) in base.linear_shapes().items():
        present = [m.factors[name] for m in modules if name in m.factors]
        if not present:
            continue
        rank = max(f.rank for f in present)
        scaling = next((f.scaling for f in present if f.scaling != 0), 1.0)
        b_offset = BLOCK * _n_blocks(offset + rank * in_features)
        targets.append(Target(name, rank, in_features, out_features, scaling, offset, b_offset))
        offset = BLOCK * _n_blocks(b_offset + rank * out_features)
    return targets


def _n_blocks(n_values: int) -> int:
    return -(-n_values // BLOCK)


def _place(row: torch.Tensor, target: Target, factors: LoraFactors) -> None:
    """Write one module's factors into its row, such that scaling * B @ A of the row is the module's own delta."""
    ratio = factors.scaling / target.scaling
    # both factors carry the same share, so that composition stays symmetric in A and B; 1 where scalings agree
    share = math.sqrt(abs(ratio))
    target.A(row)[0, : factors.rank] = factors.A * share
    target.B(row)[0, :, : factors.rank] = factors.B * math.copysign(share, ratio)


def random_modules(stack: ModuleStack, seed: int) -> ModuleStack:
    """The null control: the same modules with every factor replaced by Gaussian noise of the same root mean square.

    Args:
        seed: of the noise.

    Source: arXiv:2602.12323 finds that randomly initialised LoRAs merge about as well as trained ones.
    """
    rng = torch.Generator().manual_seed(seed)
    values = torch.zeros_like(stack.values)
    for target in stack.targets:
        for blocks, n_values in (
            (target.a_blocks, target.rank * target.in_features),
            (target.b_blocks, target.rank * target.out_features),
        ):
            real = rows_of(stack.values[blocks])
            rms = real[:, :n_values].square().mean(dim=1, keepdim=True).sqrt()
            noise = torch.zeros_like(real)
            noise[:, :n_values] = torch.randn((len(real), n_values), generator=rng).to(real.device) * rms
            values[blocks] = noise.view(len(real), -1, BLOCK).transpose(0, 1)
    return ModuleStack(stack.names, stack.targets, values)


def rows_of(values: torch.Tensor) -> torch.Tensor:
    """Interleaved blocks (n_blocks, n_modules, BLOCK) as rows, a copy: (n_modules, n_blocks * BLOCK)."""
    return values.transpose(0, 1).flatten(1)
