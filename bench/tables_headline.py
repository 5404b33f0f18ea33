"""README's table: four numbers beside those of others, each from the records of a table in docs/."""

from __future__ import annotations

from typing import Any

from bench.records import RESULTS, read
from bench.tables_adapt import NOTHING
from bench.tables_quality import of_newest_pool
from lorahub_edge.benchmark.points import Cells, cells_of, headroom, scores
from lorahub_edge.benchmark.summary import over, with_error

CLIENTS = 8


def headline() -> str:
    """Quality, speed and memory of adapting, speed of serving: ours, LoRAHub's, and whom else one would ask."""
    quality = cells_of(of_newest_pool(read(RESULTS / "leave-out-smollm2.jsonl")))
    adapting = {
        (r["setup"]["part"], r["setup"]["contender"]): r
        for r in read(RESULTS / "adapt-t5-large.jsonl")
        if r["setup"]["shape"] == "large"
    }
    serving = {
        r["setup"]["contender"]: r for r in read(RESULTS / "serve-many.jsonl") if r["setup"]["clients"] == CLIENTS
    }
    if not (quality and adapting and serving):
        return NOTHING
    match = _exact_match(quality)
    second = {name: f"{r['metrics']['median_s']:.2f}" for (part, name), r in adapting.items() if part == "evaluation"}
    peak = {name: f"{r['metrics']['peak_bytes'] / 1e9:.2f}" for (part, name), r in adapting.items() if part == "whole"}
    speed = {name: f"{r['metrics']['tokens_per_s']:.0f}" for name, r in serving.items()}
    lines = [
        f"Exact match: {_protocol(quality)}. FLAN-T5-large: random weights of its shape. "
        f"Adapting: {_machine(adapting['evaluation', 'ours'])}; serving: {_machine(serving['ours'])}.",
        "",
        "| | lorahub_edge | LoRAHub | others |",
        "|---|---:|---:|---|",
        f"| SmolLM2-135M, exact match, % | {match['edge']} | {match['lorahub-code']} | "
        f"best single module {match['best-single']}; constant answer {match['constant']} |",
        f"| FLAN-T5-large, one evaluation, s | {second['ours']} | {second['lorahub']} | "
        f"the int8 products alone {second['int-mm']} |",
        f"| FLAN-T5-large, peak memory of `adapt`, GB | {peak['ours']} | {peak['lorahub']} | |",
        f"| SmolLM2-135M, {CLIENTS} clients, tokens per second | {speed['ours']} | no service | "
        f"CTranslate2 {speed['ctranslate2']}; llama.cpp's server, 4 bits, {speed['llama.cpp']} |",
    ]
    return "\n".join(lines)


def _exact_match(cells: Cells) -> dict[str, str]:
    """Method -> mean ± standard error over the draws of the tasks that count."""
    counted = headroom(cells).counted
    methods = ("edge", "lorahub-code", "best-single", "constant")
    return {method: with_error([s for task in counted for s in scores(cells, task, method)]) for method in methods}


def _protocol(cells: Cells) -> str:
    """What the means are over, and how many evaluations the two searches have."""
    counted = headroom(cells).counted
    n_ours, n_theirs = (cells[counted[0], method][0].metrics["n_evaluations"] for method in ("edge", "lorahub-code"))
    means = over(len(counted), max(map(len, cells.values())))
    return f"{means}; {n_ours} evaluations, LoRAHub {n_theirs}"


def _machine(record: dict[str, Any]) -> str:
    return f"{record['setup']['threads']} threads of {record['machine']['cpu']}"
