"""From an Example to token ids: the prompt around the input, what ends the answer, and where it is cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorahub_edge.errors import InvalidInput
from lorahub_edge.tasks.chat_template import Surroundings, chat_surroundings
from lorahub_edge.tasks.examples import Example
from lorahub_edge.tasks.lost import warn_of_cuts, warn_of_unknown, warn_of_unreachable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lorahub_edge.base import Base, OpenBase

_MARK = "{input}"


@dataclass(frozen=True)
class EncodedExample:
    """Token ids of one example.

    Attributes:
        input_ids: what the model reads: the encoder's input, or the prompt of a decoder-only model.
        target_ids: the answer and what ends it; the loss covers exactly these.
        was_cut: whether the input or the answer was longer than the model takes.
        start_id: what a decoder of its own reads before the answer; None where the answer follows the input.
    """

    input_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    was_cut: bool
    start_id: int | None = None


@dataclass(frozen=True)
class PromptFormat:
    """How text becomes tokens for one base, and where its answers end.

    Attributes:
        template: what it was made from; see `for_base`.
        before, after: text around the input.
        strip_input: whether the input loses its outer blanks, as in many chat templates.
        answer_lead: blanks that a chat template puts before the answer, beyond its prompt.
        opening_ids, closing_ids: the tokenizer's own marks around the prompt: a start mark, T5's end mark.
        end_ids: what stands behind an answer; its last token ends the turn.
        stop_ids: tokens at any of which an answer ends.
        pad_id: fills up shorter rows.
        start_id: what the decoder reads first; None for decoder-only models.
        max_input_tokens, max_target_tokens: longer ones are cut.
    """

    tokenizer: PreTrainedTokenizerBase
    template: str
    before: str
    after: str
    strip_input: bool
    answer_lead: str
    opening_ids: tuple[int, ...]
    closing_ids: tuple[int, ...]
    end_ids: tuple[int, ...]
    stop_ids: tuple[int, ...]
    pad_id: int
    start_id: int | None
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
                behind it); "chat" the tokenizer's chat template with one user turn and thinking off; "auto" is "chat"
                for decoder-only models whose tokenizer has one, else "plain".
            max_input_tokens: default LoRAHub's 2048, or what the model takes if that is less.
            max_target_tokens: LoRAHub's default.

        Raises:
            InvalidInput: a template without {input}, "chat" without a chat template or with one that does not leave
                the input as it is, a tokenizer without an end mark.
        """
        config: Any = base.model.config
        limit = base.family.default_max_input_tokens
        if not base.family.is_seq2seq:  # input and answer share the model's positions
            max_target_tokens = min(max_target_tokens, config.max_position_embeddings // 2)
            limit = min(limit, config.max_position_embeddings - max_target_tokens)
        around = _surroundings(base, template)
        opening_ids, closing_ids = _marks(base, around)
        end_ids, stop_ids, pad_id = _ends(base, around)
        format_ = cls(
            base.tokenizer, template, around.before, around.after, around.strip_input, around.answer_lead,
            opening_ids, closing_ids, end_ids, stop_ids, pad_id, _start_id(base),
            limit if max_input_tokens is None else max_input_tokens, max_target_tokens,
        )  # fmt: skip
        if format_.max_input_tokens <= (n_tail := len(format_._tail_ids())):
            raise InvalidInput(
                f"max_input_tokens: expected more than {n_tail}, which the prompt's ending takes, "
                f"received {format_.max_input_tokens}"
            )
        return format_

    @classmethod
    def of_record(cls, base: Base | OpenBase, record: Mapping[str, Any]) -> PromptFormat:
        """The format that `as_record` wrote down, whatever the base's chat template renders today.

        Args:
            base: that of the record.
            record: of a run or a merged folder; {} for none. One of an early run has only template and
                max_input_tokens, from which the format is made anew.

        Raises:
            InvalidInput: a record that lacks something or does not fit the base; see also `for_base`.
        """
        names = [f.name for f in dataclasses.fields(cls) if f.name != "tokenizer"]
        is_whole = "before" in record
        values: dict[str, Any] = {}
        for name in (name for name in names if is_whole or name in record):
            value = record.get(name)
            if not _is_valid(name, value, base.model.config.vocab_size):
                raise InvalidInput(f"recorded prompt: '{name}' is {value!r}, which does not fit the base; adapt again")
            values[name] = tuple(value) if isinstance(value, list) else value
        return cls(base.tokenizer, **values) if is_whole else cls.for_base(base, **values)

    def as_record(self) -> dict[str, Any]:
        """All but the tokenizer, as plain data; see `of_record`."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "tokenizer"}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}

    def text(self, input_text: str) -> str:
        """The prompt around an input."""
        return f"{self.before}{self._stripped(input_text)}{self.after}"

    def encode_input(self, input_text: str) -> tuple[list[int], bool]:
        """Token ids of the prompt and whether the input was cut. What stands behind the input survives a cut."""
        ids = [*self.opening_ids, *self._tokens(self.text(input_text)), *self.closing_ids]
        if len(ids) <= self.max_input_tokens:
            return ids, False
        # cut from the right like LoRAHub, but keep the prompt's ending, without which no answer would follow
        tail = self._tail_ids()
        head = [*self.opening_ids, *self._tokens(self.before + self._stripped(input_text))]
        return head[: self.max_input_tokens - len(tail)] + tail, True

    def _tail_ids(self) -> list[int]:
        """What must follow any input: the rest of the prompt, as it is behind one, and the closing marks."""
        return [*self._tokens_behind(f"{self.before}a", self.after), *self.closing_ids]

    def encode(self, example: Example) -> EncodedExample:
        """Token ids of an example."""
        input_ids, input_cut = self.encode_input(example.input)
        target = self._answer_ids(example.target)
        room = self.max_target_tokens - len(self.end_ids)
        cut = input_cut or len(target) > room
        return EncodedExample(tuple(input_ids), (*target[:room], *self.end_ids), cut, self.start_id)

    def encode_all(self, examples: Sequence[Example]) -> list[EncodedExample]:
        """Token ids of several examples."""
        return [self.encode(e) for e in examples]

    def encode_examples(self, examples: Sequence[Example], what: str) -> tuple[list[EncodedExample], dict[str, int]]:
        """Token ids of several examples, with warnings that count what was lost of them; the counts, by name."""
        encoded = self.encode_all(examples)
        prompts, inputs = [e.input_ids for e in encoded], [e.input for e in examples]
        counts = {
            "n_cut": warn_of_cuts(self, (e.was_cut for e in encoded), what),
            "n_unknown": warn_of_unknown(self, prompts, inputs, what),
            "n_unreachable": warn_of_unreachable(self, [e.target for e in examples], what),
        }
        return encoded, counts

    def encode_inputs(self, texts: Sequence[str], what: str) -> list[list[int]]:
        """Token ids of several prompts, with warnings that count what was lost among `what`."""
        encoded = [self.encode_input(text) for text in texts]
        prompts = [ids for ids, _ in encoded]
        warn_of_cuts(self, (was_cut for _, was_cut in encoded), what)
        warn_of_unknown(self, prompts, texts, what)
        return prompts

    def until_stop(self, token_ids: Sequence[int]) -> list[int]:
        """An answer's tokens, up to the one that ends it."""
        stop = next((i for i, token in enumerate(token_ids) if token in self.stop_ids), len(token_ids))
        return list(token_ids[: stop + 1])

    def answer_text(self, token_ids: Sequence[int]) -> str:
        """An answer's tokens as text, without special ones and outer blanks."""
        return str(self.tokenizer.decode(self.until_stop(token_ids), skip_special_tokens=True)).strip()

    def given_back(self, answer: str) -> str:
        """What becomes of an answer that a model gives token for token."""
        return self.answer_text(self._answer_ids(answer))

    def _stripped(self, input_text: str) -> str:
        return input_text.strip() if self.strip_input else input_text

    def _answer_ids(self, answer: str) -> list[int]:
        """An answer is tokenised alone, unless a blank before it becomes part of its first token."""
        lead = self.answer_lead
        return self._tokens_behind(self.after, lead + answer) if lead else self._tokens(answer)

    def _tokens_behind(self, head: str, text: str) -> list[int]:
        """Tokens of a text as they are behind another one, or alone where the two share a token."""
        before, whole = self._tokens(head), self._tokens(head + text)
        return whole[len(before) :] if whole[: len(before)] == before else self._tokens(text)

    def _tokens(self, text: str) -> list[int]:
        return _tokens(self.tokenizer, text)


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Of a text as it is, without the tokenizer's own marks."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _surroundings(base: Base | OpenBase, template: str) -> Surroundings:
    has_chat = bool(getattr(base.tokenizer, "chat_template", None))
    if template == "chat" or (template == "auto" and has_chat and not base.family.is_seq2seq):
        if not has_chat:
            raise InvalidInput(f"prompt 'chat': base '{base.source.spec}' has no chat template; use plain or a text")
        try:
            return chat_surroundings(base.tokenizer)
        except InvalidInput as error:
            raise InvalidInput(
                f"base '{base.source.spec}': its chat template {error}; give --prompt plain or a text"
            ) from error
    text = template if template not in ("auto", "plain") else _MARK if base.family.is_seq2seq else f"{_MARK}\n"
    if text.count(_MARK) != 1:
        raise InvalidInput(f"prompt '{template}': expected auto, plain, chat or a text with one {{input}} in it")
    before, after = text.split(_MARK)
    return Surroundings(before, after)


def _marks(base: Base | OpenBase, around: Surroundings) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the tokenizer itself puts before and behind a prompt.

    A decoder-only model goes on from the prompt, so no end mark stands there; a chat template brings its own start
    mark, as may any text.
    """
    bare, marked = _tokens(base.tokenizer, "a"), list(base.tokenizer("a")["input_ids"])
    start = next((i for i in range(len(marked)) if marked[i : i + len(bare)] == bare), None)
    if start is None:
        raise InvalidInput(f"base '{base.source.spec}': its tokenizer changes a text's tokens when it marks its ends")
    opening, closing = tuple(marked[:start]), tuple(marked[start + len(bare) :])
    if base.family.is_seq2seq:
        return opening, closing
    is_begun = around.is_marked or tuple(_tokens(base.tokenizer, around.before)[: len(opening)]) == opening
    return () if is_begun else opening, ()


def _ends(base: Base | OpenBase, around: Surroundings) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """What stands behind an answer, the tokens that stop one, and the padding."""
    eos, pad = base.tokenizer.eos_token_id, base.tokenizer.pad_token_id
    own = () if eos is None else (int(eos),)
    end_ids = own if base.family.is_seq2seq else around.end_ids or own
    if not end_ids:
        raise InvalidInput(f"base '{base.source.spec}': its tokenizer names no token that ends a text (eos_token)")
    has_row = pad is not None and pad < base.model.config.vocab_size  # some tokenizers add a mark of their own
    return end_ids, tuple(sorted({*end_ids[-1:], *own})), int(pad) if has_row else end_ids[-1]


def _start_id(base: Base | OpenBase) -> int | None:
    if not base.family.is_seq2seq:
        return None
    start = getattr(base.model.config, "decoder_start_token_id", None)
    if start is None:
        raise InvalidInput(f"base '{base.source.spec}': its config names no decoder_start_token_id and no pad_token_id")
    return int(start)


def _is_valid(name: str, value: Any, n_tokens: int) -> bool:
    """Whether a recorded value is what its name says."""
    if name in ("template", "before", "after", "answer_lead"):
        return isinstance(value, str)
    if name == "strip_input":
        return isinstance(value, bool)
    if name.startswith("max_"):
        return type(value) is int and value > 0
    if name == "start_id" and value is None:
        return True
    ids = value if name.endswith("_ids") else [value]
    return isinstance(ids, list) and all(type(i) is int and 0 <= i < n_tokens for i in ids)
