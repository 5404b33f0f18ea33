"""POST /v1/chat/completions: OpenAI's shape of a chat.

A model that was adapted has a prompt of its own. A chat of one question is put into that prompt; a longer one, and any
chat with a base alone, goes through the base's own chat template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from lorahub_edge.errors import InvalidInput
from lorahub_edge.serve.folder import ExportFolder
from lorahub_edge.serve.models import Served
from lorahub_edge.serve.protocol import AnswerRequest, Body, Shape
from lorahub_edge.serve.sequences import Completion, Piece, TokenScore
from lorahub_edge.serve.settings import MAX_LOGPROBS
from lorahub_edge.serve.template import ChatTemplate

MAX_MESSAGES = 1000


def _content(value: Any) -> str:
    """A text, or the text of a list of parts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise PydanticCustomError("content", "expected a text or a list of parts of text")
    found = [part["text"] for part in value if isinstance(part, dict) and part.get("type") == "text" and "text" in part]
    if len(found) < len(value) or not all(isinstance(text, str) for text in found):
        raise PydanticCustomError("content", "expected parts of type text; others are not read")
    return "".join(found)


class TextPart(BaseModel):
    """A part of a message, for the OpenAPI document."""

    type: Literal["text"]
    text: str


class ChatMessage(Body):
    """One message."""

    only_defaults: ClassVar[Mapping[str, tuple[Any, ...]]] = {"tool_calls": ([],), "annotations": ([],)}

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str, BeforeValidator(_content, json_schema_input_type=str | list[TextPart])]
    name: str | None = None


class ChatRequest(AnswerRequest):
    """The body of POST /v1/chat/completions."""

    only_defaults: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **AnswerRequest.only_defaults,
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "response_format": ({"type": "text"},),
        "parallel_tool_calls": (True, False),
        "store": (False,),
    }

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)

    def check(self) -> None:
        """What no field says alone; settles which of two names holds the limit.

        Raises:
            InvalidInput: two limits of tokens, or likeliest tokens without log-probabilities.
        """
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise InvalidInput("max_tokens: differs from max_completion_tokens; give one of them")
        if self.max_tokens == 0:
            raise InvalidInput("max_tokens: expected at least 1, received 0")
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidInput("top_logprobs: expected logprobs true beside it")
        self.max_tokens = self.max_completion_tokens or self.max_tokens

    def _scores(self) -> dict[str, Any]:
        return {"n_logprobs": (self.top_logprobs or 0) if self.logprobs else None}


def chat_prompt(files: ExportFolder, template: ChatTemplate | None, messages: Sequence[ChatMessage]) -> str | list[int]:
    """What a model reads of a chat: one question, which its own prompt is put around, or the template's token ids.

    Raises:
        InvalidInput: there is no template, and more than one question; see also `ChatTemplate.render`.
    """
    is_one = len(messages) == 1 and messages[0].role == "user"
    has_prompt = bool(files.prompt.before or files.prompt.after)
    if is_one and (has_prompt or template is None):
        return messages[0].content
    if template is None:
        raise InvalidInput(
            f"messages: this model has no chat template, so it takes one message of role user, received {len(messages)}"
        )
    text = template.render([message.model_dump(exclude_none=True) for message in messages])
    [encoding] = files.tokenizer.encode_batch([text], add_special_tokens=False)
    return list(encoding.ids)


class ChatShape(Shape):
    """OpenAI's chat completions."""

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, asked: ChatRequest, served: Served, request_id: str) -> None:
        super().__init__(asked, served, request_id)
        self._has_scores = asked.logprobs
        self._begun: set[int] = set()

    def choice(self, row: int, completion: Completion) -> dict[str, Any]:
        message = {"role": "assistant", "content": completion.text}
        return self._choice(row, {"message": message}, completion.scores, completion.finish_reason)

    def chunk_choices(self, row: int, piece: Piece) -> list[dict[str, Any]]:
        choices = []
        if row not in self._begun:
            self._begun.add(row)
            choices.append(self._choice(row, {"delta": {"role": "assistant", "content": ""}}, (), None))
        if piece.text or piece.scores:
            choices.append(self._choice(row, {"delta": {"content": piece.text}}, piece.scores, None))
        if piece.completion is not None:
            choices.append(self._choice(row, {"delta": {}}, (), piece.completion.finish_reason))
        return choices

    def _choice(
        self, row: int, said: Mapping[str, Any], scores: Sequence[TokenScore], reason: str | None
    ) -> dict[str, Any]:
        logprobs = {"content": [self._score(score) for score in scores]} if self._has_scores and scores else None
        return {"index": row, **said, "logprobs": logprobs, "finish_reason": reason}

    def _score(self, score: TokenScore) -> dict[str, Any]:
        top = [self._entry(token, value) for token, value in score.top]
        return {**self._entry(score.token_id, score.logprob), "top_logprobs": top}

    def _entry(self, token: int, logprob: float | None) -> dict[str, Any]:
        text = self.text_of(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
