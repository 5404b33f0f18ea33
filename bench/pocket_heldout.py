"""The embedded default, pocket: every held-out task from five examples, tested on all of its test rows.

    python -m bench.pocket_heldout

The record of a point that is in the result file already is not measured again, so a run that was cut off goes on.
"""

from __future__ import annotations

import argparse

import torch

from bench.quality import Pool, Protocol, add_common_options, measure_all, points
from lorahub_edge import pocket
from lorahub_edge.base import load_base
from lorahub_edge.modules import load_modules

BENCH = "pocket-heldout"


def main() -> None:
    """Parse, load once, measure."""
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    pool = Pool(load_base("pocket", precision=options.precision, device=options.device), load_modules("pocket"))
    sources = {task: f"pocket/{task}" for task in options.tasks}
    todo = points(sources, options.presets, n_seeds=options.seeds, n_null_seeds=options.null_seeds)
    measure_all(Protocol(BENCH), pool, todo, options.out, again=options.again)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.pocket_heldout", description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", nargs="+", default=pocket.heldout_names())
    add_common_options(parser, BENCH)
    return parser


if __name__ == "__main__":
    main()
