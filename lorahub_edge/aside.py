"""within: a call that may never end, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


class NotDone(Exception):
    """A call has not ended within its limit."""


def within(limit_s: float, call: Callable[[], T], *, name: str) -> T:
    """Call something in a daemon thread and wait for it.

    Ctrl-C ends the wait, and the thread does not keep the process from ending; nor do threads that it starts itself.

    Args:
        limit_s: seconds to wait.
        call: what to do. After the limit it is left to itself.
        name: of the thread.

    Raises:
        NotDone: it has not ended within the limit. Otherwise what the call raises.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    thread.join(limit_s)
    if not future.done():
        raise NotDone(f"{name}: not done within {limit_s:g} s")
    return future.result()
