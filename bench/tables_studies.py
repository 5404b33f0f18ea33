"""The tables in docs/quality.md: the search study, the ablations, ranks, table questions."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.records import RESULTS, Record, read
from bench.tables_quality import NOTHING
from lorahub_edge.benchmark.points import cells_of
from lorahub_edge.benchmark.summary import caption, methods_table, with_error

TABLE_MODULE = "table_questions"

# (strategy, budget) -> the metrics of its points
Scores = Mapping[tuple[str, int], Sequence[Mapping[str, Any]]]


def search_development() -> str:
    """Strategies at equal budgets where the choice was made."""
    return _strategies("development", "all")


def search_heldout() -> str:
    """The same on tasks that the choice did not see."""
    return _strategies("held-out", "all")


def harmful_development() -> str:
    """A pool of nothing but harm, where the choice was made."""
    return _harmful("development")


def harmful_heldout() -> str:
    """The same on tasks that the choice did not see."""
    return _harmful("held-out")


def ablations() -> str:
    """One row per variant."""
    return _methods("ablations", against="edge")


def gradient() -> str:
    """Searches beside gradient descent on the same coefficients."""
    return _methods("gradient", against="edge")


def ranks() -> str:
    """One row per rank and method, by rank."""
    return _methods("ranks", by=lambda record: int(record["setup"]["method"]["rank"]))


def wtq() -> str:
    """Methods down, pools across; a pool is known by its size and by whether it has the trained module."""
    records = read(RESULTS / "wtq.jsonl")
    if not records:
        return NOTHING
    pools = {_pool(r): None for r in records if _pool(r)}
    lines = [f"| method | {' | '.join(map(str, pools))} |", f"|---|{'---:|' * len(pools)}"]
    for method in dict.fromkeys(r["setup"]["method"]["name"] for r in records):
        of_method = [r for r in records if r["setup"]["method"]["name"] == method]
        cells = [_score_and_loss([r["metrics"] for r in of_method if _pool(r) in (None, pool)]) for pool in pools]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    shared = caption(records, n_seeds=len({r["setup"]["example_seed"] for r in records}))  # pools share a method
    return "\n\n".join([f"{shared} In a cell: exact match / loss on the test rows.", "\n".join(lines)])


def _pool(record: Record) -> str | None:
    """What the pool holds; None where modules do not matter."""
    modules = record["setup"].get("modules")
    if modules is None:
        return None
    others = len(modules) - (TABLE_MODULE in modules)
    names = [*([f"{others} modules"] if others else []), *([f"`{TABLE_MODULE}`"] if TABLE_MODULE in modules else [])]
    return " and ".join(names)


def _score_and_loss(points: Sequence[Mapping[str, Any]]) -> str:
    if not points:
        return ""
    return f"{with_error([p['exact_match'] for p in points])} / {statistics.fmean(p['test_loss'] for p in points):.3f}"


def _methods(name: str, by: Callable[[Record], int] = lambda record: 0, against: str | None = None) -> str:
    """Every method of a result file that holds one pool, or pools that its methods' names tell apart."""
    records = sorted(read(RESULTS / f"{name}.jsonl"), key=by)
    return f"{caption(records)}\n\n{methods_table(cells_of(records), against=against)}" if records else NOTHING


def _study(tasks: str, pool: str) -> list[Record]:
    records = read(RESULTS / "search-study.jsonl")
    return [r for r in records if (r["setup"]["tasks"], r["setup"]["pool"]) == (tasks, pool)]


def _harmful(tasks: str) -> str:
    """Beside the means: on how many draws a strategy ended above the objective of c = 0."""
    records = _study(tasks, "harmful")
    if not records:
        return NOTHING
    by_strategy: dict[str, dict[tuple[str, int], Mapping[str, Any]]] = {}
    for record in records:
        setup = record["setup"]
        by_strategy.setdefault(setup["strategy"], {})[setup["task"], setup["seed"]] = record["metrics"]
    zero = by_strategy["none"]
    lines = ["| strategy | exact match | objective | ended above c = 0 |", "|---|---:|---:|---:|"]
    for strategy, points in by_strategy.items():
        if set(points) == set(zero):
            score, objective = _means(list(points.values()))
            above = sum(points[p]["objective"] > zero[p]["objective"] for p in points)
            lines.append(f"| {strategy} | {score:.1f} | {objective:.3f} | {above} of {len(points)} |")
    return "\n\n".join([_caption(records, len(zero)), "\n".join(lines)])


def _strategies(tasks: str, pool: str) -> str:
    records = _study(tasks, pool)
    if not records:
        return NOTHING
    scores: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for record in records:
        setup = record["setup"]
        scores.setdefault((setup["strategy"], setup["budget"]), []).append(record["metrics"])
    n_points = max(map(len, scores.values()))
    whole = {cell: metrics for cell, metrics in scores.items() if len(metrics) == n_points}
    return "\n\n".join([_caption(records, n_points), _table(whole)])


def _caption(records: Sequence[Record], n_points: int) -> str:
    n_tasks = len({r["setup"]["task"] for r in records})
    n_modules = sorted({len(r["setup"]["modules"]) for r in records})
    sizes = f"{n_modules[0]}-{n_modules[-1]}" if len(n_modules) > 1 else str(n_modules[0])
    commits = sorted({(r["commit"] or "unknown")[:10] + (", dirty" if r["dirty"] else "") for r in records})
    return (
        f"Exact match in % on 100 test rows / objective on the five examples, by number of evaluations; mean over "
        f"{n_tasks} tasks x {n_points // n_tasks} draws; {sizes} modules; int8 base; commit {'; '.join(commits)}."
    )


def _table(scores: Scores) -> str:
    """Strategies down, budgets across; the best of each column in bold, by either number."""
    budgets = sorted({budget for _, budget in scores})
    strategies = list(dict.fromkeys(strategy for strategy, _ in scores))
    columns = {b: _best(scores, b) for b in budgets}
    lines = [f"| strategy | {' | '.join(map(str, budgets))} |", f"|---|{'---:|' * len(budgets)}"]
    for strategy in strategies:
        cells = [_cell(scores.get((strategy, b)), columns[b]) for b in budgets]
        lines.append(f"| {strategy} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _best(scores: Scores, budget: int) -> tuple[float, float]:
    means = [_means(metrics) for (_, b), metrics in scores.items() if b == budget]
    return max(m[0] for m in means), min(m[1] for m in means)


def _means(metrics: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    values = [(m["exact_match"], m["objective"]) for m in metrics]
    return round(statistics.fmean(v[0] for v in values), 1), round(statistics.fmean(v[1] for v in values), 3)


def _cell(metrics: Sequence[Mapping[str, Any]] | None, best: tuple[float, float]) -> str:
    if metrics is None:
        return ""
    texts = zip(_means(metrics), best, ("{:.1f}", "{:.3f}"), strict=True)
    return " / ".join(f"**{f.format(v)}**" if v == b else f.format(v) for v, b, f in texts)
