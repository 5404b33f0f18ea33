"""Token ids as tensors: where padding stands, which positions carry loss, what a decoder reads, where answers end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import GenerationConfig

from lorahub_edge.base import Base
from lorahub_edge.tasks.prompt import EncodedExample, PromptFormat

IGNORED = -100  # label of positions that carry no loss
_UNREAD = 0  # stands where no mask and no look back reaches: any token would do


@dataclass(frozen=True)
class Batch:
    """Examples with their answers, as a model reads them.

    Attributes:
        model_inputs: by name, int64 (b, t), padded on the right: input_ids; attention_mask where inputs differ in
            length; decoder_input_ids where a decoder of its own answers.
        labels: int64 (b, n): what should follow, IGNORED where that is no answer.
        positions: int64 (n,): of the input that labels stand for; None for all of the decoder's.
    """

    model_inputs: dict[str, torch.Tensor]
    labels: torch.Tensor
    positions: torch.Tensor | None


def answer_batch(examples: Sequence[EncodedExample]) -> Batch:
    """Examples of one base for a forward whose loss covers exactly the answers.

    A decoder of its own reads its start token and the answer. Otherwise input and answer are one sequence; the last
    answer token is only predicted, and labels are kept where any example has one.
    """
    targets = [e.target_ids for e in examples]
    starts = [(e.start_id,) for e in examples if e.start_id is not None]
    if starts:
        decoder_ids = [start + target[:-1] for start, target in zip(starts, targets, strict=True)]
        inputs = _masked([e.input_ids for e in examples]) | {"decoder_input_ids": padded(decoder_ids, _UNREAD)}
        return Batch(inputs, padded(targets, IGNORED), None)
    labels = padded([(IGNORED,) * (len(e.input_ids) - 1) + e.target_ids for e in examples], IGNORED)
    positions = (labels != IGNORED).any(dim=0).nonzero()[:, 0]
    return Batch(_masked([e.input_ids + e.target_ids[:-1] for e in examples]), labels[:, positions], positions)


def prompt_batch(prompts: Sequence[Sequence[int]], format_: PromptFormat) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask, int64 (b, t), of prompts that are to be answered.

    A decoder-only model goes on from the last position, so its padding stands in front.
    """
    is_causal = format_.start_id is None
    ones = [(1,) * len(row) for row in prompts]
    return {
        "input_ids": padded(prompts, format_.pad_id, left=is_causal),
        "attention_mask": padded(ones, 0, left=is_causal),
    }


@torch.inference_mode()
def greedy_tokens(
    base: Base, prompts: Sequence[Sequence[int]], format_: PromptFormat, max_new_tokens: int
) -> list[list[int]]:
    """The base's greedy answer to each prompt, its end included if it came to one."""
    inputs = {name: value.to(base.device) for name, value in prompt_batch(prompts, format_).items()}
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        pad_token_id=format_.pad_id,
        eos_token_id=list(format_.stop_ids),
        decoder_start_token_id=format_.start_id,
    )
    output = base.model.generate(**inputs, generation_config=config)  # type: ignore[operator]
    n_before = inputs["input_ids"].shape[1] if format_.start_id is None else 1
    return [format_.until_stop(row) for row in output[:, n_before:].tolist()]


def padded(rows: Sequence[Sequence[int]], fill: int, *, left: bool = False) -> torch.Tensor:
    """Rows as int64 (b, longest), shorter ones filled up behind or in front."""
    result = torch.full((len(rows), max(map(len, rows))), fill)
    for number, row in enumerate(rows):
        start = result.shape[1] - len(row) if left else 0
        result[number, start : start + len(row)] = torch.tensor(row, dtype=torch.long)
    return result


def _masked(rows: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """input_ids padded on the right, and an attention_mask if anything is."""
    inputs = {"input_ids": padded(rows, _UNREAD)}
    if len(set(map(len, rows))) > 1:
        inputs["attention_mask"] = padded([(1,) * len(row) for row in rows], 0)
    return inputs
