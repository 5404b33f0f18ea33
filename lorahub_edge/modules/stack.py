"""ModuleStack: all A and B factors of all modules in one block of memory, laid out for the compose kernel.

A module's values stand in a row: the factors of one target after the other, each padded with zeros to whole blocks of
BLOCK values. In memory the rows are interleaved block by block, so that composing reads one sequential stream.

Two rules say what coefficients stand for. Rule "factors" is LoRAHub's and needs one rank and one scaling per target.
Modules that differ are brought to a common form without changing what any of them does alone: ranks by rows of zeros,
scalings by moving the ratio into the factors. Rule "deltas" adds up what the modules do alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from lorahub_edge.base import Base
from lorahub_edge.errors import IncompatibleModules
from lorahub_edge.kernels import memory, ops
from lorahub_edge.modules.files import LoraFactors, LoraModule, ModuleFolder
from lorahub_edge.modules.layout import BLOCK, STACK_DTYPES, StackLayout, Target
from lorahub_edge.modules.truncate import without_idle_ranks

# How modules add up; see `ModuleStack`.
COMPOSITIONS = ("factors", "deltas")


@dataclass(frozen=True)
class ModuleStack:
    """n modules for one base, and the rule by which they add up.

    Meaning, for each target, with s the scaling and c the coefficients:

        factors       delta = s * sum_k(c[k] * B[k]) @ sum_k(c[k] * A[k])    rank r
        deltas        delta = sum_k(c[k] * s * B[k] @ A[k])                  rank r for each c[k] that is not 0

    Attributes:
        layout: which modules, and where each target's factors lie.
        values: float32, bfloat16 or int8 codes (n_blocks, n_modules, BLOCK), on the base's device.
        scales: float32 (n_blocks, n_modules), of int8 codes; None otherwise.
        composition: one of COMPOSITIONS.
    """

    layout: StackLayout
    values: torch.Tensor
    scales: torch.Tensor | None = None
    composition: str = "factors"

    @classmethod
    def build(
        cls,
        modules: Sequence[LoraModule | ModuleFolder],
        base: Base,
        *,
        layout: StackLayout | None = None,
        dtype: str = "fp32",
    ) -> ModuleStack:
        """Check the modules against the base and lay them out, one module at a time in memory.

        Args:
            modules: at least one; those on disk are read here.
            base: whose layers they change.
            layout: where their factors lie, if that was decided before.
            dtype: of the stored values, "fp32", "bf16" or "int8" (a block of a module rounds to 127 steps of its
                largest value).

        Raises:
            IncompatibleModules: no modules, a name twice, a module for another base, or scalings too far apart: names
                module and target.
            UnsupportedFormat: see `read_module`.
        """
        if layout is None:
            layout = StackLayout.of([m.outline() for m in modules], base.linear_shapes(), base.source.spec)
        stack = cls.empty(layout, dtype)
        row = torch.empty(1, layout.n_blocks * BLOCK)
        for k, module in enumerate(modules):
            row.zero_()
            factors = module.read().factors
            for target in layout.targets:
                if target.name in factors:
                    _place(row, target, factors[target.name])
            if not torch.isfinite(row).all():
                raise IncompatibleModules(
                    f"module '{module.name}': its factors, brought to the scaling of the others, exceed float32"
                )
            stack.write(k, slice(None), row.view(-1, BLOCK))
        return stack.to(base.device)

    @classmethod
    def empty(cls, layout: StackLayout, dtype: str) -> ModuleStack:
        """A stack of zeros on the CPU."""
        shape = (layout.n_blocks, len(layout.names), BLOCK)
        scales = torch.ones(shape[:2]) if dtype == "int8" else None
        return cls(layout, memory.zeros(shape, STACK_DTYPES[dtype]), scales)

    def composed_by(self, composition: str) -> ModuleStack:
        """The same modules, by this rule."""
        return replace(self, composition=composition)

    @property
    def names(self) -> tuple[str, ...]:
        """Module names, row order."""
        return self.layout.names

    @property
    def targets(self) -> tuple[Target, ...]:
        """Every target that any module changes, in the base's order."""
        return self.layout.targets

    @property
    def n_values(self) -> int:
        """Values in a row, padding included."""
        return self.values.shape[0] * BLOCK

    @property
    def n_composed(self) -> int:
        """Values that each candidate has for itself: those that `compose` makes; none by rule "deltas"."""
        return self.n_values if self.composition == "factors" else 0

    @property
    def dtype(self) -> str:
        """Of the stored values: one of STACK_DTYPES."""
        return next(name for name, dtype in STACK_DTYPES.items() if dtype == self.values.dtype)

    @property
    def n_bytes(self) -> int:
        """Of values and scales."""
        return self.layout.n_bytes(self.dtype)

    def compose(self, coefficients: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """Rule "factors" for each candidate: float32 (n_candidates, n_blocks * BLOCK), rows as `Target` reads them.

        Meaning, per target: A(c) = sum_k c[k] A[k], B(c) = sum_k c[k] B[k], delta = scaling * B(c) @ A(c).

        Args:
            coefficients: float (n_candidates, n_modules). Used as given, never normalised.
            out: float32 (n_candidates, n_values), written and returned; a new tensor if None.

        Source: LoRAHub, arXiv:2307.13269, as its code composes.
        """
        return ops.compose_factors(self.values, coefficients, scales=self.scales, out=out)

    def side_by_side(self, target: Target, modules: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """One target's factors of some modules, float32: A (n * rank, in_features), B (out_features, n, rank).

        B's memory is module by module.
        """
        A = self.rows(target.a_blocks, modules)[:, : target.rank * target.in_features]
        B = self.rows(target.b_blocks, modules)[:, : target.rank * target.out_features]
        by_module = B.view(len(B), target.out_features, target.rank)
        return A.reshape(-1, target.in_features), by_module.transpose(0, 1)

    def composed_module(self, coefficients: torch.Tensor, name: str) -> LoraModule:
        """The one module that `coefficients` (n_modules,) stand for, on the CPU.

        By rule "factors" all its factors are parts of one block of memory. By rule "deltas" a target has the ranks of
        the modules in use that change it, but no more than the layer itself: beyond, an equal product is taken.
        """
        if self.composition == "deltas":
            summed = {t.name: self._summed(t, coefficients) for t in self.targets}
            return LoraModule(name, {target: without_idle_ranks(factors) for target, factors in summed.items()})
        row = self.compose(coefficients[None]).cpu()
        factors = {t.name: LoraFactors(t.A(row)[0], t.B(row)[0], t.scaling) for t in self.targets}
        return LoraModule(name, factors)

    def _summed(self, target: Target, coefficients: torch.Tensor) -> LoraFactors:
        """The sum of deltas as one pair of factors, on the stack's device."""
        c = coefficients.to("cpu", torch.float32)
        modules = modules_in_use(c[None])
        A, B = self.side_by_side(target, modules)
        return LoraFactors(A, (B * c[modules].to(B.device)[:, None]).flatten(1), target.scaling)

    def inject(
        self,
        target: Target,
        codes: torch.Tensor,
        row_scale: torch.Tensor,
        coefficients: torch.Tensor,
        *,
        out: torch.Tensor,
    ) -> ops.Injected:
        """One target's int8 layer with the delta that coefficients (n_modules,) stand for; A and B are not kept.

        Args, Returns: see `ops.inject_delta_from_stack`.
        """
        if self.composition == "deltas":
            summed = self._summed(target, coefficients)
            return ops.inject_delta(codes, row_scale, summed.A, summed.B, scaling=summed.scaling, out=out)
        a, b = target.a_blocks, target.b_blocks
        A_scales, B_scales = (None, None) if self.scales is None else (self.scales[a], self.scales[b])
        return ops.inject_delta_from_stack(
            codes,
            row_scale,
            self.values[a],
            self.values[b],
            coefficients,
            rank=target.rank,
            scaling=target.scaling,
            A_scales=A_scales,
            B_scales=B_scales,
            out=out,
        )

    def write(self, k: int, blocks: slice, values: torch.Tensor) -> None:
        """Store float32 (n_blocks, BLOCK) as these blocks of module k, rounded to the stack's dtype."""
        if self.scales is None:
            self.values[blocks, k] = values.to(self.values.dtype)
        else:
            self.values[blocks, k], self.scales[blocks, k] = ops.quantize_rows(values)

    def rows(self, blocks: slice, modules: Sequence[int] | None = None) -> torch.Tensor:
        """Some blocks of these modules, or of all, as rows, a float32 copy: (n_modules, n_blocks * BLOCK)."""
        chosen = slice(None) if modules is None else list(modules)
        values = self.values[blocks, chosen].float()
        if self.scales is not None:
            values *= self.scales[blocks, chosen, None]
        return values.transpose(0, 1).flatten(1)

    def to(self, device: torch.device) -> ModuleStack:
        """The same stack on another device."""
        scales = None if self.scales is None else self.scales.to(device)
        return replace(self, values=self.values.to(device), scales=scales)

    def __repr__(self) -> str:
        size = f"{self.n_bytes / 1e6:.1f} MB as {self.dtype}"
        return f"ModuleStack({len(self.names)} modules, {len(self.targets)} targets, {size})"


def modules_in_use(coefficients: torch.Tensor) -> list[int]:
    """Places of the modules that any candidate (n_candidates, n_modules) uses, in order; the first if none does."""
    return torch.nonzero(coefficients.float().any(dim=0))[:, 0].tolist() or [0]


def _place(row: torch.Tensor, target: Target, factors: LoraFactors) -> None:
    """Write one module's factors into its row, such that scaling * B @ A of the row is the module's own delta."""
    ratio = factors.scaling / target.scaling
    # both factors carry the same share, so that composition stays symmetric in A and B; 1 where scalings agree
    share = math.sqrt(abs(ratio))
    target.A(row)[0, : factors.rank] = factors.A * share
    target.B(row)[0, :, : factors.rank] = factors.B * math.copysign(share, ratio)
