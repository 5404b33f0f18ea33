"""The objective: loss on the examples plus a penalty on the coefficients, each kept as its own number.

Two published forms, by name, since the paper and the code released with it do not compute the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lorahub_edge.adaptation.population import PopulationForward
from lorahub_edge.adaptation.settings import SearchSettings
from lorahub_edge.adaptation.surrogate import best_mixture
from lorahub_edge.base import Base
from lorahub_edge.modules import ModuleStack
from lorahub_edge.search import SCREEN_BATCH, GuidedSearcher
from lorahub_edge.tasks import EncodedExample

Array = npt.NDArray[np.float64]

# LoRAHub's script evaluates its examples in batches of this size.
LORAHUB_BATCH_SIZE = 5


@dataclass(frozen=True)
class ObjectiveForm:
    """How token losses and coefficients become one number.

    Attributes:
        name: as presets and the manifest carry it.
        formula: for people.
        loss: (negative log-likelihoods (c, e), target tokens (e,)) -> (c,).
        l1_penalty: (coefficients (c, n), alpha) -> (c,).
    """

    name: str
    formula: str
    loss: Callable[[Array, Array], Array]
    l1_penalty: Callable[[Array, float], Array]


def mean_token_loss(nll: Array, n_tokens: Array) -> Array:
    """Cross-entropy per answer token over all examples: what a transformers model returns for them as one batch."""
    loss: Array = nll.sum(axis=1) / n_tokens.sum()
    return loss


def lorahub_code_loss(nll: Array, n_tokens: Array) -> Array:
    """Sum over batches of the batch's mean token loss, divided once more by the number of examples."""
    n_examples = len(n_tokens)
    starts = range(0, n_examples, LORAHUB_BATCH_SIZE)
    batches = [slice(s, s + LORAHUB_BATCH_SIZE) for s in starts]
    loss: Array = np.sum([mean_token_loss(nll[:, b], n_tokens[b]) for b in batches], axis=0) / n_examples
    return loss


FORMS: Mapping[str, ObjectiveForm] = {
    form.name: form
    for form in (
        ObjectiveForm(
            "published",
            "mean cross-entropy per token + alpha * sum |c|",
            mean_token_loss,
            lambda c, alpha: alpha * np.abs(c).sum(axis=1),
        ),
        ObjectiveForm(
            "lorahub-code",
            "sum over batches of 5 of the mean cross-entropy / n_examples + alpha * mean |c|",
            lorahub_code_loss,
            lambda c, alpha: alpha * np.abs(c).mean(axis=1),
        ),
    )
}


@dataclass(frozen=True)
class Value:
    """What one candidate scored.

    Attributes:
        mean_loss: cross-entropy per answer token; comparable between all forms, presets and controls.
        loss: the form's own loss term.
        l1_penalty: the form's penalty term.
        example_losses: cross-entropy per answer token of each example, in the order drawn; `mean_loss` is their mean
            weighted by answer tokens.
        objective: loss + l1_penalty, what the search minimises.
    """

    mean_loss: float
    loss: float
    l1_penalty: float
    example_losses: tuple[float, ...]

    @property
    def objective(self) -> float:
        """Lower is better."""
        return self.loss + self.l1_penalty


