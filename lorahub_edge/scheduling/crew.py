"""Where work is done: what a user asks for, and the crew that comes of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lorahub_edge.errors import InvalidInput
from lorahub_edge.scheduling.here import LocalProcess, ThisProcess
from lorahub_edge.scheduling.loop import Worker
from lorahub_edge.scheduling.on_ray import RayWorker, connected


@dataclass(frozen=True)
class Crew:
    """Workers that can be started.

    Attributes:
        n: how many at a time.
        threads: of each; None for as many as this process has.
        is_here: whether the one worker is this process.
        on_ray: whether Ray decides where they are.
        start: starts one. Its argument: bytes that it may take, or None.
    """

    n: int
    threads: int | None
    is_here: bool
    on_ray: bool
    start: Callable[[int | None], Worker]


@dataclass(frozen=True)
class Workers:
    """What a user asks for.

    Attributes:
        n: worker processes; None is this process or, on Ray, as many as the cluster has room for now.
        ray: "local", "auto" or HOST:PORT; None for without.
        threads: of each worker; None shares the cores out, and gives a worker on Ray one.
        num_gpus: GPUs of each worker on Ray, or a part of one.

    Raises:
        InvalidInput: names the setting.
    """

    n: int | None = None
    ray: str | None = None
    threads: int | None = None
    num_gpus: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("workers", self.n), ("threads", self.threads)):
            if value is not None and not 1 <= value <= 10**5:
                raise InvalidInput(f"{name}: expected a whole number of at least 1, received {value!r:.40}")
        if not 0 <= self.num_gpus <= 64 or (self.num_gpus and self.ray is None):
            raise InvalidInput(f"num_gpus: expected GPUs of each worker on Ray (--ray), received {self.num_gpus:g}")

    @contextmanager
    def opened(self) -> Iterator[Crew]:
        """The crew, for the length of a with block. Raises: see `connected`."""
        if self.ray is not None:
            with connected(self.ray) as cpus:
                yield self._on_ray(cpus)
        elif self.n is None:
            yield Crew(1, self.threads, True, False, lambda memory: ThisProcess())
        else:
            threads = self.threads or max(1, (os.cpu_count() or 1) // self.n)
            yield Crew(self.n, threads, False, False, lambda memory: LocalProcess(threads))

    def _on_ray(self, cpus: list[float]) -> Crew:
        threads = self.threads or (max(1, int(min(max(cpus), sum(cpus) // self.n))) if self.n else 1)
        n = self.n or max(1, sum(int(node // threads) for node in cpus))
        return Crew(n, threads, False, True, lambda memory: RayWorker(threads, self.num_gpus, memory))
