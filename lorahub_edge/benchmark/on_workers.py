"""The same measurement on workers: a trial, which is one draw of one task with all its methods, is a unit of work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorahub_edge.base import load_base
from lorahub_edge.benchmark.methods import methods_by_name
from lorahub_edge.benchmark.quality import Results, Say, measure
from lorahub_edge.benchmark.records import Record
from lorahub_edge.benchmark.trial import Pool, Protocol, TaskRows
from lorahub_edge.cache import default_cache
from lorahub_edge.errors import LorahubEdgeError
from lorahub_edge.modules import ModuleFolder
from lorahub_edge.scheduling import Workers, carry_out, reason_of
from lorahub_edge.scheduling.units import Held


@dataclass(frozen=True)
class TrialUnit:
    """A trial, as it travels to a worker.

    Attributes:
        base, precision, device: see `load_base`.
        modules: of the pool.
        protocol, rows, seed, example_seed: see `measure`.
        methods: names.
        known: records of the task that are not to be measured again.
    """

    base: str
    precision: str
    device: str
    modules: tuple[ModuleFolder, ...]
    protocol: Protocol
    rows: TaskRows
    methods: tuple[str, ...]
    seed: int
    example_seed: int | None
    known: tuple[Record, ...] = ()


class _Collected(Results):
    """Results in memory: what is known, and what is new."""

    def __init__(self, known: Sequence[Record]) -> None:
        self.new: list[Record] = []
        self._known = {record["key"]: record for record in known}

    def add(self, record: Record) -> None:
        self.new.append(record)
        self._known[record["key"]] = record


def run_trial(unit: TrialUnit, held: Held) -> tuple[list[Record], list[Record], list[str]]:
    """Measure a trial: all its records, those that are new, and what was said."""
    names = tuple(module.name for module in unit.modules)
    if "base" not in held:
        held["base"] = load_base(unit.base, precision=unit.precision, device=unit.device, cache=default_cache())
    if held.get("pool of") != names:
        held["pool"] = Pool(held["base"], unit.modules)
        held["pool of"] = names
    results, said = _Collected(unit.known), list[str]()
    records = measure(
        unit.protocol,
        held["pool"],
        [unit.rows],
        methods_by_name(unit.methods),
        seeds=[unit.seed],
        results=results,
        example_seed=unit.example_seed,
        say=said.append,
    )
    return records, results.new, said


def measure_on(workers: Workers, units: Sequence[TrialUnit], *, results: Results, say: Say) -> list[Record]:
    """Measure trials on workers; see `measure`.

    Args:
        workers: which.
        units: the trials.
        results: grows by a trial's records when it ends.
        say: told of every point, when its trial ends.

    Returns:
        The records of all points, known ones included, in order of the units.

    Raises:
        LorahubEdgeError: a trial failed; all others are measured, and what was measured is in the file.
        KeyboardInterrupt: the same.
    """
    found: dict[int, list[Record]] = {}
    failures: dict[int, str] = {}
    with workers.opened() as crew:
        n_workers = min(crew.n, len(units))
        steps = carry_out(run_trial, units, lambda: crew.start(None), n_workers=n_workers)
        try:
            for step in steps:
                if step.error is not None:
                    failures[step.place] = reason_of(step.error)
                elif step.kind == "ended":
                    found[step.place], new, said = step.result
                    for record in new:
                        results.add(record)
                    for line in said:
                        say(line)
        finally:
            steps.close()
    if failures:
        place, reason = min(failures.items())
        unit = units[place]
        raise LorahubEdgeError(f"{len(failures)} trials failed; {unit.rows.name}, seed {unit.seed}: {reason}")
    by_key = {record["key"]: record for place in sorted(found) for record in found[place]}
    return list(by_key.values())
