"""Beam search: keep the likeliest beginnings, compare finished answers by mean log-probability."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lorahub_edge.serve.sequences import Piece, SequenceInMaking
from lorahub_edge.serve.settings import Logits, checked, likeliest, log_probabilities


class Beams(SequenceInMaking):
    """An answer by beam search; it is told whole, once it is found.

    Each step looks at the 2 * n_beams likeliest continuations of all beams: those that end are set aside, the best
    n_beams others go on. The search ends at the limit, or when n_beams answers are set aside and no beam could still
    beat them. Finished answers compare by sum(log p) / length**length_penalty, the end mark counted.
    """

    def _set_up(self) -> None:
        self.width = self.settings.n_beams
        self._beams: list[list[int]] = [[]]
        self._scores = np.zeros(1)
        self._finished: list[tuple[float, list[int]]] = []
        self._is_over = False

    def advance(self, logits: Logits) -> list[int]:
        going = self._continue(self._scores[:, None] + log_probabilities(checked(logits)))
        length = len(self._beams[0]) + 1
        if self._is_decided(going, length):
            self._is_over = True
            return []
        self._beams = [[*self._beams[beam], token] for _, beam, token in going]
        self._scores = np.array([score for score, _, _ in going])
        if length == self.limit:
            scored = zip(self._scores.tolist(), self._beams, strict=True)
            self._finished += [(self._mean(score, length), beam) for score, beam in scored]
            self._is_over = True
            return []
        return [beam for _, beam, _ in going]

    def next_tokens(self) -> list[int]:
        return [beam[-1] for beam in self._beams]

    def news(self) -> Piece | None:
        if not self._is_over:
            return None
        whole = self._completion(max(self._finished, key=lambda pair: pair[0])[1])
        return Piece(self.index, whole.text, len(self.prompt), len(whole.token_ids), whole)

    def _continue(self, totals: NDArray[np.float64]) -> list[tuple[float, int, int]]:
        """The (score, beam, token) that go on; those that end are set aside."""
        length, vocabulary = len(self._beams[0]) + 1, totals.shape[1]
        going: list[tuple[float, int, int]] = []
        for rank, place in enumerate(likeliest(totals.ravel(), 2 * self.width)):
            score, (beam, token) = float(totals.ravel()[place]), divmod(place, vocabulary)
            if token in self.files.end_ids:
                if rank < self.width:
                    self._finished.append((self._mean(score, length), [*self._beams[beam], token]))
            elif len(going) < self.width:
                going.append((score, beam, token))
        self._finished = sorted(self._finished, key=lambda pair: -pair[0])[: self.width]
        return going

    def _is_decided(self, going: list[tuple[float, int, int]], length: int) -> bool:
        best = max((self._mean(score, length) for score, _, _ in going), default=-np.inf)
        return not going or (len(self._finished) == self.width and self._finished[-1][0] >= best)

    def _mean(self, score: float, length: int) -> float:
        return float(score / length**self.settings.length_penalty)
