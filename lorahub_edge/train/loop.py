"""The training loop: batches, their loss, AdamW. Knows nothing of what is trained or where it is kept."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch.nn import functional

from lorahub_edge.base import Base
from lorahub_edge.errors import LorahubEdgeError
from lorahub_edge.tasks import EncodedExample
from lorahub_edge.tasks.batches import IGNORED, answer_batch
from lorahub_edge.train.settings import TrainSettings

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
        if not math.isfinite(losses[-1]):
            raise LorahubEdgeError(f"train: the loss became {losses[-1]} at step {step + 1}; lower the learning rate")
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


def batch_loss(model: Any, base: Base, examples: Sequence[EncodedExample]) -> torch.Tensor:
    """Cross-entropy per answer token of a padded batch."""
    batch = answer_batch(examples)
    inputs = batch.model_inputs
    if batch.positions is not None:  # the head runs where an answer is: it is the largest product of a small model
        inputs["logits_to_keep"] = batch.positions
    logits = model(**{k: v.to(base.device) for k, v in inputs.items()}, use_cache=False).logits
    labels = batch.labels.to(base.device)
    return functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)
