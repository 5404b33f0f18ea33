"""Ablations of preset edge on pocket's development tasks: what the parts are worth, one at a time.

    python -m bench.ablations

Every variant is a method of the quality bench: same draws, same columns, measured once per point.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.pocket_tasks import write_tasks
from bench.records import RESULTS, say
from lorahub_edge.adaptation import FORMS, PRESETS, Objective, PopulationForward, SidePath
from lorahub_edge.adaptation.objective import ObjectiveForm, mean_token_loss
from lorahub_edge.adaptation.settings import SearchSettings
from lorahub_edge.base import load_base
from lorahub_edge.benchmark.fitted import Fitted, Method, Metrics
from lorahub_edge.benchmark.methods import Tuning, of_tuning, search
from lorahub_edge.benchmark.quality import Results, measure
from lorahub_edge.benchmark.trial import Pool, Protocol, Trial
from lorahub_edge.modules import LoraModule, load_modules
from lorahub_edge.train.loop import batch_loss

BENCH = "ablations"
BUDGET = 107  # edge's own for pocket's 27 modules; the same for every variant
LEARNING_RATE = 0.05  # of Adam on the coefficients; not tuned

L2 = ObjectiveForm(
    "l2", "mean cross-entropy per token + alpha * sum c^2", mean_token_loss, lambda c, alpha: alpha * (c**2).sum(axis=1)
)


@dataclass(frozen=True)
class Variant:
    """Preset edge with one part changed.

    Attributes:
        form, alpha: of the objective.
        n_modules: how many of the pool, None for all.
        chosen_by: "draw" (at random, another draw per seed) or "loss" (those with the lowest loss alone).
    """

    form: ObjectiveForm = FORMS["published"]
    alpha: float = PRESETS["edge"].alpha
    n_modules: int | None = None
    chosen_by: str = "draw"

    def settings(self, trial: Trial) -> Mapping[str, Any]:
        """What decides the outcome."""
        return {**vars(self), "form": self.form.name, "budget": BUDGET, "seed": trial.seed}

    @contextmanager
    def fit(self, trial: Trial, known: Mapping[str, Metrics]) -> Iterator[Fitted]:
        """Choose modules, then search."""
        trial = self._with_chosen(trial)
        stack = trial.pool.stack
        settings = SearchSettings.of(PRESETS["edge"], len(stack.names), seed=trial.seed, budget=BUDGET)
        with PopulationForward(trial.pool.base, stack, trial.encoded).ready() as forward:
            result = search(Objective(forward, self.form, self.alpha, keeps_states=True), settings, stack)
        best = result.best.coefficients
        detail = f"best of {result.n_evaluations} evaluations over {len(stack.names)} modules"
        yield Fitted(trial.model(best), detail, result.n_evaluations, best, result.resolved_optimizer)

    def _with_chosen(self, trial: Trial) -> Trial:
        if self.n_modules is None:
            return trial
        choose = _at_random if self.chosen_by == "draw" else _by_loss
        return replace(trial, pool=Pool(trial.pool.base, choose(trial, self.n_modules)))


def _at_random(trial: Trial, n: int) -> list[LoraModule]:
    return random.Random(trial.seed).sample(list(trial.pool.modules), n)


def _by_loss(trial: Trial, n: int) -> list[LoraModule]:
    with PopulationForward(trial.pool.base, trial.pool.stack, trial.encoded).ready() as forward:
        values = Objective(forward, FORMS["published"], 0.0)(np.eye(len(trial.pool.modules)))
    order = np.argsort([value.mean_loss for value in values], kind="stable")
    return [trial.pool.modules[k] for k in order[:n]]


@dataclass(frozen=True)
class GradientOnCoefficients:
    """Adam on the coefficients from the uniform mean, through a float32 base; the same objective as edge."""

    steps: int

    def settings(self, trial: Trial) -> Mapping[str, Any]:
        """What decides the outcome."""
        return {"kind": "gradient on c", "steps": self.steps, "learning_rate": LEARNING_RATE, "start": "uniform mean"}

    @contextmanager
    def fit(self, trial: Trial, known: Mapping[str, Metrics]) -> Iterator[Fitted]:
        """Descend; a step is one pass forward and one back over all examples."""
        base, stack = trial.pool.base, trial.pool.stack
        n = len(stack.names)
        c = torch.full((n,), 1.0 / n, requires_grad=True)
        optimizer = torch.optim.Adam([c], lr=LEARNING_RATE)
        alpha, bound = PRESETS["edge"].alpha, PRESETS["edge"].bound
        alone = stack.compose(torch.eye(n, dtype=torch.float64))  # composing is linear in c
        side_path = SidePath(base, stack)
        for _ in range(self.steps):
            with side_path.active(c[None] @ alone):
                loss = batch_loss(base.model, base, trial.encoded) + alpha * c.abs().sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            c.data.clamp_(-bound, bound)
        found = c.detach().double().numpy()
        yield Fitted(trial.model(found), f"{self.steps} steps of Adam", self.steps, found)


def _variant(name: str, meaning: str, variant: Variant) -> Method:
    return Method(name, meaning, variant.fit, variant.settings)


def gradient_on_c(steps: int) -> Method:
    """Adam on the coefficients, for so many steps, as a method."""
    on_c = GradientOnCoefficients(steps)
    return Method(f"gradient on c, {steps} steps", "Adam", on_c.fit, on_c.settings, precision="fp32")


VARIANTS: Sequence[Method] = (
    _variant("edge", "as it is", Variant()),
    *(_variant(f"{n} modules, drawn", "a draw per seed", Variant(n_modules=n)) for n in (5, 10, 20)),
    *(_variant(f"{n} modules, by loss", "screened", Variant(n_modules=n, chosen_by="loss")) for n in (5, 10, 20)),
    _variant("no penalty", "alpha 0", Variant(alpha=0.0)),
    _variant("L2 penalty", "0.05 * sum c^2", Variant(form=L2)),
    gradient_on_c(40),
    gradient_on_c(BUDGET),
    # the quality table's rates are for a far larger model; 3e-3 is what pocket's modules were trained with
    of_tuning("lora-tuning, lr 3e-3", "40 epochs", Tuning("lora", 3e-3)),
    of_tuning("lora-tuning, lr 1e-2", "40 epochs", Tuning("lora", 1e-2)),
    of_tuning("full-tuning, lr 3e-4", "40 epochs", Tuning("full", 3e-4)),
    of_tuning("full-tuning, lr 1e-3", "40 epochs", Tuning("full", 1e-3)),
)


def main() -> None:
    """Parse, load once, measure."""
    options = _parser().parse_args()
    torch.set_num_threads(1)
    pool = Pool(load_base("pocket", device="cpu"), load_modules(options.modules))
    wanted = options.variants or [v.name for v in VARIANTS]
    chosen = [v for v in VARIANTS if v.name in wanted]
    with tempfile.TemporaryDirectory() as folder:
        tasks = write_tasks(Path(folder), "development")
        protocol = Protocol(BENCH, batch_size=50)
        seeds = range(1, options.seeds + 1)
        measure(protocol, pool, tasks, chosen, seeds=seeds, results=Results(options.out), say=say)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.ablations", description=__doc__.partition("\n")[0])
    parser.add_argument("--variants", nargs="+", choices=[v.name for v in VARIANTS])
    parser.add_argument("--modules", default="pocket", help="the pool")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / f"{BENCH}.jsonl")
    return parser


if __name__ == "__main__":
    main()
