"""Guard: what every request passes. Who may ask, how large and how slow a body may be, errors as answers, the log.

Plain ASGI around the application; knows nothing of models. What it reads before the application runs is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorahub_edge.serve.refusal import Refused, hung_up, refusal_of
from lorahub_edge.serve.server_settings import ServerSettings

EXCHANGE = "lorahub_edge.exchange"  # where the application finds the Exchange in its scope

_OPEN_PATHS = ("/", "/health", "/livez", "/readyz")  # without a key: a page without secrets, and what a supervisor asks
_READING = ("GET", "HEAD", "OPTIONS")
_LINGER_S = 2.0
_MAX_DIGITS = 20
_MAX_LOGGED = 200
_IS_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")  # a client's own name of a request, which then stands in log and answer
_log = logging.getLogger("lorahub_edge.serve")


@dataclass
class Exchange:
    """One request and what became of it; the application adds what it knows.

    Attributes:
        status: what is counted and logged. A stream may end in another way than its head said.
        code: a word for why it was refused.
        model: whose answer was asked for, once that is known.
        n_prompt_tokens, n_answer_tokens: read and written.
    """

    method: str
    path: str
    client: str
    headers: dict[bytes, bytes]
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: float = field(default_factory=time.monotonic)
    status: int = 0
    code: str | None = None
    model: str = ""
    n_prompt_tokens: int = 0
    n_answer_tokens: int = 0

    def log(self) -> None:
        """The access line; holds nothing of the body, and of the path no character that a terminal would obey."""
        path = self.path.encode("unicode_escape").decode()[:_MAX_LOGGED]
        milliseconds = (time.monotonic() - self.started) * 1000
        tokens = f"{self.n_prompt_tokens}+{self.n_answer_tokens} tokens"
        code, model = (f" {text}" if text else "" for text in (self.code, self.model))
        line = "%s %s %s%s %d%s %.0f ms %s %s"
        _log.info(line, self.client, self.method, path, model, self.status, code, milliseconds, tokens, self.id)

    def header(self, name: str) -> str:
        """A header's value, or ""."""
        return self.headers.get(name.encode(), b"").decode("latin-1")


class Guard:
    """ASGI middleware; outermost.

    Args:
        app: what answers. It finds the body read, and its exceptions become answers.
        settings: limits.
        on_done: called with every exchange when it is over.
        is_stopping: whether the service stops. An answer that is cancelled at any other time has lost its client.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: ServerSettings,
        on_done: Callable[[Exchange], None],
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._app = app
        self._settings = settings
        self._on_done = on_done
        self._is_stopping = is_stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        client = scope.get("client")
        path = scope["path"].removeprefix(scope.get("root_path", ""))  # the service may stand below another's path
        exchange = Exchange(scope["method"], path, client[0] if client else "-", dict(scope["headers"]))
        if _IS_ID.fullmatch(given := exchange.header("x-request-id")):
            exchange.id = given
        scope[EXCHANGE] = exchange
        body: bytes | None = None

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", exchange.id.encode())]
            await send(message)

        try:
            self._check(exchange)
            body = await self._read_body(receive)
            await self._app(scope, _replayed(body, receive), tell)
        except Exception as error:
            refused = refusal_of(error, exchange.id)
            is_started = exchange.status != 0
            exchange.status, exchange.code = refused.status, refused.code
            if not is_started:  # otherwise the server closes the connection of an answer without an end
                await _refuse(refused, tell, unread=receive if body is None else None)
        except asyncio.CancelledError:
            gone = hung_up()
            exchange.status, exchange.code = (503, "stopped") if self._is_stopping() else (gone.status, gone.code)
            raise
        finally:
            exchange.log()
            self._on_done(exchange)

    def _check(self, exchange: Exchange) -> None:
        """What the head alone decides."""
        host, origin = exchange.header("host"), exchange.header("origin")
        is_reading = exchange.method in _READING
        if host and not self._settings.allows_host(host):
            raise Refused(
                403, f"Host '{host}': not a name of this service; see --allowed-host", code="host_not_allowed"
            )
        if origin and not is_reading and not self._settings.allows_origin(origin, host):
            raise Refused(
                403, f"Origin '{origin}': its pages may not ask; see --allowed-origin", code="origin_not_allowed"
            )
        if self._settings.api_keys and exchange.path not in _OPEN_PATHS and exchange.method != "OPTIONS":
            _check_key(exchange.headers.get(b"authorization", b""), self._settings.api_keys)
        kind = exchange.header("content-type").partition(";")[0].strip().lower()
        if not is_reading and kind != "application/json":
            raise Refused(415, f"Content-Type: expected application/json, received '{kind}'", code="wrong_content_type")
        length = exchange.header("content-length") or "0"
        if not (length.isascii() and length.isdigit()):
            raise Refused(400, "Content-Length: expected a number")
        if len(length) > _MAX_DIGITS or int(length) > self._settings.max_body_bytes:
            raise self._too_large()

    def _too_large(self) -> Refused:
        return Refused(413, f"body: expected at most {self._settings.max_body_bytes} bytes", code="too_large")

    async def _read_body(self, receive: Receive) -> bytes:
        async def read() -> bytes:
            body = bytearray()
            while (message := await receive())["type"] == "http.request":
                body += message.get("body", b"")
                if len(body) > self._settings.max_body_bytes:
                    raise self._too_large()
                if not message.get("more_body", False):
                    return bytes(body)
            raise hung_up()

        seconds = self._settings.body_s
        try:
            return await asyncio.wait_for(read(), seconds)
        except asyncio.TimeoutError as error:  # before Python 3.11 this is not TimeoutError
            raise Refused(408, f"body: expected all of it within {seconds:g} s", code="slow_body") from error


def _check_key(authorization: bytes, keys: Sequence[str]) -> None:
    scheme, _, given = authorization.partition(b" ")
    # every key is compared, so that the time says nothing about which one is near
    is_known = sum(hmac.compare_digest(given.strip(), key.encode()) for key in keys)
    if scheme.lower() != b"bearer" or not is_known:
        raise Refused(
            401,
            "this service wants its API key; send it as 'Authorization: Bearer KEY'",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A body that is read already, as if it came now; then whatever comes."""
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def next_message() -> Message:
        return next(messages, None) or await receive()

    return next_message


async def _refuse(refused: Refused, send: Send, *, unread: Receive | None) -> None:
    """An error as a whole response.

    Args:
        refused: the error.
        send: to the client.
        unread: where a body still comes from. The connection is then closed, but only after the client had time to read
            why: a socket that is closed on unread data takes the answer with it.
    """
    body = json.dumps(refused.body()).encode()
    headers = {**refused.headers, "Content-Type": "application/json", "Content-Length": str(len(body))}
    if unread is not None:
        headers["Connection"] = "close"
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": raw})
    await send({"type": "http.response.body", "body": body, "more_body": unread is not None})
    if unread is not None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(_drain(unread), _LINGER_S)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _drain(receive: Receive) -> None:
    while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
        pass
