"""The CPU kernels, each beside its peers in the same run, with the floor that bytes or multiply-adds set.

    python -m bench.ops                 # one thread
    python -m bench.ops --threads 2

Every contender is checked against the NumPy twin before anything is timed. Shapes are FLAN-T5-large's: 144 targets of
1024 x 1024 and rank 16, so a module has 4.72 million values.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from bench.ops_case import Case
from bench.ops_factors import compose_cases, inject_case
from bench.ops_layers import attention_case, epilogue_case, gated_case, linear_case, quantize_case
from bench.records import RESULTS, append, make_record
from bench.timing import in_turns, summary
from lorahub_edge.kernels import ops

BENCH = "ops"
CASES: dict[str, Callable[[], Iterable[Case]]] = {
    "compose_factors": compose_cases,
    "inject_delta": lambda: [inject_case()],
    "quantize_activations": lambda: [quantize_case()],
    "int8_epilogue": lambda: [epilogue_case()],
    "int8_linear": lambda: [linear_case()],
    "gated_activation": lambda: [gated_case()],
    "attention": lambda: (attention_case(*sizes) for sizes in ((5, 81), (1, 1024))),
}


def main() -> None:
    """Parse, measure each case, append a record."""
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    for name in options.ops:
        for case in CASES[name]():  # made one after the other: a stack is large
            _measure(case, options)


def _measure(case: Case, options: argparse.Namespace) -> None:
    case.check()
    timings = summary(in_turns(case.calls, n_repeats=case.n_repeats))
    floors = case.floors_ms(timings)
    setup = {"op": case.op, **case.setup, "threads": options.threads, "isa": ops.isa()}
    append(options.out, make_record(BENCH, setup, {"timings": timings, "floors_ms": floors}))
    _say(case, timings, floors)


def _say(case: Case, timings: dict[str, dict[str, object]], floors: dict[str, float]) -> None:
    lines = [f"{case.op} {case.setup}"]
    lines += [f"  {times['median_ms']:>10} ms  {name}" for name, times in timings.items()]
    lines += [f"  {milliseconds:>10} ms  floor by {name}" for name, milliseconds in floors.items()]
    sys.stderr.write("\n".join(lines) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.ops", description=__doc__.partition("\n")[0])
    parser.add_argument("--ops", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / f"{BENCH}.jsonl")
    return parser


if __name__ == "__main__":
    main()
