"""The surrogate: what modules would answer together, foreseen from what each of them answers alone.

Every evaluation leaves the states that the output layer read to predict the answers. To first order in the
coefficients the states of a composition are

    h(c) = h0 + sum_k(c[k] * (h_k - h0)),    h0 of the base alone, h_k of module k alone

(better where deltas are small; rule "factors" has cross terms besides). The output layer is linear, so the logits
follow the same sum, and the cross-entropy of the answers is a convex function of c: its minimum over all mixtures is
found without one evaluation. It is a guess, and whoever uses it evaluates what it proposes. Where modules must work
together, as one that knows the task and one that knows the form, it names both; looking at all pairs costs an
evaluation each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[np.float64]

# Tokens of the vocabulary that are looked at: for every module and place the most likely ones; all others are one more.
LIKELIEST_TOKENS = 48

# Steps of the fit. Its objective then falls by less than a thousandth per step (docs/log.md).
FIT_STEPS = 100


def best_mixture(
    states: torch.Tensor, answers: torch.Tensor, logits: Callable[[torch.Tensor], torch.Tensor], *, step: float = 1.0
) -> Array:
    """The mixture of modules under which the answers are most likely, by the surrogate.

    Args:
        states: float32 (1 + n_modules, n_answer_tokens, features): of the base alone, then of each module alone.
        answers: int64 (n_answer_tokens,).
        logits: the output layer, states (n, features) -> float32 (n, vocabulary).
        step: the coefficient at which each module stood alone.

    Returns:
        float64 (n_modules,), none negative, their sum at most 1. A module whose states are not finite gets 0; so do
        all if the base's are not.
    """
    weights = np.zeros(len(states) - 1)
    usable = torch.isfinite(states).flatten(1).all(dim=1)
    if not usable[0] or not usable[1:].any():
        return weights
    narrow, labels = _narrowed([logits(s) for s in states[usable]], answers)
    weights[usable[1:].numpy()] = _fit(narrow[0], (narrow[1:] - narrow[0]) / step, labels)
    return weights


def _narrowed(logits: Sequence[torch.Tensor], answers: torch.Tensor) -> tuple[Array, npt.NDArray[np.int64]]:
    """Logits on the likely tokens, and one for all others together: (n, tokens, kept + 1); the answers among them."""
    n_likeliest = min(LIKELIEST_TOKENS, logits[0].shape[1])
    kept = torch.unique(torch.cat([answers, *(z.topk(n_likeliest, dim=1).indices.flatten() for z in logits)]))
    others = torch.ones(logits[0].shape[1], dtype=torch.bool)
    others[kept] = False
    narrow = [z[:, kept] for z in logits]
    if others.any():
        rest = [z[:, others].logsumexp(dim=1, keepdim=True) for z in logits]
        narrow = [torch.cat(pair, dim=1) for pair in zip(narrow, rest, strict=True)]
    return torch.stack(narrow).double().numpy(), torch.searchsorted(kept, answers).numpy()


def _fit(z0: Array, deltas: Array, labels: npt.NDArray[np.int64]) -> Array:
    """Minimise the mean cross-entropy of z0 + sum_k(w[k] * deltas[k]) over mixtures, by accelerated projected descent.

    Source: Beck and Teboulle 2009 (FISTA, with backtracking).
    """
    n = len(deltas)
    weights = ahead = np.full(n, 1.0 / n)
    momentum, rate = 1.0, 1.0
    for _ in range(FIT_STEPS):
        loss, gradient = _cross_entropy(z0, deltas, labels, ahead)
        while True:
            new = _on_mixtures(ahead - rate * gradient)
            move = new - ahead
            bound = loss + gradient @ move + move @ move / (2 * rate)
            if rate < 1e-9 or _cross_entropy(z0, deltas, labels, new)[0] <= bound + 1e-12:
                break
            rate /= 2
        next_momentum = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = new + (momentum - 1) / next_momentum * (new - weights)
        weights, momentum = new, next_momentum
        rate *= 1.1
    return weights


def _cross_entropy(z0: Array, deltas: Array, labels: npt.NDArray[np.int64], weights: Array) -> tuple[float, Array]:
    """The mean over tokens, and its gradient (n,)."""
    logits = z0 + np.tensordot(weights, deltas, axes=1)
    logits -= logits.max(axis=1, keepdims=True)
    likelihoods = np.exp(logits)
    totals = likelihoods.sum(axis=1, keepdims=True)
    tokens = np.arange(len(labels))
    loss = float((np.log(totals[:, 0]) - logits[tokens, labels]).mean())
    residual = likelihoods / totals
    residual[tokens, labels] -= 1
    return loss, np.tensordot(deltas, residual, axes=([1, 2], [0, 1])) / len(labels)


def _on_mixtures(point: Array) -> Array:
    """The nearest point with no negative coordinate and a sum of at most 1.

    Source: Duchi et al. 2008, projection onto the simplex.
    """
    clipped: Array = np.maximum(point, 0.0)
    if clipped.sum() <= 1.0:
        return clipped
    descending = np.sort(point)[::-1]
    excess = (np.cumsum(descending) - 1.0) / np.arange(1, len(point) + 1)
    nearest: Array = np.maximum(point - excess[np.flatnonzero(descending > excess)[-1]], 0.0)
    return nearest
