"""Where a sweep stands: counted as its points begin and end."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Event:
    """Something happened to a point.

    Attributes:
        kind: "known" (done by an earlier start), "started", "done", "failed", or "lost" (its worker died; it will be
            started again).
        point: its name.
        reason: why it failed.
        running: names of the points that are computed now.
        n_points, n_known, n_done, n_failed: of all points; `n_done` are those of this start.
        per_hour: points that end in an hour, at this start's rate; None before the first.
        left_s: seconds until the last ends, at that rate.
    """

    kind: str
    point: str
    reason: str | None
    running: tuple[str, ...]
    n_points: int
    n_known: int
    n_done: int
    n_failed: int
    per_hour: float | None
    left_s: float | None


@dataclass
class Tally:
    """Counts points; see `Event`."""

    n_points: int
    n_known: int = 0
    n_done: int = 0
    n_failed: int = 0
    running: list[str] = field(default_factory=list)
    n_computed: int = 0
    started: float = field(default_factory=time.perf_counter)

    def note(self, kind: str, point: str, reason: str | None = None) -> Event:
        """Count what happened."""
        if kind == "started":
            self.running.append(point)
        elif point in self.running:
            self.running.remove(point)
            self.n_computed += kind != "lost"
        self.n_known += kind == "known"
        self.n_done += kind == "done"
        self.n_failed += kind == "failed"
        per_s = self.n_computed / (time.perf_counter() - self.started)
        left = self.n_points - self.n_known - self.n_done - self.n_failed
        return Event(
            kind,
            point,
            reason,
            tuple(self.running),
            self.n_points,
            self.n_known,
            self.n_done,
            self.n_failed,
            3600 * per_s if per_s else None,
            left / per_s if per_s else None,
        )
