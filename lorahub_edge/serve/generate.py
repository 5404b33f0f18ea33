"""generate and stream: answers to several prompts at once, each with settings of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from lorahub_edge.errors import InvalidInput
from lorahub_edge.serve.beam import beam_search
from lorahub_edge.serve.model import Ids, OnnxModel
from lorahub_edge.serve.settings import Chooser, GenerationSettings
from lorahub_edge.texts import checked_texts

CHARACTERS_PER_TOKEN = 32  # longer prompts are refused unread; most tokenizers average 3 to 5, spaces included
_REPLACEMENT = "�"  # what the tokenizer makes of half a character


@dataclass(frozen=True)
class Completion:
    """An answer.

    Attributes:
        text: without end mark and stop text.
        token_ids: all tokens that were generated.
        finish_reason: "stop" (an end token or a stop text) or "length".
        n_prompt_tokens: what was read.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    n_prompt_tokens: int


@dataclass(frozen=True)
class Piece:
    """News of one answer: further text, and the whole answer once it is finished."""

    row: int
    text: str
    completion: Completion | None = None


@dataclass
class _Row:
    """One answer in the making."""

    index: int
    settings: GenerationSettings
    n_prompt_tokens: int
    limit: int
    chooser: Chooser
    token_ids: list[int] = field(default_factory=list)
    sent: int = 0


def generate(
    model: OnnxModel,
    texts: Sequence[str],
    settings: GenerationSettings | Sequence[GenerationSettings] | None = None,
) -> list[Completion]:
    """Answer texts together.

    Args:
        model: what answers.
        texts: inputs; the export's prompt is put around each.
        settings: one for all or one for each; greedy if None.

    Returns:
        Answers in order. Each is the same as if it had been asked alone, but for float rounding.

    Raises:
        InvalidInput: no text, or one that is longer than the export takes.
        TypeError: one text instead of a list of texts.
    """
    done: dict[int, Completion] = {}
    for piece in stream(model, texts, settings):
        if piece.completion is not None:
            done[piece.row] = piece.completion
    return [done[row] for row in range(len(texts))]


def stream(
    model: OnnxModel,
    texts: Sequence[str],
    settings: GenerationSettings | Sequence[GenerationSettings] | None = None,
    *,
    is_wanted: Callable[[int], bool] = lambda _: True,
) -> Iterator[Piece]:
    """As `generate`, text by text as it comes. A beam search's answer comes whole.

    Args:
        model, texts, settings: see `generate`.
        is_wanted: asked before each step; a row that nobody waits for leaves the batch without an answer.
    """
    texts = checked_texts(texts, "texts")
    if not texts:
        raise InvalidInput("generate: no text was given; expected at least one")
    all_settings = _one_each(settings, len(texts))
    prompts = [checked_prompt(model, text) for text in texts]
    yield from answer_prompts(model, prompts, all_settings, is_wanted=is_wanted)


def answer_prompts(
    model: OnnxModel,
    prompts: Sequence[Sequence[int]],
    settings: Sequence[GenerationSettings],
    *,
    is_wanted: Callable[[int], bool],
) -> Iterator[Piece]:
    """As `stream`, for prompts that `checked_prompt` made, with settings for each."""
    rows = [_row(model, r, each, len(prompts[r])) for r, each in enumerate(settings)]
    together = [row for row in rows if row.settings.n_beams == 1 and is_wanted(row.index)]
    if together:
        yield from _decode(model, together, [prompts[row.index] for row in together], is_wanted)
    for row in rows:
        if row.settings.n_beams > 1:
            wanted = partial(is_wanted, row.index)
            token_ids = beam_search(model, prompts[row.index], row.settings, row.limit, is_wanted=wanted)
            if token_ids is not None:
                yield _finish(model, row, token_ids, row.limit)


