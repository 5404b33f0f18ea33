"""Records become tables: mean and spread over seeds, and the best seed on the test set under the name it deserves."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lorahub_edge.benchmark.methods import METHODS
from lorahub_edge.benchmark.records import Record

# One (task, method) of a table: the metrics of each seed, in the order measured.
Cells = Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]

ORACLE = "best of seeds on test (oracle)"


def cells_of(records: Sequence[Record]) -> Cells:
    """The records of one pool and protocol, by task and method."""
    cells: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for record in {r["key"]: r for r in records}.values():
        setup = record["setup"]
        cells.setdefault((setup["task"], setup["method"]["name"]), []).append(record["metrics"])
    return cells


def names_in(cells: Cells) -> tuple[list[str], list[str]]:
    """Tasks in the order measured; methods in the tables' order, others behind them in the order measured."""
    tasks, present = (list(dict.fromkeys(names)) for names in zip(*cells, strict=True))
    known = [name for name in METHODS if name in present]
    return tasks, [*known, *(name for name in present if name not in METHODS)]


def methods_table(cells: Cells) -> str:
    """One row per method: means over tasks and seeds. A method that lacks a task is left out: its mean says nothing."""
    tasks, methods = names_in(cells)
    lines = [
        f"| method | exact match | {ORACLE} | loss on examples | loss on test | tokens per example | evaluations | "
        "CPU s | wall s | peak MB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for method in methods:
        rows = [cells[task, method] for task in tasks if (task, method) in cells]
        if len(rows) == len(tasks):
            lines.append(f"| {method} | {' | '.join(_method_cells(rows))} |")
    return "\n".join(lines)


def tasks_table(cells: Cells, methods: Sequence[str] | None = None) -> str:
    """Tasks down, methods across, exact match; the best mean of each row in bold."""
    tasks, present = names_in(cells)
    shown = [name for name in methods or present if name in present]
    lines = [f"| task | {' | '.join(shown)} |", f"|---|{'---:|' * len(shown)}"]
    for task in tasks:
        lines.append(f"| {task} | {' | '.join(in_bold([scores(cells, task, method) for method in shown]))} |")
    if len(tasks) > 1:
        columns = [[scores(cells, task, method) for task in tasks] for method in shown]
        means = [[statistics.fmean(map(statistics.fmean, column))] if all(column) else [] for column in columns]
        lines.append(f"| **mean** | {' | '.join(in_bold(means, digits=1))} |")
    return "\n".join(lines)


def scores(cells: Cells, task: str, method: str) -> list[float]:
    """The exact matches of one cell, one per seed."""
    return [metrics["exact_match"] for metrics in cells.get((task, method), ())]


def in_bold(values: Sequence[Sequence[float]], *, digits: int = 0) -> list[str]:
    """Mean (lowest-highest) of each cell, the best mean in bold; nothing where there are no values."""
    means = [round(statistics.fmean(v), digits) if v else None for v in values]
    best = max((m for m in means if m is not None), default=None)
    texts = []
    for mean, samples in zip(means, values, strict=True):
        text = "" if mean is None else f"{mean:.{digits}f}"
        spread = f" ({min(samples):.0f}-{max(samples):.0f})" if len(samples) > 1 else ""
        texts.append(f"**{text}**{spread}" if mean is not None and mean == best else f"{text}{spread}")
    return texts


def _method_cells(rows: Sequence[Sequence[Mapping[str, Any]]]) -> list[str]:
    """The columns of one method: `rows` are its seeds' metrics, task by task."""
    n_seeds = min(map(len, rows))
    by_seed = [statistics.fmean(seeds[k]["exact_match"] for seeds in rows) for k in range(n_seeds)]
    mean = f"{statistics.fmean(m['exact_match'] for seeds in rows for m in seeds):.1f}"
    oracle = statistics.fmean(max(m["exact_match"] for m in seeds) for seeds in rows)
    memory = [m["peak_memory_bytes"] for seeds in rows for m in seeds if m["peak_memory_bytes"] is not None]
    return [
        f"{mean} ({min(by_seed):.1f}-{max(by_seed):.1f})" if n_seeds > 1 else mean,
        f"{oracle:.1f}" if n_seeds > 1 else "",
        _mean_of(rows, "example_loss", "{:.3f}".format),
        _mean_of(rows, "test_loss", "{:.3f}".format),
        _mean_of(rows, "tokens_per_example", "{:.0f}".format),
        _mean_of(rows, "n_evaluations", "{:.0f}".format),
        _mean_of(rows, "cpu_seconds", "{:.2f}".format),
        _mean_of(rows, "seconds", "{:.2f}".format),
        f"{max(memory) / 1e6:.0f}" if memory else "",
    ]


def _mean_of(rows: Sequence[Sequence[Mapping[str, Any]]], name: str, write: Callable[[float], str]) -> str:
    values = [m[name] for seeds in rows for m in seeds]
    return "" if None in values else write(statistics.fmean(values))


def caption(records: Sequence[Record], *, n_seeds: int | None = None) -> str:
    """What all records share; n_seeds where the records of one task and method differ in more than their seed."""
    setups = [r["setup"] for r in records]
    first, machine = setups[0], records[0]["machine"]
    n_seeds = n_seeds or max(len(seeds) for seeds in cells_of(records).values())
    n_modules = sorted({len(s["modules"]) for s in setups if "modules" in s})
    commits = sorted({(r["commit"] or "unknown")[:10] + (", dirty" if r["dirty"] else "") for r in records})
    pools = f"{'/'.join(map(str, n_modules))} modules; " if n_modules else ""
    n_test = sorted({r["metrics"]["n_test"] for r in records})
    tested = f"{n_test[0]}-{n_test[-1]}" if len(n_test) > 1 else str(n_test[0])
    seeds = f"mean (lowest-highest) over {n_seeds} seeds" if n_seeds > 1 else "one seed"
    return (
        f"Exact match in % of {tested} test rows, {seeds}; "
        f"{first['n_examples']} examples; {pools}{_precision(setups)} base (float32 where gradients are taken); "
        f"{machine['cpu']}, threads: {machine['threads']}; commit {'; '.join(commits)}."
    )


def _precision(setups: Sequence[Mapping[str, Any]]) -> str:
    return next((str(s["precision"]) for s in setups if "modules" in s), str(setups[0]["precision"]))
