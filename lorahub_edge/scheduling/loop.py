"""carry_out: units go to workers one at a time; a unit whose worker dies goes to another one."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any, Protocol

from lorahub_edge.errors import LorahubEdgeError
from lorahub_edge.scheduling.units import Function, Result, reason_of

# How often a unit is given to another worker after its own has died: it may be the unit that kills them.
MAX_RETRIES = 2
_MAX_FAILED_STARTS = 3


class Worker(Protocol):
    """Carries out one unit at a time, and holds what it has loaded.

    Attributes:
        ready: done once the worker is there.
        lost: what a future raises if the worker has died.
    """

    ready: Future[Any]
    lost: tuple[type[BaseException], ...]

    def submit(self, function: Function, unit: Any) -> Future[Result]:
        """Begin a unit."""
        ...

    def stop(self) -> None:
        """End the worker at once, whatever it does."""
        ...


@dataclass(frozen=True)
class Step:
    """What happened to a unit.

    Attributes:
        kind: "started", "lost" (its worker died, another one will start it again) or "ended".
        place: of the unit among the units.
        result: of its function, if that ended well.
        error: what it ended with otherwise.
    """

    kind: str
    place: int
    result: Any = None
    error: Exception | None = None


def carry_out(
    function: Function, units: Sequence[Any], start: Callable[[], Worker], *, n_workers: int
) -> Generator[Step, None, None]:
    """Carry out all units, in the order in which workers are free for them.

    Args:
        function: of a unit and what its worker holds.
        units: must be picklable where workers are other processes.
        start: starts a worker.
        n_workers: at most so many at a time.

    Raises:
        LorahubEdgeError: no worker can be started.

    Closing the iterator stops all workers.
    """
    loop = _Loop(function, units, start)
    try:
        for _ in range(min(n_workers, len(units))):
            loop.start_worker()
        yield from loop.steps()
    finally:
        for worker in loop.workers:
            worker.stop()


class _Loop:
    def __init__(self, function: Function, units: Sequence[Any], start: Callable[[], Worker]) -> None:
        self.workers: list[Worker] = []
        self._function, self._units, self._start = function, units, start
        self._waiting = deque(range(len(units)))
        self._idle: list[Worker] = []
        self._running: dict[Future[Any], tuple[Worker, int | None]] = {}  # None: the worker is starting
        self._n_lost: Counter[int] = Counter()
        self._n_failed_starts = 0

    def start_worker(self) -> None:
        worker = self._start()
        self.workers.append(worker)
        self._running[worker.ready] = (worker, None)

    def steps(self) -> Iterator[Step]:
        while self._waiting or any(place is not None for _, place in self._running.values()):
            while self._waiting and self._idle:
                worker, place = self._idle.pop(), self._waiting.popleft()
                yield Step("started", place)
                self._running[worker.submit(self._function, self._units[place])] = (worker, place)
            done, _ = wait(self._running, return_when=FIRST_COMPLETED)
            for future in done:
                yield from self._ended(future, *self._running.pop(future))

    def _ended(self, future: Future[Any], worker: Worker, place: int | None) -> Iterator[Step]:
        error = future.exception()
        if isinstance(error, worker.lost):
            yield from self._lost(worker, place, error)
            return
        self._idle.append(worker)
        if place is None:
            if error is not None:
                raise error
            self._n_failed_starts = 0
        elif error is not None:  # what surrounds the function: a unit that cannot be pickled
            yield Step("ended", place, error=LorahubEdgeError(reason_of(error)))
        else:
            result, raised = future.result()
            yield Step("ended", place, result, raised)

    def _lost(self, worker: Worker, place: int | None, error: BaseException) -> Iterator[Step]:
        worker.stop()
        self.workers.remove(worker)
        if place is None:
            self._n_failed_starts += 1
        else:
            self._n_lost[place] += 1
            if self._n_lost[place] > MAX_RETRIES:
                reason = f"its worker died, {self._n_lost[place]} times; the last time: {reason_of(error)}"
                yield Step("ended", place, error=LorahubEdgeError(reason))
            else:
                self._waiting.appendleft(place)
                yield Step("lost", place)
        if self._waiting and self._n_failed_starts < _MAX_FAILED_STARTS:
            self.start_worker()
        elif self._waiting and not self.workers:
            raise LorahubEdgeError(f"no worker can be started; the last one died: {reason_of(error)}") from error
