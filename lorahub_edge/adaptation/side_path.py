"""Route "side": the frozen base computes once per layer for many candidates, and each adds its own low-rank side path
y += scaling * (x @ A.T) @ B.T at every target.

By rule "factors" a candidate's A and B are composed. By rule "deltas" nothing is: candidates share the factors of the
modules in use, and each weighs the inner products in its own way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch

from lorahub_edge.base import Base
from lorahub_edge.base.int8 import Int8Linear
from lorahub_edge.base.side import Side, SideDeltas, SideFactors
from lorahub_edge.kernels import memory
from lorahub_edge.modules import FactorsInUse, ModuleStack, modules_in_use


class SidePath:
    """Adds the candidates' deltas to the outputs of the targets, inside `active`.

    Int8 layers add them as they scale their product; float layers get a hook. The base's tensors are never touched.

    Args:
        base: whose layers get the path.
        stack: of the modules.
        in_use: what candidates of rule "deltas" share; its own if None.
    """

    def __init__(self, base: Base, stack: ModuleStack, *, in_use: FactorsInUse | None = None) -> None:
        self._layers = [base.model.get_submodule(target.name) for target in stack.targets]
        self._sides: _Sides
        if stack.composition == "deltas":
            self._sides = _Deltas(in_use or FactorsInUse(stack, base.compute_dtype))
        else:
            self._sides = _Factors(stack, base.compute_dtype)

    @classmethod
    def for_lanes(cls, bases: Sequence[Base], stack: ModuleStack) -> list[SidePath]:
        """One on each base; what candidates share is there once."""
        shared = FactorsInUse(stack, bases[0].compute_dtype) if stack.composition == "deltas" else None
        return [cls(base, stack, in_use=shared) for base in bases]

    def begin(self, coefficients: torch.Tensor) -> None:
        """Get ready for these candidates (n_candidates, n_modules), before any lane prepares one of them."""
        self._sides.begin(coefficients)

    def prepare(self, coefficients: torch.Tensor) -> torch.Tensor:
        """What is particular to these candidates (n_candidates, n_modules), in memory that the next call uses again.

        Fresh pages cost as much as composing, and what a CUDA graph reads has to stay in its place.
        """
        return self._sides.prepare(coefficients)

    @contextmanager
    def active(self, prepared: torch.Tensor) -> Iterator[None]:
        """Compute as the candidates that were prepared: each owns as many rows of every input, in order.

        Whoever shares the base with other threads holds its turn around this, and made the path inside that turn too.
        """
        with ExitStack() as stack:
            for layer, side in zip(self._layers, self._sides.of(prepared), strict=True):
                if isinstance(layer, Int8Linear):
                    stack.callback(layer.set_side, layer.side)
                    layer.set_side(side)
                else:
                    stack.callback(layer.register_forward_hook(_adder(side)).remove)
            yield


class _Sides(Protocol):
    """What a layer adds, by one rule; for `begin` and `prepare` see `SidePath`."""

    def begin(self, coefficients: torch.Tensor) -> None: ...

    def prepare(self, coefficients: torch.Tensor) -> torch.Tensor: ...

    def of(self, prepared: torch.Tensor) -> Iterator[Side]:
        """One for each target; only launches, from tensors that stay in their places."""
        ...


class _Factors:
    """Every candidate's own factors, composed."""

    def __init__(self, stack: ModuleStack, dtype: torch.dtype) -> None:
        self._stack = stack
        self._dtype = dtype
        self._room: torch.Tensor | None = None

    def begin(self, coefficients: torch.Tensor) -> None:
        pass  # candidates share nothing

    def prepare(self, coefficients: torch.Tensor) -> torch.Tensor:
        n_candidates = len(coefficients)
        if self._room is None or len(self._room) < n_candidates:
            shape = (n_candidates, self._stack.n_values)
            device = self._stack.values.device
            on_cpu = device.type == "cpu"
            self._room = memory.zeros(shape, torch.float32) if on_cpu else torch.empty(shape, device=device)
        return self._stack.compose(coefficients, out=self._room[:n_candidates])

    def of(self, prepared: torch.Tensor) -> Iterator[Side]:
        rows = prepared.to(self._dtype)  # at once: a GPU would wait for a cast of each target's A
        for target in self._stack.targets:
            A_t = target.A(rows).transpose(1, 2)
            yield SideFactors(A_t, target.B(prepared).contiguous(), target.scaling)


class _Deltas:
    """The factors of the modules in use, the same for all candidates, and each candidate's coefficients.

    Modules stay taken from `begin` on: lanes that prepare candidates find theirs there, and only read.
    """

    def __init__(self, in_use: FactorsInUse) -> None:
        self._in_use = in_use
        self._room = torch.empty(0, device=in_use.device)

    def begin(self, coefficients: torch.Tensor) -> None:
        self._in_use.take(modules_in_use(coefficients))

    def prepare(self, coefficients: torch.Tensor) -> torch.Tensor:
        if not set(modules_in_use(coefficients)) <= set(self._in_use.modules):
            self.begin(coefficients)
        chosen = coefficients[:, self._in_use.modules].float()
        if len(self._room) < chosen.numel():
            self._room = torch.empty(chosen.numel(), device=self._in_use.device)
        return self._room[: chosen.numel()].view(chosen.shape).copy_(chosen)

    def of(self, prepared: torch.Tensor) -> Iterator[Side]:
        for target, A, B in self._in_use:
            weighing = (target.scaling * prepared)[:, :, None].expand(-1, -1, target.rank).flatten(1)
            yield SideDeltas(A.t(), B[None], weighing)


def _adder(side: Side) -> Any:
    def add_delta(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        y = output.view(len(side.B), -1, output.shape[-1])
        return torch.baddbmm(y, side.inner(inputs[0]), side.B.mT.to(y.dtype)).view(output.shape)

    return add_delta
