"""Points become tables: means with their standard errors, and differences that are not called one within theirs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lorahub_edge.benchmark.methods import CEILING, METHODS, REFERENCE
from lorahub_edge.benchmark.points import (
    HEADROOM,
    Cells,
    Headroom,
    Point,
    cells_of,
    differences,
    headroom,
    names_in,
    scores,
    standard_error,
)
from lorahub_edge.benchmark.records import Record
from lorahub_edge.errors import InvalidInput

# Columns behind exact match and the difference: head, metric, how a mean is written.
_COLUMNS: Sequence[tuple[str, str, Callable[[float], str]]] = (
    ("strict match", "strict_match", "{:.1f}".format),
    ("most frequent answer", "most_frequent", "{:.0f}".format),
    ("valid form", "valid_form", "{:.0f}".format),
    ("loss on examples", "example_loss", "{:.3f}".format),
    ("loss on test", "test_loss", "{:.3f}".format),
    ("evaluations", "n_evaluations", "{:.0f}".format),
    ("CPU s", "cpu_seconds", "{:.2f}".format),
)


def check_against(against: str | None, methods: Sequence[str]) -> None:
    """Refuse to compare with a method that is not measured.

    Args:
        against: see `methods_table`.
        methods: the names of those that are measured; none for all.

    Raises:
        InvalidInput: it is none of them.
    """
    measured = methods or list(METHODS)
    if against is not None and against not in measured:
        raise InvalidInput(f"against '{against}': it is not measured; expected one of {', '.join(measured)}")


def summary(records: Sequence[Record], *, against: str | None = None, shown: Sequence[str] | None = None) -> list[str]:
    """What the records of one pool and protocol say, as paragraphs: what was measured, by method, by task.

    Args:
        records: see `measure`.
        against: see `methods_table`.
        shown: methods of the table by task; None for all.

    Where tasks have modules of their own, means are over the tasks that count; see `headroom`.
    """
    cells = cells_of(records)
    room = headroom(cells)
    counted = {cell: points for cell, points in cells.items() if cell[0] in room.counted}
    parts = [caption([r for r in records if r["setup"]["task"] in room.counted] or records)]
    if CEILING in names_in(cells)[1]:
        parts.append(_count(room))
    if counted:
        parts.append(methods_table(counted, against=against))
    return [*parts, tasks_table(cells, shown, aside=list(room.others))]


def _count(room: Headroom) -> str:
    n, n_others = len(room.counted), len(room.others)
    why = "; ".join(f"{task} ({reason})" for task, reason in room.others.items())
    return (
        f"{n} of {n + n_others} tasks count: there the task's own module beats every constant answer by "
        f"{HEADROOM:.0f} points or more. Means are over these."
    ) + (f" Not counted: {why}." if why else "")


def methods_table(cells: Cells, *, against: str | None = None) -> str:
    """One row per method: means over tasks and seeds. A method that lacks a task is left out: its mean says nothing.

    Args:
        cells: see `cells_of`.
        against: the method whose exact match is taken from that of each other, point by point; None for the released
            search, if it was measured.

    Raises:
        InvalidInput: `against` was not measured.
    """
    tasks, methods = names_in(cells)
    check_against(against, methods)
    reference = against or (REFERENCE if REFERENCE in methods else None)
    heads = [
        "exact match",
        *([f"difference to `{reference}`"] if reference else []),
        *(head for head, _, _ in _COLUMNS),
    ]
    lines = [f"| method | {' | '.join(heads)} | peak MB |", f"|---|{'---:|' * (len(heads) + 1)}"]
    for method in methods:
        if all((task, method) in cells for task in tasks):
            points = [point for task in tasks for point in cells[task, method]]
            row = [with_error([p.score for p in points])]
            if reference:
                row.append("" if method == reference else _difference(differences(cells, tasks, method, reference)))
            row += [_mean_of(points, name, write) for _, name, write in _COLUMNS]
            lines.append(f"| {method} | {' | '.join(row)} | {_peak(points)} |")
    table = "\n".join(lines)
    return f"{table}\n\n{_ABOUT_DIFFERENCES}" if reference else table


_ABOUT_DIFFERENCES = (
    "Differences are means over the points (task and draw) that both methods have, ± their standard error. "
    '"None shown": the difference is within one standard error, so it may be nothing but chance.'
)


def tasks_table(cells: Cells, methods: Sequence[str] | None = None, *, aside: Sequence[str] = ()) -> str:
    """Tasks down, methods across, exact match; the best mean of each row in bold.

    Args:
        cells: see `cells_of`.
        methods: the columns; None for all.
        aside: tasks that stand below the mean, since they are not in it.
    """
    tasks, present = names_in(cells)
    shown = [name for name in methods or present if name in present]
    counted = [task for task in tasks if task not in aside]
    rows = {task: in_bold([scores(cells, task, method) for method in shown]) for task in tasks}
    lines = [f"| task | {' | '.join(shown)} |", f"|---|{'---:|' * len(shown)}"]
    lines += [f"| {task} | {' | '.join(rows[task])} |" for task in counted]
    if len(counted) > 1:
        columns = [[scores(cells, task, method) for task in counted] for method in shown]
        means = [[statistics.fmean(map(statistics.fmean, column))] if all(column) else [] for column in columns]
        lines.append(f"| **mean** | {' | '.join(in_bold(means, digits=1))} |")
    lines += [f"| {task} (not counted) | {' | '.join(rows[task])} |" for task in tasks if task in aside]
    return "\n".join(lines)


def in_bold(values: Sequence[Sequence[float]], *, digits: int = 0) -> list[str]:
    """Mean ± standard error of each cell, the best mean in bold; nothing where there are no values."""
    means = [round(statistics.fmean(v), digits) if v else None for v in values]
    best = max((m for m in means if m is not None), default=None)
    texts = []
    for mean, samples in zip(means, values, strict=True):
        text = "" if mean is None else f"{mean:.{digits}f}"
        texts.append((f"**{text}**" if mean is not None and mean == best else text) + _error(samples))
    return texts


def with_error(values: Sequence[float]) -> str:
    """Mean ± standard error, which one value alone does not have."""
    return f"{statistics.fmean(values):.1f}{_error(values)}"


def _error(values: Sequence[float]) -> str:
    error = standard_error(values)
    return "" if error is None else f" ± {error:.1f}"


def _difference(values: Sequence[float]) -> str:
    """A difference with its error, in words that nobody reads as a win where it is none."""
    if not values:
        return ""
    mean, error = statistics.fmean(values), standard_error(values)
    if error is None:
        return f"{mean:+.1f} (one point)"
    text = f"{mean:+.1f} ± {error:.1f}"
    return text if round(abs(mean), 1) > round(error, 1) else f"none shown ({text})"


def _mean_of(points: Sequence[Point], name: str, write: Callable[[float], str]) -> str:
    """Nothing where a point has no such number; records of earlier versions lack some."""
    values = [point.metrics.get(name) for point in points]
    return "" if None in values else write(statistics.fmean(values))  # type: ignore[arg-type]


def _peak(points: Sequence[Point]) -> str:
    peaks = [p.metrics["peak_memory_bytes"] for p in points if p.metrics["peak_memory_bytes"] is not None]
    return f"{max(peaks) / 1e6:.0f}" if peaks else ""


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
    return (
        f"Exact match in % of {tested} test rows, {over(len({s['task'] for s in setups}), n_seeds)}; "
        f"{first['n_examples']} examples; {pools}{_precision(setups)} base (float32 where gradients are taken); "
        f"{machine['cpu']}, threads: {machine['threads']}; commit {'; '.join(commits)}."
    )


def over(n_tasks: int, n_seeds: int) -> str:
    """What the means of a table are over."""
    counts = [f"{n} {what}" for n, what in ((n_tasks, "tasks"), (n_seeds, "seeds")) if n > 1]
    return f"mean ± standard error over {' x '.join(counts)}" if counts else "one seed"


def _precision(setups: Sequence[Mapping[str, Any]]) -> str:
    return next((str(s["precision"]) for s in setups if "modules" in s), str(setups[0]["precision"]))
