"""The quality tables, from the records of `lorahub-edge bench quality`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.records import RESULTS, Record, read
from lorahub_edge.benchmark.summary import summary

NOTHING = "Not measured yet."

# Columns of the table by task; the other methods stand in the table of methods.
SHOWN = (
    "constant-oracle", "zero-shot", "in-context", "best-single", "uniform", "random-null", "lorahub-code",
    "lorahub-paper", "edge",
)  # fmt: skip


def quality_pocket() -> str:
    """All methods on the embedded held-out tasks; then the tasks one by one."""
    return _summary("quality-pocket", SHOWN)


def leave_out() -> str:
    """Tasks without their own modules, on the real base; the ceilings tell which tasks count."""
    return _summary("leave-out-smollm2")


def plain_base() -> str:
    """pocket's twin without instruction tuning, with a pool of its own."""
    return _summary("plain-base")


def _summary(name: str, shown: Sequence[str] | None = None) -> str:
    records = of_newest_pool(read(RESULTS / f"{name}.jsonl"))
    return "\n\n".join(summary(records, shown=shown)) if records else NOTHING


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