class Objective:
    """Callable for the search: coefficients (n_candidates, n_modules) -> one Value each.

    A point is computed once: controls and search often ask for the same, and equal coefficients give equal losses.

    Args:
        forward: computes the token losses.
        form: which published form.
        alpha: weight of the L1 penalty.
        computed_before: by an earlier start: bytes of the coefficients -> value.
        keeps_states: whether `mixture` will be asked for: what it needs is then kept as modules are looked at alone.
    """

    def __init__(
        self,
        forward: PopulationForward,
        form: ObjectiveForm,
        alpha: float,
        *,
        computed_before: Mapping[bytes, Value] | None = None,
        keeps_states: bool = False,
    ) -> None:
        self._forward = forward
        self._form = form
        self._alpha = alpha
        self._n_tokens = forward.n_target_tokens.numpy().astype(np.float64)
        self._known: dict[bytes, Value] = {}
        self._computed_before = computed_before or {}
        self._keeps_states = keeps_states
        self._states: dict[bytes, torch.Tensor] = {}  # of the base and of modules alone

    def __call__(self, coefficients: Array) -> list[Value]:
        keys = [row.tobytes() for row in coefficients]
        new = [i for i, key in enumerate(keys) if key not in self._known]
        if new:
            new_keys = [keys[i] for i in new]
            self._known.update(zip(new_keys, self._values(new_keys, coefficients[new]), strict=True))
        return [self._known[key] for key in keys]

    def _values(self, keys: list[bytes], coefficients: Array) -> list[Value]:
        """From an earlier start if it had them all: candidates share calls, and other companions round otherwise."""
        if all(key in self._computed_before for key in keys):
            return [self._computed_before[key] for key in keys]
        return self._compute(coefficients)

    def mixture(self, bound: float) -> Array:
        """Which modules the surrogate would mix; see `best_mixture`. After a screen it costs no evaluation.

        Args:
            bound: half width of the box: modules are looked at alone at 1, or here if that is less.
        """
        n, step = self._forward.n_modules, min(1.0, bound)
        alone = np.concatenate([np.zeros((1, n)), step * np.eye(n)])
        missing = np.array([row for row in alone if row.tobytes() not in self._states])
        for start in range(0, len(missing), SCREEN_BATCH):  # of an earlier start only the losses are known
            self._evaluate(missing[start : start + SCREEN_BATCH])
        states = torch.stack([self._states[row.tobytes()] for row in alone])
        return best_mixture(states, self._forward.answers, self._forward.logits, step=step)

    def recordings(self) -> list[dict[str, Any]]:
        """See `PopulationForward.recordings`."""
        return self._forward.recordings()

    def _compute(self, coefficients: Array) -> list[Value]:
        by_forward = self._evaluate if self._keeps_states else self._losses
        nll = by_forward(coefficients).numpy()
        columns = (
            mean_token_loss(nll, self._n_tokens).tolist(),
            self._form.loss(nll, self._n_tokens).tolist(),
            self._form.l1_penalty(coefficients, self._alpha).tolist(),
            map(tuple, (nll / self._n_tokens).tolist()),
        )
        return [Value(*row) for row in zip(*columns, strict=True)]

    def _losses(self, coefficients: Array) -> torch.Tensor:
        return self._forward.negative_log_likelihoods(torch.from_numpy(coefficients))

    def _evaluate(self, coefficients: Array) -> torch.Tensor:
        """The losses too; the states of the base and of modules alone are kept."""
        losses, states = self._forward.evaluate(torch.from_numpy(coefficients))
        alone = np.flatnonzero(np.count_nonzero(coefficients, axis=1) <= 1)
        self._states |= {coefficients[i].tobytes(): states[i].clone() for i in alone}
        return losses


@contextmanager
def objective_on(
    base: Base,
    stack: ModuleStack,
    encoded: Sequence[EncodedExample],
    settings: SearchSettings,
    *,
    tokens_per_call: int | None = None,
    computed_before: Mapping[bytes, Value] | None = None,
) -> Iterator[Objective]:
    """The objective that the settings name, ready inside a with block.

    Raises:
        ValueError: the stack's modules add up by another rule than the settings say.
    """
    if stack.composition != settings.composition:
        raise ValueError(
            f"objective_on: expected a stack composed by {settings.composition!r}, received {stack.composition!r}"
        )
    forward = PopulationForward(base, stack, encoded, tokens_per_call=tokens_per_call, evaluate_by=settings.evaluate_by)
    with forward.ready():
        form = FORMS[settings.objective_form]
        is_guided = settings.optimizer == GuidedSearcher.name
        yield Objective(forward, form, settings.alpha, computed_before=computed_before, keeps_states=is_guided)
