"""One table of contenders of bench.ops: what they are called, what they compute, what limits them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

FEATURES, RANK, TOKENS = 1024, 16, 640  # FLAN-T5-large's width, LoRAHub's rank


@dataclass(frozen=True)
class Case:
    """One table of contenders.

    Attributes:
        op: name of the kernel.
        setup: what distinguishes the case.
        calls: contender -> call; ours first.
        check: raises unless ours is right.
        floors: name of a limit -> contenders that measure it in the same turns, and by what to multiply their time.
        n_repeats: turns.
    """

    op: str
    setup: dict[str, object]
    calls: dict[str, Callable[[], object]]
    check: Callable[[], None]
    floors: dict[str, tuple[str, float]] = field(default_factory=dict)
    n_repeats: int = 15

    def floors_ms(self, timings: dict[str, dict[str, object]]) -> dict[str, float]:
        """Each floor in milliseconds, from what its probe took in the same turns."""
        return {
            name: round(timings[probe]["median_ms"] * factor, 4)  # type: ignore[operator]
            for name, (probe, factor) in self.floors.items()
        }


@dataclass(frozen=True)
class GpuCase(Case):
    """A case of bench.ops_gpu.

    Attributes:
        n_launches: of the call that queues most.
        wall_calls: contender -> call that is timed from the host, waiting for its end.
    """

    n_launches: int = 1
    wall_calls: Mapping[str, Callable[[], object]] = field(default_factory=dict)
