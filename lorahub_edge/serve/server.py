"""The HTTP service: /v1/completions, /health, /metrics and a page to try the model at /.

Needs the extra `serve` (FastAPI, uvicorn, prometheus-client). Imports no torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from lorahub_edge.errors import InvalidInput
from lorahub_edge.serve.batching import Batcher, Job, Overloaded, ShuttingDown
from lorahub_edge.serve.generate import Completion, Piece
from lorahub_edge.serve.metrics import Metrics
from lorahub_edge.serve.model import OnnxModel, metadata
from lorahub_edge.serve.page import PAGE
from lorahub_edge.serve.protocol import (
    CompletionRequest,
    error_body,
    new_id,
    part_of_answer,
    read_request,
    whole_answer,
)


@dataclass(frozen=True)
class ServerSettings:
    """Limits of a service.

    Attributes:
        max_batch: texts answered together.
        max_waiting: texts that may wait; beyond it requests get 429.
        max_new_tokens: the most that a request may ask for; None for the export's own limit.
        max_body_bytes: larger requests get 413.
        timeout_s: an answer that takes longer is given up (504).
        shutdown_s: how long answers under way may take after a signal to stop.
    """

    max_batch: int = 8
    max_waiting: int = 64
    max_new_tokens: int | None = None
    max_body_bytes: int = 1 << 20
    timeout_s: float = 60.0
    shutdown_s: float = 30.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not value > 0:
                raise InvalidInput(f"{name}: expected a number above 0, received {value}")


class _BodyTooLarge(Exception):
    """A request body beyond the limit."""


def make_app(model: OnnxModel, settings: ServerSettings | None = None) -> FastAPI:
    """The service as an ASGI application.

    Args:
        model: what answers.
        settings: limits.
    """
    return _Service(model, settings or ServerSettings()).app()


class _Service:
    def __init__(self, model: OnnxModel, settings: ServerSettings) -> None:
        self.model = model
        self.settings = settings
        self.name = model.files.folder.resolve().name
        self.max_new_tokens = settings.max_new_tokens or model.files.max_new_tokens
        self.batcher: Batcher | None = None
        self.metrics = Metrics(lambda: self.batcher.n_waiting if self.batcher else 0)

    def app(self) -> FastAPI:
        app = FastAPI(title="lorahub-edge", docs_url=None, redoc_url=None, openapi_url=None, lifespan=self._lifespan)
        app.add_api_route("/v1/completions", self.completions, methods=["POST"])
        app.add_api_route("/v1/models", self.models, methods=["GET"])
        app.add_api_route("/health", self.health, methods=["GET"])
        app.add_api_route("/metrics", self.show_metrics, methods=["GET"])
        app.add_api_route("/", self.page, methods=["GET"])
        app.add_exception_handler(HTTPException, _http_error)
        return app

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        self.batcher = Batcher(
            self.model,
            max_batch=self.settings.max_batch,
            max_waiting=self.settings.max_waiting,
            on_batch=self.metrics.batch_size.observe,
        )
        try:
            yield
        finally:
            await asyncio.to_thread(self.batcher.close, timeout_s=self.settings.shutdown_s)

    async def health(self) -> JSONResponse:
        """Whether the service answers, and with what."""
        return JSONResponse({"status": "ok", **metadata(self.model), "waiting": self._batcher().n_waiting})

    async def models(self) -> JSONResponse:
        """The one model, as OpenAI lists them."""
        return JSONResponse({"object": "list", "data": [{"id": self.name, "object": "model", "owned_by": "local"}]})

    async def show_metrics(self) -> Response:
        """For Prometheus."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def page(self) -> HTMLResponse:
        """A page to try the model."""
        return HTMLResponse(PAGE)

    async def completions(self, request: Request) -> Response:
        """Answer one request; every failure is an answer too."""
        status, kind, headers = 500, "internal_error", {}
        try:
            asked = read_request(await _limited_body(request, self.settings.max_body_bytes))
            answer = _Answer(self, asked)
            self._batcher().submit(answer.jobs)
            if asked.stream:
                return StreamingResponse(answer.events(), media_type="text/event-stream")
            response = JSONResponse(await answer.whole(request))
            self.metrics.requests.labels(status="200").inc()
            return response
        except InvalidInput as error:
            status, kind, message = 400, "invalid_request_error", str(error)
        except _BodyTooLarge as error:
            status, kind, message = 413, "invalid_request_error", str(error)
        except Overloaded as error:
            status, kind, message, headers = 429, "overloaded_error", str(error), {"Retry-After": "1"}
        except ShuttingDown as error:
            status, kind, message = 503, "unavailable_error", str(error)
        except TimeoutError:
            status, kind, message = 504, "timeout_error", self.timeout_message()
        except _HungUp:
            status, message = 499, "the client went away"
        except Exception as error:  # onnxruntime's errors have no parent of their own
            message = f"the model failed on this request ({type(error).__name__})"
        self.metrics.requests.labels(status=str(status)).inc()
        return JSONResponse(error_body(message, kind), status, headers)

    def timeout_message(self) -> str:
        """For an answer that was given up."""
        return f"no whole answer within {self.settings.timeout_s:g} s; ask for fewer tokens"

    def _batcher(self) -> Batcher:
        if self.batcher is None:
            raise ShuttingDown("the service has not started; run it with its lifespan")
        return self.batcher


