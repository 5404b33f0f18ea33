"""Warnings of what is lost between a text and its tokens: too long, unknown, or not given back."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from lorahub_edge.errors import LorahubEdgeWarning
from lorahub_edge.tasks.metrics import normalize

if TYPE_CHECKING:
    from lorahub_edge.tasks.prompt import PromptFormat

_SHOWN_CHARACTERS = 60


class InputsWereCut(LorahubEdgeWarning):
    """Texts were longer than the model takes."""


class TextWasLost(LorahubEdgeWarning):
    """The tokenizer does not know a part of some texts, or does not give it back."""


def warn_of_cuts(format_: PromptFormat, were_cut: Iterable[bool], what: str) -> int:
    """Warn if any text was cut, with how many of how many; returns the count."""
    flags = list(were_cut)
    if n_cut := sum(flags):
        message = (
            f"{n_cut} of {len(flags)} {what} are longer than the model takes and were cut to "
            f"{format_.max_input_tokens} input and {format_.max_target_tokens} answer tokens"
        )
        warnings.warn(message, InputsWereCut, stacklevel=4)
    return n_cut


def warn_of_unknown(format_: PromptFormat, prompts: Sequence[Sequence[int]], texts: Sequence[str], what: str) -> int:
    """Warn if prompts of texts hold the unknown token, with the first of them; returns how many do."""
    tokenizer = format_.tokenizer
    unknown = tokenizer.unk_token_id
    if unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        return 0  # it has another meaning too, so it says nothing; such tokenizers know every byte
    held = [text for ids, text in zip(prompts, texts, strict=True) if unknown in ids]
    if held:
        message = (
            f"{len(held)} of {len(texts)} {what}, with the prompt around them, hold characters or words that the "
            f"tokenizer does not know and the model reads as {tokenizer.unk_token}, such as "
            f"{_shown(format_.text(held[0]))}"
        )
        warnings.warn(message, TextWasLost, stacklevel=4)
    return len(held)


def warn_of_unreachable(format_: PromptFormat, answers: Sequence[str], what: str) -> int:
    """Warn if no output of the model can equal an answer, as exact match compares them; returns how many there are."""
    back = {answer: format_.given_back(answer) for answer in answers}
    lost = [answer for answer in answers if normalize(back[answer]) != normalize(answer)]
    if lost:
        message = (
            f"{len(lost)} of {len(answers)} answers of {what} can never be matched: the tokenizer does not give them "
            f"back, such as {_shown(lost[0])}, which becomes {_shown(back[lost[0]])}"
        )
        warnings.warn(message, TextWasLost, stacklevel=4)
    return len(lost)


def _shown(text: str) -> str:
    """Quoted, control characters escaped, cut to one line."""
    return repr(text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}...")
