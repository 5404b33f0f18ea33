"""measure: every method on every draw of every task, one record per point; what is on record is not measured again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorahub_edge.benchmark.fitted import Method, Metrics
from lorahub_edge.benchmark.records import Record, append, key_of, make_record, read
from lorahub_edge.benchmark.trial import Pool, Protocol, TaskRows, Trial
from lorahub_edge.benchmark.usage import measured
from lorahub_edge.search import load_optimisers
from lorahub_edge.tasks import AnswerScore, score_answers

# Search seed k goes with the k-th draw of examples: a deterministic optimiser would otherwise show no spread at all.
FIRST_EXAMPLE_SEED = 42

Say = Callable[[str], None]


class Results:
    """A result file: what it knows, and how it grows.

    Args:
        path: made when the first record comes.
        again: whether to measure also what is known.
    """

    def __init__(self, path: Path, *, again: bool = False) -> None:
        self.path = path
        self._known: dict[str, Record] = {} if again else {r["key"]: r for r in read(path)}

    def of_task(self, task: str) -> tuple[Record, ...]:
        """What is known of a task."""
        return tuple(record for record in self._known.values() if record["setup"]["task"] == task)

    def get(self, bench: str, setup: Mapping[str, Any]) -> Record | None:
        """The record of a point, if it was measured."""
        return self._known.get(key_of(bench, setup))

    def add(self, record: Record) -> None:
        """Keep a record, in the file at once."""
        append(self.path, record)
        self._known[record["key"]] = record


def measure(
    protocol: Protocol,
    pool: Pool,
    tasks: Sequence[TaskRows],
    methods: Sequence[Method],
    *,
    seeds: Sequence[int],
    results: Results,
    example_seed: int | None = None,
    say: Say = lambda text: None,
) -> list[Record]:
    """Measure what the results do not know yet.

    Args:
        protocol, pool: what all points share; but a task's own module is left out of the pool.
        tasks: see `find_tasks`.
        methods: see `methods_by_name`; later ones may be measured against earlier ones.
        seeds: of the methods. Seed k goes with example draw 42 + k - 1.
        results: grows by one record per point, as soon as it is there.
        example_seed: of one draw for all seeds instead.
        say: told of every point, in a line.

    Returns:
        The records of all points, known ones included: tasks outermost, then seeds, then methods.

    Raises:
        KeyboardInterrupt: what was measured until then is in the file.
    """
    load_optimisers()  # before anything is timed
    base = pool.base_record()
    records: list[Record] = []
    for rows in tasks:
        of_task = pool.without(rows.own_module).ready()
        modules = of_task.modules_record()
        for seed in seeds:
            draw = FIRST_EXAMPLE_SEED + seed - 1 if example_seed is None else example_seed
            trial = Trial.of(of_task, rows, protocol, example_seed=draw, seed=seed)
            shared = {**protocol.record(), **trial.record(), **base}
            records += _measure_trial(protocol, trial, methods, shared, modules, results, say)
    return records


def _measure_trial(
    protocol: Protocol,
    trial: Trial,
    methods: Sequence[Method],
    shared: Mapping[str, Any],
    modules: Mapping[str, Any],
    results: Results,
    say: Say,
) -> list[Record]:
    """All methods on one draw; a base in another precision is loaded once for all that need it, and let go."""
    records: dict[str, Record] = {}
    pools: dict[str | None, Pool] = {None: trial.pool}
    for method in methods:
        if not method.is_for(trial.rows):
            continue
        own = {**(modules if method.uses_modules else {}), "precision": method.precision or shared["precision"]}
        setup = {**shared, **own, "method": {"name": method.name, **method.settings(trial)}}
        record = results.get(protocol.bench, setup)
        note = "" if record is None else ", on record"
        if record is None:
            if method.precision not in pools:
                pools[method.precision] = trial.pool.at(method.precision)
            known = {name: r["metrics"] for name, r in records.items()}
            on_pool = replace(trial, pool=pools[method.precision])
            record = make_record(protocol.bench, setup, _metrics(method, on_pool, known, protocol.batch_size))
            results.add(record)
        records[method.name] = record
        scored = f"exact match {record['metrics']['exact_match']:.1f}, {record['metrics']['seconds']:.1f} s"
        say(f"{trial.rows.name}, seed {trial.seed}, {method.name}: {scored}{note}")
    return list(records.values())


def _metrics(method: Method, trial: Trial, known: Mapping[str, Metrics], batch_size: int) -> dict[str, Any]:
    """Fit, then test; usage is counted apart."""
    test = trial.task.test
    with ExitStack() as fitted_for_now:
        with measured() as fitting:
            fitted = fitted_for_now.enter_context(method.fit(trial, known))
        with measured() as testing:
            answers = fitted.answers_to(test, batch_size=batch_size)
        costs = fitted.costs(trial.task.examples, test)
    return {
        "detail": fitted.detail,
        **_scores(score_answers(answers, [e.target for e in test])),
        **costs,
        "n_test": len(test),
        "max_new_tokens": trial.max_new_tokens,
        "n_evaluations": fitted.n_evaluations,
        "resolved_optimizer": fitted.resolved,
        "coefficients": None if fitted.coefficients is None else fitted.coefficients.round(6).tolist(),
        **vars(fitting),
        "test": vars(testing),
    }


def _scores(score: AnswerScore) -> dict[str, Any]:
    """Percentages; and row by row, "1" for a right answer, so that methods can be compared on the same rows."""
    return {
        "exact_match": score.exact_match,
        "strict_match": score.strict_match,
        "most_frequent": score.most_frequent,
        "valid_form": score.valid_form,
        "right": "".join("01"[is_right] for is_right in score.right),
    }
