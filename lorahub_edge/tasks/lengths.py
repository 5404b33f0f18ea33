"""Which texts share a call, by their lengths alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

# Rows of activations per call, or on a CPU of the calls that its lanes make at once. Each call packs every weight once
# and reads those of a decoder for few rows, so fewer tokens cost time; more cost memory (docs/log.md).
TOKENS_PER_CALL = {"cpu": 1024, "cuda": 8192}


def batches_of(lengths: Sequence[int], batch_size: int, tokens_per_call: int) -> Iterator[slice]:
    """Runs of rising lengths, each within both bounds or of one input."""
    start = 0
    for stop in range(1, len(lengths) + 1):
        n_rows = stop + 1 - start
        if stop == len(lengths) or n_rows > batch_size or n_rows * lengths[stop] > tokens_per_call:
            yield slice(start, stop)
            start = stop
