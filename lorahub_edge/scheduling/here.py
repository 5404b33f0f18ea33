"""Workers of this machine: this process itself, or processes that end with it."""

from __future__ import annotations

import os
import signal
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, connection, get_context, parent_process
from threading import Thread
from typing import Any

from lorahub_edge.scheduling.units import Function, Held, Result, attempt, begin

_HELD: Held = {}  # of a worker process


class ThisProcess:
    """Carries out a unit before `submit` returns; what it raises stays as it is."""

    lost: tuple[type[BaseException], ...] = ()

    def __init__(self) -> None:
        self._held: Held = {}
        self.ready: Future[Any] = Future()
        self.ready.set_result(None)

    def submit(self, function: Function, unit: Any) -> Future[Result]:
        """See `Worker`."""
        future: Future[Result] = Future()
        try:
            future.set_result((function(unit, self._held), None))
        except Exception as error:
            future.set_result((None, error))
        return future

    def stop(self) -> None:
        """Let go of what was loaded."""
        self._held.clear()


class LocalProcess:
    """A process of its own, in a pool of one: one that dies breaks no other's pool."""

    lost: tuple[type[BaseException], ...] = (BrokenProcessPool,)

    def __init__(self, threads: int) -> None:
        spawn = get_context("spawn")  # torch's threads do not survive a fork
        self._pool = ProcessPoolExecutor(1, mp_context=spawn, initializer=_begin_process, initargs=(threads,))
        self.ready: Future[Any] = self._pool.submit(os.getpid)

    def submit(self, function: Function, unit: Any) -> Future[Result]:
        """See `Worker`."""
        try:
            return self._pool.submit(_attempt_here, function, unit)
        except BrokenProcessPool as error:  # it died with nothing to do
            future: Future[Result] = Future()
            future.set_exception(error)
            return future

    def stop(self) -> None:
        """Kill it: what it writes is whole or is gone on from."""
        is_there = self.ready.done() and not self.ready.cancelled() and not self.ready.exception()
        for child in active_children() if is_there else ():
            if child.pid == self.ready.result():
                child.kill()
        self._pool.shutdown(wait=is_there, cancel_futures=True)  # one that is still starting ends by itself


def _begin_process(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; whoever started this decides
    Thread(target=_end_with_parent, daemon=True).start()
    begin(threads)


def _end_with_parent() -> None:
    """A killed parent tells nobody, and a pool's process would wait for its next unit for ever."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _attempt_here(function: Function, unit: Any) -> Result:
    return attempt(function, unit, _HELD)
