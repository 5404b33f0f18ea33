"""The quality tables in README, from the records of `lorahub-edge bench quality` and of the bench before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.records import RESULTS, Record, read
from lorahub_edge.benchmark.points import Cells, Point, scores
from lorahub_edge.benchmark.summary import in_bold, over, summary, tasks_table

NOTHING = "Not measured yet."

# Columns of the table by task; the other methods stand in the table of methods.
SHOWN = (
    "constant-oracle", "zero-shot", "in-context", "best-single", "uniform", "random-null", "lorahub-code",
    "lorahub-paper", "edge",
)  # fmt: skip

# What the first bench called the rows of one run's table; "adapted" is the preset's.
_FIRST_NAMES = {
    "zero-shot": "zero-shot",
    "best single module": "best-single",
    "uniform mean": "uniform",
    "random-LoRA null": "random-null",
}


def quality_pocket() -> str:
    """All methods on the embedded held-out tasks; then the tasks one by one."""
    return _summary("quality-pocket", SHOWN)


def quality_smollm2() -> str:
    """The same on a real base and real tasks."""
    return _summary("quality-smollm2", SHOWN)


def leave_out() -> str:
    """Tasks without their own modules, on the real base; the ceilings tell which tasks count."""
    return _summary("leave-out-smollm2")


def _summary(name: str, shown: Sequence[str] | None = None) -> str:
    records = of_newest_pool(read(RESULTS / f"{name}.jsonl"))
    return "\n\n".join(summary(records, shown=shown)) if records else NOTHING


def bbh_smollm2() -> str:
    """All draws; then the pilot's own setup, measured again, beside the pilot."""
    records = _of_last_pool(read(RESULTS / "bbh-smollm2.jsonl"))
    if not records:
        return NOTHING
    parts = [_first_caption(records), tasks_table(_first_cells(records), SHOWN)]
    again = _of_last_pool(read(RESULTS / "bbh-smollm2-pilot-setup.jsonl"))
    if again:
        parts += ["The setup of a pilot that came before this repository, measured again:", _first_caption(again)]
        parts += [_beside_the_pilot(_first_cells(again))]
    return "\n\n".join(parts)


def of_newest_pool(records: Sequence[Record]) -> list[Record]:
    """The newest record of each point, for the base, modules and presets measured last."""
    with_modules = [r for r in records if "modules" in r["setup"]]
    if not with_modules:
        return list(records)
    last = with_modules[-1]["setup"]
    newest: dict[tuple[Any, ...], Record] = {}
    for record in records:
        setup = record["setup"]
        if (
            setup["base"] == last["base"]
            and setup.get("modules_sha256", last["modules_sha256"]) == last["modules_sha256"]
        ):
            newest[setup["task"], setup["method"]["name"], setup["example_seed"]] = record
    return list(newest.values())


def _of_last_pool(records: list[Record]) -> list[Record]:
    """The same for records of the first bench."""
    pool = _pool(records[-1]) if records else ()
    newest = {_first_point(r): r for r in records if _pool(r) == pool}
    return list(newest.values())


def _first_point(record: Record) -> tuple[str, str, int]:
    setup = record["setup"]
    return (setup["task"], setup["search"]["preset"], setup["search"]["seed"])


def _pool(record: Record) -> tuple[str, ...]:
    setup = record["setup"]
    return (str(setup["base"]), setup["modules_sha256"], setup["precision"])


def _first_cells(records: Sequence[Record]) -> Cells:
    """One record held a whole run's table; a control counts once per seed, whichever preset's record has it."""
    by_seed: dict[tuple[str, str], dict[int, Point]] = {}
    for record in records:
        task, preset, seed = _first_point(record)
        for name, row in record["metrics"]["rows"].items():
            by_seed.setdefault((task, _FIRST_NAMES.get(name, preset)), {})[seed] = Point(seed, None, row)
    return {cell: list(seeds.values()) for cell, seeds in by_seed.items()}


def _beside_the_pilot(cells: Cells) -> str:
    pilot = {r["setup"]["task"]: r["metrics"]["exact_match"] for r in read(RESULTS / "pilot-smollm2.jsonl")}
    columns = [name for name in SHOWN if any((task, name) in cells for task in pilot)]
    lines = [f"| task | {' | '.join(columns)} | pilot's COBYLA |", f"|---|{'---:|' * (len(columns) + 1)}"]
    for task in dict.fromkeys(task for task, _ in cells):
        row = in_bold([scores(cells, task, name) for name in columns])
        lines.append(f"| {task} | {' | '.join(row)} | {pilot[task]:.0f} |")
    return "\n".join(lines)


def _first_caption(records: Sequence[Record]) -> str:
    first = records[0]
    setup = first["setup"]
    machine = first["machine"]
    n_seeds = len({r["setup"]["search"]["seed"] for r in records})
    commits = sorted({(r["commit"] or "unknown")[:10] + (", dirty" if r["dirty"] else "") for r in records})
    drawn = ", each with its own draw of" if n_seeds > 1 else ";"
    return (
        f"Exact match in %, {over(1, n_seeds)}{drawn} {setup['n_examples']} examples; "
        f"{len(setup['modules'])} modules; {setup['precision']} base; "
        f"{machine['cpu']}, threads: {machine['threads']}; commit {'; '.join(commits)}."
    )
