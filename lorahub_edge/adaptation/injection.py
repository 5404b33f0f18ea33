"""Route "inject": a candidate's delta is rounded into a scratch copy of the layers it changes, as a merge would do it.

One candidate at a time, and rounding has a dead zone for small deltas; but what is evaluated is what an in-place int8
merge delivers. On a CPU each layer is composed and injected by itself, and no composed copy of a module is kept. A GPU
would wait for that: there the factors are composed into one place, and all layers are injected in one launch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

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
        layers = [base.model.get_submodule(target.name) for target in stack.targets]
        self._layers = [layer for layer in layers if isinstance(layer, Int8Linear)]
        form = _Together if injects_together(base.device.type, stack.composition) else _OneByOne
        self._injector: _Injector = form(stack, self._layers)

    @classmethod
    def for_lanes(cls, bases: Sequence[Base], stack: ModuleStack) -> list[Injection]:
        """One on each base."""
        return [cls(base, stack) for base in bases]

    def begin(self, coefficients: torch.Tensor) -> None:
        """Nothing that candidates share."""

    def prepare(self, coefficients: torch.Tensor) -> torch.Tensor:
        """What `active` reads, of one candidate (1, n_modules)."""
        return self._injector.prepare(coefficients)

    @contextmanager
    def active(self, prepared: torch.Tensor) -> Iterator[list[ops.InjectReport]]:
        """Compute as the candidate that was prepared; yields what became of the delta, per target."""
        pristine = [layer.int8_weight for layer in self._layers]
        try:
            injected = self._injector.inject(prepared)
            for layer, result in zip(self._layers, injected, strict=True):
                layer.codes, layer.row_scale = result.values, result.row_scale
            yield [result.report for result in injected]
        finally:
            for layer, weight in zip(self._layers, pristine, strict=True):
                layer.codes, layer.row_scale = weight.codes, weight.row_scale
                layer.inputs.forget()


def injects_together(device: str, composition: str) -> bool:
    """Whether all layers are injected in one launch, which a CUDA graph can record.

    By rule "deltas" a candidate's modules decide on the shapes of its factors, so there is no table to write once.
    """
    return device == "cuda" and composition == "factors"


class _Injector(Protocol):
    """How the layers get their delta."""

    def prepare(self, coefficients: torch.Tensor) -> torch.Tensor:
        """See `Injection.prepare`."""
        ...

    def inject(self, prepared: torch.Tensor) -> Sequence[ops.Injected]:
        """Of each layer."""
        ...


class _OneByOne:
    """Composed from the stack layer by layer."""

    def __init__(self, stack: ModuleStack, layers: Sequence[Int8Linear]) -> None:
        self._stack = stack
        self._layers = layers
        self._scratch = [torch.empty_like(layer.codes) for layer in layers]

    def prepare(self, coefficients: torch.Tensor) -> torch.Tensor:
        return coefficients

    def inject(self, prepared: torch.Tensor) -> Sequence[ops.Injected]:
        parts = zip(self._stack.targets, self._layers, self._scratch, strict=True)
        return [self._stack.inject(t, layer.codes, layer.row_scale, prepared[0], out=out) for t, layer, out in parts]


class _Together:
    """Composed at once, injected at once, always in the same places."""

    def __init__(self, stack: ModuleStack, layers: Sequence[Int8Linear]) -> None:
        self._stack = stack
        self._composed = torch.empty(1, stack.n_values, device=stack.values.device)
        table = []
        for target, layer in zip(stack.targets, layers, strict=True):
            A, B = target.A(self._composed)[0], target.B(self._composed)[0]
            out = torch.empty_like(layer.codes)
            table.append(ops.LayerToInject(layer.codes, layer.row_scale, A, B, target.scaling, out))
        self._table = ops.InjectLayers(table)

    def prepare(self, coefficients: torch.Tensor) -> torch.Tensor:
        return self._stack.compose(coefficients, out=self._composed)

    def inject(self, prepared: torch.Tensor) -> Sequence[ops.Injected]:
        return self._table.inject()
