"""The embedded model adapted on a GPU, by each route, beside the CPU's losses of the same candidates.

    python bench/gpu/e2e.py [--device cuda] [--budget 40] [--cases adapt ...]

Prints one JSON line per case. Exit code 1 if a case failed; the others run all the same.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import lorahub_edge
from lorahub_edge.adaptation import PopulationForward
from lorahub_edge.base import load_base
from lorahub_edge.modules import ModuleStack, load_modules
from lorahub_edge.tasks import Example, PromptFormat

Facts = dict[str, Any]

_N_CALLS = 5  # a shape is recorded and replayed within these
# What a loss may be off by, relative to the largest: bfloat16 beside float32 makes 0.03 on the CPU.
_MOST_ERROR = 0.15


@dataclass(frozen=True)
class Losses:
    """By call the negative log-likelihoods, float64 (candidates, examples), and how they were computed."""

    by_call: list[torch.Tensor]
    recordings: list[Facts]
    engines: dict[str, int]


def losses(device: str, precision: str, evaluate_by: str) -> Losses:
    """What five calls on six candidates of all embedded modules give."""
    base = load_base("pocket", precision=precision, device=device)
    stack = ModuleStack.build(load_modules("pocket"), base)
    points = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (6, len(stack.names))))
    encoded = PromptFormat.for_base(base).encode_all([Example(f"the number {n}", f"{n} it is") for n in range(5)])
    with PopulationForward(base, stack, encoded, evaluate_by=evaluate_by).ready() as forward:
        by_call = [forward.negative_log_likelihoods(points) for _ in range(_N_CALLS)]
        return Losses(by_call, forward.recordings(), base.layer_engines)


def beside_the_cpu(device: str, precision: str, evaluate_by: str) -> Facts:
    """The relative error of the losses, and whether calls repeat to the bit."""
    expected = losses("cpu", "fp32" if precision == "bf16" else precision, evaluate_by).by_call[0]
    found = losses(device, precision, evaluate_by)
    first = found.by_call[0]
    error = float((first - expected).abs().max() / expected.abs().max())
    if not error < _MOST_ERROR:
        raise AssertionError(f"losses: expected a relative error below {_MOST_ERROR}, received {error}")
    repeat = max(float((again - first).abs().max()) for again in found.by_call)
    facts = {"cuda_graphs": found.recordings, "engines": found.engines}
    return {"relative_error": error, "largest_difference_of_calls": repeat, **facts}


def whole(device: str, budget: int, **options: Any) -> Facts:
    """A whole `adapt`: its table, its memory beside the plan's, its timings."""
    fixed = {"base": "pocket", "modules": "pocket", "null_control": False}
    run = lorahub_edge.adapt(device=device, budget=budget, **fixed, **options)
    rows = {row.name: [row.value.mean_loss, row.exact_match] for row in run.table if row.value is not None}
    kept = {name: run.manifest[name] for name in ("peak_memory", "memory_plan", "timings")}
    return {"table": rows, "cuda_graphs": run.manifest["search"]["cuda_graphs"], **kept}


# Name -> what is done on a device with a budget. "no graphs" in a name turns them off.
CASES: dict[str, Callable[[str, int], Facts]] = {
    "int8, side path": lambda device, _: beside_the_cpu(device, "int8", "side"),
    "int8, side path, no graphs": lambda device, _: beside_the_cpu(device, "int8", "side"),
    "bf16, side path": lambda device, _: beside_the_cpu(device, "bf16", "side"),
    "int8, inject": lambda device, _: beside_the_cpu(device, "int8", "inject"),
    "adapt": whole,
    "adapt, no graphs": whole,
    "adapt, int8 stack": lambda device, budget: whole(device, budget, stack_dtype="int8"),
}


def tried(name: str, device: str, budget: int) -> bool:
    """Run a case, print what it found, and say whether it ended well."""
    os.environ["LORAHUB_EDGE_CUDA_GRAPHS"] = "off" if "no graphs" in name else ""
    started = time.perf_counter()
    try:
        found = {"ok": True, **CASES[name](device, budget)}
    except Exception as error:  # the next case may still tell something
        found = {"ok": False, "error": f"{type(error).__name__}: {error}"[:600], "at": traceback.format_exc()[-900:]}
    line = {"case": name, "seconds": round(time.perf_counter() - started, 2), **found}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
    return bool(found["ok"])


def main() -> int:
    """Run all cases; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--budget", type=int, default=40, help="evaluations of a whole run")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    ended_well = [tried(name, options.device, options.budget) for name in options.cases]
    return 0 if all(ended_well) else 1


if __name__ == "__main__":
    sys.exit(main())
