"""Gradient-free beside gradient on the same coefficients, on a real model: wall clock, memory and what comes out.

    python -m bench.gradient BASE MODULES TASK.jsonl ... --prompt PROMPT

Adam on c needs a float base, one pass forward and one back per step, and memory for what the pass back reads. A search
needs forward passes only, on the int8 base. All fit the same objective on the same draws. Tasks are files with rows of
split train and test.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from bench.ablations import gradient_on_c
from bench.records import RESULTS, say
from lorahub_edge.base import load_base
from lorahub_edge.benchmark.methods import methods_by_name
from lorahub_edge.benchmark.quality import Results, measure
from lorahub_edge.benchmark.trial import Pool, Protocol, find_tasks
from lorahub_edge.modules import find_modules

BENCH = "gradient"
STEPS = (40, 106)  # the released search's evaluations, and those of `edge` with 26 modules


def main() -> None:
    """Parse, load once, measure."""
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    pool = Pool(load_base(options.base, device="cpu"), find_modules(options.modules))
    searches, gradients = methods_by_name(["lorahub-code", "edge"]), [*map(gradient_on_c, STEPS)]
    protocol = Protocol(BENCH, prompt=options.prompt, n_test=100, max_new_tokens=12, batch_size=50)
    seeds = range(1, options.seeds + 1)
    for methods in (searches, gradients):  # so that peaks of searches are without the float base
        measure(protocol, pool, find_tasks(options.tasks), methods, seeds=seeds, results=Results(options.out), say=say)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gradient", description=__doc__.partition("\n")[0])
    parser.add_argument("base")
    parser.add_argument("modules")
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--prompt", default="auto")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / f"{BENCH}.jsonl")
    return parser


if __name__ == "__main__":
    main()
