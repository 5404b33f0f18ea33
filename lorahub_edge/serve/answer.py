"""Answer: one request's texts on their way from the worker thread to the client, whole or piece by piece."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from lorahub_edge.serve.adapter import Mix
from lorahub_edge.serve.batching import Job
from lorahub_edge.serve.guard import Exchange
from lorahub_edge.serve.metrics import Metrics
from lorahub_edge.serve.models import Served
from lorahub_edge.serve.protocol import Shape
from lorahub_edge.serve.refusal import Refused, hung_up, refusal_of
from lorahub_edge.serve.sequences import Completion, Piece
from lorahub_edge.serve.settings import GenerationSettings

_Pieces = AsyncGenerator[tuple[int, Piece], None]
_Result = TypeVar("_Result")


class Answer:
    """One request's answers as they come from the worker.

    Args:
        model: what is asked.
        prompts: texts, or token ids that are taken as they are.
        settings: one for each prompt.
        shape: of the answer.
        mix: adapters.
        timeout_s: an answer that takes longer is given up.
        exchange, metrics: where it is counted.
    """

    def __init__(
        self,
        model: Served,
        prompts: Sequence[str | Sequence[int]],
        settings: Sequence[GenerationSettings],
        shape: Shape,
        *,
        mix: Mix,
        timeout_s: float,
        exchange: Exchange,
        metrics: Metrics,
    ) -> None:
        self.model = model.name
        self.shape = shape
        self.timeout_s = timeout_s
        self.metrics = metrics
        self.exchange = exchange
        self.started = time.monotonic()
        self._completions: dict[int, Completion] = {}
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[tuple[int, Piece | Exception]] = asyncio.Queue()
        self.jobs = [
            Job(model.files, mix, prompt, each, self._receiver(row))
            for row, (prompt, each) in enumerate(zip(prompts, settings, strict=True))
        ]

    def _receiver(self, row: int) -> Callable[[Piece | Exception], None]:
        def receive(piece: Piece | Exception) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._news.put_nowait, (row, piece))

        return receive

    def fail(self, error: Exception) -> None:
        """End it with an error instead of an answer."""
        self._news.put_nowait((0, error))

    def give_up(self) -> None:
        """Nobody waits any more: its texts leave the queue, or their batch at the next step."""
        for job in self.jobs:
            job.cancelled.set()

    async def response(self, request: Request, *, is_stream: bool) -> Response:
        """The answer, given up if the client goes away. A stream starts with its first text.

        Raises:
            Refused: no answer in time, or nobody to read it.
            LorahubEdgeError: what came from the batcher instead of an answer.
        """
        pieces = self._pieces()
        if is_stream:
            first = await _unless_gone(request, anext(pieces))
            return _EventStream(self._events(first, pieces), self.give_up)
        await _unless_gone(request, self._collect(pieces))
        return JSONResponse(self.shape.whole(self._in_order()))

    async def _pieces(self) -> _Pieces:
        """Pieces until every text is answered; leaving early gives the others up."""
        first: tuple[int, Piece, float] | None = None
        try:
            while len(self._completions) < len(self.jobs):
                row, piece = await self._next()
                if isinstance(piece, Exception):
                    raise piece
                first = first or (row, piece, self._seconds())
                if piece is first[1]:
                    self.metrics.first_text_s.labels(model=self.model).observe(first[2])
                if piece.completion is not None:
                    self._completions[row] = piece.completion
                    self._count(piece.completion)
                    if row == first[0] and (n_later := piece.n_tokens - first[1].n_tokens) > 0:
                        seconds = (self._seconds() - first[2]) / n_later
                        self.metrics.token_s.labels(model=self.model).observe(seconds)
                yield row, piece
            self.metrics.request_s.labels(model=self.model).observe(self._seconds())
        finally:
            self.give_up()

    def _seconds(self) -> float:
        """Since the request came."""
        return time.monotonic() - self.started

    async def _next(self) -> tuple[int, Piece | Exception]:
        left = self.timeout_s - self._seconds()
        try:
            return await asyncio.wait_for(self._news.get(), max(left, 0.001))
        except asyncio.TimeoutError as error:  # before Python 3.11 this is not TimeoutError
            message = f"no whole answer within {self.timeout_s:g} s; ask for fewer tokens"
            raise Refused(504, message, kind="timeout_error") from error

    def _count(self, completion: Completion) -> None:
        n_prompt, n_answer = completion.n_prompt_tokens, len(completion.token_ids)
        self.metrics.prompt_tokens.labels(model=self.model).inc(n_prompt)
        self.metrics.answer_tokens.labels(model=self.model).inc(n_answer)
        self.exchange.n_prompt_tokens += n_prompt
        self.exchange.n_answer_tokens += n_answer

    async def _collect(self, pieces: _Pieces) -> None:
        async with contextlib.aclosing(pieces):
            async for _ in pieces:
                pass

    def _in_order(self) -> list[Completion]:
        return [self._completions[row] for row in range(len(self.jobs))]

    async def _events(self, first: tuple[int, Piece], pieces: _Pieces) -> AsyncIterator[str]:
        """Server-sent events; an error is the last of them, and what is counted."""
        self.exchange.status = 499  # stays so if the client hangs up and this generator is closed
        try:
            async with contextlib.aclosing(pieces):
                for chunk in self.shape.chunks(*first):
                    yield _event(chunk)
                async for row, piece in pieces:
                    for chunk in self.shape.chunks(row, piece):
                        yield _event(chunk)
            for chunk in self.shape.last_chunks(self._in_order()):
                yield _event(chunk)
            self.exchange.status = 200
            yield "data: [DONE]\n\n"
        except Exception as error:
            refused = refusal_of(error, self.exchange.id)
            self.exchange.status, self.exchange.code = refused.status, refused.code
            yield _event(refused.body())


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"


class _EventStream(StreamingResponse):
    """Events that are given up whenever the response ends, even before the first was asked for."""

    def __init__(self, events: AsyncIterator[str], on_end: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()


async def _unless_gone(request: Request, work: Coroutine[Any, Any, _Result]) -> _Result:
    """The result of some work, unless the client hangs up first; the body must have been read."""
    watcher = asyncio.create_task(_until_gone(request))
    worker = asyncio.create_task(work)
    try:
        await asyncio.wait({watcher, worker}, return_when=asyncio.FIRST_COMPLETED)
        if not worker.done():
            raise hung_up()
        return worker.result()
    finally:
        for task in (watcher, worker):
            task.cancel()
        await asyncio.gather(watcher, worker, return_exceptions=True)


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
