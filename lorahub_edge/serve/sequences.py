"""Sequences: answers in the making. They are told the newest logits, and say which tokens are to be read next.

A sampled or greedy answer is one row of a batch, a beam search several. Knows neither graphs nor caches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lorahub_edge.serve.adapter import Mix
from lorahub_edge.serve.folder import ExportFolder
from lorahub_edge.serve.settings import GenerationSettings, Logits, checked, likeliest, log_probabilities

_REPLACEMENT = "�"  # what the tokenizer makes of half a character


@dataclass(frozen=True)
class TokenScore:
    """What the model thought of one token.

    Attributes:
        token_id: the token.
        logprob: natural logarithm of its probability, before temperature and top-k; None for a prompt's first token.
        top: the likeliest tokens with their log-probabilities, likeliest first.
    """

    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Completion:
    """An answer.

    Attributes:
        text: without end mark and stop text.
        token_ids: all tokens that were generated.
        finish_reason: "stop" (an end token or a stop text) or "length".
        n_prompt_tokens: what was read.
        scores: of the answer's tokens, if they were asked for.
        prompt_scores: of the prompt's tokens, if they were asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    n_prompt_tokens: int
    scores: tuple[TokenScore, ...] = ()
    prompt_scores: tuple[TokenScore, ...] = ()


@dataclass(frozen=True)
class Piece:
    """News of one answer: further text with the scores of its tokens, and the whole answer once it is finished.

    Tokens are counted from the answer's beginning. The first piece has the scores of the prompt, if they were
    asked for.
    """

    row: int
    text: str
    n_prompt_tokens: int
    n_tokens: int
    completion: Completion | None = None
    scores: tuple[TokenScore, ...] = ()
    prompt_scores: tuple[TokenScore, ...] = ()


class SequenceInMaking(ABC):
    """One answer.

    Args:
        index: by which whoever asked knows it.
        files: prompt, end marks and tokenizer of the model that is asked.
        prompt: token ids.
        settings: how it is chosen.
        mix: adapters beside the base.
        is_wanted: asked before each step.
    """

    width = 1  # most rows that it takes

    def __init__(
        self,
        index: int,
        files: ExportFolder,
        prompt: Sequence[int],
        settings: GenerationSettings,
        mix: Mix = (),
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        self.index = index
        self.files = files
        self.prompt = prompt
        self.settings = settings
        self.mix = mix
        self.is_wanted = is_wanted
        self.limit = token_limit(files, settings, len(prompt))
        self.prompt_scores: list[TokenScore] = []
        self._set_up()

    @abstractmethod
    def _set_up(self) -> None:
        """Set what a kind of sequence remembers."""

    @abstractmethod
    def advance(self, logits: Logits) -> list[int]:
        """Choose the next tokens.

        Args:
            logits: (rows, vocabulary) of the rows that it has now; one row behind the prompt.

        Returns:
            For each row of the next step the row that it goes on from; empty once the answer is finished.

        Raises:
            FloatingPointError: see `checked`.
        """

    @abstractmethod
    def next_tokens(self) -> list[int]:
        """What each of its rows reads next."""

    @abstractmethod
    def news(self) -> Piece | None:
        """What is new to a reader since the last call; None if nothing."""

    def read_prompt(self, logits: Logits, start: int) -> None:
        """Note scores of prompt tokens start + 1, ... from logits (n, vocabulary) at start, ..."""
        if not self.prompt_scores:
            self.prompt_scores.append(TokenScore(self.prompt[0], None))
        behind = self.prompt[start + 1 : start + 1 + len(logits)]
        for row, token in zip(logits, behind, strict=False):
            self.prompt_scores.append(token_score(row, token, self.settings.n_logprobs or 0))

    def _completion(self, token_ids: Sequence[int], scores: Sequence[TokenScore] = ()) -> Completion:
        ended = bool(token_ids) and token_ids[-1] in self.files.end_ids
        text = self.files.decode(token_ids[:-1] if ended else token_ids)
        cut = _first_stop(text, self.settings.stop)
        reason = "stop" if ended or cut is not None else "length"
        return Completion(
            text if cut is None else text[:cut],
            tuple(token_ids),
            reason,
            len(self.prompt),
            tuple(scores),
            tuple(self.prompt_scores),
        )


class OneRow(SequenceInMaking):
    """A greedy or sampled answer."""

    def _set_up(self) -> None:
        self._chooser = self.settings.chooser()
        self._token_ids: list[int] = []
        self._scores: list[TokenScore] = []
        self._n_sent = self._n_scores_sent = 0
        self._is_begun = False

    def advance(self, logits: Logits) -> list[int]:
        if self.limit == 0:
            return []
        token = self._chooser.choose(logits[0])
        if self.settings.n_logprobs is not None:
            self._scores.append(token_score(logits[0], token, self.settings.n_logprobs))
        self._token_ids.append(token)
        return [] if self._is_finished() else [0]

    def next_tokens(self) -> list[int]:
        return self._token_ids[-1:]

    def news(self) -> Piece | None:
        if self._is_finished():
            whole = self._completion(self._token_ids, self._scores)
            return self._piece(whole.text, whole)
        held = max(map(len, self.settings.stop), default=1) - 1
        ready = self._text().rstrip(_REPLACEMENT)
        ready = ready[: max(self._n_sent, len(ready) - held)]
        return self._piece(ready) if len(ready) > self._n_sent else None

    def _is_finished(self) -> bool:
        ids, stops = self._token_ids, self.settings.stop
        if len(ids) >= self.limit or (ids and ids[-1] in self.files.end_ids):
            return True
        return bool(stops) and _first_stop(self._text(), stops) is not None

    def _text(self) -> str:
        return self.files.decode(self._token_ids)

    def _piece(self, text: str, completion: Completion | None = None) -> Piece:
        new, scores = text[self._n_sent :], tuple(self._scores[self._n_scores_sent :])
        prompt_scores = () if self._is_begun else tuple(self.prompt_scores)
        self._n_sent, self._n_scores_sent, self._is_begun = len(text), len(self._scores), True
        counts = len(self.prompt), len(self._token_ids)
        return Piece(self.index, new, *counts, completion, scores, prompt_scores)


def token_limit(files: ExportFolder, settings: GenerationSettings, n_prompt_tokens: int) -> int:
    """Where an answer is cut, in tokens."""
    limit = files.max_new_tokens if settings.max_new_tokens is None else settings.max_new_tokens
    room = files.record["generation"].get("max_positions")
    return limit if room is None or limit == 0 else max(1, min(limit, room - n_prompt_tokens))


def token_score(logits: Logits, token: int, n_top: int) -> TokenScore:
    """A token's place in logits (vocabulary,)."""
    values = log_probabilities(checked(logits))
    return TokenScore(token, float(values[token]), tuple((k, float(values[k])) for k in likeliest(values, n_top)))


def _first_stop(text: str, stops: Sequence[str]) -> int | None:
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return min(places) if places else None
