"""Greedy answers of a base with one composed module beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch

from lorahub_edge.adaptation.lanes import Lanes, bases_for, n_lanes
from lorahub_edge.adaptation.side_path import SidePath
from lorahub_edge.base import Base
from lorahub_edge.modules import ModuleStack
from lorahub_edge.tasks import PromptFormat
from lorahub_edge.tasks.batches import greedy_tokens
from lorahub_edge.tasks.lengths import TOKENS_PER_CALL, batches_of

DEFAULT_BATCH_SIZE = 16


def greedy_answers(
    base: Base,
    stack: ModuleStack,
    coefficients: torch.Tensor,
    encoded: Sequence[Sequence[int]],
    prompt: PromptFormat,
    *,
    max_new_tokens: int,
    batch_size: int = DEFAULT_BATCH_SIZE,
    tokens_per_call: int | None = None,
    on_answered: Callable[[int], None] | None = None,
) -> list[str]:
    """Answer each input, in order.

    Args:
        base, stack, coefficients: what answers; coefficients is float (n_modules,), all zero for the base alone.
        encoded: token ids of the prompts; see `PromptFormat.encode_inputs`.
        prompt: says what ends an answer.
        max_new_tokens: answers are cut here.
        batch_size: inputs per call, taken in order of length so that little is padded.
        tokens_per_call: bound on the tokens that are computed at once, answers included, whatever the batch size (one
            input alone may exceed it): caches grow with them.
        on_answered: called with the number of inputs answered by each call.
    """
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    answers = [""] * len(encoded)
    tokens = tokens_per_call or TOKENS_PER_CALL[base.device.type]
    n = max(1, min(n_lanes(base.device.type, tokens), len(encoded)))
    lengths = [len(encoded[i]) + max_new_tokens for i in order]
    batches = list(batches_of(lengths, min(batch_size, -(-len(order) // n)), tokens // n))

    def job_for(rows: list[int]) -> Callable[[Base], list[str]]:
        prompts = [encoded[i] for i in rows]
        return lambda place: [*map(prompt.answer_text, greedy_tokens(place, prompts, prompt, max_new_tokens))]

    with base.turn, ExitStack() as stack_of:
        bases = bases_for(base, n)
        for side_path in SidePath.for_lanes(bases, stack):
            stack_of.enter_context(side_path.active(side_path.prepare(coefficients[None])))
        lanes = stack_of.enter_context(Lanes(bases))
        groups = [order[batch] for batch in batches]
        for rows, texts in zip(groups, lanes.run(map(job_for, groups)), strict=True):
            for row, text in zip(rows, texts, strict=True):
                answers[row] = text
            if on_answered is not None:
                on_answered(len(rows))
    return answers
