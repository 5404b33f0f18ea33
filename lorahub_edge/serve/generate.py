"""generate and stream: answers to several prompts at once, each with settings of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from lorahub_edge.errors import InvalidInput
from lorahub_edge.serve.adapter import Mix
from lorahub_edge.serve.beam import Beams
from lorahub_edge.serve.engine import Engine
from lorahub_edge.serve.folder import ExportFolder
from lorahub_edge.serve.model import OnnxModel
from lorahub_edge.serve.sequences import Completion, OneRow, Piece, SequenceInMaking
from lorahub_edge.serve.settings import GenerationSettings
from lorahub_edge.texts import checked_texts

CHARACTERS_PER_TOKEN = 32  # longer prompts are refused unread; most tokenizers average 3 to 5, spaces included
_READ_TOKENS = 1024  # prompt tokens per call: nobody waits for a step meanwhile


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
    prompts = [checked_prompt(model.files, text) for text in texts]
    engine = Engine(model, read_tokens=_READ_TOKENS)
    for row, each in enumerate(_one_each(settings, len(texts))):
        engine.add(new_sequence(row, model.files, prompts[row], each, model.mix, partial(is_wanted, row)))
    while not engine.is_idle:
        for _, news in engine.step():
            if isinstance(news, Exception):
                raise news
            yield news


def new_sequence(
    index: int,
    files: ExportFolder,
    prompt: Sequence[int],
    settings: GenerationSettings,
    mix: Mix = (),
    is_wanted: Callable[[], bool] = lambda: True,
) -> SequenceInMaking:
    """What answers a prompt with these settings; see `SequenceInMaking`.

    Raises:
        InvalidInput: scores of the prompt wanted from a model that has an encoder.
    """
    if settings.scores_prompt and files.is_seq2seq:
        raise InvalidInput("scores_prompt: an encoder's input has no probabilities; expected a decoder-only model")
    kind = Beams if settings.n_beams > 1 and settings.max_new_tokens != 0 else OneRow
    return kind(index, files, prompt, settings, mix, is_wanted)


def checked_prompt(files: ExportFolder, prompt: str | Sequence[int]) -> Sequence[int]:
    """Token ids of a prompt.

    Args:
        files: what reads it.
        prompt: a text, which the model's own prompt is put around; or token ids, which are taken as they are.

    Raises:
        InvalidInput: empty, or longer than the export takes; a token that the tokenizer does not have. A text's
            characters are counted first, so that a text of any length costs little.
    """
    limit = files.prompt.max_input_tokens
    most = limit * CHARACTERS_PER_TOKEN
    if isinstance(prompt, str):
        if len(prompt) > most:
            raise InvalidInput(
                f"prompt: expected at most {most} characters ({CHARACTERS_PER_TOKEN} for each of {limit} tokens), "
                f"received {len(prompt)}; shorten the text"
            )
        prompt = files.encode(prompt)
    elif prompt and max(prompt) >= files.tokenizer.get_vocab_size():
        n = files.tokenizer.get_vocab_size()
        raise InvalidInput(f"prompt: expected token ids below {n}, received {max(prompt)}")
    if not prompt:
        raise InvalidInput("prompt: expected a text of at least one token, received an empty one")
    if len(prompt) > limit:
        raise InvalidInput(f"prompt: expected 1 to {limit} tokens, received {len(prompt)}; shorten the text")
    return prompt


def _one_each(
    settings: GenerationSettings | Sequence[GenerationSettings] | None, n: int
) -> Sequence[GenerationSettings]:
    if settings is None or isinstance(settings, GenerationSettings):
        return [settings or GenerationSettings()] * n
    if len(settings) != n:
        raise InvalidInput(f"settings: expected one for each of {n} texts, received {len(settings)}")
    return settings
