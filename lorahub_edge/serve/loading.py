"""Adapters that come and go: requests to load one, as vLLM names them, and folders that are watched."""

from __future__ import annotations

import asyncio
import logging

from pydantic import Field

from lorahub_edge.serve.models import MAX_NAME, Models
from lorahub_edge.serve.protocol import Body

WATCH_S = 2.0
_MAX_PATH = 4096
_log = logging.getLogger("lorahub_edge.serve")


class UnloadRequest(Body):
    """The body of POST /v1/unload_lora_adapter."""

    lora_name: str = Field(min_length=1, max_length=MAX_NAME)


class LoadRequest(UnloadRequest):
    """The body of POST /v1/load_lora_adapter; the path is one on the service's machine."""

    lora_path: str = Field(min_length=1, max_length=_MAX_PATH)


async def watch(models: Models) -> None:
    """Look at the watched folders again and again, until it is cancelled."""
    while True:
        await asyncio.sleep(WATCH_S)
        try:
            await asyncio.to_thread(models.refresh)
        except Exception:  # a folder may be gone for a while; what is served stays
            _log.exception("the folders of adapters could not be looked at")