def checked_prompt(model: OnnxModel, text: str) -> list[int]:
    """Token ids of a text's prompt.

    Raises:
        InvalidInput: empty, or longer than the export takes. The characters are counted first, so that a text of any
            length costs little.
    """
    limit = model.files.prompt.max_input_tokens
    most = limit * CHARACTERS_PER_TOKEN
    if len(text) > most:
        raise InvalidInput(
            f"prompt: expected at most {most} characters ({CHARACTERS_PER_TOKEN} for each of {limit} tokens), "
            f"received {len(text)}; shorten the text"
        )
    ids = model.files.encode(text)
    if not ids:
        raise InvalidInput("prompt: expected a text of at least one token, received an empty one")
    if len(ids) > limit:
        raise InvalidInput(f"prompt: expected 1 to {limit} tokens, received {len(ids)}; shorten the text")
    return ids


def _one_each(
    settings: GenerationSettings | Sequence[GenerationSettings] | None, n: int
) -> Sequence[GenerationSettings]:
    if settings is None or isinstance(settings, GenerationSettings):
        return [settings or GenerationSettings()] * n
    if len(settings) != n:
        raise InvalidInput(f"settings: expected one for each of {n} texts, received {len(settings)}")
    return settings


def _limit(model: OnnxModel, settings: GenerationSettings, n_prompt_tokens: int) -> int:
    limit = settings.max_new_tokens or model.files.max_new_tokens
    room = model.files.record["generation"].get("max_positions")
    return limit if room is None else max(1, min(limit, room - n_prompt_tokens))


def _row(model: OnnxModel, index: int, settings: GenerationSettings, n_prompt_tokens: int) -> _Row:
    return _Row(index, settings, n_prompt_tokens, _limit(model, settings, n_prompt_tokens), settings.chooser())


def _decode(
    model: OnnxModel, rows: list[_Row], prompts: Sequence[Sequence[int]], is_wanted: Callable[[int], bool]
) -> Iterator[Piece]:
    """Steps for all rows together; a row that is finished leaves the batch."""
    state, logits = model.begin(prompts)
    while True:
        staying = []
        for place, row in enumerate(rows):
            row.token_ids.append(row.chooser.choose(logits[place, -1]))
            piece = _news(model, row)
            if piece is not None:
                yield piece
            if (piece is None or piece.completion is None) and is_wanted(row.index):
                staying.append(place)
        if not staying:
            return
        if len(staying) < len(rows):
            rows, state = [rows[place] for place in staying], model.select(state, staying)
        tokens: Ids = np.array([[row.token_ids[-1]] for row in rows], np.int64)
        logits = model.step(state, tokens)


def _news(model: OnnxModel, row: _Row) -> Piece | None:
    """What the newest token of a row means to its reader; None if nothing yet."""
    ended = row.token_ids[-1] in model.files.end_ids
    text = model.files.decode(row.token_ids[:-1] if ended else row.token_ids)
    cut = _first_stop(text, row.settings.stop)
    if ended or cut is not None or len(row.token_ids) >= row.limit:
        return _finish(model, row, row.token_ids, row.limit)
    held = 0 if not row.settings.stop else max(map(len, row.settings.stop)) - 1
    ready = text.rstrip(_REPLACEMENT)
    ready = ready[: max(row.sent, len(ready) - held)]
    if len(ready) <= row.sent:
        return None
    new, row.sent = ready[row.sent :], len(ready)
    return Piece(row.index, new)


def _finish(model: OnnxModel, row: _Row, token_ids: Sequence[int], limit: int) -> Piece:
    ended = bool(token_ids) and token_ids[-1] in model.files.end_ids
    text = model.files.decode(token_ids[:-1] if ended else token_ids)
    cut = _first_stop(text, row.settings.stop)
    text = text if cut is None else text[:cut]
    reason = "stop" if ended or cut is not None else "length"
    return Piece(row.index, text[row.sent :], Completion(text, tuple(token_ids), reason, row.n_prompt_tokens))


def _first_stop(text: str, stops: Sequence[str]) -> int | None:
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return min(places) if places else None
