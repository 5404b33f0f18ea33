"""What graphs are fed of adapters: one adapter as it is, or several stacked along the rank with each row's scales.

    y = W x + B ((A x) * scale)

A and B hold the adapters of all rows one below the other; a row's scale is 0 where an adapter is not its own. So rows
with different adapters share a step, at the cost of A x for all of them (docs/decisions/0021-shared-steps.md).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorahub_edge.serve.adapter import SCALE_INPUT, Adapter, Mix, input_names
from lorahub_edge.serve.state import OrtValue, new_value


class SideInputs:
    """One graph's inputs of adapters.

    Args:
        session: of onnxruntime; it calls inputs with a default overridable initializers.
    """

    def __init__(self, session: Any) -> None:
        inputs = {i.name: i.shape for i in session.get_overridable_initializers()}
        self.has_scales = SCALE_INPUT in inputs
        suffix = input_names("")[0]
        self.targets = [name.removesuffix(suffix) for name in inputs if name.endswith(suffix)]
        self._sizes = {t: (inputs[input_names(t)[1]][0], inputs[input_names(t)[0]][1]) for t in self.targets}
        # what was fed last, to be fed again in the next step: one adapter alone, and a stack of several
        self._single: tuple[Adapter | None, dict[str, OrtValue]] = (None, {})
        self._stack: tuple[Mix, dict[str, OrtValue]] = ((), {})

    def feeds(self, mixes: Sequence[Mix]) -> dict[str, OrtValue]:
        """Inputs for rows with these adapters; empty for the base alone.

        Where the graph takes no scales, all rows must have one mix (`can_share`).
        """
        if not self.targets or not any(mixes):
            return {}
        is_one = all(mix == mixes[0] for mix in mixes)
        if is_one and len(mixes[0]) == 1 and (self.has_scales or mixes[0][0][1] == 1.0):
            return self._alone(*mixes[0][0])
        if is_one and not self.has_scales:
            return self._stacked(mixes[0])
        adapters = self._kept(dict.fromkeys(adapter for mix in mixes for adapter, _ in mix))
        scales = self._scales(mixes, adapters)
        return {**self._stacked(tuple((adapter, 1.0) for adapter in adapters)), SCALE_INPUT: new_value(scales)}

    def can_share(self, first: Mix, second: Mix) -> bool:
        """Whether rows with these two may be in one call."""
        return not self.targets or self.has_scales or first == second

    def _alone(self, adapter: Adapter, scale: float) -> dict[str, OrtValue]:
        """One adapter as it is; where it has no target, the graph's own zeros stay."""
        if self._single[0] is not adapter:
            names = [name for target in self.targets for name in input_names(target) if name in adapter.tensors]
            self._single = (adapter, {name: new_value(adapter.tensors[name]) for name in names})
        scales = {} if scale == 1.0 else {SCALE_INPUT: new_value(np.full((1, 1, 1), scale, np.float32))}
        return self._single[1] | scales

    def _kept(self, wanted: Collection[Adapter]) -> list[Adapter]:
        """The adapters of the last stack if the wanted ones are among them, and at least half of them."""
        last = [adapter for adapter, _ in self._stack[0]]
        return last if len(last) <= 2 * len(wanted) and set(wanted) <= set(last) else list(wanted)

    def _stacked(self, mix: Mix) -> dict[str, OrtValue]:
        """A and B of all targets, one adapter below the other; a scale other than 1 is taken into B."""
        if self._stack[0] != mix:
            feeds: dict[str, OrtValue] = {}
            for target in self.targets:
                factors = [self._factors(adapter, target) for adapter, _ in mix]
                scaled = [B if s == 1.0 else B * np.float32(s) for (_, B), (_, s) in zip(factors, mix, strict=True)]
                a_name, b_name = input_names(target)
                feeds[a_name] = new_value(np.concatenate([A for A, _ in factors]))
                feeds[b_name] = new_value(np.concatenate(scaled, 1))
            self._stack = (mix, feeds)
        return self._stack[1]

    def _scales(self, mixes: Sequence[Mix], adapters: Sequence[Adapter]) -> NDArray[np.float32]:
        """(rows, 1, rank of all adapters)."""
        by_adapter = np.zeros((len(mixes), len(adapters)), np.float32)
        place = {adapter: k for k, adapter in enumerate(adapters)}
        for row, mix in enumerate(mixes):
            for adapter, scale in mix:
                by_adapter[row, place[adapter]] += scale
        scales: NDArray[np.float32] = np.repeat(by_adapter, [self._rank(a) for a in adapters], axis=1)[:, None]
        return scales

    def _rank(self, adapter: Adapter) -> int:
        """Rows of all its targets: the largest rank among them."""
        names = (input_names(target)[0] for target in self.targets)
        return max((len(adapter.tensors[name]) for name in names if name in adapter.tensors), default=1)

    def _factors(self, adapter: Adapter, target: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """A (rank, in) and B (out, rank) with zeros up to the adapter's common rank."""
        n_out, n_in = self._sizes[target]
        rank = self._rank(adapter)
        A, B = np.zeros((rank, n_in), np.float32), np.zeros((n_out, rank), np.float32)
        a_name, b_name = input_names(target)
        if a_name in adapter.tensors:
            given = adapter.tensors[a_name]
            A[: len(given)], B[:, : len(given)] = given, adapter.tensors[b_name]
        return A, B
