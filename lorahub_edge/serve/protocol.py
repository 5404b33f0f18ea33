"""What is said over HTTP: requests, answers and errors in the shape of OpenAI's completions."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lorahub_edge.errors import InvalidInput
from lorahub_edge.serve.generate import Completion
from lorahub_edge.serve.settings import GenerationSettings

MAX_PROMPTS = 16

# OpenAI's settings that are understood only as what they are when left out.
_ONLY_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "n": (1, None),
    "best_of": (1, None),
    "echo": (False, None),
    "logprobs": (None,),
    "logit_bias": (None, {}),
    "presence_penalty": (0, None),
    "frequency_penalty": (0, None),
    "suffix": (None, ""),
    "stream_options": (None,),
}
_IGNORED = ("user",)


class CompletionRequest(BaseModel):
    """The body of POST /v1/completions; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str | list[str]
    model: str | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=0.0, ge=0, le=100, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    n_beams: int = 1
    seed: int = Field(default=0, ge=0)
    stop: str | list[str] | None = None
    stream: bool = False

    @property
    def prompts(self) -> list[str]:
        """The texts."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    def settings(self, max_new_tokens: int) -> list[GenerationSettings]:
        """Settings for each text; texts of one request sample from different seeds."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if self.max_tokens is not None and self.max_tokens > max_new_tokens:
            raise InvalidInput(f"max_tokens: expected at most {max_new_tokens}, received {self.max_tokens}")
        return [
            GenerationSettings(
                max_new_tokens=self.max_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
                top_k=self.top_k,
                n_beams=self.n_beams,
                stop=stop,
                seed=self.seed + row,
            )
            for row in range(len(self.prompts))
        ]


def read_request(body: bytes) -> CompletionRequest:
    """Parse a body.

    Raises:
        InvalidInput: not JSON, an unknown or unsupported field, or a value out of range; names the field.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"body: expected JSON ({error})") from error
    if not isinstance(data, dict):
        raise InvalidInput(f"body: expected a JSON object, received {type(data).__name__}")
    for name, values in _ONLY_DEFAULTS.items():
        if name in data and data.pop(name) not in values:
            raise InvalidInput(f"{name}: not supported; leave it out")
    for name in _IGNORED:
        data.pop(name, None)
    try:
        request = CompletionRequest.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidInput(f"{where}: {first['msg']}") from error
    if not 1 <= len(request.prompts) <= MAX_PROMPTS:
        raise InvalidInput(f"prompt: expected 1 to {MAX_PROMPTS} texts, received {len(request.prompts)}")
    return request


def new_id() -> str:
    """The name of an answer."""
    return f"cmpl-{uuid.uuid4().hex}"


def whole_answer(request_id: str, model: str, completions: Sequence[Completion]) -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    n_prompt = sum(c.n_prompt_tokens for c in completions)
    n_answer = sum(len(c.token_ids) for c in completions)
    return {
        **_head(request_id, model),
        "choices": [choice(row, c.text, c.finish_reason) for row, c in enumerate(completions)],
        "usage": {"prompt_tokens": n_prompt, "completion_tokens": n_answer, "total_tokens": n_prompt + n_answer},
    }


def part_of_answer(request_id: str, model: str, row: int, text: str, finish_reason: str | None) -> str:
    """One server-sent event."""
    body = {**_head(request_id, model), "choices": [choice(row, text, finish_reason)]}
    return f"data: {json.dumps(body)}\n\n"


def choice(row: int, text: str, finish_reason: str | None) -> dict[str, Any]:
    """One text of an answer."""
    return {"index": row, "text": text, "logprobs": None, "finish_reason": finish_reason}


def error_body(message: str, kind: str) -> dict[str, Any]:
    """OpenAI's shape of an error."""
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def _head(request_id: str, model: str) -> dict[str, Any]:
    return {"id": request_id, "object": "text_completion", "created": int(time.time()), "model": model}
