"""State: the caches of sequences that share a step, and how their rows come and go.

A row's positions end where those of all other rows end; in front of a shorter row stand zeros that its mask leaves out.
What comes from an encoder ends at the right instead. NumPy over onnxruntime's own memory; knows nothing of graphs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from lorahub_edge.serve.adapter import Mix

Ids = NDArray[np.int64]
OrtValue = Any

OF_ENCODER = ".encoder."  # in the names of caches that the encoder's output gives


@dataclass
class State:
    """Sequences in the making.

    Attributes:
        past: name of a graph input -> cache (b, heads, n, width); n is s for what comes from the encoder.
        mask: int64 (b, n): 1 where a position of the answer, or of a decoder-only model's prompt, counts.
        mixes: each row's adapters.
        hidden: the encoder's output (b, s, d), or None.
        encoder_mask: int64 (b, s), or None.
    """

    past: dict[str, OrtValue]
    mask: Ids
    mixes: list[Mix]
    hidden: OrtValue | None = None
    encoder_mask: Ids | None = None

    @property
    def n_rows(self) -> int:
        """How many rows share a step."""
        return len(self.mask)

    @property
    def n_positions(self) -> int:
        """Length of the decoder's caches, what is left out of shorter rows counted."""
        return int(self.mask.shape[1])

    def n_used(self, rows: Sequence[int]) -> int:
        """How many positions the longest of some rows fills."""
        places = np.flatnonzero(np.any(self.mask[list(rows)], 0))
        return int(self.n_positions - places[0]) if len(places) else 0

    def put(self, rows: Sequence[int], other: State, sources: Sequence[int]) -> None:
        """Overwrite rows by rows of another state, which may be this one; it must not be longer."""
        sources = list(sources)
        for name, value in self.past.items():
            self._fill(view(value), rows, view(other.past[name]), sources, is_right=OF_ENCODER not in name)
        self._fill(self.mask[:, None], rows, other.mask[:, None], sources, is_right=True)
        if self.hidden is not None and self.encoder_mask is not None and other.encoder_mask is not None:
            self._fill(view(self.hidden)[:, None], rows, view(other.hidden)[:, None], sources, is_right=False)
            self._fill(self.encoder_mask[:, None], rows, other.encoder_mask[:, None], sources, is_right=False)
        for row, mix in zip(rows, [other.mixes[source] for source in sources], strict=True):
            self.mixes[row] = mix

    @staticmethod
    def _fill(
        into: NDArray[Any], rows: Sequence[int], source: NDArray[Any], sources: Sequence[int], *, is_right: bool
    ) -> None:
        """into[rows] = source[sources], (b, heads, n, ...) both, aligned at one end; zeros beyond, too long is cut."""
        if np.shares_memory(into, source):
            source, sources = source[list(sources)], range(len(sources))
        n, m = into.shape[2], source.shape[2]
        kept = min(n, m)
        for row, own in zip(rows, sources, strict=True):
            if is_right:
                into[row, :, : n - kept] = 0
                into[row, :, n - kept :] = source[own, :, m - kept :]
            else:
                into[row, :, kept:] = 0
                into[row, :, :kept] = source[own, :, :kept]

    def holds(self, other: State) -> bool:
        """Whether another state's rows have room in this one's length."""
        n, n_other = (0 if m is None else m.shape[1] for m in (self.encoder_mask, other.encoder_mask))
        return other.n_positions <= self.n_positions and n_other <= n


def of_rows(parts: Sequence[tuple[State, Sequence[int]]]) -> State:
    """A new state of rows of other states, in the order given and no longer than they need; a row may occur twice."""
    parts = [(state, rows) for state, rows in parts if rows]
    n_rows = sum(len(rows) for _, rows in parts)
    n = max(state.n_used(rows) for state, rows in parts)
    first = parts[0][0]
    n_encoder = 0
    if first.encoder_mask is not None:
        masks = [state.encoder_mask[list(rows)].any(0) for state, rows in parts if state.encoder_mask is not None]
        n_encoder = max(int(mask.nonzero()[0].max()) + 1 for mask in masks)

    def empty(name: str, like: OrtValue) -> OrtValue:
        _, heads, _, width = like.shape()
        return new_value(np.empty((n_rows, heads, n_encoder if OF_ENCODER in name else n, width), np.float32))

    result = State(
        {name: empty(name, value) for name, value in first.past.items()}, np.zeros((n_rows, n), np.int64), [()] * n_rows
    )
    if first.hidden is not None:
        result.hidden = new_value(np.empty((n_rows, n_encoder, first.hidden.shape()[2]), np.float32))
        result.encoder_mask = np.zeros((n_rows, n_encoder), np.int64)
    start = 0
    for state, rows in parts:
        result.put(range(start, start + len(rows)), state, rows)
        start += len(rows)
    return result


def new_value(array: NDArray[Any]) -> OrtValue:
    """An array as onnxruntime takes it; shares its memory."""
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def view(value: OrtValue) -> NDArray[np.float32]:
    """float32 values of onnxruntime's as an array over the same memory, which must be kept alive by the caller."""
    shape = value.shape()
    n = int(np.prod(shape))
    if n == 0:
        return np.zeros(shape, np.float32)
    memory: Any = (ctypes.c_float * n).from_address(value.data_ptr())
    values: NDArray[np.float32] = np.frombuffer(memory, np.float32).reshape(shape)
    return values
