"""How one evaluation's time and memory grow with modules, candidates, input length and rank, ours beside lorahub's.

On random models of FLAN-T5-small's shape, so that half an hour pays for every point. Each point is a fresh process;
points are measured in an order drawn anew, and a point that is in the results is not measured again without --again.

python -m bench.curves WORK [--quick]
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.records import RESULTS, append, key_of, make_record, read
from bench.workers import Workplace

BENCH = "curves-t5-small"


@dataclass(frozen=True)
class Point:
    """One setting; the defaults are where the curves cross.

    Attributes:
        n_modules, rank: of the pool.
        n_tokens: of each of the five inputs.
        n_candidates: of one call of the evaluation.
    """

    n_modules: int = 20
    rank: int = 16
    n_tokens: int = 81
    n_candidates: int = 12


CURVES: dict[str, tuple[int, ...]] = {
    "n_modules": (5, 10, 20, 50, 100, 196),
    "n_candidates": (1, 4, 12, 32),
    "n_tokens": (16, 81, 256, 1024),
    "rank": (4, 16, 64),
}
QUICK = {"n_modules": (5, 20), "n_tokens": (16, 81)}


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(prog="python -m bench.curves", description=__doc__)
    parser.add_argument("work", type=Path, help="folder for models and modules; kept")
    parser.add_argument("--quick", action="store_true", help="three points, ours only")
    parser.add_argument("--again", action="store_true", help="measure all points anew")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / f"{BENCH}.jsonl")
    options = parser.parse_args()
    place = Workplace(options.work, threads=options.threads)
    known = set() if options.again else {record["key"] for record in read(options.out)}
    setups = [s for s in _setups(options) if key_of(BENCH, s) not in known]
    random.Random(0).shuffle(setups)
    for number, setup in enumerate(setups, start=1):
        metrics = _measure(place, setup)
        append(options.out, make_record(BENCH, setup, metrics))
        sys.stderr.write(f"{number}/{len(setups)} {setup}: {1e3 * metrics['median_s']:.1f} ms\n")


def _setups(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for point in points(QUICK if options.quick else CURVES):
        for contender in ("ours",) if options.quick else ("ours", "lorahub"):
            # lorahub has no generation: its candidates come one by one
            if contender == "ours" or point.n_candidates == Point.n_candidates:
                yield {"contender": contender, "shape": "small", "threads": options.threads, **asdict(point)}


def points(curves: dict[str, tuple[int, ...]]) -> list[Point]:
    """Every value of every curve, the others at their defaults; none twice."""
    return list(dict.fromkeys(replace(Point(), **{name: v}) for name, values in curves.items() for v in values))


def _measure(place: Workplace, setup: dict[str, Any]) -> dict[str, Any]:
    base, modules = place.model("small", setup["n_modules"], rank=setup["rank"])
    task = place.task(n_words=setup["n_tokens"] - 1)
    n = setup["n_candidates"] if setup["contender"] == "ours" else 3
    run = place.worker(setup["contender"], base, modules, task, n_candidates=n)
    peak = run["VmHWM_bytes"]
    return {
        "median_s": statistics.median(run["per_candidate_s"]),
        "peak_bytes": peak,
        "samples_s": run["per_candidate_s"],
    }


if __name__ == "__main__":
    main()
