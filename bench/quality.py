"""Quality of adapt() over tasks, presets and seeds: loss and exact match beside the controls, one record per point."""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench.records import RESULTS, Record, append, key_of, make_record, read
from lorahub_edge import adapt
from lorahub_edge.adaptation import PRESETS, Row, Run
from lorahub_edge.adaptation.settings import SearchSettings
from lorahub_edge.adaptation.task import load_task
from lorahub_edge.base import Base
from lorahub_edge.measure import peak_memory
from lorahub_edge.modules import LoraModule, random_modules
from lorahub_edge.sources import sha256_files
from lorahub_edge.tasks import Example, exact_match

# Search seed k goes with the k-th draw of examples: a deterministic optimiser would otherwise show no spread at all.
FIRST_EXAMPLE_SEED = 42

# Test rows answered together: more than a user would, since every step of a decoder reads all weights once per batch.
BATCH_SIZE = 50

# The null costs a whole search, so it runs for one preset only.
NULL = "random-LoRA null"
NULL_PRESET = "edge"


@dataclass(frozen=True)
class Pool:
    """What every point of a bench shares, loaded once: the base and the modules."""

    base: Base
    modules: Sequence[LoraModule]

    def record(self) -> dict[str, Any]:
        """Names and hashes, no places."""
        digests = {m.name: sha256_files(m.files) for m in self.modules}
        return {
            "base": {Path(name).name: digest for name, digest in sha256_files(self.base.weight_files).items()},
            "precision": self.base.precision,
            "device": self.base.device.type,
            "modules": list(digests),
            "modules_sha256": hashlib.sha256(repr(sorted(digests.items())).encode()).hexdigest(),
        }


@dataclass(frozen=True)
class Protocol:
    """How every point of a bench is measured.

    Attributes:
        bench: the bench's name.
        prompt: see `PromptFormat.for_base`.
        n_examples: what the search sees.
        n_test: at most so many other rows; None for all.
        max_new_tokens: answers are cut here; None for adapt's own rule.
    """

    bench: str
    prompt: str = "auto"
    n_examples: int = 5
    n_test: int | None = None
    max_new_tokens: int | None = None


@dataclass(frozen=True)
class Point:
    """One run to measure: a task (where its rows come from), a preset, a seed (1, 2, ...), with a null or without."""

    task: str
    source: str
    preset: str
    seed: int
    null_control: bool

    @property
    def example_seed(self) -> int:
        """Of the draw of examples."""
        return FIRST_EXAMPLE_SEED + self.seed - 1


def add_common_options(parser: argparse.ArgumentParser, bench: str) -> None:
    """The options that all quality benches share."""
    parser.add_argument("--presets", nargs="+", default=["edge", "lorahub-code"], choices=list(PRESETS))
    parser.add_argument("--seeds", type=int, default=3, help="seeds 1 ... n, with example draws 42, 43, ...")
    parser.add_argument("--null-seeds", type=int, default=3, help="the random-LoRA null runs for seeds 1 ... n only")
    parser.add_argument("--precision", default="int8", help="of the base")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--out", type=Path, default=RESULTS / f"{bench}.jsonl")
    parser.add_argument("--again", action="store_true", help="measure also what the result file has")


def points(sources: Mapping[str, str], presets: Sequence[str], *, n_seeds: int, n_null_seeds: int) -> list[Point]:
    """All points, presets innermost, so that they share what was measured for the task and the draw."""
    return [
        Point(task, source, preset, seed, preset == NULL_PRESET and seed <= n_null_seeds)
        for task, source in sources.items()
        for seed in range(1, n_seeds + 1)
        for preset in presets
    ]


