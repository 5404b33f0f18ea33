"""A base's chat template as text before the input, text behind it, and the tokens that end an answer.

A template is a program, so it is asked and not read: it renders a few probes, and is taken only if what stands around
the input is the same for all of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorahub_edge.aside import NotDone, within
from lorahub_edge.errors import InvalidInput, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_QUESTION, _ANSWER = "Lorahub asks 7 Things", "Lorahub says 8 Words"
# What templates are known to change: outer blanks, letters' case, braces, marks of HTML and JSON.
_PROBES = (
    "  two blanks around  ", "\n\tLines,\n\nand Tabs\n", "lower UPPER", "{a} {{ b }} {% c %} {input}",
    "<b> & \"two\" 'one' \\n", "é β 12.", "7",
)  # fmt: skip
_ANSWER_PROBES = ("yes", "12", "No.", "a b", "}")
# Where the assistant's turn begins with a thought that is not closed: an answer put there would be part of it.
_OPEN_THOUGHT = re.compile(r"[<\[]\|?(start_)?(think|thinking|thought|reasoning)\|?[>\]]\s*\Z", re.IGNORECASE)

# A template is a stranger's program, and the sandbox that it runs in sets no limit to its loops.
RENDER_LIMIT_S = 10.0

# What becomes of an input within the template: whether it loses its outer blanks.
_CHANGES: tuple[tuple[bool, Callable[[str], str]], ...] = ((False, str), (True, str.strip))


@dataclass(frozen=True)
class Surroundings:
    """What stands around an input and behind an answer.

    Attributes:
        before, after: text around the input.
        strip_input: whether an input loses its outer blanks.
        answer_lead: blanks between the prompt and an answer.
        end_ids: tokens behind an answer, the one that ends the turn last; empty if the tokenizer's own end mark does.
        is_marked: whether `before` holds the start mark, if there is one.
    """

    before: str
    after: str
    strip_input: bool = False
    answer_lead: str = ""
    end_ids: tuple[int, ...] = ()
    is_marked: bool = False


class _NeverEnds(InvalidInput):
    """A template that it would be no use to try again."""


def chat_surroundings(tokenizer: PreTrainedTokenizerBase) -> Surroundings:
    """What a tokenizer's chat template puts around one user turn and the assistant's answer.

    Content is given as text, and as parts if that does not work; thinking is switched off. Where only a turn with an
    answer shows something before it (an empty thought), it belongs to the prompt.

    Raises:
        InvalidInput: the template fails, changes or repeats the input, or opens a thought; says why.
    """
    try:
        return _place(_Renderer(tokenizer, as_parts=False))
    except _NeverEnds:
        raise
    except InvalidInput as refused:
        try:
            return _place(_Renderer(tokenizer, as_parts=True))
        except InvalidInput:
            raise refused from None


@dataclass(frozen=True)
class _Renderer:
    """Renders a question, or a question and its answer."""

    tokenizer: PreTrainedTokenizerBase
    as_parts: bool

    def __call__(self, question: str, answer: str | None = None) -> str:
        turns = [self._turn("user", question)] + ([] if answer is None else [self._turn("assistant", answer)])

        def render() -> object:
            return self.tokenizer.apply_chat_template(
                turns,  # type: ignore[arg-type]  # content may be a list of parts
                tokenize=False, add_generation_prompt=answer is None, enable_thinking=False,
            )  # fmt: skip

        try:
            rendered = within(RENDER_LIMIT_S, render, name="chat template")
        except NotDone as error:
            raise _NeverEnds(f"has not rendered one user turn within {RENDER_LIMIT_S:g} s") from error
        except Exception as error:  # a template is a program of the model's makers
            raise InvalidInput(f"fails on one user turn ({first_line(error)})") from error
        return str(rendered)

    def _turn(self, role: str, text: str) -> dict[str, object]:
        return {"role": role, "content": [{"type": "text", "text": text}] if self.as_parts else text}


def _place(render: _Renderer) -> Surroundings:
    prompt, whole = render(_QUESTION), render(_QUESTION, _ANSWER)
    for text, sought, part in ((prompt, _QUESTION, "input"), (whole, _ANSWER, "answer")):
        if (n := text.count(sought)) != 1:
            raise InvalidInput(f"repeats the {part}" if n else f"changes the {part} or leaves it out")
    start, _, tail = whole.partition(_ANSWER)
    gap = start.removeprefix(prompt) if start.startswith(prompt) else ""
    shown = gap.rstrip(" ") if gap.strip() else ""  # a blank may become part of the answer's first token
    before, _, after = f"{prompt}{shown}".partition(_QUESTION)
    if found := _OPEN_THOUGHT.search(after):
        raise InvalidInput(f"opens a thought ({found[0]!r}) where the answer should begin")
    rendered = {probe: render(probe) + shown for probe in _PROBES}
    for strips, change in _CHANGES:
        if all(text == f"{before}{change(probe)}{after}" for probe, text in rendered.items()):
            lead, end_ids = gap[len(shown) :], _end_ids(render.tokenizer, tail)
            return Surroundings(before, after, strips, lead, end_ids, is_marked=True)
    probe = next(p for p, text in rendered.items() if text != f"{before}{p}{after}")
    raise InvalidInput(f"changes the input (such as {probe!r}) or what stands around it")


def _end_ids(tokenizer: PreTrainedTokenizerBase, tail: str) -> tuple[int, ...]:
    """The tokens of what follows an answer, up to the first that ends the turn; empty if none does."""
    found = {_end_behind(tokenizer, answer, tail) for answer in _ANSWER_PROBES}
    if len(found) > 1 or None in found:
        raise InvalidInput(f"puts {tail!r} behind an answer, whose tokens depend on the answer")
    return found.pop() or ()


def _end_behind(tokenizer: PreTrainedTokenizerBase, answer: str, tail: str) -> tuple[int, ...] | None:
    """The end behind one answer; None if the answer's own tokens are others with it."""
    alone, whole = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (answer, answer + tail))
    ends = _control_ids(tokenizer)
    place = next((i for i, token in enumerate(whole) if i >= len(alone) and token in ends), None)
    if place is None:
        return ()
    return tuple(whole[len(alone) : place + 1]) if whole[: len(alone)] == alone else None


def _control_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that may end a turn: never made from ordinary text, and no mark for another purpose."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.content.strip().strip("▁")}
    eos = {tokenizer.eos_token_id} - {None}
    return (added - {tokenizer.bos_token_id, tokenizer.unk_token_id}) | eos
