"""What is said over HTTP: requests, answers and errors in the shape of OpenAI's completions."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from lorahub_edge.errors import InvalidInput
from lorahub_edge.serve.models import Served
from lorahub_edge.serve.sequences import Completion
from lorahub_edge.serve.settings import MAX_STOPS, GenerationSettings

MAX_PROMPTS = 16
_MAX_DIGITS = 100

# OpenAI's settings that are understood only as what they are when left out.
_ONLY_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "suffix": ("",),
    "stream_options": (),
}
_IGNORED = ("user",)


def _texts(most: int) -> BeforeValidator:
    """One text or a list of them, as a tuple; their number is checked before any of them is looked at."""

    def check(value: Any) -> tuple[str, ...]:
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list):
            raise PydanticCustomError("texts", "expected a text or a list of texts")
        if not 1 <= len(texts) <= most:
            raise PydanticCustomError("texts", f"expected 1 to {most} texts, received {len(texts)}")
        if not all(isinstance(text, str) for text in texts):
            raise PydanticCustomError("texts", "expected texts; lists of numbers, such as token ids, are not read")
        return tuple(texts)

    return BeforeValidator(check)


class CompletionRequest(BaseModel):
    """The body of POST /v1/completions."""

    model_config = ConfigDict(strict=True)

    prompt: Annotated[tuple[str, ...], _texts(MAX_PROMPTS)]
    model: str | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=0.0, ge=0, le=100, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    n_beams: int = 1
    seed: int | None = Field(default=None, ge=0)
    stop: Annotated[tuple[str, ...], _texts(MAX_STOPS)] = ()
    stream: bool = False

    def settings(self, default_tokens: int, most_tokens: int) -> list[GenerationSettings]:
        """Settings for each text.

        Texts of one request sample from different seeds; without a seed these are new each time.

        Args:
            default_tokens: length of an answer where the request says nothing.
            most_tokens: an answer is cut there, whatever was asked for.
        """
        seed = secrets.randbits(63) if self.seed is None else self.seed
        return [
            GenerationSettings(
                max_new_tokens=min(self.max_tokens or default_tokens, most_tokens),
                temperature=self.temperature,
                top_p=self.top_p,
                top_k=self.top_k,
                n_beams=self.n_beams,
                stop=self.stop,
                seed=seed + row,
            )
            for row in range(len(self.prompt))
        ]


def read_request(body: bytes) -> CompletionRequest:
    """Parse a body. A field that is null is one that was left out.

    Raises:
        InvalidInput: not JSON, an unknown or unsupported field, or a value out of range; names the field.
    """
    data = {name: value for name, value in _read_object(body).items() if value is not None}
    for name, values in _ONLY_DEFAULTS.items():
        if name in data and data.pop(name) not in values:
            raise InvalidInput(f"{name}: not supported; leave it out")
    for name in _IGNORED:
        data.pop(name, None)
    for name in data:
        if name not in CompletionRequest.model_fields:
            raise InvalidInput(f"{name}: unknown field; leave it out")
    try:
        return CompletionRequest.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidInput(f"{where}: {first['msg']}") from error


def _read_object(body: bytes) -> dict[str, Any]:
    """A JSON object of Unicode text, without a name that stands twice."""
    try:
        data = json.loads(body, object_pairs_hook=_unique, parse_int=_integer)
        json.dumps(data, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InvalidInput("body: expected Unicode text, received a lone surrogate (\\ud800 to \\udfff)") from error
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"body: expected JSON ({error})") from error
    if not isinstance(data, dict):
        raise InvalidInput(f"body: expected a JSON object, received {type(data).__name__}")
    return data


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:  # turning them into a number takes time that grows with their square
        raise InvalidInput(f"body: expected integers of at most {_MAX_DIGITS} digits, received one of {len(digits)}")
    return int(digits)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise InvalidInput(f"{next(name for name in found if names.count(name) > 1)}: stands twice; give it once")
    return found


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


def model_row(served: Served) -> dict[str, Any]:
    """One model of the list, as OpenAI has it and vLLM adds to it."""
    row = {"id": served.name, "object": "model", "created": served.created, "owned_by": "local"}
    return {**row, "root": served.root, "parent": served.parent}


def _head(request_id: str, model: str) -> dict[str, Any]:
    return {"id": request_id, "object": "text_completion", "created": int(time.time()), "model": model}
