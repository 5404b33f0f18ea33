"""The search study: strategies at equal budgets on pocket, by objective, loss and held-out exact match.

    python -m bench.search_study                     # the development tasks: what was chosen was chosen on these
    python -m bench.search_study --tasks held-out    # the held-out tasks: looked at after the choice
    python -m bench.search_study --pool harmful      # only modules that are worse than none

The record of a point that is in the result file already is not measured again, so a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.pocket_tasks import ROWS_SEED, write_tasks
from bench.records import RESULTS, make_record
from bench.strategies import STRATEGIES
from lorahub_edge.adaptation import PRESETS, Value
from lorahub_edge.adaptation.objective import objective_on
from lorahub_edge.adaptation.settings import SearchSettings
from lorahub_edge.base import load_base
from lorahub_edge.benchmark.quality import FIRST_EXAMPLE_SEED, Results
from lorahub_edge.benchmark.trial import Pool, Protocol, Trial
from lorahub_edge.modules import load_modules
from lorahub_edge.search import Evaluated, make_searcher, run_search
from lorahub_edge.tasks import exact_match

BENCH = "search-study"
BUDGETS = (40, 80, 160, 400)
BATCH_SIZE = 50

# Both screens of this many modules fit into half of what the first one leaves; below, they plan with the budget. The
# points of all other strategies are the same whatever follows.
PLANNING = tuple(name for name in STRATEGIES if "pairs" in name)
SCREENS_FIT = 160

# Preset edge's search: the only one that sees more of an evaluation than its objective.
GUIDED = "guided"


def main() -> None:
    """Parse, load once, measure."""
    options = _parser().parse_args()
    torch.set_num_threads(1)
    pool = Pool(load_base("pocket", device="cpu"), load_modules("pocket")).ready()
    results = Results(options.out)
    with tempfile.TemporaryDirectory() as folder:
        for rows in write_tasks(Path(folder), options.tasks):
            for seed in range(1, options.seeds + 1):
                draw = FIRST_EXAMPLE_SEED + seed - 1
                trial = Trial.of(pool, rows, Protocol(BENCH), example_seed=draw, seed=seed)
                trial = _only_harmful(trial) if options.pool == "harmful" else trial
                shared = {"tasks": options.tasks, "pool": options.pool, **trial.record(), **pool.base_record()}
                shared |= trial.pool.modules_record()
                for name in options.strategies:
                    _measure(name, trial, shared, results, options.budgets)


def _settings(trial: Trial, budget: int) -> SearchSettings:
    """The preset's objective and box for every strategy: only the searcher differs."""
    return SearchSettings.of(PRESETS["edge"], len(trial.pool.modules), seed=trial.seed, budget=budget)


def _only_harmful(trial: Trial) -> Trial:
    """The same trial with the modules that alone are worse than none."""
    n = len(trial.pool.modules)
    with objective_on(trial.pool.base, trial.pool.stack, trial.encoded, _settings(trial, 1)) as objective:
        zero, *singles = objective(np.concatenate([np.zeros((1, n)), np.eye(n)]))
    modules = [m for m, v in zip(trial.pool.modules, singles, strict=True) if v.mean_loss > zero.mean_loss]
    return replace(trial, pool=Pool(trial.pool.base, modules).ready())


def _measure(name: str, trial: Trial, shared: dict[str, Any], results: Results, budgets: Sequence[int]) -> None:
    """One run read off at every budget, but for budgets that the strategy plans with."""
    setups = {budget: {**shared, "strategy": name, "seed": trial.seed, "budget": budget} for budget in budgets}
    todo = [budget for budget in budgets if results.get(BENCH, setups[budget]) is None]
    alone = [budget for budget in todo if name in PLANNING and budget < SCREENS_FIT]
    together = [budget for budget in todo if budget not in alone]
    for group in [*([budget] for budget in alone), *([together] if together else [])]:
        journal = _run(name, trial, max(group))
        for budget in group:
            best = min(journal[:budget], key=lambda e: e.value.objective)
            results.add(make_record(BENCH, setups[budget], _outcome(best, trial)))
        scores = [results.get(BENCH, setups[budget])["metrics"]["exact_match"] for budget in group]  # type: ignore[index]
        sys.stderr.write(f"{trial.rows.name}, seed {trial.seed}, {name}: {group} {scores}\n")


def _run(strategy: str, trial: Trial, budget: int) -> list[Evaluated[Value]]:
    settings = _settings(trial, budget)
    journal: list[Evaluated[Value]] = []
    with objective_on(trial.pool.base, trial.pool.stack, trial.encoded, settings) as objective:
        n = len(trial.pool.modules)
        limits = {"bound": settings.bound, "budget": budget, "seed": trial.seed}
        if strategy == GUIDED:
            searcher = make_searcher("guided-cma", n, guide=lambda: objective.mixture(settings.bound), **limits)  # type: ignore[arg-type]
        else:
            searcher = STRATEGIES[strategy](n, *limits.values())  # type: ignore[arg-type]
        run_search(objective, searcher, budget, journal.extend)
    return journal


def _outcome(best: Evaluated[Value], trial: Trial) -> dict[str, Any]:
    model = trial.model(best.coefficients)
    answers = model.predict([e.input for e in trial.task.test], batch_size=BATCH_SIZE)
    return {
        "found_at": best.index + 1,
        "objective": best.value.objective,
        **asdict(best.value),
        "exact_match": exact_match(answers, [e.target for e in trial.task.test]),
        "test_loss": model.loss(trial.task.test),
        "coefficients": best.coefficients.round(6).tolist(),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.search_study", description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", choices=list(ROWS_SEED), default="development")
    parser.add_argument("--pool", choices=["all", "harmful"], default="all")
    parser.add_argument("--strategies", nargs="+", default=[*STRATEGIES, GUIDED], choices=[*STRATEGIES, GUIDED])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS))
    parser.add_argument("--out", type=Path, default=RESULTS / f"{BENCH}.jsonl")
    return parser


if __name__ == "__main__":
    main()
