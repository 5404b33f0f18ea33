"""The HTTP service: /v1/completions, /health, /metrics and a page to try the model at /.

Needs the extra `serve` (FastAPI, uvicorn, prometheus-client). Imports no torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import logging
import math
import socket
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from lorahub_edge.errors import InvalidInput
from lorahub_edge.serve.answer import Answer
from lorahub_edge.serve.batching import Batcher, ShuttingDown
from lorahub_edge.serve.chat import ChatRequest, ChatShape, chat_question, chat_tokens
from lorahub_edge.serve.completions import CompletionRequest, CompletionShape
from lorahub_edge.serve.connection import connection_class
from lorahub_edge.serve.guard import EXCHANGE, Exchange, Guard
from lorahub_edge.serve.lora import Mix
from lorahub_edge.serve.metrics import Metrics
from lorahub_edge.serve.model import OnnxModel
from lorahub_edge.serve.models import Models, Served
from lorahub_edge.serve.page import PAGE
from lorahub_edge.serve.protocol import AnswerRequest, LoraScale, Shape, model_row, read_request
from lorahub_edge.serve.refusal import Refused
from lorahub_edge.serve.server_settings import ServerSettings
from lorahub_edge.serve.settings import GenerationSettings
from lorahub_edge.serve.template import ChatTemplate

_COMPLETIONS, _CHAT = "/v1/completions", "/v1/chat/completions"
_LAST_PORT = 65535
_LAST_WORDS_S = 2  # between giving up what is still under way and closing its connections
_MAX_HEAD_BYTES = 1 << 15
_log = logging.getLogger("lorahub_edge.serve")


def make_app(model: OnnxModel, settings: ServerSettings | None = None, models: Models | None = None) -> FastAPI:
    """The service as an ASGI application.

    Args:
        model: what answers.
        settings: limits; those of connections are kept by `make_server` only.
        models: what may be asked for; all of the model's folder if None.
    """
    return _Service(model, settings or ServerSettings(), models or Models(model.files)).app()


def make_server(
    model: OnnxModel, settings: ServerSettings | None = None, models: Models | None = None
) -> uvicorn.Server:
    """The service as a server of uvicorn's that waits for its sockets: `.run(sockets=[...])`.

    Args:
        model, settings, models: see `make_app`.
    """
    return _Server(_Service(model, settings or ServerSettings(), models or Models(model.files)))


class _Service:
    def __init__(self, model: OnnxModel, settings: ServerSettings, models: Models) -> None:
        self.model = model
        self.settings = settings
        self.models = models
        self.template = ChatTemplate.of_folder(model.files.folder)
        self.batcher: Batcher | None = None
        self.answers: weakref.WeakSet[Answer] = weakref.WeakSet()  # those under way
        self.metrics = Metrics(lambda: self.batcher.n_waiting if self.batcher else 0)

    def app(self) -> FastAPI:
        app = FastAPI(
            title="lorahub-edge",
            docs_url=None,
            redoc_url=None,
            openapi_url=None,
            redirect_slashes=False,
            lifespan=self._lifespan,
        )
        for path, reply in {_COMPLETIONS: self.completions, _CHAT: self.chat}.items():
            app.add_api_route(path, reply, methods=["POST"])
        readable = {
            "/v1/models": self.list_models,
            "/lora-adapters": self.list_adapters,
            "/health": self.health,
            "/metrics": self.show_metrics,
            "/": self.page,
        }
        for path, answer in readable.items():
            app.add_api_route(path, answer, methods=["GET", "HEAD"])
        app.add_exception_handler(HTTPException, _refuse)
        if self.settings.allowed_origins:
            origins, headers = self.settings.allowed_origins, ["authorization", "content-type"]
            app.add_middleware(
                CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=headers
            )
        app.add_middleware(Guard, settings=self.settings, on_done=self._count)  # the last one added is the outermost
        return app

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        self.batcher = Batcher(
            self.model,
            max_batch=self.settings.max_batch,
            max_waiting=self.settings.max_waiting,
            cache_bytes=self.settings.cache_bytes,
            on_step=lambda n, _: self.metrics.batch_size.observe(n),
        )
        try:
            yield
        finally:
            self.give_up()
            await asyncio.to_thread(self.batcher.close, timeout_s=_LAST_WORDS_S)

    def give_up(self) -> None:
        """Answer whoever still waits that there will be no answer."""
        for answer in self.answers:
            answer.fail(ShuttingDown("the service is shutting down; ask another one"))

    def _count(self, exchange: Exchange) -> None:
        if exchange.path in (_COMPLETIONS, _CHAT):
            self.metrics.requests.labels(status=str(exchange.status)).inc()

    async def health(self) -> JSONResponse:
        """Whether the service answers, and with what."""
        return JSONResponse({"status": "ok", **self._metadata(), "waiting": self._batcher().n_waiting})

    async def list_models(self) -> JSONResponse:
        """The base and its adapters, as OpenAI lists them."""
        return JSONResponse({"object": "list", "data": [model_row(served) for served in self.models.all()]})

    async def show_metrics(self) -> Response:
        """For Prometheus."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def page(self) -> HTMLResponse:
        """A page to try the model."""
        return HTMLResponse(PAGE)

    async def completions(self, request: Request) -> Response:
        """Answer POST /v1/completions."""
        asked = read_request(await request.body(), CompletionRequest)
        asked.check()
        served = self.models.resolve(asked.model)
        prompts = [prompt for prompt in asked.prompt for _ in range(asked.n)]
        settings = asked.settings(served, self.settings.max_new_tokens, len(asked.prompt))
        shape = CompletionShape(asked, served, request.scope[EXCHANGE].id)
        return await self._answer(request, asked, served, prompts, settings, shape)

    async def chat(self, request: Request) -> Response:
        """Answer POST /v1/chat/completions."""
        asked = read_request(await request.body(), ChatRequest)
        asked.check()
        served = self.models.resolve(asked.model)
        prompt: str | list[int] | None = chat_question(served.files, self.template, asked.messages)
        if prompt is None and self.template is not None:
            prompt = await asyncio.to_thread(chat_tokens, served.files, self.template, asked.messages)
        settings = asked.settings(served, self.settings.max_new_tokens)
        shape = ChatShape(asked, served, request.scope[EXCHANGE].id)
        return await self._answer(request, asked, served, [prompt or ""] * asked.n, settings, shape)

    async def _answer(
        self,
        request: Request,
        asked: AnswerRequest,
        served: Served,
        prompts: Sequence[str | Sequence[int]],
        settings: Sequence[GenerationSettings],
        shape: Shape,
    ) -> Response:
        answer = Answer(
            served,
            prompts,
            settings,
            shape,
            mix=self._mix(served, asked.lora),
            timeout_s=self.settings.timeout_s,
            exchange=request.scope[EXCHANGE],
            metrics=self.metrics,
        )
        self.answers.add(answer)
        self._batcher().submit(answer.jobs)
        return await answer.response(request, is_stream=asked.stream)

    def _mix(self, served: Served, wanted: Sequence[LoraScale] | None) -> Mix:
        """A request's adapters: those that it names with their scales, or the model's own."""
        if wanted is None:
            return served.mix
        mix = self.models.mix({each.id: each.scale for each in wanted})
        if mix and not self.model.mixes:
            raise InvalidInput("lora: the graphs of this folder take no scales; export again, or leave it out")
        return mix

    async def list_adapters(self) -> JSONResponse:
        """The adapters with the places by which `lora` names them, as llama-server lists them."""
        rows = [{"id": k, "path": a.root, "scale": 0.0, "name": a.name} for k, a in enumerate(self.models.adapters())]
        return JSONResponse(rows)

    def _metadata(self) -> dict[str, Any]:
        files = self.model.files
        names = {name: files.record[name] for name in ("family", "precision")}
        return {"name": self.models.base.name, **names, "adapters": [a.name for a in self.models.adapters()]}

    def _batcher(self) -> Batcher:
        if self.batcher is None:
            raise ShuttingDown("the service has not started; run it with its lifespan")
        return self.batcher


