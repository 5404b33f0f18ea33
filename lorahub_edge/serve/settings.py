"""GenerationSettings: how an answer is chosen, and the choice of one token."""

from __future__ import annotations

import math
import reprlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorahub_edge.errors import InvalidInput

MAX_BEAMS = 16
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1000
MAX_LOGPROBS = 20

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class GenerationSettings:
    """How to answer one prompt.

    Attributes:
        max_new_tokens: at most so many tokens; None for the export's own limit. 0 reads the prompt only.
        temperature: 0 is greedy; otherwise logits are divided by it before sampling.
        top_k: sample among so many of the likeliest tokens; 0 for all.
        top_p: sample among the likeliest tokens that make up this probability.
        n_beams: 1, or the width of a beam search (temperature 0).
        length_penalty: beams are compared by log-probability / length**length_penalty.
        stop: texts that end an answer; they are not part of it.
        seed: of sampling; equal seeds give equal answers, whatever else is in the batch.
        n_logprobs: note each token's log-probability, and so many of the likeliest tokens; None for neither.
        scores_prompt: note those of the prompt's tokens too (needs n_logprobs and a decoder-only model).

    Raises:
        InvalidInput: a value out of range.
    """

    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    n_beams: int = 1
    length_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    n_logprobs: int | None = None
    scores_prompt: bool = False

    def __post_init__(self) -> None:
        checks = (
            ("max_new_tokens", self.max_new_tokens is None or self.max_new_tokens >= 0, "at least 0"),
            ("temperature", math.isfinite(self.temperature) and self.temperature >= 0, "a number of at least 0"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("n_beams", 1 <= self.n_beams <= MAX_BEAMS, f"from 1 to {MAX_BEAMS}"),
            ("length_penalty", math.isfinite(self.length_penalty), "a finite number"),
            ("seed", self.seed >= 0, "at least 0"),
            ("n_logprobs", self.n_logprobs is None or 0 <= self.n_logprobs <= MAX_LOGPROBS, f"0 to {MAX_LOGPROBS}"),
            (
                "stop",
                self._has_right_stops(),
                f"at most {MAX_STOPS} texts of 1 to {MAX_STOP_CHARACTERS} characters, in a tuple",
            ),
        )
        for name, is_right, expected in checks:
            if not is_right:
                raise InvalidInput(f"{name}: expected {expected}, received {reprlib.repr(getattr(self, name))}")
        if self.n_beams > 1 and self.temperature > 0:
            raise InvalidInput("n_beams: beam search does not sample; expected temperature 0 or n_beams 1")
        if self.n_beams > 1 and self.n_logprobs is not None:
            raise InvalidInput("n_logprobs: beam search notes no log-probabilities; expected n_beams 1")
        if self.scores_prompt and self.n_logprobs is None:
            raise InvalidInput("scores_prompt: expected n_logprobs beside it")

    def _has_right_stops(self) -> bool:
        """One text alone would be read as a stop at each of its letters."""
        if isinstance(self.stop, str) or len(self.stop) > MAX_STOPS:
            return False
        return all(0 < len(text) <= MAX_STOP_CHARACTERS for text in self.stop)

    def chooser(self) -> Chooser:
        """What picks this answer's tokens, one by one."""
        return Chooser(self)


class Chooser:
    """Picks tokens; has a random state of its own."""

    def __init__(self, settings: GenerationSettings) -> None:
        self._settings = settings
        self._rng = np.random.default_rng(settings.seed)

    def choose(self, logits: Logits) -> int:
        """A token from logits (vocabulary,); -inf is a token that cannot be.

        Raises:
            FloatingPointError: see `checked`.
        """
        settings = self._settings
        checked(logits)
        if settings.temperature == 0:
            return int(logits.argmax())
        behind = logits.astype(np.float64) - logits.max()  # at most 0, so that no temperature makes it overflow to inf
        order = np.argsort(-behind, kind="stable")
        if settings.top_k:
            order = order[: settings.top_k]
        with np.errstate(over="ignore"):  # a tiny temperature: all but the likeliest get probability 0
            probabilities = np.exp(behind[order] / settings.temperature)
        probabilities /= probabilities.sum()
        if settings.top_p < 1:
            n_kept = int(np.searchsorted(np.cumsum(probabilities), settings.top_p)) + 1
            order, probabilities = order[:n_kept], probabilities[:n_kept]
            probabilities /= probabilities.sum()
        place = int(np.searchsorted(np.cumsum(probabilities), self._rng.random(), side="right"))
        return int(order[min(place, len(order) - 1)])


def log_probabilities(logits: Logits) -> NDArray[np.float64]:
    """Logits (..., vocabulary) as log-probabilities of the same shape."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def likeliest(values: NDArray[np.float64], n: int) -> list[int]:
    """Places of the n largest values, largest first; of equal ones the first come first."""
    n = min(n, len(values))
    best = np.argpartition(-values, n - 1)[:n] if n else np.zeros(0, np.int64)
    return [int(place) for place in best[np.argsort(-values[best], kind="stable")]]


def checked(logits: Logits) -> Logits:
    """Logits (..., vocabulary), as they are.

    Raises:
        FloatingPointError: NaN, or no finite largest: any token chosen from these would be a wrong answer in silence.
    """
    if not np.isfinite(logits.max(-1)).all():
        raise FloatingPointError("the model's logits are not finite")
    return logits
