"""The rank of the modules, on pocket: pools of other ranks trained anew, each alone and composed by preset edge.

    python -m bench.ranks WORK             # 27 modules per rank, ten minutes each on a quiet core; then the points

Pools are made by pocket's own recipe, alpha twice the rank, so that all have one scaling; pocket's own is one of them.
WORK keeps them between runs.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.ablations import Variant
from bench.pocket_tasks import write_tasks
from bench.records import RESULTS, say
from lorahub_edge import pocket
from lorahub_edge.base import load_base
from lorahub_edge.benchmark.fitted import Method
from lorahub_edge.benchmark.methods import METHODS
from lorahub_edge.benchmark.quality import Results, measure
from lorahub_edge.benchmark.trial import Pool, Protocol, Trial
from lorahub_edge.modules import load_modules, read_module
from lorahub_edge.pocket import make

BENCH = "ranks"
RANKS = (4, 16, 64)


def main() -> None:
    """Parse; train what is missing; measure."""
    options = _parser().parse_args()
    torch.set_num_threads(1)
    pools = {rank: modules_of(rank, options.work) for rank in options.ranks}
    base = load_base("pocket", device="cpu")
    results = Results(options.out)
    with tempfile.TemporaryDirectory() as folder:
        tasks = write_tasks(Path(folder), "development")
        for rank, modules in pools.items():
            pool = Pool(base, load_modules(modules))
            seeds = range(1, options.seeds + 1)
            measure(
                Protocol(BENCH, batch_size=50), pool, tasks, methods_of(rank), seeds=seeds, results=results, say=say
            )


def modules_of(rank: int, work: Path) -> Path:
    """The folder of a pool of that rank: pocket's own, or one in WORK, trained where it is not there yet."""
    own = pocket.modules_folder()
    if rank == rank_of(own):
        return own
    out = work / f"rank-{rank}"
    if not (out / "base").exists():
        shutil.copytree(pocket.DATA / "base", out / "base")
    make.main(["--only", "modules", "--module-rank", str(rank), "--out", str(out)])
    return out / "modules"


def rank_of(modules: Path) -> int:
    """The one rank of all modules in a folder.

    Raises:
        ValueError: they differ; the message has the ranks.
    """
    ranks = {f.rank for folder in sorted(modules.iterdir()) for f in read_module(folder).factors.values()}
    if len(ranks) != 1:
        raise ValueError(f"modules in {modules}: expected one rank, received {sorted(ranks)}")
    return ranks.pop()


def methods_of(rank: int) -> Sequence[Method]:
    """Best single module and edge, named after the rank."""

    def settings(method: Method, trial: Trial) -> Mapping[str, Any]:
        return {**method.settings(trial), "rank": rank}

    edge = Method("edge", "composed", Variant().fit, Variant().settings)
    return [
        Method(f"rank {rank}, {m.name}", m.meaning, m.fit, lambda trial, m=m: settings(m, trial))  # type: ignore[misc]
        for m in (METHODS["best-single"], edge)
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.ranks", description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path, help="where trained pools are kept")
    parser.add_argument("--ranks", type=int, nargs="+", default=list(RANKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / f"{BENCH}.jsonl")
    return parser


if __name__ == "__main__":
    main()