async def _refuse(_: Request, error: Exception) -> Response:
    """Starlette's own errors, such as those for unknown paths, look like all others."""
    assert isinstance(error, HTTPException)
    raise Refused(error.status_code, str(error.detail), headers=error.headers)


class _Server(uvicorn.Server):
    """Answers under way have `shutdown_s` after a signal; then each gets an error, and connections are closed."""

    def __init__(self, service: _Service) -> None:
        settings = service.settings
        self._service = service
        config = uvicorn.Config(
            service.app(),
            http=connection_class(settings),
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=settings.max_connections,
            timeout_graceful_shutdown=math.ceil(settings.shutdown_s) + _LAST_WORDS_S,
            h11_max_incomplete_event_size=_MAX_HEAD_BYTES,
        )
        super().__init__(config)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn after a signal."""
        asyncio.get_running_loop().call_later(self._service.settings.shutdown_s, self._service.give_up)
        await super().shutdown(sockets)


def run(
    folder: str | Path,
    *,
    adapters: Sequence[str | Path] = (),
    host: str = "127.0.0.1",
    port: int = 8000,
    settings: ServerSettings | None = None,
    n_threads: int | None = None,
    announce: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve an exported folder until a signal to stop; answers under way are finished first.

    Every request is logged at level INFO to the logger `lorahub_edge.serve`, and the tracebacks of faults at ERROR.

    Args:
        folder, adapters: see `Models`.
        host, port: where to listen; port 0 for a free one. Clients may ask under this host's name.
        settings: limits.
        n_threads: of onnxruntime; its choice if None.
        announce: called with the address once the model is loaded.

    Raises:
        InvalidInput: no such address, or one that is taken; see also `OnnxModel`.
        UnsupportedFormat: see `OnnxModel`.
    """
    settings = settings or ServerSettings()
    settings = dataclasses.replace(settings, allowed_hosts=(*settings.allowed_hosts, host))
    models = Models(folder, adapters)
    server = make_server(OnnxModel(models.base.files, n_threads=n_threads), settings, models)
    with _listen(host, port) as listening:
        name = f"[{host}]" if ":" in host else host
        announce(f"http://{name}:{listening.getsockname()[1]}/")
        if settings.api_key is None and not ipaddress.ip_address(listening.getsockname()[0]).is_loopback:
            _log.warning("whoever reaches this address may ask; --api-key would demand a key")
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again when all is shut down
            server.run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= _LAST_PORT:  # socket would raise, and leave its end open
        raise InvalidInput(f"serve: cannot listen on {host}:{port}; expected a --port from 0 to {_LAST_PORT}")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise InvalidInput(
            f"serve: cannot listen on {host}:{port} ({error}); choose another --host or --port"
        ) from error
