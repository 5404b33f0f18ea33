"""Write README's tables from the result files, between their markers; no number in them is typed by hand.

python -m bench.tables            # write
python -m bench.tables --check    # exit 1 if README is stale
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.records import RESULTS, ROOT, Record, read
from bench.tables_ops import ops_table
from lorahub_edge.adaptation import FORMS
from lorahub_edge.adaptation import PRESETS as SEARCH_PRESETS

CONTROLS = ("zero-shot", "best single module", "uniform mean", "random-LoRA null")
PRESETS = ("lorahub-code", "edge")
PILOT = "pilot-smollm2"
NOTHING = "Not measured yet."


def main() -> None:
    """Write the tables, or say which are stale."""
    parser = argparse.ArgumentParser(prog="python -m bench.tables", description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a table is stale")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    options = parser.parse_args()
    old = options.readme.read_text(encoding="utf-8")
    new = old
    for name, make in TABLES.items():
        new = put_between_markers(new, name, make())
    if new == old:
        return
    if options.check:
        sys.exit(f"{options.readme.name}: a table is stale; run python -m bench.tables")
    options.readme.write_text(new, encoding="utf-8")


def put_between_markers(text: str, name: str, table: str) -> str:
    """The text with everything between a table's two markers replaced.

    Raises:
        SystemExit: the markers are not there, once each and in order.
    """
    begin, end = f"<!-- begin:{name} -->", f"<!-- end:{name} -->"
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        sys.exit(f"README.md: expected the markers {begin} and {end}")
    return f"{before}{begin}\n{table}\n{end}{after}"


def bbh_smollm2() -> str:
    """All draws; then the pilot's own setup, measured again, beside the pilot."""
    records = _one_pool(read(RESULTS / "bbh-smollm2.jsonl"))
    if not records:
        return NOTHING
    parts = [_caption(records), _table(records)]
    again = _one_pool(read(RESULTS / "bbh-smollm2-pilot-setup.jsonl"))
    if again:
        pilot = {r["setup"]["task"]: r["metrics"]["exact_match"] for r in read(RESULTS / f"{PILOT}.jsonl")}
        beside = {"pilot's COBYLA": lambda task: f"{pilot[task]:.0f}"}
        parts += ["The setup of a pilot that came before this repository, measured again:", _caption(again)]
        parts += [_table(again, beside)]
    return "\n\n".join(parts)


def pocket_heldout() -> str:
    """All held-out tasks and their mean."""
    records = _one_pool(read(RESULTS / "pocket-heldout.jsonl"))
    return f"{_caption(records)}\n\n{_table(records)}" if records else NOTHING


def presets() -> str:
    """What each preset runs, from the code that runs it."""
    lines = ["| `--preset` | search | objective | box | evaluations |", "|---|---|---|---|---|"]
    for preset in SEARCH_PRESETS.values():
        formula = FORMS[preset.objective_form].formula.replace("alpha", f"{preset.alpha:g}").replace("|", r"\|")
        budget = f"{preset.budget}" + (" + one per module" if preset.budget_per_module else "")
        lines.append(f"| `{preset.name}` | {preset.meaning} | {formula} | ±{preset.bound:g} | {budget} |")
    return "\n".join(lines)


