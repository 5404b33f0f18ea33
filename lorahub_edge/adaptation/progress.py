"""How a run tells where it stands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Where a run stands; handed to `on_progress`.

    Attributes:
        stage: "load", "choose", "controls", "search", "null" or "test".
        done, total: evaluations or answers; of "choose", modules looked at alone.
        best_loss: loss of the best candidate so far, best by the objective; None outside a search.
    """

    stage: str
    done: int
    total: int
    best_loss: float | None = None


OnProgress = Callable[[Progress], None]
