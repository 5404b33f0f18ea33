"""Beam search over an OnnxModel: keep the likeliest beginnings, compare finished answers by mean log-probability."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from lorahub_edge.serve.model import OnnxModel
from lorahub_edge.serve.settings import GenerationSettings, checked


def beam_search(
    model: OnnxModel,
    prompt: Sequence[int],
    settings: GenerationSettings,
    limit: int,
    *,
    is_wanted: Callable[[], bool] = lambda: True,
) -> tuple[int, ...] | None:
    """Token ids of the best answer found; None if nobody wants it any more.

    Each step looks at the 2 * n_beams likeliest continuations of all beams: those that end are set aside, the best
    n_beams others go on. The search ends at `limit`, or when n_beams answers are set aside and no beam could still beat
    them. Finished answers compare by sum(log p) / length**length_penalty, the end mark counted.

    Args:
        model: what answers.
        prompt: token ids.
        settings: n_beams and length_penalty.
        limit: at most so many tokens.
        is_wanted: asked before each step.
    """
    if not is_wanted():
        return None
    width = settings.n_beams
    state, logits = model.begin([prompt])
    beams: list[list[int]] = [[]]
    scores = np.zeros(1)
    finished: list[tuple[float, list[int]]] = []
    for length in range(1, limit + 1):
        candidates = _candidates(scores, _log_probabilities(checked(logits[:, -1])), 2 * width)
        going: list[tuple[float, int, int]] = []
        for rank, (score, beam, token) in enumerate(candidates):
            if token in model.files.end_ids:
                if rank < width:
                    finished.append((score / length**settings.length_penalty, [*beams[beam], token]))
            elif len(going) < width:
                going.append((score, beam, token))
        finished = sorted(finished, key=lambda pair: -pair[0])[:width]
        best_open = max((score / length**settings.length_penalty for score, _, _ in going), default=-np.inf)
        if not going or (len(finished) == width and finished[-1][0] >= best_open):
            break
        beams = [[*beams[beam], token] for _, beam, token in going]
        scores = np.array([score for score, _, _ in going])
        if not is_wanted():
            return None
        if length < limit:
            state = model.select(state, [beam for _, beam, _ in going])
            logits = model.step(state, np.array([[token] for _, _, token in going], np.int64))
    else:
        finished += [(score / limit**settings.length_penalty, beam) for score, beam in zip(scores, beams, strict=True)]
    return tuple(max(finished, key=lambda pair: pair[0])[1])


def _log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def _candidates(
    scores: NDArray[np.float64], log_probabilities: NDArray[np.float64], n: int
) -> list[tuple[float, int, int]]:
    """The n best (score, beam, token), best first."""
    totals = (scores[:, None] + log_probabilities).ravel()
    n = min(n, len(totals))
    best = np.argpartition(-totals, n - 1)[:n]
    best = best[np.argsort(-totals[best], kind="stable")]
    width = log_probabilities.shape[1]
    return [(float(totals[i]), int(i) // width, int(i) % width) for i in best]
