"""Route "inject": a candidate's delta is rounded into a scratch copy of the layers it changes, as a merge would do it.

One candidate at a time, and rounding has a dead zone for small deltas; but what is evaluated is what an in-place int8
merge delivers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from lorahub_edge.base import Base, Int8Linear
from lorahub_edge.errors import InvalidInput
from lorahub_edge.kernels import ops
from lorahub_edge.modules import ModuleStack


class Injection:
    """Puts scratch codes in the place of the targets' own, for as long as `active`; the base's tensors never change.

    Raises:
        InvalidInput: the base has no int8 layers to inject into.
    """

    def __init__(self, base: Base, stack: ModuleStack) -> None:
        if base.precision != "int8":
            raise InvalidInput(f"evaluate_by 'inject' rounds into int8 rows: expected an int8 base, received {base!r}")
        self._stack = stack
        layers = [base.model.get_submodule(target.name) for target in stack.targets]
        self._layers = [layer for layer in layers if isinstance(layer, Int8Linear)]
        self._scratch = [torch.empty_like(layer.codes) for layer in self._layers]

    @classmethod
    def for_lanes(cls, bases: Sequence[Base], stack: ModuleStack) -> list[Injection]:
        """One on each base."""
        return [cls(base, stack) for base in bases]

    def begin(self, coefficients: torch.Tensor) -> None:
        """Nothing that candidates share."""

    def prepare(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Nothing to compose: `active` injects from the stack."""
        return coefficients

    @contextmanager
    def active(self, coefficients: torch.Tensor) -> Iterator[list[ops.InjectReport]]:
        """Compute as one candidate (1, n_modules); yields what became of the delta, per target."""
        pristine = [layer.int8_weight for layer in self._layers]
        try:
            yield self._inject(coefficients[0])
        finally:
            for layer, weight in zip(self._layers, pristine, strict=True):
                layer.codes, layer.row_scale = weight.codes, weight.row_scale
                layer.inputs.forget()

    def _inject(self, coefficients: torch.Tensor) -> list[ops.InjectReport]:
        reports = []
        for target, layer, scratch in zip(self._stack.targets, self._layers, self._scratch, strict=True):
            injected = self._stack.inject(target, layer.codes, layer.row_scale, coefficients, out=scratch)
            layer.codes, layer.row_scale = injected.values, injected.row_scale
            reports.append(injected.report)
        return reports
