"""The embedded default, pocket: every held-out task from five examples, tested on all of its test rows.

    python -m bench.pocket_heldout

The record of a point that is in the result file already is not measured again, so a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from bench.quality import Pool, Protocol, measure_all, points
from bench.records import RESULTS
from lorahub_edge import pocket
from lorahub_edge.adaptation import PRESETS
from lorahub_edge.base import load_base
from lorahub_edge.modules import load_modules

BENCH = "pocket-heldout"


def main() -> None:
    """Parse, load once, measure."""
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    pool = Pool(load_base("pocket", precision=options.precision, device=options.device), load_modules("pocket"))
    sources = {task: f"pocket/{task}" for task in options.tasks}
    todo = points(sources, options.presets, options.seeds)
    measure_all(Protocol(BENCH), pool, todo, options.out, again=options.again)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.pocket_heldout", description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", nargs="+", default=pocket.heldout_names())
    parser.add_argument("--presets", nargs="+", default=["edge", "lorahub-code"], choices=list(PRESETS))
    parser.add_argument("--seeds", type=int, default=3, help="seeds 1 ... n, with example draws 42, 43, ...")
    parser.add_argument("--precision", default="int8", help="of the base")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--out", type=Path, default=RESULTS / f"{BENCH}.jsonl")
    parser.add_argument("--again", action="store_true", help="measure also what the result file has")
    return parser


if __name__ == "__main__":
    main()
