"""Lanes: threads that compute calls side by side on a CPU, each with a model of its own over the base's tensors.

torch shares every operation out to its threads: hundreds of times per call they start, wait for the slowest, and spin
on the cores that our kernels' threads need next. A lane does all operations of its calls alone, so lanes never wait for
each other, and memory stays as it was because they share the tokens that one call would have had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from threading import Barrier, Lock
from typing import Generic, TypeVar

import torch

from lorahub_edge.base import Base

# Tokens that a lane's call should have at least: below, packing weights costs more than a tenth of multiplying.
_LEAST_TOKENS = 80

# A new lane sets torch's number of threads, which is the process's; nobody may read or set it meanwhile.
_N_THREADS_LOCK = Lock()

T = TypeVar("T")
R = TypeVar("R")


def n_lanes(device: str, tokens: int, evaluate_by: str = "side") -> int:
    """How many lanes share so many tokens: one per thread of torch's on a CPU, one elsewhere.

    Route "inject" has one too: its scratch copy of the touched layers is the size of the base.
    """
    if device != "cpu" or evaluate_by == "inject":
        return 1
    with _N_THREADS_LOCK:
        n_threads = torch.get_num_threads()
    return max(1, min(n_threads, tokens // _LEAST_TOKENS))


def bases_for(base: Base, n: int) -> list[Base]:
    """n bases over the same tensors, the given one among them."""
    return [base, *(base.replica() for _ in range(n - 1))]


class Lanes(Generic[T]):
    """Runs jobs, each on one of several places that no two jobs use at once.

    With one place jobs run in the caller's thread, with all of torch's threads; with more, as many at a time as there
    are places, each with one thread of torch's.

    Args:
        places: what jobs work on: at least one.
    """

    def __init__(self, places: Sequence[T]) -> None:
        self._places = places
        self._free: SimpleQueue[T] = SimpleQueue()
        for place in places:
            self._free.put(place)
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Lanes[T]:
        n = len(self._places)
        if n > 1:
            started = Barrier(n + 1)
            with _N_THREADS_LOCK:
                n_threads = torch.get_num_threads()
                self._pool = ThreadPoolExecutor(n, "lane", initializer=_compute_alone)
                for _ in range(n):
                    self._pool.submit(started.wait)
                started.wait()
                torch.set_num_threads(n_threads)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def run(self, jobs: Iterable[Callable[[T], R]]) -> Iterator[R]:
        """Yields the results of all jobs, in order; must be read to its end, or those not begun are dropped.

        An error of a job is raised in its place, and ends the rest.
        """
        if self._pool is None:
            yield from (job(self._places[0]) for job in jobs)
            return
        futures = [self._pool.submit(self._on_a_place, job) for job in jobs]
        try:
            yield from (future.result() for future in futures)
        finally:
            for future in futures:
                future.cancel()

    def _on_a_place(self, job: Callable[[T], R]) -> R:
        place = self._free.get()
        try:
            return job(place)
        finally:
            self._free.put(place)


def _compute_alone() -> None:
    """Give this thread one thread of torch's: it takes the process's number at its first look, and keeps it."""
    torch.set_num_threads(1)
    torch.get_num_threads()
