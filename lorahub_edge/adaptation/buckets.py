"""Which examples share a forward, and how many candidates: equal lengths together, within bounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lorahub_edge.tasks import EncodedExample

# Bytes of composed factors per call: with short examples many candidates would fit the tokens, at the cost of memory.
COMPOSED_BYTES = {"cpu": 128 << 20, "cuda": 1 << 30}


@dataclass(frozen=True)
class CallLimits:
    """Bounds of one forward, in one lane.

    Attributes:
        tokens: of all candidates and examples together; one example alone may exceed it.
        composed_bytes: of the candidates' factors; one candidate alone may exceed it.
    """

    tokens: int
    composed_bytes: int

    @classmethod
    def on(cls, device: str, tokens: int, *, n_lanes: int) -> CallLimits:
        """A lane's share of so many tokens, and of the composed factors that suit a device."""
        return cls(tokens // n_lanes, COMPOSED_BYTES[device] // n_lanes)

    def n_candidates(self, n_tokens: int, n_values: int) -> int:
        """Candidates of one call, if each needs so many tokens and composes so many values."""
        # float32, and B once more without gaps
        return max(1, min(self.tokens // n_tokens, self.composed_bytes // max(1, 6 * n_values)))


def bucket_rows(examples: Sequence[EncodedExample], limits: CallLimits, *, is_seq2seq: bool) -> Iterator[list[int]]:
    """Rows of examples that share a call: of equal length, so that nothing is padded, and within the tokens."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, example in enumerate(examples):
        # a decoder-only model reads input and answer as one sequence; padding behind it is invisible to it, but the
        # label positions must line up
        n_input, n_target = len(example.input_ids), len(example.target_ids)
        groups.setdefault((n_input,) if is_seq2seq else (n_input, n_target), []).append(row)
    for group in groups.values():
        length = max(n_tokens(examples[row]) for row in group)
        size = max(1, limits.tokens // length)
        yield from (group[start : start + size] for start in range(0, len(group), size))


def n_tokens(example: EncodedExample) -> int:
    """Of input and answer."""
    return len(example.input_ids) + len(example.target_ids)
