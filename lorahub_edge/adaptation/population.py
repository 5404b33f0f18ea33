"""The losses of many candidates, by one of two routes: side paths beside the frozen base, or injection into it.

Examples of one length share a call, so nothing is padded and no mask is needed; calls stay under a token budget, on a
CPU run in lanes (lanes.py), and on a GPU as CUDA graphs when a shape of call comes again (graphs.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch.nn import functional
from transformers import DynamicCache

from lorahub_edge.adaptation.buckets import CallLimits, bucket_rows
from lorahub_edge.adaptation.graphs import CallGraphs, CallShape, graphs_on
from lorahub_edge.adaptation.head import Head
from lorahub_edge.adaptation.injection import Injection
from lorahub_edge.adaptation.lanes import Lanes, bases_for, n_lanes
from lorahub_edge.adaptation.side_path import SidePath
from lorahub_edge.base import Base
from lorahub_edge.modules import ModuleStack
from lorahub_edge.tasks import EncodedExample
from lorahub_edge.tasks.batches import IGNORED, answer_batch
from lorahub_edge.tasks.lengths import TOKENS_PER_CALL

# How a candidate's delta gets into the base.
ROUTES: dict[str, type[SidePath] | type[Injection]] = {"side": SidePath, "inject": Injection}


@dataclass(frozen=True)
class _Bucket:
    """Examples that go through one call.

    Attributes:
        model_inputs: by name, int64 (b, t).
        labels: int64 (b, t_labels), on the CPU: a look at a GPU's values would make Python wait for it.
        answers: int64 (n,), the labels that carry loss, one example's after the other's.
        places: int64 (n,), where they stand among the b * t_labels positions.
        rows: the examples' places among all.
        tokens: the answers' places among the answer tokens of all examples.
    """

    model_inputs: dict[str, torch.Tensor]
    labels: torch.Tensor
    answers: torch.Tensor
    places: torch.Tensor
    rows: tuple[int, ...]
    tokens: tuple[int, ...]

    @classmethod
    def of(cls, model_inputs: dict[str, torch.Tensor], labels: torch.Tensor, rows: Mapping[int, range]) -> _Bucket:
        """The bucket of inputs and labels, on the inputs' device; `rows` are its examples' places and tokens."""
        device = next(iter(model_inputs.values())).device
        places = torch.nonzero(labels.flatten() != IGNORED)[:, 0]
        answers = labels.flatten()[places].to(device)
        tokens = tuple(token for tokens in rows.values() for token in tokens)
        return cls(model_inputs, labels, answers, places.to(device), tuple(rows), tokens)

    @property
    def n_tokens(self) -> int:
        """Read by the model, answers that a decoder reads included."""
        return sum(value.numel() for value in self.model_inputs.values())

    def parts(self, n: int) -> list[_Bucket]:
        """Its examples in n buckets of about one size, or in one each if they are fewer."""
        size = -(-len(self.rows) // n)
        return [self._part(slice(start, start + size)) for start in range(0, len(self.rows), size)]

    def _part(self, part: slice) -> _Bucket:
        inputs = {name: value[part] for name, value in self.model_inputs.items()}
        ends = torch.cumsum((self.labels != IGNORED).sum(dim=1), 0).tolist()
        tokens = [range(self.tokens[start], self.tokens[end - 1] + 1) for start, end in pairwise([0, *ends])]
        return _Bucket.of(inputs, self.labels[part], dict(zip(self.rows[part], tokens[part], strict=True)))


class PopulationForward:
    """Losses of many candidates on a few examples.

    Args:
        base: the frozen base.
        stack: the modules that candidates compose.
        examples: encoded once.
        tokens_per_call: bound on candidates * examples * tokens that are computed at once (one example alone may exceed
            it).
        evaluate_by: "side" or "inject"; see side_path.py and injection.py.
    """

    def __init__(
        self,
        base: Base,
        stack: ModuleStack,
        examples: Sequence[EncodedExample],
        *,
        tokens_per_call: int | None = None,
        evaluate_by: str = "side",
    ) -> None:
        tokens = tokens_per_call or TOKENS_PER_CALL[base.device.type]
        n = n_lanes(base.device.type, tokens, evaluate_by)
        self._graphs = graphs_on(base.device.type, evaluate_by, stack.composition)
        self._turn = base.turn
        with self._turn:  # so that no other thread's training is in the layers that are looked up
            bases = bases_for(base, n)
            routes: Sequence[SidePath | Injection] = ROUTES[evaluate_by].for_lanes(bases, stack)
            self._places = [_Place(lane, route, self._graphs) for lane, route in zip(bases, routes, strict=True)]
        self._lanes = Lanes(self._places)
        limits = CallLimits.on(base.device.type, tokens, n_lanes=n)
        self._buckets = _buckets(base, examples, limits)
        most_tokens = max(b.n_tokens for b in self._buckets)
        self._n_together = 1 if evaluate_by == "inject" else limits.n_candidates(most_tokens, stack.n_composed)
        self._n_examples = len(examples)
        #: modules that candidates compose
        self.n_modules = len(stack.names)
        #: int64 (n_examples,): answer tokens of each example, its end mark included
        self.n_target_tokens = torch.tensor([len(e.target_ids) for e in examples])
        #: int64 (n_answer_tokens,): the answers themselves, one example's after the other's
        self.answers = torch.tensor([token for e in examples for token in e.target_ids])
        self._head = Head.of(base)

    @contextmanager
    def ready(self) -> Iterator[PopulationForward]:
        """Prepare the base for evaluations inside a with block."""
        with self._lanes:
            yield self

    def recordings(self) -> list[dict[str, Any]]:
        """What became of each shape of call on a GPU, see `CallGraphs.as_record`; empty elsewhere."""
        return [] if self._graphs is None else self._graphs.as_record()

    def negative_log_likelihoods(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Sum over each answer's tokens of -log p(token).

        Args:
            coefficients: float64 (n_candidates, n_modules).

        Returns:
            float64 (n_candidates, n_examples), on the CPU. Does not depend on how candidates are grouped into calls,
            but for float rounding.
        """
        losses = torch.empty(len(coefficients), self._n_examples, dtype=torch.float64)
        self._fill(coefficients, losses)
        return losses

    def evaluate(self, coefficients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The losses, see `negative_log_likelihoods`, and what the output layer read to predict the answers.

        Returns:
            Losses as there; states float32 (n_candidates, n_answer_tokens, features), on the CPU, in the order of
            `answers`: state t predicts answer token t.
        """
        losses = torch.empty(len(coefficients), self._n_examples, dtype=torch.float64)
        states = torch.empty(len(coefficients), len(self.answers), self._head.in_features)
        self._fill(coefficients, losses, states)
        return losses, states

    def _fill(self, coefficients: torch.Tensor, losses: torch.Tensor, states: torch.Tensor | None = None) -> None:
        """Write the losses and, where they are wanted, the states; see `evaluate`."""
        groups = [slice(start, start + self._n_together) for start in range(0, len(coefficients), self._n_together)]
        n_whole = len(groups) - len(groups) % len(self._places)
        jobs = [(group, self._buckets) for group in groups[:n_whole]]
        left = groups[n_whole:]
        if left:  # for fewer lanes than there are: shared by bucket, and a bucket by the lanes that are free still
            parts = [part for bucket in self._buckets for part in bucket.parts(len(self._places) // len(left))]
            jobs += [(group, [part]) for group in left for part in parts]

        def job_for(group: slice, buckets: list[_Bucket]) -> Callable[[_Place], None]:
            of_group = None if states is None else states[group]
            return lambda place: place.fill(losses[group], of_group, coefficients[group], buckets)

        with self._turn:  # held here and not in the lanes: the caller's thread may hold it already
            for place in self._places:
                place.route.begin(coefficients)
            deque(self._lanes.run(job_for(*job) for job in jobs), maxlen=0)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """What the base's output layer makes of states (n, features): float32 (n, vocabulary), on the CPU."""
        with self._turn, torch.inference_mode():
            return self._head.logits(states)


@dataclass(frozen=True)
class _Place:
    """What one lane computes with."""

    base: Base
    route: SidePath | Injection
    graphs: CallGraphs | None

    @torch.inference_mode()
    def fill(
        self, losses: torch.Tensor, states: torch.Tensor | None, coefficients: torch.Tensor, buckets: Sequence[_Bucket]
    ) -> None:
        """Write the buckets' columns of losses (n_candidates, n_examples) and of states; see `evaluate`."""
        prepared = self.route.prepare(coefficients)

        def compute() -> torch.Tensor:
            """Losses, then states, side by side: what a recording gives back is one tensor."""
            with self.route.active(prepared):
                parts = [self._outputs_of(bucket, len(coefficients)) for bucket in buckets]
            return torch.cat([*(part[0] for part in parts), *(part[1] for part in parts)], dim=1)

        rows = [row for bucket in buckets for row in bucket.rows]
        if self.graphs is None:
            computed = compute().cpu()
        else:
            shape = CallShape(len(coefficients), tuple(rows), prepared.data_ptr(), prepared.shape[1])
            computed = self.graphs.run(shape, compute)
        losses[:, rows] = computed[:, : len(rows)]
        if states is not None:
            tokens = [token for bucket in buckets for token in bucket.tokens]
            states[:, tokens] = computed[:, len(rows) :].view(len(states), len(tokens), -1).float()

    def _outputs_of(self, bucket: _Bucket, n_candidates: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (n_candidates, b) and states (n_candidates, b's answer tokens * features), both float64.

        Candidate c owns rows c*b ... c*b + b - 1 of the batch.
        """
        inputs = {k: v.repeat(n_candidates, 1) for k, v in bucket.model_inputs.items()}
        if not self.base.family.is_seq2seq:
            inputs |= {"logits_to_keep": bucket.labels.shape[1], "past_key_values": _NothingKept()}  # type: ignore[dict-item]
        n_labels = bucket.labels.numel()
        starts = torch.arange(0, n_candidates * n_labels, n_labels, device=bucket.places.device)
        places = (starts[:, None] + bucket.places).flatten()
        with self._head_at(places) as states:
            logits = self.base.model(**inputs, use_cache=False).logits[0]
        losses = torch.zeros(n_candidates * n_labels, dtype=torch.float64, device=places.device)
        answers = bucket.answers.repeat(n_candidates)
        losses[places] = functional.cross_entropy(logits.float(), answers, reduction="none").double()
        of_rows = losses.view(n_candidates, *bucket.labels.shape).sum(dim=2)
        return of_rows, states[0].double().view(n_candidates, -1)

    @contextmanager
    def _head_at(self, places: torch.Tensor) -> Iterator[list[torch.Tensor]]:
        """Let the output layer see only these of all positions, int64 (n,): its logits are the largest tensor.

        Yields:
            A list that will hold what it saw: (n, features).
        """
        head = self.base.model.get_submodule(self.base.family.head)
        seen: list[torch.Tensor] = []

        def cut(_: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            seen.append(inputs[0].flatten(0, 1)[places])
            return (seen[0][None],)

        handle = head.register_forward_pre_hook(cut)
        try:
            yield seen
        finally:
            handle.remove()


class _NothingKept(DynamicCache):
    """A cache in name only: without one a decoder-only model asks its device whether rows hold several sequences.

    For the answer Python would wait for a GPU, and while that records, transformers takes them for several.
    """

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return key_states, value_states


def _buckets(base: Base, examples: Sequence[EncodedExample], limits: CallLimits) -> list[_Bucket]:
    groups = bucket_rows(examples, limits, is_seq2seq=base.family.is_seq2seq)
    ends = [0, *accumulate(len(e.target_ids) for e in examples)]
    buckets = []
    for rows in groups:
        batch = answer_batch([examples[row] for row in rows])
        inputs = {name: value.to(base.device) for name, value in batch.model_inputs.items()}
        buckets.append(_Bucket.of(inputs, batch.labels, {row: range(ends[row], ends[row + 1]) for row in rows}))
    return buckets
