"""The HTTP service: /v1/completions, /health, /metrics and a page to try the model at /.

Needs the extra `serve` (FastAPI, uvicorn, prometheus-client). Imports no torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from lorahub_edge.errors import InvalidInput
from lorahub_edge.serve.answer import Answer, HungUp, timeout_message
from lorahub_edge.serve.batching import Batcher, Overloaded, ShuttingDown
from lorahub_edge.serve.folder import open_folder
from lorahub_edge.serve.metrics import Metrics
from lorahub_edge.serve.model import OnnxModel, metadata
from lorahub_edge.serve.page import PAGE
from lorahub_edge.serve.protocol import error_body, read_request

_LAST_PORT = 65535


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
        adapter = model.files.adapter
        self.name = model.files.folder.resolve().name + (f":{adapter.name}" if adapter else "")
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
            answer = Answer(
                asked,
                model=self.name,
                max_new_tokens=self.max_new_tokens,
                timeout_s=self.settings.timeout_s,
                metrics=self.metrics,
            )
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
            status, kind, message = 504, "timeout_error", timeout_message(self.settings.timeout_s)
        except HungUp:
            status, message = 499, "the client went away"
        except Exception as error:  # onnxruntime's errors have no parent of their own
            message = f"the model failed on this request ({type(error).__name__})"
        self.metrics.requests.labels(status=str(status)).inc()
        return JSONResponse(error_body(message, kind), status, headers)

    def _batcher(self) -> Batcher:
        if self.batcher is None:
            raise ShuttingDown("the service has not started; run it with its lifespan")
        return self.batcher


async def _limited_body(request: Request, limit: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise _BodyTooLarge(f"body: expected at most {limit} bytes")
    return bytes(body)


async def _http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse(error_body(str(error.detail), "invalid_request_error"), error.status_code)


def run(
    folder: str | Path,
    *,
    adapter: str | Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    settings: ServerSettings | None = None,
    n_threads: int | None = None,
    announce: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve an exported folder until a signal to stop; answers under way are finished first.

    Args:
        folder, adapter: see `open_folder`.
        host, port: where to listen; port 0 for a free one.
        settings: limits.
        n_threads: of onnxruntime; its choice if None.
        announce: called with the address once the model is loaded.

    Raises:
        InvalidInput: no such address, or one that is taken; see also `OnnxModel`.
        UnsupportedFormat: see `OnnxModel`.
    """
    settings = settings or ServerSettings()
    app = make_app(OnnxModel(open_folder(folder, adapter=adapter), n_threads=n_threads), settings)
    grace_s = max(1, round(settings.shutdown_s))
    with _listen(host, port) as listening:
        name = f"[{host}]" if ":" in host else host
        announce(f"http://{name}:{listening.getsockname()[1]}/")
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=grace_s)
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again when all is shut down
            uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= _LAST_PORT:  # socket would raise, and leave its end open
        raise InvalidInput(f"serve: cannot listen on {host}:{port}; expected a --port from 0 to {_LAST_PORT}")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise InvalidInput(
            f"serve: cannot listen on {host}:{port} ({error}); choose another --host or --port"
        ) from error
