"""One forward for many candidates: the frozen base computes once per layer for all of them, and each candidate adds
its own low-rank side path y += scaling * (x @ A.T) @ B.T at every target.

Examples of one length share a call, so nothing is padded and no mask is needed; calls stay under a token budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from lorahub_edge.base import Base
from lorahub_edge.base.int8 import Int8Linear, SideFactors
from lorahub_edge.kernels import memory
from lorahub_edge.modules import ModuleStack
from lorahub_edge.tasks import EncodedExample

_IGNORED = -100  # label of positions that carry no loss

# Rows of activations per call. A CPU core is saturated by a few hundred tokens, and more fall out of its caches
# (docs/log.md); a GPU needs more.
TOKENS_PER_CALL = {"cpu": 640, "cuda": 8192}


class SidePath:
    """Adds the composed deltas to the outputs of the targets, for as long as `active` holds factors.

    Int8 layers add them as they scale their product; float layers get a hook, set once. Between evaluations only the
    factors change. The base's tensors are never touched.
    """

    def __init__(self, base: Base, stack: ModuleStack) -> None:
        self._targets = stack.targets
        self._layers = [base.model.get_submodule(target.name) for target in stack.targets]
        self._factors: dict[int, SideFactors] = {}
        self._dtype = _compute_dtype(base)

    @contextmanager
    def installed(self) -> Iterator[SidePath]:
        """Keep the hooks on the float layers inside a with block."""
        handles = [
            layer.register_forward_hook(self._hook(i))
            for i, layer in enumerate(self._layers)
            if not isinstance(layer, Int8Linear)
        ]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def active(self, composed: torch.Tensor) -> Iterator[None]:
        """Use composed factors (n_candidates, n_values); the leading axis of every input must be a multiple of it."""
        for i, (target, layer) in enumerate(zip(self._targets, self._layers, strict=True)):
            A_t = target.A(composed).to(self._dtype).transpose(1, 2)
            self._factors[i] = SideFactors(A_t, target.B(composed).contiguous(), target.scaling)
            if isinstance(layer, Int8Linear):
                layer.side = self._factors[i]
        try:
            yield
        finally:
            self._factors.clear()
            for layer in self._layers:
                if isinstance(layer, Int8Linear):
                    layer.side = None
                    layer.inputs.forget()

    def _hook(self, index: int) -> Any:
        def add_delta(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> Any:
            side = self._factors.get(index)
            if side is None:
                return None
            y = output.view(len(side.B), -1, output.shape[-1])
            return torch.baddbmm(y, side.inner(inputs[0]), side.B.mT.to(y.dtype)).view(output.shape)

        return add_delta


@dataclass(frozen=True)
class _Bucket:
    """Examples that go through one call: inputs (b, t), labels (b, t_labels), and their places among all examples."""

    model_inputs: dict[str, torch.Tensor]
    labels: torch.Tensor
    rows: tuple[int, ...]
    n_tokens: int


class PopulationForward:
    """Losses of many candidates on a few examples.

    Args:
        base: the frozen base.
        stack: the modules that candidates compose.
        examples: encoded once.
        tokens_per_call: bound on candidates * examples * tokens in one forward (one example alone may exceed it).
    """

    def __init__(
        self, base: Base, stack: ModuleStack, examples: Sequence[EncodedExample], *, tokens_per_call: int | None = None
    ) -> None:
        self._base = base
        self._stack = stack
        self._side_path = SidePath(base, stack)
        self._tokens_per_call = tokens_per_call or TOKENS_PER_CALL[base.device.type]
        self._buckets = _buckets(base, examples, self._tokens_per_call)
        self._n_examples = len(examples)
        self._room: torch.Tensor | None = None
        #: int64 (n_examples,): answer tokens of each example, its end mark included
        self.n_target_tokens = torch.tensor([len(e.target_ids) for e in examples])

    @contextmanager
    def ready(self) -> Iterator[PopulationForward]:
        """Prepare the base for evaluations inside a with block."""
        with self._side_path.installed():
            yield self

    @torch.inference_mode()
    def negative_log_likelihoods(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Sum over each answer's tokens of -log p(token).

        Args:
            coefficients: float64 (n_candidates, n_modules).

        Returns:
            float64 (n_candidates, n_examples), on the CPU. Does not depend on how candidates are grouped into calls,
            but for float rounding.
        """
        result = torch.empty(len(coefficients), self._n_examples, dtype=torch.float64)
        n_together = max(1, self._tokens_per_call // max(b.n_tokens for b in self._buckets))
        for start in range(0, len(coefficients), n_together):
            some = coefficients[start : start + n_together]
            losses = result[start : start + n_together]
            with self._side_path.active(self._composed(some)):
                for bucket in self._buckets:
                    losses[:, list(bucket.rows)] = self._bucket_losses(bucket, len(some))
        return result

    def _composed(self, coefficients: torch.Tensor) -> torch.Tensor:
        """The candidates' factors, in memory that the next call uses again: fresh pages cost as much as composing."""
        n_candidates = len(coefficients)
        if self._room is None or len(self._room) < n_candidates:
            shape = (n_candidates, self._stack.n_values)
            device = self._stack.values.device
            on_cpu = device.type == "cpu"
            self._room = memory.zeros(shape, torch.float32) if on_cpu else torch.empty(shape, device=device)
        return self._stack.compose(coefficients, out=self._room[:n_candidates])

    def _bucket_losses(self, bucket: _Bucket, n_candidates: int) -> torch.Tensor:
        """float64 (n_candidates, b): candidate c owns rows c*b ... c*b + b - 1 of the batch."""
        inputs = {k: v.repeat(n_candidates, 1) for k, v in bucket.model_inputs.items()}
        if not self._base.family.is_seq2seq:  # the head runs at label positions only
            inputs["logits_to_keep"] = bucket.labels.shape[1]  # type: ignore[assignment]
        logits = self._base.model(**inputs, use_cache=False).logits
        labels = bucket.labels.repeat(n_candidates, 1)
        losses = functional.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), ignore_index=_IGNORED, reduction="none"
        )
        return losses.view(n_candidates, -1, labels.shape[1]).double().sum(dim=2).cpu()


