"""What requests for answers have in common: how a body is read, how an answer is chosen, and its shape."""

from __future__ import annotations

import json
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from lorahub_edge.errors import InvalidInput
from lorahub_edge.serve.models import Served
from lorahub_edge.serve.sequences import Completion, Piece
from lorahub_edge.serve.settings import MAX_STOPS, GenerationSettings

MAX_ANSWERS = 16  # of one request: its prompts, each as often as `n` says
_MAX_DIGITS = 100
_MAX_LORAS = 16
_EXACT = 1 << 53  # floats below have no gaps between integers


def texts(most: int) -> BeforeValidator:
    """One text or a list of them, as a tuple; their number is checked before any of them is looked at."""

    def check(value: Any) -> tuple[str, ...]:
        found = [value] if isinstance(value, str) else value
        if not isinstance(found, list):
            raise PydanticCustomError("texts", "expected a text or a list of texts")
        if not 1 <= len(found) <= most:
            raise PydanticCustomError("texts", f"expected 1 to {most} texts, received {len(found)}")
        if not all(isinstance(text, str) for text in found):
            raise PydanticCustomError("texts", "expected texts")
        return tuple(found)

    return BeforeValidator(check, json_schema_input_type=str | list[str])


class Body(BaseModel):
    """An object in a request. Nothing is converted, unknown fields are refused, and null is a field left out."""

    model_config = ConfigDict(strict=True, extra="forbid")
    # Others' settings that are understood only as what they are when left out.
    only_defaults: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    ignored: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _fields(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        found = {name: value for name, value in data.items() if value is not None and name not in cls.ignored}
        for name, values in cls.only_defaults.items():
            if name in found and found.pop(name) not in values:
                raise PydanticCustomError("field", "{name}: not supported; leave it out", {"name": name})
        for name in found:
            if name not in cls.model_fields:
                raise PydanticCustomError("field", "{name}: unknown field; leave it out", {"name": name})
        return found


class StreamOptions(Body):
    """What a stream holds besides its text."""

    include_usage: bool = False
    continuous_usage_stats: bool = False  # vLLM's: in every chunk


class LoraScale(Body):
    """One adapter of a request's own mix, by its place in /lora-adapters."""

    id: int = Field(ge=0)
    scale: float = Field(default=1.0, ge=-100, le=100, allow_inf_nan=False)


class AnswerRequest(Body):
    """The fields that completions and chats share."""

    ignored = ("user",)
    only_defaults: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "logit_bias": ({},),
        "presence_penalty": (0,),
        "frequency_penalty": (0,),
    }

    model: str | None = None
    max_tokens: int | None = Field(default=None, ge=0)
    temperature: float = Field(default=0.0, ge=0, le=100, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    n: int = Field(default=1, ge=1, le=MAX_ANSWERS)
    n_beams: int = 1
    seed: int | None = Field(default=None, ge=0)
    stop: Annotated[tuple[str, ...], texts(MAX_STOPS)] = ()
    ignore_eos: bool = False  # vLLM's: an answer goes on behind the model's end tokens, as load tests want it
    stream: bool = False
    stream_options: StreamOptions | None = None
    lora: list[LoraScale] | None = Field(default=None, max_length=_MAX_LORAS)

    @field_validator("lora")
    @classmethod
    def _each_once(cls, lora: list[LoraScale] | None) -> list[LoraScale] | None:
        ids = [each.id for each in lora or ()]
        if twice := [k for k in ids if ids.count(k) > 1]:
            raise PydanticCustomError("lora", "id {id} stands twice; give it once", {"id": twice[0]})
        return lora

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def settings(self, served: Served, most_tokens: int | None, n_prompts: int = 1) -> list[GenerationSettings]:
        """Settings for each answer: each prompt's, `n` times.

        Answers of one request are sampled from different seeds; without a seed these are new each time.

        Args:
            served: what is asked; its own length of answers holds where the request says nothing.
            most_tokens: an answer is cut there, whatever was asked for; the model's own length if None.
            n_prompts: of the request.
        """
        if n_prompts * self.n > MAX_ANSWERS:
            raise InvalidInput(
                f"n: expected at most {MAX_ANSWERS} answers, received {n_prompts} prompts times {self.n}"
            )
        seed = secrets.randbits(63) if self.seed is None else self.seed
        own = served.files.max_new_tokens
        wanted = own if self.max_tokens is None else self.max_tokens
        return [
            GenerationSettings(
                max_new_tokens=min(wanted, most_tokens or own),
                temperature=self.temperature,
                top_p=self.top_p,
                top_k=self.top_k,
                n_beams=self.n_beams,
                stop=self.stop,
                seed=seed + row,
                **self._scores(),
            )
            for row in range(n_prompts * self.n)
        ]

    def _scores(self) -> dict[str, Any]:
        """Which log-probabilities are wanted, as settings."""
        return {}


Request = TypeVar("Request", bound=Body)


def read_request(body: bytes, kind: type[Request]) -> Request:
    """Parse a body.

    Raises:
        InvalidInput: not JSON, an unknown or unsupported field, or a value out of range; names the field.
    """
    try:
        return kind.model_validate(read_object(body))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidInput(": ".join(filter(None, (where, first["msg"])))) from error


def body_of(kind: type[BaseModel]) -> dict[str, Any]:
    """What the OpenAPI document says of a path whose body is of this kind."""
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def body_schemas(kinds: Iterable[type[BaseModel]]) -> dict[str, Any]:
    """The schemas that `body_of` refers to, by name."""
    found: dict[str, Any] = {}
    for kind in kinds:
        schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
        found |= schema.pop("$defs", {})
        found[kind.__name__] = schema
    return found


def read_object(body: bytes) -> dict[str, Any]:
    """A JSON object of Unicode text, without a name that stands twice.

    Raises:
        InvalidInput: it is none.
    """
    try:
        data = json.loads(body, object_pairs_hook=_unique, parse_int=_integer, parse_float=_number)
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


def _number(digits: str) -> float:
    value = float(digits)
    return int(value) if value.is_integer() and abs(value) < _EXACT else value  # JSON's 1.0 is an integer


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise InvalidInput(f"{next(name for name in found if names.count(name) > 1)}: stands twice; give it once")
    return found


class Shape(ABC):
    """How one request is answered.

    Args:
        asked: the request.
        served: what answers.
        request_id: of the exchange.
    """

    prefix: ClassVar[str]
    kind: ClassVar[str]
    chunk_kind: ClassVar[str]

    def __init__(self, asked: AnswerRequest, served: Served, request_id: str) -> None:
        self.wants_usage = asked.wants_usage
        self._always_usage = asked.stream_options is not None and asked.stream_options.continuous_usage_stats
        self.served = served
        self._head = {"id": f"{self.prefix}-{request_id}", "created": int(time.time()), "model": served.name}

    def whole(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        choices = [self.choice(row, completion) for row, completion in enumerate(completions)]
        return {**self._head, "object": self.kind, "choices": choices, "usage": usage(completions)}

    def chunks(self, row: int, piece: Piece) -> list[dict[str, Any]]:
        """What a stream says of a piece."""
        counted = {"usage": _usage(piece.n_prompt_tokens, piece.n_tokens)} if self._always_usage else {}
        head = {**self._head, "object": self.chunk_kind, **counted}
        return [{**head, "choices": [choice]} for choice in self.chunk_choices(row, piece)]

    def last_chunks(self, completions: Sequence[Completion]) -> list[dict[str, Any]]:
        """What a stream says at its end."""
        if not self.wants_usage:
            return []
        return [{**self._head, "object": self.chunk_kind, "choices": [], "usage": usage(completions)}]

    @abstractmethod
    def choice(self, row: int, completion: Completion) -> dict[str, Any]:
        """One whole answer."""

    @abstractmethod
    def chunk_choices(self, row: int, piece: Piece) -> list[dict[str, Any]]:
        """A piece of one answer, as one choice or several behind one another."""

    def text_of(self, token_id: int) -> str:
        """A token's text, special ones by their names."""
        return str(self.served.files.tokenizer.decode([token_id], skip_special_tokens=False))


def usage(completions: Sequence[Completion]) -> dict[str, int]:
    """Numbers of tokens."""
    n_prompt = sum(c.n_prompt_tokens for c in completions)
    return _usage(n_prompt, sum(len(c.token_ids) for c in completions))


def _usage(n_prompt: int, n_answer: int) -> dict[str, int]:
    return {"prompt_tokens": n_prompt, "completion_tokens": n_answer, "total_tokens": n_prompt + n_answer}


def model_row(served: Served) -> dict[str, Any]:
    """One model of the list, as OpenAI has it and vLLM adds to it."""
    row = {"id": served.name, "object": "model", "created": served.created, "owned_by": "local"}
    return {**row, "root": served.root, "parent": served.parent}
