"""CUDA graphs: a call is recorded as soon as it was computed once, and replayed when its shape comes again.

A layer is a dozen small kernels on a GPU, and Python needs longer to launch them than a fast one to compute a call of
few tokens. A recording launches all of them at once. A search makes few calls, so the first of a shape is recorded at
once: it has set up what cannot be recorded. What the first replay gives has to be the same bits; otherwise, or where a
call cannot be recorded, calls are launched as ever. `as_record` tells what became of each shape.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lorahub_edge.adaptation.injection import injects_together
from lorahub_edge.errors import InvalidInput, first_line

_SWITCH = "LORAHUB_EDGE_CUDA_GRAPHS"

Compute = Callable[[], torch.Tensor]

# Records what a computation launches, without computing; what it returns replays that into one and the same tensor.
Record = Callable[[Compute], Compute]


@dataclass(frozen=True)
class CallShape:
    """What has to be the same for a recording to hold.

    Attributes:
        n_candidates: of the call.
        rows: of the examples.
        prepared_at: address of what the route prepared, the one input that changes.
        n_values: that were prepared for each candidate: its factors' or, by rule "deltas", the coefficients of the
            modules in use.
    """

    n_candidates: int
    rows: tuple[int, ...]
    prepared_at: int
    n_values: int


@dataclass
class _Shape:
    """What is known of one shape of call.

    Attributes:
        n_calls: so far.
        replay: its recording, if there is one.
        recorded_s: seconds that recording and the first replay took.
        refused: why there is no recording, after an attempt.
    """

    n_calls: int = 0
    replay: Compute | None = None
    recorded_s: float | None = None
    refused: str | None = None

    def refuse(self, reason: str) -> None:
        self.replay, self.refused = None, reason


class CallGraphs:
    """Computes calls, and knows of which shapes there is a recording.

    Args:
        record: on CUDA `CudaRecorder()`.
    """

    def __init__(self, record: Record) -> None:
        self._record = record
        self._shapes: dict[CallShape, _Shape] = {}

    def run(self, shape: CallShape, compute: Compute) -> torch.Tensor:
        """What `compute` returns, on the CPU, by its recording or by itself.

        Args:
            shape: equal for calls that differ in nothing but the values of tensors that stay in their places.
            compute: does all of its work on the GPU, and never waits for it.
        """
        known = self._shapes.setdefault(shape, _Shape())
        known.n_calls += 1
        try:
            return self._run(known, compute)
        except torch.OutOfMemoryError:
            if not self._give_back():
                raise
        return compute().cpu()

    def _run(self, known: _Shape, compute: Compute) -> torch.Tensor:
        if known.replay is not None:
            return known.replay().cpu()
        result = compute().cpu()
        if known.n_calls == 1:
            started = time.perf_counter()
            self._try_recording(known, compute, expected=result)
            known.recorded_s = time.perf_counter() - started
        return result

    def _try_recording(self, known: _Shape, compute: Compute, *, expected: torch.Tensor) -> None:
        """Record, and keep the recording only if its replay gives what launching gave."""
        try:
            known.replay = self._record(compute)
            result = known.replay().cpu()
        except RuntimeError as error:  # torch's, for what a GPU cannot record, or for too little memory
            known.refuse(f"cannot be recorded: {first_line(error)}")
            return
        if not torch.equal(result, expected):
            known.refuse(f"its replay differs by up to {float((result - expected).abs().max()):.3g}")

    def _give_back(self) -> bool:
        """Drop all recordings, which keep their memory; whether there were any."""
        recorded = [known for known in self._shapes.values() if known.replay is not None]
        for known in recorded:
            known.refuse("its memory was needed")
        return bool(recorded)

    def as_record(self) -> list[dict[str, Any]]:
        """For the manifest, a shape each: candidates, examples, calls, seconds to record, and what became of it."""
        return [
            {
                "candidates": shape.n_candidates,
                "examples": len(shape.rows),
                "calls": known.n_calls,
                "replayed": known.n_calls > 1 and known.replay is not None,
                "recorded_s": known.recorded_s,
                "refused": known.refused,
            }
            for shape, known in self._shapes.items()
        ]


class CudaRecorder:
    """Records into CUDA graphs that share one pool of memory: results are read before another is replayed."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, compute: Compute) -> Compute:
        """Record what `compute` launches."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = compute()

        def replay() -> torch.Tensor:
            graph.replay()
            return result

        return replay


def graphs_on(device: str, evaluate_by: str = "side", composition: str = "factors") -> CallGraphs | None:
    """What records calls on CUDA; None elsewhere, where the environment turns it off, and for what only launches as it
    goes: see `injects_together`.

    Raises:
        InvalidInput: LORAHUB_EDGE_CUDA_GRAPHS is neither "off" nor empty.
    """
    choice = os.environ.get(_SWITCH, "")
    if choice not in ("", "off"):
        raise InvalidInput(f"{_SWITCH}: expected 'off' or nothing, received {choice!r}")
    stays_in_place = evaluate_by == "side" or injects_together(device, composition)
    return CallGraphs(CudaRecorder()) if device == "cuda" and choice == "" and stays_in_place else None
