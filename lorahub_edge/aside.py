"""within: a call that may never end, in a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


# A call that twice in a row leaves the processor idle for so long waits for something that will not come.
IDLE_S = 2.0


class NotDone(Exception):
    """A call has not ended within its limit, or waits for itself."""


def within(limit_s: float, call: Callable[[], T], *, name: str) -> T:
    """Call something in a daemon thread and wait for it.

    Ctrl-C ends the wait, and the thread does not keep the process from ending; nor do threads that it starts itself.

    Args:
        limit_s: seconds to wait; less if the whole process only waits.
        call: what to do. After the limit it is left to itself.
        name: of the thread.

    Raises:
        NotDone: it is given up. Otherwise what the call raises.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    n_idle, deadline = 0, time.monotonic() + limit_s
    while not future.done() and n_idle < 2 and (left_s := deadline - time.monotonic()) > 0:
        used_s = time.process_time()
        thread.join(min(IDLE_S, left_s))
        n_idle = n_idle + 1 if time.process_time() - used_s < 0.01 * IDLE_S else 0
    if not future.done():
        raise NotDone(f"{name}: not done within {limit_s:g} s")
    return future.result()
