"""From an Example to token ids: the prompt around the input, what ends the answer, and where it is cut."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from lorahub_edge.base import Base, OpenBase
from lorahub_edge.errors import InvalidInput, LorahubEdgeWarning, first_line
from lorahub_edge.tasks.examples import Example

_MARK = "{input}"
_SENTINEL = "\x1aANSWER\x1a"


class InputsWereCut(LorahubEdgeWarning):
    """Texts were longer than the model takes."""


@dataclass(frozen=True)
class EncodedExample:
    """Token ids of one example.

    Attributes:
        input_ids: what the model reads: the encoder's input, or the prompt of a decoder-only model.
        target_ids: the answer and what ends it; the loss covers exactly these.
        was_cut: whether the input or the answer was longer than the model takes.
    """

    input_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    was_cut: bool


@dataclass(frozen=True)
class PromptFormat:
    """How text becomes tokens for one base.

    Attributes:
        before, after: text around the input.
        end_ids: tokens that end an answer.
        add_special_tokens: whether the tokenizer adds its own at the prompt (T5's end mark, a start mark).
        max_input_tokens, max_target_tokens: longer ones are cut.
    """

    tokenizer: PreTrainedTokenizerBase
    before: str
    after: str
    end_ids: tuple[int, ...]
    add_special_tokens: bool
    max_input_tokens: int
    max_target_tokens: int

    @classmethod
    def for_base(
        cls,
        base: Base | OpenBase,
        *,
        template: str = "auto",
        max_input_tokens: int | None = None,
        max_target_tokens: int = 256,
    ) -> PromptFormat:
        """The format that suits a base.

        Args:
            base: opened or loaded; its tokenizer, family and config are asked.
            template: text with {input} in it; "plain" is the input itself (decoder-only models get a line break
                behind it); "chat" the tokenizer's chat template with one user turn; "auto" is "chat" for decoder-only
                models whose tokenizer has one, else "plain".
            max_input_tokens: default LoRAHub's 2048, or what the model takes if that is less.
            max_target_tokens: LoRAHub's default.

        Raises:
            InvalidInput: a template without {input}, "chat" without a chat template, a tokenizer without an end mark.
        """
        tokenizer = base.tokenizer
        before, after, end = _surroundings(base, template)
        if base.family.is_seq2seq:
            add_special, end_ids = True, (tokenizer.eos_token_id,)
        else:
            add_special = not (tokenizer.bos_token and before.startswith(tokenizer.bos_token))
            end_ids = tuple(tokenizer(end, add_special_tokens=False)["input_ids"]) or (tokenizer.eos_token_id,)
        if None in end_ids:
            raise InvalidInput(f"base '{base.source.spec}': its tokenizer names no token that ends a text (eos_token)")
        limit = base.family.default_max_input_tokens
        if not base.family.is_seq2seq:  # input and answer share the model's positions
            n_positions = base.model.config.max_position_embeddings
            max_target_tokens = min(max_target_tokens, n_positions // 2)
            limit = min(limit, n_positions - max_target_tokens)
        limit = limit if max_input_tokens is None else max_input_tokens
        format_ = cls(tokenizer, before, after, end_ids, add_special, limit, max_target_tokens)
        if limit <= (n_tail := len(format_._tail_ids())):
            raise InvalidInput(
                f"max_input_tokens: expected more than {n_tail}, which the prompt's ending takes, received {limit}"
            )
        return format_

    def text(self, input_text: str) -> str:
        """The prompt around an input."""
        return f"{self.before}{input_text}{self.after}"

    def encode_input(self, input_text: str) -> tuple[list[int], bool]:
        """Token ids of the prompt and whether the input was cut. What stands behind the input survives a cut."""
        ids = self._ids(self.text(input_text))
        if len(ids) <= self.max_input_tokens:
            return ids, False
        # cut from the right like LoRAHub, but keep the prompt's ending, without which no answer would follow
        tail = self._tail_ids()
        head = self._ids(self.before + input_text)
        if self.add_special_tokens and self.end_ids and head[-len(self.end_ids) :] == list(self.end_ids):
            head = head[: -len(self.end_ids)]
        return head[: self.max_input_tokens - len(tail)] + tail, True

    def _tail_ids(self) -> list[int]:
        """What must follow any input: the rest of the prompt, and T5's end mark but no start mark."""
        ends = self.add_special_tokens and self._ids("")[-1:] == list(self.end_ids)
        return [*self.tokenizer(self.after, add_special_tokens=False)["input_ids"], *(self.end_ids if ends else ())]

    def encode(self, example: Example) -> EncodedExample:
        """Token ids of an example."""
        input_ids, input_cut = self.encode_input(example.input)
        target = self.tokenizer(example.target, add_special_tokens=False)["input_ids"]
        room = self.max_target_tokens - len(self.end_ids)
        cut = input_cut or len(target) > room
        return EncodedExample(tuple(input_ids), (*target[:room], *self.end_ids), cut)

    def encode_all(self, examples: Sequence[Example]) -> list[EncodedExample]:
        """Token ids of several examples."""
        return [self.encode(e) for e in examples]

    def encode_inputs(self, texts: Sequence[str], what: str) -> list[list[int]]:
        """Token ids of several prompts, with a warning that counts the cut ones among `what`."""
        encoded = [self.encode_input(text) for text in texts]
        self.warn_of_cuts((was_cut for _, was_cut in encoded), what)
        return [ids for ids, _ in encoded]

    def warn_of_cuts(self, were_cut: Iterable[bool], what: str) -> int:
        """Warn if any text was cut, with how many of how many; returns the count."""
        flags = list(were_cut)
        if n_cut := sum(flags):
            message = (
                f"{n_cut} of {len(flags)} {what} are longer than the model takes and were cut to "
                f"{self.max_input_tokens} input and {self.max_target_tokens} answer tokens"
            )
            warnings.warn(message, InputsWereCut, stacklevel=3)
        return n_cut

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=self.add_special_tokens)["input_ids"])


def _surroundings(base: Base | OpenBase, template: str) -> tuple[str, str, str]:
    """Text before the input, between input and answer, and behind the answer."""
    has_chat = bool(getattr(base.tokenizer, "chat_template", None))
    if template == "auto":
        template = "chat" if has_chat and not base.family.is_seq2seq else "plain"
    if template == "chat":
        if not has_chat:
            raise InvalidInput(f"prompt 'chat': base '{base.source.spec}' has no chat template; use plain or a text")
        try:
            return _chat_surroundings(base.tokenizer)
        except Exception as error:  # a template is a program of the model's makers
            raise InvalidInput(
                f"base '{base.source.spec}': its chat template fails on one user turn ({first_line(error)}); "
                "give --prompt plain or a text"
            ) from error
    if template == "plain":
        template = _MARK if base.family.is_seq2seq else f"{_MARK}\n"
    if template.count(_MARK) != 1:
        raise InvalidInput(f"prompt '{template}': expected auto, plain, chat or a text with one {{input}} in it")
    before, after = template.split(_MARK)
    end = "" if base.family.is_seq2seq else (base.tokenizer.eos_token or "")
    return before, after, end


def _chat_surroundings(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str, str]:
    user = {"role": "user", "content": _MARK}
    answered = [user, {"role": "assistant", "content": _SENTINEL}]
    prompt = str(tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True))
    whole = str(tokenizer.apply_chat_template(answered, tokenize=False))
    before, _, after = prompt.partition(_MARK)
    # some templates put a line break behind the token that ends a turn; the model stops at the token
    return before, after, whole.partition(_SENTINEL)[2].rstrip()
