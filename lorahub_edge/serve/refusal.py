"""Refused: why a request gets no answer, with its HTTP status, in the shape of OpenAI's errors."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from lorahub_edge.errors import InvalidInput, LorahubEdgeError, UnsupportedFormat
from lorahub_edge.serve.batching import ModelFailed, Overloaded, ShuttingDown
from lorahub_edge.serve.models import UnknownModel

_MAX_CHARACTERS = 1000  # of a message: it may hold what the client sent
_log = logging.getLogger("lorahub_edge.serve")


class Refused(LorahubEdgeError):
    """A request that gets no answer.

    Args:
        status: of HTTP; 499 where the client went away first.
        message: for whoever asked.
        kind: OpenAI's "type".
        code: OpenAI's "code": a word for programs, also in the log.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """OpenAI's shape of an error."""
        message = str(self)
        if len(message) > _MAX_CHARACTERS:
            message = f"{message[:_MAX_CHARACTERS]}..."
        return {"error": {"message": message, "type": self.kind, "param": None, "code": self.code}}


def hung_up() -> Refused:
    """The client is gone: nobody reads this, but it is counted."""
    return Refused(499, "the client went away", code="client_went_away")


def refusal_of(error: Exception, request_id: str) -> Refused:
    """What an exception means to the client. One that nobody expected is a fault of ours: its traceback is logged."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, UnknownModel):
        return Refused(404, str(error), code="model_not_found")
    if isinstance(error, InvalidInput | UnsupportedFormat):
        return Refused(400, str(error))
    if isinstance(error, Overloaded):
        return Refused(429, str(error), kind="overloaded_error", headers={"Retry-After": "1"})
    if isinstance(error, ShuttingDown):
        return Refused(503, str(error), kind="unavailable_error")
    if isinstance(error, ModelFailed):  # the worker has logged it
        return Refused(500, str(error), kind="internal_error", code="model_failed")
    _log.error("request %s failed by a fault of the service", request_id, exc_info=error)
    return Refused(500, f"a fault of the service; its log has it under {request_id}", kind="internal_error")