class _HungUp(Exception):
    """The client is gone."""


class _Answer:
    """One request's answers as they come from the worker."""

    def __init__(self, service: _Service, asked: CompletionRequest) -> None:
        self.service = service
        self.started = time.monotonic()
        self.id = new_id()
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[tuple[int, Piece | Exception]] = asyncio.Queue()
        settings = asked.settings(service.max_new_tokens)
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
                left = self.service.settings.timeout_s - (time.monotonic() - self.started)
                row, piece = await asyncio.wait_for(self._news.get(), max(left, 0.001))
                if isinstance(piece, Exception):
                    raise piece
                if is_first:
                    self.service.metrics.first_text_s.observe(time.monotonic() - self.started)
                    is_first = False
                if piece.completion is not None:
                    n_open -= 1
                    self._count(piece.completion)
                yield row, piece
            self.service.metrics.request_s.observe(time.monotonic() - self.started)
        finally:
            for job in self.jobs:
                job.cancelled.set()

    def _count(self, completion: Completion) -> None:
        self.service.metrics.prompt_tokens.inc(completion.n_prompt_tokens)
        self.service.metrics.answer_tokens.inc(len(completion.token_ids))

    async def whole(self, request: Request) -> dict[str, Any]:
        """The answer in one piece; given up if the client goes away."""
        watcher = asyncio.create_task(_until_gone(request))
        collector = asyncio.create_task(self._collect())
        try:
            await asyncio.wait({watcher, collector}, return_when=asyncio.FIRST_COMPLETED)
            if not collector.done():
                raise _HungUp
            return whole_answer(self.id, self.service.name, collector.result())
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
                    yield part_of_answer(self.id, self.service.name, row, piece.text, reason)
            status = "200"
            yield "data: [DONE]\n\n"
        except TimeoutError:
            status = "504"
            yield _error_event(self.service.timeout_message(), "timeout_error")
        except Exception as error:  # as above
            status = "500"
            yield _error_event(f"the model failed on this request ({type(error).__name__})", "internal_error")
        finally:
            self.service.metrics.requests.labels(status=status).inc()


async def _limited_body(request: Request, limit: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise _BodyTooLarge(f"body: expected at most {limit} bytes")
    return bytes(body)


async def _until_gone(request: Request) -> None:
    """Returns when the client has hung up; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _error_event(message: str, kind: str) -> str:
    return f"data: {json.dumps(error_body(message, kind))}\n\n"


async def _http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse(error_body(str(error.detail), "invalid_request_error"), error.status_code)


def run(
    folder: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    settings: ServerSettings | None = None,
    n_threads: int | None = None,
) -> None:
    """Serve an exported folder until a signal to stop; answers under way are finished first.

    Raises:
        InvalidInput, UnsupportedFormat: see `OnnxModel`.
    """
    settings = settings or ServerSettings()
    app = make_app(OnnxModel(folder, n_threads=n_threads), settings)
    uvicorn.run(
        app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=max(1, round(settings.shutdown_s))
    )
