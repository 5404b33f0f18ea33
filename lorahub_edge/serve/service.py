"""Service: what the paths of the HTTP service do. Knows FastAPI, nothing of sockets and signals."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from lorahub_edge.errors import InvalidInput
from lorahub_edge.serve.adapter import Mix
from lorahub_edge.serve.answer import Answer
from lorahub_edge.serve.batching import Batcher, ModelFailed, ShuttingDown
from lorahub_edge.serve.chat import ChatRequest, ChatShape, chat_prompt
from lorahub_edge.serve.completions import CompletionRequest, CompletionShape
from lorahub_edge.serve.guard import EXCHANGE, Exchange, Guard
from lorahub_edge.serve.loading import LoadRequest, UnloadRequest, watch
from lorahub_edge.serve.metrics import Metrics, exposed
from lorahub_edge.serve.model import OnnxModel
from lorahub_edge.serve.models import Models, Served
from lorahub_edge.serve.page import PAGE
from lorahub_edge.serve.protocol import AnswerRequest, LoraScale, Shape, body_of, body_schemas, model_row, read_request
from lorahub_edge.serve.refusal import Refused
from lorahub_edge.serve.server_settings import ServerSettings
from lorahub_edge.serve.settings import GenerationSettings
from lorahub_edge.serve.template import ChatTemplate

_COMPLETIONS, _CHAT = "/v1/completions", "/v1/chat/completions"
LAST_WORDS_S = 2  # between giving up what is still under way and closing its connections


class Service:
    """One model behind its paths.

    Args:
        model: what answers.
        settings: limits.
        models: what may be asked for.
    """

    def __init__(self, model: OnnxModel, settings: ServerSettings, models: Models) -> None:
        self.model = model
        self.settings = settings
        self.models = models
        self.template = ChatTemplate.of_folder(model.files.folder)
        self.batcher: Batcher | None = None
        self.is_stopping = False
        self.answers: weakref.WeakSet[Answer] = weakref.WeakSet()  # those under way
        self.metrics = Metrics(
            lambda: self.batcher.n_waiting if self.batcher else 0, lambda: self.batcher.n_running if self.batcher else 0
        )

    def app(self) -> FastAPI:
        """The service as an ASGI application."""
        app = FastAPI(
            title="lorahub-edge",
            docs_url=None,
            redoc_url=None,
            openapi_url="/openapi.json",
            redirect_slashes=False,
            lifespan=self._lifespan,
        )
        posted: dict[str, tuple[Callable[..., Any], Any]] = {
            "/v1/completions": (self.completions, CompletionRequest),
            "/v1/chat/completions": (self.chat, ChatRequest),
            "/v1/load_lora_adapter": (self.load_adapter, LoadRequest),
            "/v1/unload_lora_adapter": (self.unload_adapter, UnloadRequest),
        }
        for path, (reply, body) in posted.items():
            app.add_api_route(path, reply, methods=["POST"], openapi_extra=body_of(body))
        readable: dict[str, Callable[..., Any]] = {
            "/v1/models": self.list_models,
            "/v1/models/{name:path}": self.show_model,
            "/lora-adapters": self.list_adapters,
            "/livez": self.is_alive,
            "/readyz": self.is_ready,
            "/health": self.health,
            "/metrics": self.show_metrics,
            "/": self.page,
        }
        for path, answer in readable.items():
            app.add_api_route(path, answer, methods=["GET"])
            app.add_api_route(path, answer, methods=["HEAD"], include_in_schema=False)
        document = app.openapi()  # made once, and kept by FastAPI
        document["components"] = {"schemas": body_schemas(body for _, body in posted.values())}
        app.add_exception_handler(HTTPException, _refuse)
        if self.settings.allowed_origins:
            origins, headers = self.settings.allowed_origins, ["authorization", "content-type"]
            app.add_middleware(
                CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=headers
            )
        # the last one added is the outermost
        app.add_middleware(Guard, settings=self.settings, on_done=self._count, is_stopping=lambda: self.is_stopping)
        return app

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        self.batcher = Batcher(
            self.model,
            max_batch=self.settings.max_batch,
            max_waiting=self.settings.max_waiting,
            cache_bytes=self.settings.cache_bytes,
            on_step=self.metrics.count_step,
        )
        watching = asyncio.create_task(watch(self.models))
        try:
            yield
        finally:
            watching.cancel()
            self.give_up()
            await asyncio.to_thread(self.batcher.close, timeout_s=LAST_WORDS_S)

    @property
    def is_answering(self) -> bool:
        """Whether any text waits for its turn or its end, and will come to it."""
        batcher = self.batcher
        return batcher is not None and batcher.is_alive and batcher.n_waiting + batcher.n_running > 0

    def give_up(self) -> None:
        """Answer whoever still waits that there will be no answer."""
        for answer in self.answers:
            answer.fail(ShuttingDown("the service is shutting down; ask another one"))

    def _count(self, exchange: Exchange) -> None:
        if exchange.path in (_COMPLETIONS, _CHAT):
            self.metrics.requests.labels(status=str(exchange.status), model=exchange.model).inc()

    def check(self) -> None:
        """Whether answers are still to be had.

        Raises:
            ModelFailed: the engine has ended, by a fault of its own.
        """
        if self.batcher is not None and not self.batcher.is_alive:
            raise ModelFailed("the engine has ended, by a fault that the log has; start the service again")

    async def is_alive(self) -> JSONResponse:
        """Whether the process answers at all."""
        return JSONResponse({"status": "ok"})

    async def is_ready(self) -> JSONResponse:
        """Whether questions are taken: 503 before the model is loaded, and once the service is about to stop."""
        self._batcher()
        return JSONResponse({"status": "ok"})

    async def health(self) -> JSONResponse:
        """As `is_ready`, with what is served."""
        return JSONResponse({"status": "ok", **self._metadata(), "waiting": self._batcher().n_waiting})

    async def show_model(self, name: str) -> JSONResponse:
        """One model, as OpenAI shows it."""
        return JSONResponse(model_row(self.models.resolve(name)))

    async def load_adapter(self, request: Request) -> JSONResponse:
        """Serve one more adapter, as vLLM has it."""
        self._check_loading()
        asked = read_request(await request.body(), LoadRequest)
        served = await asyncio.to_thread(self.models.load, asked.lora_name, asked.lora_path)
        return JSONResponse(model_row(served))

    async def unload_adapter(self, request: Request) -> JSONResponse:
        """Serve an adapter no longer."""
        self._check_loading()
        asked = read_request(await request.body(), UnloadRequest)
        self.models.unload(asked.lora_name)
        return JSONResponse({"status": "ok"})

    def _check_loading(self) -> None:
        if not self.settings.allow_loading:
            raise Refused(403, "adapters are not loaded by request here; see --allow-loading", code="loading_off")

    async def list_models(self) -> JSONResponse:
        """The base and its adapters, as OpenAI lists them."""
        return JSONResponse({"object": "list", "data": [model_row(served) for served in self.models.all()]})

    async def show_metrics(self) -> Response:
        """For Prometheus."""
        return Response(await self.metrics_text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def metrics_text(self) -> bytes:
        """The exposition format of what was counted."""
        return exposed([self.metrics.families()])

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
        prompt = await asyncio.to_thread(chat_prompt, served.files, self.template, asked.messages)
        settings = asked.settings(served, self.settings.max_new_tokens)
        shape = ChatShape(asked, served, request.scope[EXCHANGE].id)
        return await self._answer(request, asked, served, [prompt] * asked.n, settings, shape)

    async def _answer(
        self,
        request: Request,
        asked: AnswerRequest,
        served: Served,
        prompts: Sequence[str | Sequence[int]],
        settings: Sequence[GenerationSettings],
        shape: Shape,
    ) -> Response:
        request.scope[EXCHANGE].model = served.name
        if asked.ignore_eos:
            served = dataclasses.replace(served, files=dataclasses.replace(served.files, end_ids=()))
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
        adapters = [adapter.name for adapter in self.models.adapters()]
        return {"name": self.models.base.name, **names, "adapters": adapters, "default": self.models.default}

    def _batcher(self) -> Batcher:
        if self.batcher is None:
            raise ShuttingDown("the service has not started; run it with its lifespan")
        if self.is_stopping:
            raise ShuttingDown("the service is shutting down; ask another one")
        self.check()
        return self.batcher


async def _refuse(_: Request, error: Exception) -> Response:
    """Starlette's own errors, such as those for unknown paths, look like all others."""
    assert isinstance(error, HTTPException)
    raise Refused(error.status_code, str(error.detail), headers=error.headers)
