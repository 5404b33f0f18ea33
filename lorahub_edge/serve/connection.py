"""Connection: uvicorn's HTTP connection, closed where a client is too slow for it to notice.

uvicorn limits how long an idle connection may be kept. It does not limit how long a request's head may take, nor how
long a client may leave an answer unread.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

from lorahub_edge.serve.server_settings import ServerSettings


class Connection(H11Protocol):
    """A connection with deadlines, both of them set by `connection_class`."""

    header_s: float
    send_s: float
    _head_deadline: asyncio.TimerHandle | None = None
    _send_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A first head must come."""
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """A head has come whole, or a part of it."""
        super().data_received(data)
        self._watch_head()

    def pause_writing(self) -> None:
        """The client reads slower than the answer comes."""
        super().pause_writing()
        self._send_deadline = self.loop.call_later(self.send_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads again."""
        super().resume_writing()
        _cancel(self._send_deadline)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is awaited any more."""
        _cancel(self._head_deadline)
        _cancel(self._send_deadline)
        super().connection_lost(exc)

    def _watch_head(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            _cancel(self._head_deadline)
            self._head_deadline = None
        elif self._head_deadline is None:
            self._head_deadline = self.loop.call_later(self.header_s, self.transport.abort)


def _cancel(deadline: asyncio.TimerHandle | None) -> None:
    if deadline is not None:
        deadline.cancel()


def connection_class(settings: ServerSettings) -> type[Connection]:
    """A Connection with a service's deadlines."""
    return type("Connection", (Connection,), {"header_s": settings.header_s, "send_s": settings.send_s})
