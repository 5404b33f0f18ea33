"""Time on the GPU: between two events on the stream, with cold caches and the host ahead."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch

from lorahub_edge.doctor import doctor
from lorahub_edge.kernels.routes import need_native

GPU = torch.device("cuda")
COPY_BYTES = 512 << 20
COPY = "probe: copy 512 MB"

# What the GPU sleeps per launch that a call queues: longer than the host takes for one.
CYCLES_PER_LAUNCH = 100_000


def device_in_turns(
    calls: Mapping[str, Callable[[], object]], *, n_repeats: int, n_launches: int, n_warm_up: int = 3
) -> dict[str, list[float]]:
    """Seconds on the GPU of each contender, taking turns and the first place.

    Before each sample a buffer larger than any L2 cache is written, and the GPU sleeps while the host queues the call.

    Args:
        calls: name -> what to time.
        n_repeats: turns that count.
        n_launches: of the call that queues most.
        n_warm_up: turns that do not count.
    """
    flushed = torch.empty(COPY_BYTES, dtype=torch.int8, device=GPU)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(n_warm_up + n_repeats):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flushed.fill_(turn)
            torch.cuda._sleep(CYCLES_PER_LAUNCH * n_launches)
            start.record()
            calls[name]()
            end.record()
            end.synchronize()
            if turn >= n_warm_up:
                samples[name].append(1e-3 * start.elapsed_time(end))
    return samples


def waiting(call: Callable[[], object]) -> Callable[[], None]:
    """The call and the wait for its end, for a clock of the host."""

    def call_and_wait() -> None:
        call()
        torch.cuda.synchronize()

    return call_and_wait


def graph_of(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """A call, recorded: replaying it costs the host one launch."""
    call()  # kernels are loaded at their first launch, which no recording allows
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def copy_probe() -> Callable[[], object]:
    """Reads and writes COPY_BYTES each: what the memory can do."""
    source, target = (torch.empty(COPY_BYTES, dtype=torch.int8, device=GPU).random_() for _ in range(2))
    return lambda: target.copy_(source)


def bytes_floor(*moved: torch.Tensor) -> tuple[str, float]:
    """The time for reading or writing these once, as a multiple of the copy probe's."""
    return COPY, sum(tensor.nbytes for tensor in moved) / (2 * COPY_BYTES)


def native() -> tuple[Any, int]:
    """The extension module and the stream: the kernels without the checks of `ops`."""
    found = need_native("bench", torch.device("cuda", torch.cuda.current_device()), None)
    return found.module, found.where


def device_facts() -> dict[str, object]:
    """The GPU, and what the extension was built with; exits without them."""
    if not torch.cuda.is_available():
        sys.exit("bench: needs a CUDA GPU that torch sees; `lorahub-edge doctor` says what is missing")
    found, facts = doctor(), torch.cuda.get_device_properties(GPU)
    if found.cuda_build is None:
        sys.exit("bench: " + "; ".join(found.notes))
    return {
        "compute_capability": f"{facts.major}.{facts.minor}",
        "multiprocessors": facts.multi_processor_count,
        "memory_bytes": facts.total_memory,
        "L2_bytes": facts.L2_cache_size,
        "driver_supports_cuda": found.cuda_build.driver_version,
        "cuda_runtime": found.cuda_build.runtime_version,
        "architectures": found.cuda_build.architectures,
        "torch_cuda": torch.version.cuda,
    }
