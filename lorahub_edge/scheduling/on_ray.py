"""Workers of a Ray cluster: actors. Ray decides where they are and what they may use; it is imported here only."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any

from lorahub_edge.errors import InvalidInput, first_line, needed_by
from lorahub_edge.scheduling.units import Function, Held, Result, attempt, begin

LOCAL = "local"
_KNOCK_S = 10.0


@contextmanager
def connected(address: str) -> Iterator[list[float]]:
    """Hold a connection to a cluster inside a with block; a cluster that was started for it ends with it.

    Args:
        address: "local" starts one on this machine; "auto" or HOST:PORT is one that runs.

    Yields:
        The processors of each node that is there now.

    Raises:
        NotInstalled: Ray is missing.
        InvalidInput: no cluster answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with needed_by("--ray", extra="ray"):
        import ray
    was_connected = ray.is_initialized()
    if not was_connected:
        try:
            _knock(address)
            ray.init(
                address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=False if address == LOCAL else None,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise InvalidInput(f"ray: no cluster answers at '{address}' ({first_line(error)})") from error
    try:
        yield [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    finally:
        if not was_connected:
            ray.shutdown()


def _knock(address: str) -> None:
    """Find out in seconds that nobody listens; Ray takes minutes. Raises OSError or ValueError."""
    host, colon, port = address.rpartition(":")
    if colon and "://" not in address:
        socket.create_connection((host, int(port)), timeout=_KNOCK_S).close()


class RayWorker:
    """An actor. It is not restarted by Ray, which would hold its unit back until there is room for it again.

    Args:
        threads: processors that it takes.
        num_gpus: GPUs, or a part of one.
        memory_bytes: that its node must have left; None asks for none.
    """

    def __init__(self, threads: int, num_gpus: float, memory_bytes: int | None) -> None:
        import ray

        self._ray = ray
        self.lost: tuple[type[BaseException], ...] = (ray.exceptions.RayActorError,)
        options = {"num_cpus": threads, "num_gpus": num_gpus, "memory": memory_bytes, "max_restarts": 0}
        self._actor: Any = ray.remote(_Actor).options(**options).remote(threads)
        self.ready: Future[Any] = self._actor.is_ready.remote().future()

    def submit(self, function: Function, unit: Any) -> Future[Result]:
        """See `Worker`."""
        future: Future[Result] = self._actor.attempt.remote(function, unit).future()
        return future

    def stop(self) -> None:
        """Kill it; see `LocalProcess.stop`."""
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(self._actor)


class _Actor:
    def __init__(self, threads: int) -> None:
        begin(threads)
        self._held: Held = {}

    def is_ready(self) -> None:
        """Ends once the actor is there."""

    def attempt(self, function: Function, unit: Any) -> Result:
        """See `attempt`."""
        return attempt(function, unit, self._held)
