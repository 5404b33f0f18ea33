"""The service as an application of Ray Serve, on one machine or many: each replica is a `Service` with its own engine.

    serve run lorahub_edge.serve.on_ray:app folder=/srv/navigate-onnx num_replicas=2

Ray listens, spreads requests over the replicas, replaces dead ones and lets those that go finish their answers. Nothing
else imports ray.
"""

# Without `from __future__ import annotations`: Ray reads the annotation of `app` as it stands.
import dataclasses
import logging
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI
from prometheus_client.metrics_core import Metric
from pydantic import BaseModel, BeforeValidator, ConfigDict
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorahub_edge.errors import needed_by
from lorahub_edge.measure import parse_bytes
from lorahub_edge.serve.metrics import exposed, labelled
from lorahub_edge.serve.model import OnnxModel
from lorahub_edge.serve.models import Models
from lorahub_edge.serve.server_settings import ServerSettings, read_api_keys
from lorahub_edge.serve.service import Service

with needed_by("lorahub_edge.serve.on_ray", extra="ray"):
    import ray
    from ray import serve

_HEALTH_PERIOD_S = 2  # Ray's own is 10: so long a dead replica is missed, though it gets no more requests
_METRICS_S = 5.0

# `serve run` gives one text, a configuration file a list
_Texts = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]


class Arguments(BaseModel):
    """What `serve run` takes as NAME=VALUE, and a configuration file as `args`.

    The names are those of `lorahub-edge serve`, but for what is Ray's business: addresses, connections and signals.

    Attributes:
        folder: an exported folder, under the same path on every machine.
        adapters: see `Models`; a folder is watched by each replica.
        num_replicas: how many, or "auto" to follow the load; see Ray Serve's autoscaling.
        num_cpus: what Ray sets aside for a replica; whole ones are the threads of its onnxruntime, at least 1.
        shutdown_s: how long answers under way may take when a replica is told to go.
        api_key_file: keys, one a line, on every machine. Without it LORAHUB_EDGE_API_KEY of the replicas' environment.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: str
    adapters: _Texts = ()
    num_replicas: int | Literal["auto"] = 1
    num_cpus: float = 1
    max_batch: int = ServerSettings.max_batch
    cache_memory: str = "1GB"
    max_waiting: int = ServerSettings.max_waiting
    max_new_tokens: int | None = ServerSettings.max_new_tokens
    timeout_s: float = ServerSettings.timeout_s
    shutdown_s: float = ServerSettings.shutdown_s
    api_key_file: str | None = None
    allowed_hosts: _Texts = ()
    allowed_origins: _Texts = ()

    def settings(self) -> ServerSettings:
        """Limits of a replica, without keys.

        Raises:
            InvalidInput: a value out of range.
        """
        same = {f.name for f in dataclasses.fields(ServerSettings)} & type(self).model_fields.keys()
        return ServerSettings(
            cache_bytes=parse_bytes(self.cache_memory), **{name: getattr(self, name) for name in same}
        )


class Replica:
    """What Ray starts, asks for its health and stops.

    Args:
        arguments: of the application.

    Raises:
        InvalidInput, UnsupportedFormat: see `Models`, `OnnxModel` and `read_api_keys`.
    """

    def __init__(self, arguments: Arguments) -> None:
        _log_where_ray_logs()
        file = arguments.api_key_file
        keys = read_api_keys((), None if file is None else Path(file))
        models = Models(arguments.folder, arguments.adapters)
        n_threads = max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))
        model = OnnxModel(models.base.files, n_threads=n_threads)
        self.service = _Service(model, dataclasses.replace(arguments.settings(), api_keys=keys), models)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Asked for by `serve.ingress`."""
        app = self.service.app()
        app.add_middleware(_WithoutRequestId)
        return app

    def check_health(self) -> None:
        """Asked again and again by Ray, which replaces a replica whose engine is no more.

        Raises:
            ModelFailed: it has ended.
        """
        self.service.check()

    def families(self) -> list[Metric]:
        """This replica's metrics, under its name."""
        return labelled(self.service.metrics.families(), replica=serve.get_replica_context().replica_id.unique_id)


class _Service(Service):
    """A service whose metrics are those of all replicas: whoever asks cannot choose which one answers."""

    async def metrics_text(self) -> bytes:
        context = serve.get_replica_context()
        handle = serve.get_deployment_handle(context.deployment, context.app_name)
        asked = handle.broadcast("families")
        found: list[Any] = await asked.results_async(timeout_s=_METRICS_S, return_exceptions=True)
        return exposed([families for families in found if isinstance(families, list)])


class _WithoutRequestId:
    """Takes the header off an answer: Ray's proxy has given the request its id, and says it again itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [(name, value) for name, value in message["headers"] if name != b"x-request-id"]
            await send(message)

        await self._app(scope, receive, tell)


def _log_where_ray_logs() -> None:
    log = logging.getLogger("lorahub_edge.serve")
    log.handlers, log.propagate = list(logging.getLogger("ray.serve").handlers), False
    log.setLevel(logging.INFO)


def app(arguments: Arguments) -> serve.Application:
    """The application builder, for `serve run` and configuration files.

    Raises:
        InvalidInput: a value out of range.
    """
    settings = arguments.settings()
    deployment = serve.deployment(serve.ingress()(Replica)).options(
        num_replicas=arguments.num_replicas,
        ray_actor_options={"num_cpus": arguments.num_cpus},
        max_ongoing_requests=settings.max_connections,
        max_queued_requests=settings.max_waiting,
        graceful_shutdown_timeout_s=settings.shutdown_s,
        health_check_period_s=_HEALTH_PERIOD_S,
        logging_config={"enable_access_log": False},  # ours says more of each request
    )
    return deployment.bind(arguments)
