"""Engine: continuous batching. A sequence joins at the next step and leaves when it is done.

One step of the engine reads one part of the prompts that come in, and one token of every answer under way. So a long
prompt holds the others up by one part at a time, and a short answer never waits for a long one. Knows nothing of
threads and HTTP.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from lorahub_edge.errors import InvalidInput
from lorahub_edge.serve.lane import Lane
from lorahub_edge.serve.model import OnnxModel
from lorahub_edge.serve.sequences import Piece, SequenceInMaking
from lorahub_edge.serve.settings import Logits
from lorahub_edge.serve.state import Ids, State

READ_TOKENS = 128  # read in one part, padding counted: about as long as a few tokens of many answers
News = list[tuple[SequenceInMaking, "Piece | Exception"]]


@dataclass
class _Reading:
    """Prompts that are being read together."""

    sequences: list[SequenceInMaking]
    state: State
    ids: Ids
    mask: Ids
    n_read: int = 0


class Engine:
    """Answers sequences.

    Args:
        model: what answers.
        max_rows: most rows in a step; a beam search takes as many as it has beams. No limit if None.
        cache_bytes: most memory of caches by `OnnxModel.cache_bytes`; no limit if None. A sequence begins once its
            longest possible answer fits.
        read_tokens: prompt tokens that are read between two steps.
    """

    def __init__(
        self,
        model: OnnxModel,
        *,
        max_rows: int | None = None,
        cache_bytes: int | None = None,
        read_tokens: int = READ_TOKENS,
    ) -> None:
        self.model = model
        self._max_rows = max_rows or sys.maxsize
        self._cache_bytes = cache_bytes or sys.maxsize
        self._read_tokens = read_tokens
        self._waiting: deque[SequenceInMaking] = deque()
        self._reading: _Reading | None = None
        self._lanes: list[Lane] = []

    @property
    def n_waiting(self) -> int:
        """Sequences that no step has taken yet."""
        return len(self._waiting)

    @property
    def n_running(self) -> int:
        """Sequences in a step."""
        return len(self._running())

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left to do."""
        return not (self._waiting or self._reading or self._lanes)

    def check(self, sequence: SequenceInMaking) -> None:
        """Refuse what could never begin.

        Raises:
            InvalidInput: more rows or more cache than there may be.
        """
        if sequence.width > self._max_rows:
            raise InvalidInput(
                f"n_beams: expected at most {self._max_rows}, the size of a batch, received {sequence.width}"
            )
        needed = self._planned_bytes([sequence])
        if needed > self._cache_bytes:
            raise InvalidInput(
                f"max_tokens: {len(sequence.prompt)} tokens of prompt and {sequence.limit} of answer may take "
                f"{needed / 1e6:.0f} MB of cache, and {self._cache_bytes / 1e6:.0f} MB are allowed; ask for fewer"
            )

    def add(self, sequence: SequenceInMaking) -> None:
        """Have a sequence answered once there is room; those that came first begin first."""
        self._waiting.append(sequence)

    def step(self) -> News:
        """Read one part of new prompts and one token of each answer; what came of it."""
        self._drop_unwanted()
        self._admit()
        news = self._read()
        for lane in self._lanes:
            news += self._step(lane)
        self._lanes = [lane for lane in self._lanes if lane.rows]
        for lane in self._lanes:
            lane.tidy(is_joined_soon=bool(self._waiting or self._reading))
        return news

    def _running(self) -> list[SequenceInMaking]:
        reading = self._reading.sequences if self._reading else []
        return [*reading, *(sequence for lane in self._lanes for sequence in lane.rows)]

    def _drop_unwanted(self) -> None:
        self._waiting = deque(s for s in self._waiting if s.is_wanted())
        if self._reading and not any(s.is_wanted() for s in self._reading.sequences):
            self._reading = None
        for lane in self._lanes:
            for sequence in [s for s in lane.rows if not s.is_wanted()]:
                lane.go_on(sequence, [])
        self._lanes = [lane for lane in self._lanes if lane.rows]

    def _planned_bytes(self, sequences: Iterable[SequenceInMaking]) -> int:
        """Memory once the longest of some sequences is as long as it may get; each row is as long as that one."""
        sequences = list(sequences)
        prompt = max(len(s.prompt) for s in sequences)
        n_rows = sum(s.width for s in sequences)
        if self.model.files.is_seq2seq:
            return self.model.cache_bytes(n_rows, 1 + max(s.limit for s in sequences), prompt)
        return self.model.cache_bytes(n_rows, max(len(s.prompt) + s.limit for s in sequences))

    def _admit(self) -> None:
        """Begin to read the first of those that wait, with others behind it that are not much longer."""
        group: list[SequenceInMaking] = []
        running = [] if self._reading else self._running()
        while self._waiting and not self._reading:
            new = self._waiting[0]
            together = [*group, new]
            longest = max(len(s.prompt) for s in together)
            is_group = not group or (
                longest * len(together) <= self._read_tokens
                and new.settings.scores_prompt == group[0].settings.scores_prompt
                and self.model.can_share(group[0].mix, new.mix)
            )
            n_rows = sum(s.width for s in [*running, *together])
            has_room = n_rows <= self._max_rows and self._planned_bytes([*running, *together]) <= self._cache_bytes
            if not (is_group and has_room):
                break
            group.append(self._waiting.popleft())
        if group:
            ids, mask = self.model.padded([s.prompt for s in group])
            self._reading = _Reading(group, self.model.empty(len(group), [s.mix for s in group]), ids, mask)

    def _read(self) -> News:
        """Read the next part of the prompts; behind the last part the answers begin."""
        reading = self._reading
        if reading is None:
            return []
        try:
            logits = self._read_part(reading)
        except Exception as error:  # onnxruntime's errors have no parent of their own
            self._reading = None
            return [(sequence, error) for sequence in reading.sequences]
        if logits is None:
            return []
        self._reading = None
        news: News = []
        rows: dict[SequenceInMaking, list[int]] = {}
        for row, sequence in enumerate(reading.sequences):
            parents = _advance(sequence, logits[row : row + 1], news)
            if parents:
                rows[sequence] = [row] * len(parents)
        if rows:
            self._join(reading.state, rows)
        return news

    def _read_part(self, reading: _Reading) -> Logits | None:
        """Logits (b, vocabulary) behind the prompts, or None if more is to be read."""
        if self.model.files.is_seq2seq:  # an encoder cannot be read in parts
            reading.state, logits = self.model.begin(
                [s.prompt for s in reading.sequences], mixes=[s.mix for s in reading.sequences]
            )
            return logits[:, -1]
        start, length = reading.n_read, reading.ids.shape[1]
        end = min(length, start + max(1, self._read_tokens // len(reading.sequences)))
        is_scored = reading.sequences[0].settings.scores_prompt  # then all of them are
        logits = self.model.read(
            reading.state, reading.ids[:, start:end], reading.mask[:, start:end], only_last=not is_scored
        )
        reading.n_read = end
        for row, sequence in enumerate(reading.sequences if is_scored else ()):
            padding = length - len(sequence.prompt)
            sequence.read_prompt(logits[row, max(0, padding - start) :], max(0, start - padding))
        return logits[:, -1] if end == length else None

    def _join(self, state: State, rows: dict[SequenceInMaking, list[int]]) -> None:
        mixes = [sequence.mix for sequence in rows]
        for lane in self._lanes:
            there = next(iter(lane.rows)).mix
            is_same_age = self.model.shares_ages or lane.state.n_positions == state.n_positions
            if is_same_age and all(self.model.can_share(there, mix) for mix in mixes):
                lane.join(state, rows)
                return
        self._lanes.append(Lane.of(state, rows))

    def _step(self, lane: Lane) -> News:
        try:
            logits = lane.step(self.model)
        except Exception as error:  # most likely memory: the largest leaves, and the others try again
            largest = max(lane.rows, key=lambda s: (len(lane.rows[s]), len(s.prompt)))
            lane.go_on(largest, [])
            return [(largest, error)]
        news: News = []
        for sequence, own in logits.items():
            lane.go_on(sequence, _advance(sequence, own, news))
        return news


def _advance(sequence: SequenceInMaking, logits: Logits, news: News) -> list[int]:
    """Let a sequence choose; one that cannot ends with its own error."""
    try:
        parents = sequence.advance(logits)
        piece = sequence.news()
    except Exception as error:
        news.append((sequence, error))
        return []
    if piece is not None:
        news.append((sequence, piece))
    return parents