def serve_t5_large() -> str:
    """Serving: every contender of the run measured last."""
    records = {r["setup"]["contender"]: r for r in read(RESULTS / "serve-t5-large.jsonl")}
    if "ours" not in records:
        return NOTHING
    ours = records["ours"]
    setup, machine = ours["setup"], ours["machine"]
    commit = (ours["commit"] or "unknown")[:10] + (", dirty" if ours["dirty"] else "")
    lines = [
        f"{setup['tokens_in']} tokens in, {setup['tokens_out']} out, batch 1 (tokens per second: batch "
        f"{setup['batch']}), {setup['threads']} threads; median of {setup['rounds'] * setup['repeats']} answers, "
        f"95th percentile in brackets; {machine['cpu']}; commit {commit}.",
        "",
        "| | answer, s | first token, ms | next tokens, ms | tokens/s | peak memory, MB | folder, MB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, record in sorted(records.items(), key=lambda item: item[1]["metrics"]["total_s"]["median"]):
        m = record["metrics"]
        first, later = (f"{1e3 * m[k]['median']:.0f} ({1e3 * m[k]['p95']:.0f})" for k in ("first_token_s", "token_s"))
        lines.append(
            f"| {_SERVERS[name]} | {m['total_s']['median']:.2f} ({m['total_s']['p95']:.2f}) | {first} | {later} | "
            f"{m['batch_tokens_per_s']:.0f} | {m['peak_memory_bytes'] / 1e6:.0f} | {m['folder_bytes'] / 1e6:.0f} |"
        )
    return "\n".join(lines)


_SERVERS = {
    "ours": "`lorahub_edge.serve`, int8",
    "ours-spinning": "the same, onnxruntime's threads spinning",
    "optimum": "Optimum's export, fp32, on onnxruntime",
    "optimum-spinning": "the same, onnxruntime's threads spinning",
    "ctranslate2": "CTranslate2, int8",
}

TABLES: dict[str, Callable[[], str]] = {
    "bbh-smollm2": bbh_smollm2,
    "ops": ops_table,
    "pocket-heldout": pocket_heldout,
    "presets": presets,
    "serve-t5-large": serve_t5_large,
}


def _one_pool(records: list[Record]) -> list[Record]:
    """The newest record of each point, for the base and modules measured last; others do not belong in the table."""
    pool = _pool(records[-1]) if records else ()
    newest = {
        (_task(r), r["setup"]["search"]["preset"], r["setup"]["search"]["seed"]): r for r in records if _pool(r) == pool
    }
    return list(newest.values())


def _pool(record: Record) -> tuple[str, ...]:
    setup = record["setup"]
    return (str(setup["base"]), setup["modules_sha256"], setup["precision"])


def _task(record: Record) -> str:
    return str(record["setup"]["task"])


def _caption(records: Sequence[Record]) -> str:
    """What all records share."""
    first = records[0]
    setup = first["setup"]
    machine = first["machine"]
    n_seeds = len({r["setup"]["search"]["seed"] for r in records})
    commits = sorted({(r["commit"] or "unknown")[:10] + (", dirty" if r["dirty"] else "") for r in records})
    drawn = f"{n_seeds} seeds, each with its own draw" if n_seeds > 1 else "one seed and draw"
    spread = "mean (lowest-highest) over " if n_seeds > 1 else ""
    return (
        f"Exact match in %, {spread}{drawn} of "
        f"{setup['n_examples']} examples; {len(setup['modules'])} modules; {setup['precision']} base; "
        f"{machine['cpu']}, threads: {machine['threads']}; commit {'; '.join(commits)}."
    )


def _table(records: Sequence[Record], extra: dict[str, Callable[[str], str]] | None = None) -> str:
    """Tasks down, controls and presets across, the best mean of each row in bold."""
    tasks = list(dict.fromkeys(_task(r) for r in records))
    columns = [*CONTROLS, *(p for p in PRESETS if any(r["setup"]["search"]["preset"] == p for r in records))]
    extra = extra or {}
    lines = [f"| task | {' | '.join([*columns, *extra])} |", f"|---|{'---:|' * (len(columns) + len(extra))}"]
    for task in tasks:
        values = [_values(records, task, column) for column in columns]
        cells = [*_cells(values), *(make(task) for make in extra.values())]
        lines.append(f"| {task} | {' | '.join(cells)} |")
    if len(tasks) > 1 and not extra:
        means = [[m] if (m := _mean_of_tasks(records, tasks, column)) is not None else [] for column in columns]
        lines.append(f"| **mean** | {' | '.join(_cells(means, digits=1))} |")
    return "\n".join(lines)


def _values(records: Sequence[Record], task: str, column: str) -> list[float]:
    """The exact matches of one cell, one per seed; a control counts once per seed, whichever preset's record has it."""
    found: dict[int, float] = {}
    for record in records:
        search = record["setup"]["search"]
        if _task(record) != task or (column in PRESETS and search["preset"] != column):
            continue
        row = record["metrics"]["rows"].get("adapted" if column in PRESETS else column)
        if row is not None:
            found[search["seed"]] = row["exact_match"]
    return list(found.values())


def _mean_of_tasks(records: Sequence[Record], tasks: Sequence[str], column: str) -> float | None:
    """None unless every task has the column."""
    cells = [_values(records, task, column) for task in tasks]
    return statistics.fmean(statistics.fmean(c) for c in cells) if all(cells) else None


def _cells(values: Sequence[Sequence[float]], *, digits: int = 0) -> list[str]:
    means = [statistics.fmean(v) if v else None for v in values]
    best = max((round(m, digits) for m in means if m is not None), default=None)
    cells = []
    for mean, samples in zip(means, values, strict=True):
        if mean is None:
            cells.append("")
            continue
        text = f"**{mean:.{digits}f}**" if round(mean, digits) == best else f"{mean:.{digits}f}"
        cells.append(text if len(samples) == 1 else f"{text} ({min(samples):.0f}-{max(samples):.0f})")
    return cells


if __name__ == "__main__":
    main()
