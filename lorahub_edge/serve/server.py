"""The HTTP service on its sockets: limits of connections, signals, and where it listens. Imports no torch."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import logging
import math
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from lorahub_edge.errors import InvalidInput
from lorahub_edge.serve.connection import connection_class
from lorahub_edge.serve.model import OnnxModel
from lorahub_edge.serve.models import Models
from lorahub_edge.serve.server_settings import ServerSettings
from lorahub_edge.serve.service import LAST_WORDS_S, Service

_LAST_PORT = 65535
_MAX_HEAD_BYTES = 1 << 15
_LOOK_S = 0.05
_log = logging.getLogger("lorahub_edge.serve")


def make_app(model: OnnxModel, settings: ServerSettings | None = None, models: Models | None = None) -> FastAPI:
    """The service as an ASGI application.

    Args:
        model: what answers.
        settings: limits; those of connections are kept by `make_server` only.
        models: what may be asked for; all of the model's folder if None.
    """
    return Service(model, settings or ServerSettings(), models or Models(model.files)).app()


def make_server(
    model: OnnxModel, settings: ServerSettings | None = None, models: Models | None = None
) -> uvicorn.Server:
    """The service as a server of uvicorn's that waits for its sockets: `.run(sockets=[...])`.

    Args:
        model, settings, models: see `make_app`.
    """
    return _Server(Service(model, settings or ServerSettings(), models or Models(model.files)))


class _Server(uvicorn.Server):
    """Answers under way have `shutdown_s` after a signal; then each gets an error, and connections are closed."""

    def __init__(self, service: Service) -> None:
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
            h11_max_incomplete_event_size=_MAX_HEAD_BYTES,
        )
        super().__init__(config)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn after a signal. While answers are finished it listens, so that probes are told 503."""
        service, loop = self._service, asyncio.get_running_loop()
        end = loop.time() + service.settings.shutdown_s
        service.is_stopping = True
        loop.call_at(end, service.give_up)
        while service.is_answering and loop.time() < end and not self.force_exit:
            await asyncio.sleep(_LOOK_S)
        self.config.timeout_graceful_shutdown = math.ceil(max(0, end - loop.time())) + LAST_WORDS_S
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
        if not settings.api_keys and not ipaddress.ip_address(listening.getsockname()[0]).is_loopback:
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
