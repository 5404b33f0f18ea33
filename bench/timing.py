"""The one timer of all benches: contenders in turns, so that what disturbs the machine disturbs them alike."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping


def in_turns(
    calls: Mapping[str, Callable[[], object]], *, n_repeats: int, n_warm_up: int = 2
) -> dict[str, list[float]]:
    """Seconds of each call, the contenders taking turns in a new order each time.

    Args:
        calls: name -> what to time.
        n_repeats: turns that count.
        n_warm_up: turns that do not.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names, order = list(calls), random.Random(0)
    for turn in range(n_warm_up + n_repeats):
        order.shuffle(names)  # none always follows the one that leaves its input in the cache, or empties it
        for name in names:
            call = calls[name]
            start = time.perf_counter()
            call()
            if turn >= n_warm_up:
                samples[name].append(time.perf_counter() - start)
    return samples


def summary(samples: Mapping[str, list[float]]) -> dict[str, dict[str, object]]:
    """Minimum, median and 90th percentile in milliseconds of each contender, with the raw samples."""
    return {name: _summary(seconds) for name, seconds in samples.items()}


def _summary(seconds: list[float]) -> dict[str, object]:
    ordered = sorted(1e3 * s for s in seconds)
    return {
        "min_ms": round(ordered[0], 4),
        "median_ms": round(statistics.median(ordered), 4),
        "p90_ms": round(ordered[int(0.9 * (len(ordered) - 1))], 4),
        "samples_ms": [round(1e3 * s, 4) for s in seconds],
    }
