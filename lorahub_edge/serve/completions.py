"""POST /v1/completions: OpenAI's shape, for texts that the model goes on from or answers as it was adapted to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from lorahub_edge.errors import InvalidInput
from lorahub_edge.serve.models import Served
from lorahub_edge.serve.protocol import MAX_ANSWERS, AnswerRequest, Shape
from lorahub_edge.serve.sequences import Completion, Piece, TokenScore

MAX_LOGPROBS = 5
MAX_TOKENS = 1 << 20  # of a prompt; what the model takes is less

Prompt = str | tuple[int, ...]


def _prompts(value: Any) -> tuple[Prompt, ...]:
    """A text, its token ids, or a list of either."""
    found = [value] if isinstance(value, str) or _are_ids(value) else value
    if not isinstance(found, list):
        raise PydanticCustomError("prompt", "expected a text, a list of token ids, or a list of either")
    if not 1 <= len(found) <= MAX_ANSWERS:
        raise PydanticCustomError("prompt", f"expected 1 to {MAX_ANSWERS} texts, received {len(found)}")
    if not all(isinstance(prompt, str) or _are_ids(prompt) for prompt in found):
        raise PydanticCustomError("prompt", "expected texts or lists of token ids")
    return tuple(prompt if isinstance(prompt, str) else tuple(prompt) for prompt in found)


def _are_ids(value: Any) -> bool:
    is_list = isinstance(value, list) and 0 < len(value) <= MAX_TOKENS
    return is_list and all(type(token) is int and 0 <= token < 2**31 for token in value)


class CompletionRequest(AnswerRequest):
    """The body of POST /v1/completions."""

    only_defaults: ClassVar[Mapping[str, tuple[Any, ...]]] = {**AnswerRequest.only_defaults, "suffix": ("",)}

    prompt: Annotated[
        tuple[Prompt, ...],
        BeforeValidator(_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
    ]
    echo: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    best_of: int | None = Field(default=None, ge=1)

    def check(self) -> None:
        """What no field says alone.

        Raises:
            InvalidInput: `best_of` would choose among answers.
        """
        if self.best_of not in (None, self.n):
            raise InvalidInput(f"best_of: not supported; expected n, {self.n}, or nothing")

    def _scores(self) -> dict[str, Any]:
        return {"n_logprobs": self.logprobs, "scores_prompt": self.echo and self.logprobs is not None}


class CompletionShape(Shape):
    """OpenAI's text completions."""

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def __init__(self, asked: CompletionRequest, served: Served, request_id: str) -> None:
        super().__init__(asked, served, request_id)
        self._has_scores = asked.logprobs is not None
        self._echoes = [self._text(prompt) if asked.echo else "" for prompt in asked.prompt for _ in range(asked.n)]
        self._n_said: dict[int, int] = {}  # row -> characters of its tokens in a stream

    def choice(self, row: int, completion: Completion) -> dict[str, Any]:
        text = self._echoes[row] + completion.text
        scores = (*completion.prompt_scores, *completion.scores)
        return self._choice(row, text, scores, completion.finish_reason)

    def chunk_choices(self, row: int, piece: Piece) -> list[dict[str, Any]]:
        text, scores = piece.text, piece.scores
        if row not in self._n_said:
            text = self._echoes[row] + text
            scores = (*piece.prompt_scores, *scores)
        reason = piece.completion.finish_reason if piece.completion else None
        return [self._choice(row, text, scores, reason)]

    def _choice(self, row: int, text: str, scores: Sequence[TokenScore], reason: str | None) -> dict[str, Any]:
        logprobs = self._logprobs(row, scores) if self._has_scores else None
        self._n_said.setdefault(row, 0)
        return {"index": row, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, row: int, scores: Sequence[TokenScore]) -> dict[str, Any]:
        tokens = [self.text_of(score.token_id) for score in scores]
        offset, offsets = self._n_said.get(row, 0), []
        for token in tokens:
            offsets.append(offset)
            offset += len(token)
        self._n_said[row] = offset
        top = [{self.text_of(token): value for token, value in score.top} or None for score in scores]
        return {
            "tokens": tokens,
            "token_logprobs": [score.logprob for score in scores],
            "top_logprobs": top,
            "text_offset": offsets,
        }

    def _text(self, prompt: Prompt) -> str:
        return prompt if isinstance(prompt, str) else self.served.files.decode(prompt)
