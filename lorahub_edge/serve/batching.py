"""Batcher: waiting requests are answered together by one worker thread. Knows the model, nothing of HTTP."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from lorahub_edge.errors import InvalidInput, LorahubEdgeError
from lorahub_edge.serve.generate import Piece, answer_prompts, checked_prompt
from lorahub_edge.serve.model import OnnxModel
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
        text, settings: the question.
        on_piece: called from another thread with each piece, or with the exception that ended it.
        cancelled: set when nobody waits for the answer any more; it then leaves its batch at the next step.
        prompt: token ids of the text, once it has been read.
    """

    text: str
    settings: GenerationSettings
    on_piece: OnPiece
    cancelled: threading.Event = field(default_factory=threading.Event)
    prompt: list[int] = field(default_factory=list)


class Batcher:
    """One model, a queue with an end, one thread that tokenises and one that answers.

    Args:
        model: what answers.
        max_batch: texts answered together.
        max_waiting: texts that may wait; more are refused.
        on_batch: called with the size of each batch, for metrics.
    """

    def __init__(
        self, model: OnnxModel, *, max_batch: int, max_waiting: int, on_batch: Callable[[int], None] = lambda _: None
    ) -> None:
        self.model = model
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._on_batch = on_batch
        self._waiting: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._n_waiting = 0
        self._lock = threading.Lock()
        self._closed = False
        self._reader = ThreadPoolExecutor(1, "lorahub-edge-reader")
        self._worker = threading.Thread(target=self._work, name="lorahub-edge-batcher", daemon=True)
        self._worker.start()

    @property
    def n_waiting(self) -> int:
        """Texts that no batch has taken yet."""
        return self._n_waiting

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
            if self._n_waiting + len(jobs) > self._max_waiting:
                raise Overloaded(
                    f"{self._n_waiting} texts wait already and at most {self._max_waiting} may; ask again later"
                )
            self._n_waiting += len(jobs)
            self._reader.submit(self._read, jobs)

    def close(self, *, timeout_s: float) -> bool:
        """Take nothing more, finish what waits; returns whether all was finished in time."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._reader.submit(self._waiting.put, None)
        self._reader.shutdown(wait=False)
        self._worker.join(timeout_s)
        return not self._worker.is_alive()

    def _read(self, jobs: list[Job]) -> None:
        """Tokenise one request's texts, the only time that this is done, and pass them to the worker."""
        try:
            for job in jobs:
                if not job.cancelled.is_set():
                    job.prompt = checked_prompt(self.model, job.text)
        except Exception as error:
            with self._lock:
                self._n_waiting -= len(jobs)
            self._fail(jobs, error)
        else:
            for job in jobs:
                self._waiting.put(job)

    def _fail(self, jobs: list[Job], error: Exception) -> None:
        """Tell everyone who waits for these jobs; what is not the client's fault is logged."""
        if not isinstance(error, InvalidInput):
            _log.error("a batch of %d texts failed", len(jobs), exc_info=error)
            error = ModelFailed(f"the model failed on this request ({type(error).__name__})")
        for job in jobs:
            job.on_piece(error)

    def _work(self) -> None:
        while True:
            batch, is_last = self._next_batch()
            if batch:
                self._on_batch(len(batch))
                self._answer(batch)
            if is_last:
                return

    def _next_batch(self) -> tuple[list[Job], bool]:
        """The next job, with all that wait behind it, up to a batch; and whether the queue is closed behind them."""
        job: Job | None = self._waiting.get()
        batch: list[Job] = []
        while job is not None:
            with self._lock:
                self._n_waiting -= 1
            if not job.cancelled.is_set():
                batch.append(job)
            if len(batch) >= self._max_batch:
                return batch, False
            try:
                job = self._waiting.get_nowait()
            except queue.Empty:
                return batch, False
        return batch, True

    def _answer(self, batch: list[Job]) -> None:
        """A failure reaches everyone who waits for this batch, and the worker goes on with the next."""
        try:
            pieces = answer_prompts(
                self.model,
                [job.prompt for job in batch],
                [job.settings for job in batch],
                is_wanted=lambda row: not batch[row].cancelled.is_set(),
            )
            for piece in pieces:
                batch[piece.row].on_piece(piece)
        except Exception as error:  # onnxruntime's errors have no parent of their own
            self._fail(batch, error)
