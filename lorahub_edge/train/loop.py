"""The training loop: batches, their loss, AdamW. Knows nothing of what is trained or where it is kept."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch.nn import functional

from lorahub_edge.base import Base
from lorahub_edge.errors import LorahubEdgeError
from lorahub_edge.tasks import EncodedExample
from lorahub_edge.train.settings import TrainSettings

_IGNORED = -100

# Called with (step, total steps, loss) after each step.
OnStep: TypeAlias = "Callable[[int, int, float], None]"


def descend(
    model: Any,
    base: Base,
    encoded: list[EncodedExample],
    settings: TrainSettings,
    on_step: OnStep | None = None,
) -> list[float]:
    """Lower the loss of the parameters that require a gradient; returns the loss of each step."""
    steps_per_epoch = -(-len(encoded) // settings.batch_size)
    total = min(settings.epochs * steps_per_epoch, settings.max_steps or 10**12)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
    model.train()
    losses: list[float] = []
    for step, rows in zip(range(total), _batches(len(encoded), settings), strict=False):
        loss = batch_loss(model, base, [encoded[i] for i in rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if losses[-1] != losses[-1]:
            raise LorahubEdgeError(f"train: the loss became NaN at step {step + 1}; lower the learning rate")
        if on_step is not None:
            on_step(step + 1, total, losses[-1])
    return losses


def _batches(n_rows: int, settings: TrainSettings) -> Iterator[list[int]]:
    """Endless batches of row numbers; each epoch in a new order."""
    rng = random.Random(settings.seed)
    while True:
        order = rng.sample(range(n_rows), n_rows)
        for start in range(0, n_rows, settings.batch_size):
            yield order[start : start + settings.batch_size]


def batch_loss(model: Any, base: Base, batch: Sequence[EncodedExample]) -> torch.Tensor:
    """Cross-entropy per answer token of a padded batch."""
    tensors = seq2seq_batch(batch) if base.family.is_seq2seq else causal_batch(batch)
    labels = tensors.pop("labels").to(base.device)
    if base.family.is_seq2seq:
        decoder_input_ids = labels.new_full(labels.shape, base.model.config.pad_token_id)
        decoder_input_ids[:, 0] = base.model.config.decoder_start_token_id
        decoder_input_ids[:, 1:] = labels[:, :-1].clamp(min=0)
        tensors["decoder_input_ids"] = decoder_input_ids
    else:  # the head runs where an answer is, not over the whole prompt: it is the largest product of a small model
        keep = (labels != _IGNORED).any(dim=0).nonzero()[:, 0]
        tensors["logits_to_keep"], labels = keep, labels[:, keep]
    logits = model(**{k: v.to(base.device) for k, v in tensors.items()}, use_cache=False).logits
    return functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=_IGNORED)


def seq2seq_batch(batch: Sequence[EncodedExample]) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask (b, t), labels (b, t_target), padded on the right."""
    input_ids = _padded([e.input_ids for e in batch], 0)
    mask = _padded([(1,) * len(e.input_ids) for e in batch], 0)
    return {"input_ids": input_ids, "attention_mask": mask, "labels": _padded([e.target_ids for e in batch], _IGNORED)}


def causal_batch(batch: Sequence[EncodedExample]) -> dict[str, torch.Tensor]:
    """input_ids, attention_mask and labels (b, t); labels[i] is what follows input_ids[i], answers only."""
    sequences = [e.input_ids + e.target_ids[:-1] for e in batch]
    labels = [(_IGNORED,) * (len(e.input_ids) - 1) + e.target_ids for e in batch]
    mask = _padded([(1,) * len(s) for s in sequences], 0)
    return {"input_ids": _padded(sequences, 0), "attention_mask": mask, "labels": _padded(labels, _IGNORED)}


def _padded(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    result = torch.full((len(rows), max(map(len, rows))), fill)
    for i, row in enumerate(rows):
        result[i, : len(row)] = torch.tensor(row)
    return result
