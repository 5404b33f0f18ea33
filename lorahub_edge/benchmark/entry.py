"""The two benches as functions: quality on any base, modules and tasks; and the protocol of LoRAHub's Table 1."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorahub_edge.adaptation.settings import check_numbers
from lorahub_edge.base import Base, load_base
from lorahub_edge.benchmark.fitted import Method
from lorahub_edge.benchmark.methods import CEILING, FLOOR, METHODS, methods_for
from lorahub_edge.benchmark.on_workers import TrialUnit, measure_on
from lorahub_edge.benchmark.published import DATA_URL, MODULES, draw_modules, fetch_data, module_specs
from lorahub_edge.benchmark.quality import Results, Say, measure
from lorahub_edge.benchmark.records import Record
from lorahub_edge.benchmark.trial import Pool, Protocol, TaskRows, find_tasks, with_own_modules
from lorahub_edge.cache import default_cache
from lorahub_edge.errors import InvalidInput
from lorahub_edge.modules import ModuleFolder, find_modules
from lorahub_edge.scheduling import Workers

# The columns of the paper's Table 1 that need no training, and ours.
BBH_METHODS = ("zero-shot", "in-context", "lorahub-code", "edge")

PUBLISHED_BASE = "google/flan-t5-large"
PUBLISHED_MAX_NEW_TOKENS = 256
PUBLISHED_EXAMPLE_SEED = 42


def bench_quality(
    base: str | Path | Base = "pocket",
    modules: str | Path | Sequence[str | Path] = "pocket",
    tasks: Sequence[str] = ("pocket",),
    *,
    out: str | Path,
    methods: Sequence[str] = (),
    n_seeds: int = 3,
    leave_out: bool = False,
    ceilings: Sequence[str | Path] = (),
    protocol: Protocol | None = None,
    precision: str = "int8",
    device: str = "auto",
    again: bool = False,
    workers: Workers | None = None,
    say: Say = lambda text: None,
) -> list[Record]:
    """Measure methods on tasks: exact match, losses, tokens, time and memory, one record per point.

    Args:
        base, modules, precision, device: as `adapt` takes them.
        tasks: see `find_tasks`.
        out: a result file. It only grows; points that it has are not measured again.
        methods: names in METHODS; none for all.
        n_seeds: seeds 1 ... n, with example draws 42, 43, ...
        leave_out: whether a module with a task's name was trained on that task. The task is measured without it, and
            it alone is the task's ceiling, method "own-module". Ceiling and best constant answer are then measured
            whatever `methods` names: they tell on which tasks a difference can show.
        ceilings: modules with the names of tasks that have none in the pool; they serve as ceilings and nothing else.
        protocol: how points are measured; default Protocol("quality").
        again: measure also what `out` has.
        workers: measure a trial at a time on each of them; None for this process. Then `base` is a name, and a trial's
            records are in `out` when all its methods are measured.
        say: told of every point, in a line.

    Returns:
        The records of all points asked for.

    Raises:
        InvalidInput, IncompatibleModules, UnsupportedFormat: see there; nothing is measured then.
        KeyboardInterrupt: what was measured until then is in `out`.
    """
    protocol = protocol or Protocol("quality")
    seeds, found = _checked(protocol, n_seeds, tasks)
    in_pool = find_modules(modules, bases=_names_of(base))
    if ceilings and not leave_out:
        raise InvalidInput("ceilings: they are for leave_out (--leave-out), which was not asked for")
    if leave_out:
        found = with_own_modules(found, in_pool, find_modules(ceilings) if ceilings else ())
    names = methods or [name for name, method in METHODS.items() if any(map(method.is_for, found))]
    chosen = methods_for(found, [*names, *((FLOOR, CEILING) if leave_out else ())])
    results = Results(Path(out), again=again)
    bench = _Bench(base, precision, device, protocol, found, chosen, [_Draws(seeds, in_pool)])
    return bench.measured(results, workers, say)


def bench_bbh(
    base: str | Path | Base = PUBLISHED_BASE,
    modules: Sequence[str] = (MODULES,),
    data: str = DATA_URL,
    *,
    out: str | Path,
    only: Sequence[str] = (),
    methods: Sequence[str] = (),
    n_seeds: int = 5,
    n_modules: int = 20,
    protocol: Protocol | None = None,
    precision: str = "int8",
    device: str = "auto",
    again: bool = False,
    workers: Workers | None = None,
    say: Say = lambda text: None,
) -> list[Record]:
    """The protocol of the paper's Table 1: every seed draws modules, every task has one draw of five examples.

    Args:
        base: the published modules are for google/flan-t5-large.
        modules: "lorahub" or folders of modules; see `module_specs`. Seed k draws n_modules of them.
        data: see `fetch_data`; the folder of LoRAHub's release, one folder per task with example.jsonl and
            zero_shot.jsonl. What is downloaded is kept beside `out`.
        only: names of tasks; none for all.
        methods: names in METHODS; none for BBH_METHODS.
        n_seeds: seeds 1 ... n.
        out, protocol, precision, device, again, workers, say: see `bench_quality`. The default protocol is the
            release's: five examples by random.seed(42), all test rows, answers of at most 256 tokens.

    Returns, raises: as `bench_quality`. Methods that use no modules are measured once, not per seed.

    Source: LoRAHub, arXiv:2307.13269, as its released script does it.
    """
    out = Path(out)
    protocol = protocol or Protocol("bbh", prompt="plain", max_new_tokens=PUBLISHED_MAX_NEW_TOKENS)
    specs = module_specs(list(modules), _names_of(base))
    draw_modules(specs, n_modules, 1)
    folder = fetch_data(str(data), out.absolute().parent)
    seeds, tasks = _checked(protocol, n_seeds, [str(folder)])
    tasks = _only(tasks, only)
    chosen = methods_for(tasks, methods or BBH_METHODS)
    results = Results(out, again=again)
    draws = [
        _Draws([seed], find_modules(draw_modules(specs, n_modules, seed)), PUBLISHED_EXAMPLE_SEED) for seed in seeds
    ]
    return _Bench(base, precision, device, protocol, tasks, chosen, draws).measured(results, workers, say)


@dataclass(frozen=True)
class _Draws:
    """Seeds that share a pool; see `measure`."""

    seeds: Sequence[int]
    modules: Sequence[ModuleFolder]
    example_seed: int | None = None


@dataclass(frozen=True)
class _Bench:
    """All that a bench measures."""

    base: str | Path | Base
    precision: str
    device: str
    protocol: Protocol
    tasks: Sequence[TaskRows]
    methods: Sequence[Method]
    draws: Sequence[_Draws]

    def measured(self, results: Results, workers: Workers | None, say: Say) -> list[Record]:
        """The records of all points; in this process all trials share the loaded base."""
        if workers is not None:
            return measure_on(workers, list(self._units(results)), results=results, say=say)
        loaded = self._loaded()
        records: list[Record] = []
        for draws in self.draws:
            records += measure(
                self.protocol,
                Pool(loaded, draws.modules),
                self.tasks,
                self.methods,
                seeds=draws.seeds,
                results=results,
                example_seed=draws.example_seed,
                say=say,
            )
        return records

    def _units(self, results: Results) -> Iterator[TrialUnit]:
        if isinstance(self.base, Base):
            raise InvalidInput(
                "workers: each loads the base itself; expected its name or folder, received a loaded one"
            )
        for draws, rows in itertools.product(self.draws, self.tasks):
            for seed in draws.seeds:
                yield TrialUnit(
                    str(self.base),
                    self.precision,
                    self.device,
                    tuple(draws.modules),
                    self.protocol,
                    rows,
                    tuple(method.name for method in self.methods),
                    seed,
                    draws.example_seed,
                    results.of_task(rows.name),
                )

    def _loaded(self) -> Base:
        if isinstance(self.base, Base):
            return self.base
        return load_base(str(self.base), precision=self.precision, device=self.device, cache=default_cache())


def _checked(protocol: Protocol, n_seeds: int, tasks: Sequence[str]) -> tuple[list[int], list[TaskRows]]:
    """Seeds and tasks, before anything slow begins."""
    check_numbers(
        n_seeds=n_seeds,
        n_examples=protocol.n_examples,
        n_test=protocol.n_test,
        max_new_tokens=protocol.max_new_tokens,
        batch_size=protocol.batch_size,
    )
    found = find_tasks(list(tasks))
    _ = [task.by_split for task in found]  # reads them
    return list(range(1, n_seeds + 1)), found


def _only(tasks: list[TaskRows], names: Sequence[str]) -> list[TaskRows]:
    known = [task.name for task in tasks]
    if unknown := [name for name in names if name not in known]:
        raise InvalidInput(f"task '{unknown[0]}' is not in the data; it has {', '.join(known)}")
    return [task for task in tasks if not names or task.name in names]


def _names_of(base: str | Path | Base) -> tuple[str, ...]:
    return base.source.names if isinstance(base, Base) else (str(base),)