def _compute_dtype(base: Base) -> torch.dtype:
    return next(p.dtype for p in base.model.parameters() if p.is_floating_point())


def _buckets(base: Base, examples: Sequence[EncodedExample], tokens_per_call: int) -> list[_Bucket]:
    """Examples of equal length together, as many as the token budget allows."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, example in enumerate(examples):
        # a decoder-only model reads input and answer as one sequence; padding behind it is invisible to it, but the
        # label positions must line up
        n_input, n_target = len(example.input_ids), len(example.target_ids)
        key = (n_input,) if base.family.is_seq2seq else (n_input, n_target)
        groups.setdefault(key, []).append(row)
    make = _seq2seq_bucket if base.family.is_seq2seq else _causal_bucket
    buckets = []
    for group in groups.values():
        length = max(len(examples[row].input_ids) + len(examples[row].target_ids) for row in group)
        size = max(1, tokens_per_call // length)
        for start in range(0, len(group), size):
            rows = group[start : start + size]
            buckets.append(make(base, [examples[row] for row in rows], tuple(rows)))
    return buckets


def _seq2seq_bucket(base: Base, examples: Sequence[EncodedExample], rows: tuple[int, ...]) -> _Bucket:
    """The decoder sees only what is before a token, so shorter answers are padded behind their end."""
    length = max(len(e.target_ids) for e in examples)
    config = base.model.config
    labels = torch.full((len(examples), length), _IGNORED)
    decoder_input_ids = torch.full((len(examples), length), config.pad_token_id)
    decoder_input_ids[:, 0] = config.decoder_start_token_id
    for row, example in enumerate(examples):
        target = torch.tensor(example.target_ids)
        labels[row, : len(target)] = target
        decoder_input_ids[row, 1 : len(target)] = target[:-1]
    input_ids = torch.tensor([e.input_ids for e in examples])
    inputs = {"input_ids": input_ids.to(base.device), "decoder_input_ids": decoder_input_ids.to(base.device)}
    return _Bucket(inputs, labels.to(base.device), rows, input_ids.numel() + labels.numel())


def _causal_bucket(base: Base, examples: Sequence[EncodedExample], rows: tuple[int, ...]) -> _Bucket:
    """The last target token is only predicted, never read; the positions before the targets predict them."""
    input_ids = torch.tensor([e.input_ids + e.target_ids[:-1] for e in examples])
    labels = torch.tensor([e.target_ids for e in examples])
    return _Bucket({"input_ids": input_ids.to(base.device)}, labels.to(base.device), rows, input_ids.numel())
