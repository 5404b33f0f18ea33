"""Answer: one request's texts on their way from the worker thread to the client, whole or piece by piece."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from fastapi import Request

from lorahub_edge.serve.batching import Job
from lorahub_edge.serve.generate import Completion, Piece
from lorahub_edge.serve.metrics import Metrics
from lorahub_edge.serve.protocol import CompletionRequest, error_body, new_id, part_of_answer, whole_answer


class HungUp(Exception):
    """The client is gone."""


class Answer:
    """One request's answers as they come from the worker.

    Args:
        asked: the request.
        model: the name to answer under.
        max_new_tokens: the most that a request may ask for.
        timeout_s: an answer that takes longer is given up.
        metrics: where it is counted.

    Raises:
        InvalidInput: it asks for more than that.
    """

    def __init__(
        self, asked: CompletionRequest, *, model: str, max_new_tokens: int, timeout_s: float, metrics: Metrics
    ) -> None:
        self.model = model
        self.timeout_s = timeout_s
        self.metrics = metrics
        self.started = time.monotonic()
        self.id = new_id()
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[tuple[int, Piece | Exception]] = asyncio.Queue()
        settings = asked.settings(max_new_tokens)
        self.jobs = [
            Job(text, each, self._receiver(row))
            for row, (text, each) in enumerate(zip(asked.prompts, settings, strict=True))
        ]

    def _receiver(self, row: int) -> Any:
        def receive(piece: Piece | Exception) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._news.put_nowait, (row, piece))

        return receive

    async def _pieces(self) -> AsyncGenerator[tuple[int, Piece], None]:
        """Pieces until every text is answered; leaving early gives the others up."""
        n_open = len(self.jobs)
        is_first = True
        try:
            while n_open:
                left = self.timeout_s - (time.monotonic() - self.started)
                row, piece = await asyncio.wait_for(self._news.get(), max(left, 0.001))
                if isinstance(piece, Exception):
                    raise piece
                if is_first:
                    self.metrics.first_text_s.observe(time.monotonic() - self.started)
                    is_first = False
                if piece.completion is not None:
                    n_open -= 1
                    self._count(piece.completion)
                yield row, piece
            self.metrics.request_s.observe(time.monotonic() - self.started)
        finally:
            for job in self.jobs:
                job.cancelled.set()

    def _count(self, completion: Completion) -> None:
        self.metrics.prompt_tokens.inc(completion.n_prompt_tokens)
        self.metrics.answer_tokens.inc(len(completion.token_ids))

    async def whole(self, request: Request) -> dict[str, Any]:
        """The answer in one piece; given up if the client goes away."""
        watcher = asyncio.create_task(_until_gone(request))
        collector = asyncio.create_task(self._collect())
        try:
            await asyncio.wait({watcher, collector}, return_when=asyncio.FIRST_COMPLETED)
            if not collector.done():
                raise HungUp
            return whole_answer(self.id, self.model, collector.result())
        finally:
            for task in (watcher, collector):
                task.cancel()
            await asyncio.gather(watcher, collector, return_exceptions=True)

    async def _collect(self) -> list[Completion]:
        found: dict[int, Completion] = {}
        async with contextlib.aclosing(self._pieces()) as pieces:
            async for row, piece in pieces:
                if piece.completion is not None:
                    found[row] = piece.completion
        return [found[row] for row in range(len(self.jobs))]

    async def events(self) -> AsyncIterator[str]:
        """Server-sent events; an error is the last of them."""
        status = "499"  # stays so if the client hangs up and this generator is closed
        try:
            async with contextlib.aclosing(self._pieces()) as pieces:
                async for row, piece in pieces:
                    reason = piece.completion.finish_reason if piece.completion else None
                    yield part_of_answer(self.id, self.model, row, piece.text, reason)
            status = "200"
            yield "data: [DONE]\n\n"
        except TimeoutError:
            status = "504"
            yield _error_event(timeout_message(self.timeout_s), "timeout_error")
        except Exception as error:  # onnxruntime's errors have no parent of their own
            status = "500"
            yield _error_event(f"the model failed on this request ({type(error).__name__})", "internal_error")
        finally:
            self.metrics.requests.labels(status=status).inc()


async def _until_gone(request: Request) -> None:
    """Returns when the client has hung up; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _error_event(message: str, kind: str) -> str:
    return f"data: {json.dumps(error_body(message, kind))}\n\n"


def timeout_message(timeout_s: float) -> str:
    """For an answer that was given up."""
    return f"no whole answer within {timeout_s:g} s; ask for fewer tokens"
