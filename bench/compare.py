"""What changed between two commits, point by point, from the result files.

python -m bench.compare                 # every bench: the two commits measured last
python -m bench.compare --old 1a2b3c4 --new 5d6e7f8 --bench ops

Only points with equal setup, measured on the same processor, are compared. Exit code 1 with --fail-above RATIO if the
geometric mean of a bench's ratios is above it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.records import RESULTS, Record

# Endings of metric names that are costs, for which less is better; other numbers are not compared.
COSTS = ("_s", "_ms", "_bytes", "_ns")
# Spread, not cost.
_LEFT_OUT = ("p90_ms", "p95", "min", "created")


@dataclass(frozen=True)
class Change:
    """One metric of one point on both commits.

    Attributes:
        point: the setup, for people.
        metric: path of names in the record.
        old, new: values.
    """

    point: str
    metric: str
    old: float
    new: float

    @property
    def ratio(self) -> float:
        """new / old: below 1 is better."""
        return self.new / self.old


def main() -> None:
    """Print the comparison."""
    options = _options()
    worst = 1.0
    for path in sorted(options.results.glob("*.jsonl")):
        if options.bench is None or path.stem == options.bench:
            worst = max(worst, _compare(path, options))
    if options.fail_above is not None and worst > options.fail_above:
        sys.exit(f"a bench is slower by more than {options.fail_above:g}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("--old", help="commit, or its beginning; default: the last but one in each file")
    parser.add_argument("--new", help="default: the last one in each file")
    parser.add_argument("--bench", help="name of one result file without its ending")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--fail-above", type=float, help="exit with 1 if a bench's mean ratio is above")
    return parser.parse_args()


def _compare(path: Path, options: argparse.Namespace) -> float:
    """Print one file's changes; returns the geometric mean of their ratios, 1 if there are none."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    commits = list(dict.fromkeys(str(r["commit"]) for r in records if "commit" in r))
    old, new = _commit(options.old, commits, -2), _commit(options.new, commits, -1)
    if old is None or new is None or old == new:
        _say(f"{path.stem}: nothing to compare ({len(commits)} commits)")
        return 1.0
    changes = list(changes_between(records, old, new))
    if not changes:
        _say(f"{path.stem}: no point was measured on both {old[:7]} and {new[:7]} on one processor")
        return 1.0
    mean = statistics.geometric_mean(c.ratio for c in changes)
    _say(f"{path.stem}: {len(changes)} numbers on {old[:7]} and {new[:7]}, mean ratio {mean:.3f} (below 1 is better)")
    for change in sorted(changes, key=lambda c: -abs(c.ratio - 1))[:10]:
        _say(f"  {change.ratio:6.3f}  {change.old:.4g} -> {change.new:.4g}  {change.metric}  {change.point}")
    return mean


def _commit(wanted: str | None, commits: list[str], default: int) -> str | None:
    if wanted is not None:
        return next((c for c in commits if c.startswith(wanted)), None)
    return commits[default] if len(commits) >= -default else None


def changes_between(records: list[Record], old: str, new: str) -> Iterator[Change]:
    """Each cost of each point that both commits have measured on one processor; of repeats the last counts."""
    points = {(r["key"], r["machine"]["cpu"], r["commit"]): r for r in records if "commit" in r}
    for (key, cpu, commit), after in points.items():
        before = points.get((key, cpu, old))
        if commit != new or before is None:
            continue
        point = ", ".join(
            f"{name} {value}" for name, value in after["setup"].items() if not str(name).endswith("sha256")
        )
        befores = dict(_costs(before["metrics"]))
        for metric, value in _costs(after["metrics"]):
            if befores.get(metric, 0) > 0 and value > 0:
                yield Change(point[:120], metric, befores[metric], value)


def _costs(metrics: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, float]]:
    for name, value in metrics.items():
        whole = f"{path}.{name}" if path else name
        if isinstance(value, Mapping):
            yield from _costs(value, whole)
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and _is_cost(whole):
            yield whole, float(value)


def _is_cost(path: str) -> bool:
    *parents, name = path.split(".")
    if name.startswith(_LEFT_OUT) or "_per_s" in path:  # a rate is no cost
        return False
    # a spread {"median": ...} carries its unit one level up
    return name.endswith(COSTS) or (name == "median" and any(p.endswith(COSTS) for p in parents[-1:]))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
