"""Route "side": the frozen base computes once per layer for many candidates, and each adds its own low-rank side path
y += scaling * (x @ A.T) @ B.T at every target.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from lorahub_edge.base import Base
from lorahub_edge.base.int8 import Int8Linear, SideFactors
from lorahub_edge.kernels import memory
from lorahub_edge.modules import ModuleStack


class SidePath:
    """Adds the composed deltas to the outputs of the targets, inside `active`.

    Int8 layers add them as they scale their product; float layers get a hook. The base's tensors are never touched.
    """

    def __init__(self, base: Base, stack: ModuleStack) -> None:
        self._stack = stack
        self._targets = stack.targets
        self._layers = [base.model.get_submodule(target.name) for target in stack.targets]
        self._dtype = _compute_dtype(base)
        self._room: torch.Tensor | None = None

    def prepare(self, coefficients: torch.Tensor) -> torch.Tensor:
        """The factors of these candidates (n_candidates, n_modules), in memory that the next call uses again.

        Fresh pages cost as much as composing, and what a CUDA graph reads has to stay in its place.
        """
        n_candidates = len(coefficients)
        if self._room is None or len(self._room) < n_candidates:
            shape = (n_candidates, self._stack.n_values)
            device = self._stack.values.device
            on_cpu = device.type == "cpu"
            self._room = memory.zeros(shape, torch.float32) if on_cpu else torch.empty(shape, device=device)
        return self._stack.compose(coefficients, out=self._room[:n_candidates])

    @contextmanager
    def active(self, composed: torch.Tensor) -> Iterator[None]:
        """Compute as the candidates that `prepare` composed: each owns as many rows of every input, in order.

        Whoever shares the base with other threads holds its turn around this, and made the path inside that turn too.
        """
        with ExitStack() as stack:
            for target, layer in zip(self._targets, self._layers, strict=True):
                A_t = target.A(composed).to(self._dtype).transpose(1, 2)
                side = SideFactors(A_t, target.B(composed).contiguous(), target.scaling)
                if isinstance(layer, Int8Linear):
                    stack.callback(layer.set_side, layer.side)
                    layer.set_side(side)
                else:
                    stack.callback(layer.register_forward_hook(_adder(side)).remove)
            yield


def _adder(side: SideFactors) -> Any:
    def add_delta(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        y = output.view(len(side.B), -1, output.shape[-1])
        return torch.baddbmm(y, side.inner(inputs[0]), side.B.mT.to(y.dtype)).view(output.shape)

    return add_delta


def _compute_dtype(base: Base) -> torch.dtype:
    return next(p.dtype for p in base.model.parameters() if p.is_floating_point())
