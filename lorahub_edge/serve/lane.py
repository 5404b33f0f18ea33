"""Lane: sequences that share a step, each in rows of its own. Rows of answers that ended are taken by new ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from lorahub_edge.serve.model import OnnxModel
from lorahub_edge.serve.sequences import SequenceInMaking
from lorahub_edge.serve.settings import Logits
from lorahub_edge.serve.state import State, of_rows

# A state is copied to a smaller one once this share of its rows or positions is of no use. A copy costs a few steps;
# until then idle rows are computed for nothing.
_WASTE = 0.25
_SLACK = 16  # positions: short caches are not worth a copy


class Lane:
    """Sequences with one state.

    Args:
        state: their caches.
        rows: each sequence's rows of it, in the sequence's own order.
    """

    def __init__(self, state: State, rows: dict[SequenceInMaking, list[int]]) -> None:
        self.state = state
        self.rows = rows

    @classmethod
    def of(cls, state: State, rows: dict[SequenceInMaking, list[int]]) -> Lane:
        """A lane of some rows of a state, of which a sequence may want one several times."""
        sources = [row for own in rows.values() for row in own]
        return cls(of_rows([(state, sources)]), _places(rows, range(len(sources))))

    def step(self, model: OnnxModel) -> dict[SequenceInMaking, Logits]:
        """Read each row's newest token; logits (rows, vocabulary) for every sequence."""
        tokens = np.full((self.state.n_rows, 1), model.files.pad_id, np.int64)
        for sequence, rows in self.rows.items():
            tokens[rows, 0] = sequence.next_tokens()
        logits = model.step(self.state, tokens)[:, -1]
        return {sequence: logits[rows] for sequence, rows in self.rows.items()}

    def go_on(self, sequence: SequenceInMaking, parents: Sequence[int]) -> None:
        """Keep one row for each parent, in this order; none: the sequence leaves."""
        old = self.rows.pop(sequence)
        if not parents:
            return
        new = [*old, *self._idle(besides=old)][: len(parents)]
        if len(new) < len(parents):
            kept = self._kept()
            sources = [old[parent] for parent in parents]
            self.state = of_rows([(self.state, [*kept, *sources])])
            new = list(range(len(kept), len(kept) + len(sources)))
        elif list(parents) != list(range(len(parents))):
            self.state.put(new, self.state, [old[parent] for parent in parents])
        self.rows[sequence] = new

    def join(self, state: State, rows: dict[SequenceInMaking, list[int]]) -> None:
        """Take in sequences whose caches are in a state of their own; into idle rows if these are long enough."""
        sources = [row for own in rows.values() for row in own]
        idle = self._idle()
        if len(idle) >= len(sources) and self.state.holds(state):
            self.state.put(idle[: len(sources)], state, sources)
        else:
            kept = self._kept()
            self.state = of_rows([(self.state, kept), (state, sources)])
            idle = list(range(len(kept), len(kept) + len(sources)))
        self.rows |= _places(rows, idle)

    def tidy(self, *, is_joined_soon: bool) -> None:
        """Leave behind idle rows, unless somebody is about to take them, and positions that nobody fills."""
        used = [row for rows in self.rows.values() for row in rows]
        n_rows, n = self.state.n_rows, self.state.n_positions
        has_idle = not is_joined_soon and len(used) < (1 - _WASTE) * n_rows
        if has_idle or self.state.n_used(used) < (1 - _WASTE) * n - _SLACK:
            self.state = of_rows([(self.state, self._kept())])

    def _idle(self, besides: Sequence[int] = ()) -> list[int]:
        used = {row for rows in self.rows.values() for row in rows} | set(besides)
        return [row for row in range(self.state.n_rows) if row not in used]

    def _kept(self) -> list[int]:
        """All rows in use, which are numbered anew in this order."""
        order = [row for rows in self.rows.values() for row in rows]
        self.rows = _places(self.rows, range(len(order)))
        return order


def _places(rows: Mapping[SequenceInMaking, Sequence[int]], free: Iterable[int]) -> dict[SequenceInMaking, list[int]]:
    """As many free rows for each sequence as it has now."""
    places = iter(free)
    return {sequence: [next(places) for _ in own] for sequence, own in rows.items()}
