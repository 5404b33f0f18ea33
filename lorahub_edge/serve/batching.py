"""Batcher: requests are answered together by one worker thread. Knows the engine, nothing of HTTP."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from lorahub_edge.errors import InvalidInput, LorahubEdgeError
from lorahub_edge.serve.adapter import Mix
from lorahub_edge.serve.engine import Engine
from lorahub_edge.serve.folder import ExportFolder
from lorahub_edge.serve.generate import checked_prompt, new_sequence
from lorahub_edge.serve.model import OnnxModel
from lorahub_edge.serve.sequences import Piece, SequenceInMaking
from lorahub_edge.serve.settings import GenerationSettings

OnPiece = Callable[["Piece | Exception"], None]
_log = logging.getLogger("lorahub_edge.serve")


class Overloaded(LorahubEdgeError):
    """Too many requests wait. Catch this to ask again later."""


class ShuttingDown(LorahubEdgeError):
    """The service takes no more requests."""


class ModelFailed(LorahubEdgeError):
    """The model or the tokenizer failed on a batch; the log has the traceback."""


@dataclass
class Job:
    """One text on its way.

    Attributes:
        files, mix: the model that is asked: how it reads texts, and its adapters.
        prompt, settings: the question; a text, or token ids that are taken as they are.
        on_piece: called from another thread with each piece, or with the exception that ended it.
        cancelled: set when nobody waits for the answer any more; it then leaves at the next step.
    """

    files: ExportFolder
    mix: Mix
    prompt: str | Sequence[int]
    settings: GenerationSettings
    on_piece: OnPiece
    cancelled: threading.Event = field(default_factory=threading.Event)


class Batcher:
    """One model, a queue with an end, one thread that tokenises and one that answers by an `Engine`.

    Args:
        model: what answers.
        max_batch: rows of a step.
        max_waiting: texts that may wait; more are refused.
        cache_bytes: most memory of caches; see `Engine`.
        on_step: called after each step with the texts that took part and its seconds, for metrics.
    """

    def __init__(
        self,
        model: OnnxModel,
        *,
        max_batch: int,
        max_waiting: int,
        cache_bytes: int | None = None,
        on_step: Callable[[int, float], None] = lambda *_: None,
    ) -> None:
        self.engine = Engine(model, max_rows=max_batch, cache_bytes=cache_bytes)
        self._max_waiting = max_waiting
        self._on_step = on_step
        self._read_jobs: queue.SimpleQueue[tuple[SequenceInMaking, Job] | None] = queue.SimpleQueue()
        self._jobs: dict[SequenceInMaking, Job] = {}
        self._n_unread = 0  # submitted, and not yet the engine's
        self._lock = threading.Lock()
        self._closed = False
        self._reader = ThreadPoolExecutor(1, "lorahub-edge-reader")
        self._worker = threading.Thread(target=self._work, name="lorahub-edge-batcher", daemon=True)
        self._worker.start()

    @property
    def is_alive(self) -> bool:
        """Whether its thread still answers: it ends with `close`, or by a fault of the engine."""
        return self._worker.is_alive()

    @property
    def n_waiting(self) -> int:
        """Texts that no step has taken yet."""
        return self._n_unread + self.engine.n_waiting

    @property
    def n_running(self) -> int:
        """Texts that are being read or answered."""
        return max(0, len(self._jobs) - self.engine.n_waiting)

    def submit(self, jobs: list[Job]) -> None:
        """Queue the texts of one request, all or none. Returns at once: they are read by another thread.

        Raises:
            InvalidInput: more texts than may ever wait. One that is too long reaches `on_piece` of every job.
            Overloaded: they do not fit into the queue now.
            ShuttingDown: `close` was called.
        """
        if len(jobs) > self._max_waiting:
            raise InvalidInput(f"prompt: expected at most {self._max_waiting} texts, received {len(jobs)}")
        with self._lock:
            if self._closed:
                raise ShuttingDown("the service is shutting down; ask another one")
            if self.n_waiting + len(jobs) > self._max_waiting:
                raise Overloaded(
                    f"{self.n_waiting} texts wait already and at most {self._max_waiting} may; ask again later"
                )
            self._n_unread += len(jobs)
            self._reader.submit(self._read, jobs)

    def close(self, *, timeout_s: float) -> bool:
        """Take nothing more, finish what waits; returns whether all was finished in time."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._reader.submit(self._read_jobs.put, None)
        self._reader.shutdown(wait=False)
        self._worker.join(timeout_s)
        return not self._worker.is_alive()

    def _read(self, jobs: list[Job]) -> None:
        """Tokenise one request's texts, the only time that this is done, and pass them to the worker."""
        try:
            sequences = [self._sequence(row, job) for row, job in enumerate(jobs) if not job.cancelled.is_set()]
        except Exception as error:
            self._forget(len(jobs))
            self._fail(jobs, error)
        else:
            self._forget(len(jobs) - len(sequences))
            for sequence in sequences:
                self._read_jobs.put((sequence, jobs[sequence.index]))

    def _sequence(self, row: int, job: Job) -> SequenceInMaking:
        sequence = new_sequence(
            row,
            job.files,
            checked_prompt(job.files, job.prompt),
            job.settings,
            job.mix,
            is_wanted=lambda: not job.cancelled.is_set(),
        )
        self.engine.check(sequence)
        return sequence

    def _forget(self, n: int) -> None:
        with self._lock:
            self._n_unread -= n

    def _fail(self, jobs: list[Job], error: Exception) -> None:
        """Tell everyone who waits for these jobs; what is not the client's fault is logged."""
        if not isinstance(error, InvalidInput):
            _log.error("%d texts failed", len(jobs), exc_info=error)
            error = ModelFailed(f"the model failed on this request ({type(error).__name__})")
        for job in jobs:
            job.on_piece(error)

    def _work(self) -> None:
        is_last = False
        while not (is_last and self.engine.is_idle):
            is_last = self._take() or is_last
            started = time.monotonic()
            news = self.engine.step()
            n_running = self.n_running
            for sequence, piece in news:
                self._tell(sequence, piece)
            self._jobs = {sequence: job for sequence, job in self._jobs.items() if not job.cancelled.is_set()}
            if n_running > 0:
                self._on_step(n_running, time.monotonic() - started)

    def _take(self) -> bool:
        """Hand what was read to the engine; wait for the next one if it is idle. Whether nothing more comes."""
        while True:
            try:
                read = self._read_jobs.get(block=self.engine.is_idle)
            except queue.Empty:
                return False
            if read is None:
                return True
            sequence, job = read
            self._jobs[sequence] = job
            self.engine.add(sequence)
            self._forget(1)

    def _tell(self, sequence: SequenceInMaking, piece: Piece | Exception) -> None:
        is_over = isinstance(piece, Exception) or piece.completion is not None
        job = self._jobs.pop(sequence) if is_over else self._jobs[sequence]
        if isinstance(piece, Exception):
            self._fail([job], piece)
        else:
            job.on_piece(piece)