def measure_all(protocol: Protocol, pool: Pool, todo: Iterable[Point], out: Path, *, again: bool = False) -> None:
    """Measure every point that `out` has no record of, and append its record as soon as it is there.

    Args:
        protocol, pool: what all points share.
        todo: the points.
        out: a result file; made if need be.
        again: measure also what is there already.
    """
    pool_record = pool.record()
    for point in todo:
        setup = _setup(protocol, pool, pool_record, point)
        known = read(out)
        label = f"{point.task}, {point.preset}, seed {point.seed}"
        if not again and key_of(protocol.bench, setup) in {r["key"] for r in known}:
            _say(f"{label}: is there already")
            continue
        metrics = _measure(protocol, pool, point, {} if again else _known_controls(known, setup))
        append(out, make_record(protocol.bench, setup, metrics))
        scores = ", ".join(f"{n} {r['exact_match']:.0f}" for n, r in metrics["rows"].items())
        _say(f"{label}: {scores} ({metrics['timings']['total_s'] + metrics['timings']['test_s']:.0f} s)")


def _setup(protocol: Protocol, pool: Pool, pool_record: Mapping[str, Any], point: Point) -> dict[str, Any]:
    """All that decides the outcome; "search" is the only part that presets differ in."""
    search = SearchSettings.of(PRESETS[point.preset], len(pool.modules), seed=point.seed)
    return {
        **{name: value for name, value in asdict(protocol).items() if name != "bench"},
        "task": point.task,
        "example_seed": point.example_seed,
        **pool_record,
        "search": {**asdict(search), "null_control": point.null_control},
    }


def _known_controls(known: Sequence[Record], setup: Mapping[str, Any]) -> Mapping[str, Any]:
    """The controls' rows of another preset on the same task and draw, if any: they do not depend on the search."""
    shared = {name: value for name, value in setup.items() if name != "search"}
    for record in reversed(known):
        if {name: value for name, value in record["setup"].items() if name != "search"} == shared:
            rows = record["metrics"]["rows"]
            return {name: row for name, row in rows.items() if name not in ("adapted", NULL)}
    return {}


def _measure(protocol: Protocol, pool: Pool, point: Point, known: Mapping[str, Any]) -> dict[str, Any]:
    """Adapt, then score every row of the table on the test rows, but for those that are known."""
    run = adapt(
        base=pool.base,
        modules=pool.modules,
        examples=point.source,
        n_examples=protocol.n_examples,
        example_seed=point.example_seed,
        preset=point.preset,
        seed=point.seed,
        prompt=protocol.prompt,
        max_new_tokens=protocol.max_new_tokens,
        null_control=point.null_control,
    )
    if run.interrupted:
        raise KeyboardInterrupt
    test = _test_rows(protocol, point)
    started = time.perf_counter()
    rows = {
        row.name: {
            "detail": row.detail,
            "loss": row.value.mean_loss,
            "exact_match": known[row.name]["exact_match"]
            if row.name in known
            else _exact_match(run, row, test, point.seed),
        }
        for row in run.table
    }
    test_s = round(time.perf_counter() - started, 3)
    return {
        "rows": rows,
        "n_test": len(test),
        "scored_earlier": sorted(known),
        "max_new_tokens": run.model.max_new_tokens,
        "evaluations": run.search.n_evaluations,
        "resolved_optimizer": run.search.resolved_optimizer,
        "coefficients": dict(run.coefficients),
        "timings": {**run.manifest["timings"], "test_s": test_s},
        "process_peak_memory": peak_memory(),
    }


def _exact_match(run: Run, row: Row, test: Sequence[Example], seed: int) -> float:
    """Of one row of the table; the null's coefficients belong to random modules."""
    stack = random_modules(run.model.stack, seed) if row.name == NULL else run.model.stack
    model = replace(run.model, stack=stack, coefficients=torch.tensor(row.coefficients, dtype=torch.float64))
    answers = model.predict([e.input for e in test], batch_size=BATCH_SIZE)
    return exact_match(answers, [e.target for e in test])


def _test_rows(protocol: Protocol, point: Point) -> Sequence[Example]:
    """The rows that adapt takes for these arguments."""
    source, n_test = point.source, protocol.n_test
    draw = {"n_examples": protocol.n_examples, "example_seed": point.example_seed}
    return load_task(source, source, n_test=n_test, **draw).test


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
