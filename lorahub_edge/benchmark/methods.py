"""The methods that stand in a quality table, by name: how each comes from a few examples to a model that answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from lorahub_edge.adaptation import PRESETS, AdaptedModel, Objective, Value
from lorahub_edge.adaptation.controls import index_of_lowest, mean_text, means_of_best
from lorahub_edge.adaptation.objective import objective_on
from lorahub_edge.adaptation.settings import SearchSettings
from lorahub_edge.adaptation.task import Task
from lorahub_edge.benchmark.fitted import Fitted, Method, Metrics
from lorahub_edge.benchmark.trial import TaskRows, Trial, modules_sha256
from lorahub_edge.errors import InvalidInput
from lorahub_edge.modules import LoraModule, ModuleFolder, ModuleStack, random_modules
from lorahub_edge.search import SearchResult, make_searcher, run_search
from lorahub_edge.tasks import Example, constant_answer
from lorahub_edge.train import TrainSettings, tuned

# The released search's budget, and what "equal time" is measured against.
REFERENCE = "lorahub-code"

# Between these two a task has room for a method to show something.
FLOOR, CEILING = "constant-oracle", "own-module"


@dataclass(frozen=True)
class _Constant:
    """One answer to everything: the most frequent target of some rows."""

    rows_of: Callable[[Task], Sequence[Example]]

    @contextmanager
    def fit(self, trial: Trial, known: Mapping[str, Metrics]) -> Iterator[Fitted]:
        answer = constant_answer([row.target for row in self.rows_of(trial.task)])
        yield Fitted(None, f"always '{answer}'", answers=[answer] * len(trial.task.test))


@contextmanager
def _zero_shot(trial: Trial, known: Mapping[str, Metrics]) -> Iterator[Fitted]:
    zeros = np.zeros(len(trial.pool.modules))
    yield Fitted(trial.model(zeros), "the base alone", coefficients=zeros)


@contextmanager
def _in_context(trial: Trial, known: Mapping[str, Metrics]) -> Iterator[Fitted]:
    """Examples before the question, as many as leave room for the longest one."""
    prompt, examples = trial.prompt, trial.task.examples
    longest = max((e.input for e in trial.task.test), key=lambda text: len(prompt.encode_input(text)[0]))
    for n in range(len(examples), -1, -1):
        shots = "".join(f"{e.input}\n{e.target}\n\n" for e in examples[:n])
        with_shots = replace(prompt, before=prompt.before + shots)
        if n == 0 or not with_shots.encode_input(longest)[1]:
            break
    model = replace(trial.model(np.zeros(len(trial.pool.modules))), prompt=with_shots)
    yield Fitted(model, f"{n} examples before the question", has_examples_in_prompt=True)


@contextmanager
def _best_single(trial: Trial, known: Mapping[str, Metrics]) -> Iterator[Fitted]:
    n = len(trial.pool.modules)
    settings = SearchSettings.of(PRESETS["edge"], n, seed=trial.seed)
    with objective_on(trial.pool.base, trial.pool.stack, trial.encoded, settings) as objective:
        losses = [value.mean_loss for value in objective(np.eye(n))]
    best = index_of_lowest(losses)
    detail = f"{trial.pool.stack.names[best]}, by loss on the examples"
    coefficients = np.eye(n)[best]
    yield Fitted(trial.model(coefficients), detail, n, coefficients)


@contextmanager
def _uniform(trial: Trial, known: Mapping[str, Metrics]) -> Iterator[Fitted]:
    n = len(trial.pool.modules)
    coefficients = np.full(n, 1.0 / n)
    yield Fitted(trial.model(coefficients), f"all at 1/{n}", coefficients=coefficients)


@contextmanager
def _best_mean(trial: Trial, known: Mapping[str, Metrics]) -> Iterator[Fitted]:
    n = len(trial.pool.modules)
    settings = SearchSettings.of(PRESETS["edge"], n, seed=trial.seed)
    with objective_on(trial.pool.base, trial.pool.stack, trial.encoded, settings) as objective:
        means = means_of_best([value.mean_loss for value in objective(np.eye(n))])
        chosen = means[index_of_lowest([value.mean_loss for value in objective(means)])]
    yield Fitted(trial.model(chosen), f"{mean_text(chosen)} on the examples", n + len(means), chosen)


@contextmanager
def _own_module(trial: Trial, known: Mapping[str, Metrics]) -> Iterator[Fitted]:
    module = _own_module_of(trial).read()
    model = AdaptedModel.of_module(trial.pool.base, module, trial.prompt, trial.max_new_tokens)
    yield Fitted(model, f"{module.name} at 1")


def _own_module_of(trial: Trial) -> LoraModule | ModuleFolder:
    assert trial.rows.own_module is not None  # the method is for tasks that have one
    return trial.rows.own_module


@dataclass(frozen=True)
class _Search:
    """A preset's search, perhaps with another budget, perhaps over random modules."""

    preset: str
    budget: int | None = None
    over_random_modules: bool = False
    as_long_as: str | None = None
    composition: str | None = None

    def settings(self, trial: Trial) -> Mapping[str, Any]:
        search = self._search_settings(trial, self.budget)
        changes = {"budget": f"the time of {self.as_long_as}"} if self.as_long_as else {}
        return {**asdict(search), **changes, "over_random_modules": self.over_random_modules}

    @contextmanager
    def fit(self, trial: Trial, known: Mapping[str, Metrics]) -> Iterator[Fitted]:
        budget = self._budget_in_time(trial, known) if self.as_long_as else self.budget
        settings = self._search_settings(trial, budget)
        stack = random_modules(trial.pool.stack, trial.seed) if self.over_random_modules else trial.pool.stack
        stack = stack.composed_by(settings.composition)
        with objective_on(trial.pool.base, stack, trial.encoded, settings) as objective:
            result = search(objective, settings, stack)
        best, n_evaluations = result.best.coefficients, result.n_evaluations
        model = trial.model(best, stack=stack)
        detail = f"best of {n_evaluations} evaluations"
        yield Fitted(model, detail, n_evaluations, best, result.resolved_optimizer)

    def _search_settings(self, trial: Trial, budget: int | None) -> SearchSettings:
        n = len(trial.pool.modules)
        changes = {"budget": budget, "composition": self.composition}
        return SearchSettings.of(PRESETS[self.preset], n, seed=trial.seed, **changes)

    def _budget_in_time(self, trial: Trial, known: Mapping[str, Metrics]) -> int:
        """Evaluations that the other search's time pays for, at what an evaluation cost this preset in its own run."""
        time = "seconds" if trial.pool.base.device.type == "cuda" else "cpu_seconds"
        own, other = known[self.preset], known[str(self.as_long_as)]
        return max(1, int(other[time] * own["n_evaluations"] / own[time]))


def search(objective: Objective, settings: SearchSettings, stack: ModuleStack) -> SearchResult[Value]:
    """Run the search that the settings name.

    Raises:
        KeyboardInterrupt: also where the search itself would keep what it has: half a budget compares nothing.
    """
    searcher = make_searcher(
        settings.optimizer,
        len(stack.names),
        bound=settings.bound,
        budget=settings.budget,
        seed=settings.seed,
        guide=lambda: objective.mixture(settings.bound),
    )
    result = run_search(objective, searcher, settings.budget)
    if result.interrupted:
        raise KeyboardInterrupt
    return result


@dataclass(frozen=True)
class Tuning:
    """Gradient descent on the examples alone; all of them are one batch."""

    kind: str
    learning_rate: float
    epochs: int = 40

    def _train_settings(self, trial: Trial) -> TrainSettings:
        n = len(trial.task.examples)
        rates = {"epochs": self.epochs, "learning_rate": self.learning_rate}
        return TrainSettings(
            **rates,  # type: ignore[arg-type]
            batch_size=n,
            max_input_tokens=trial.prompt.max_input_tokens,
            seed=trial.seed,
        )

    def settings(self, trial: Trial) -> Mapping[str, Any]:
        return {"kind": self.kind, **asdict(self._train_settings(trial))}

    @contextmanager
    def fit(self, trial: Trial, known: Mapping[str, Metrics]) -> Iterator[Fitted]:
        base, settings = trial.pool.base, self._train_settings(trial)
        with tuned(base, trial.task.examples, self.kind, settings=settings, prompt=trial.prompt.template) as result:
            model = trial.model(np.zeros(len(trial.pool.modules)))  # modules at zero add exactly nothing
            detail = f"{result.n_parameters} parameters, lr {self.learning_rate:g}, {self.epochs} epochs"
            yield Fitted(model, detail, len(result.losses))


def _of_search(name: str, meaning: str, search: _Search, *, after: tuple[str, ...] = ()) -> Method:
    return Method(name, meaning, search.fit, search.settings, after=after)


def of_tuning(name: str, meaning: str, tuning: Tuning) -> Method:
    """A training as a method."""
    return Method(name, meaning, tuning.fit, tuning.settings, uses_modules=False, precision="fp32")


# In the order of the tables. The settings of the three trainings are those of LoRAHub's own baselines.
METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method(
            "constant",
            "the most frequent target of the examples, whatever is asked",
            _Constant(lambda task: task.examples).fit,
            uses_modules=False,
        ),
        Method(
            FLOOR,
            "the most frequent target of the test rows: no constant answer does better",
            _Constant(lambda task: task.test).fit,
            uses_modules=False,
        ),
        Method("zero-shot", "the base alone", _zero_shot, uses_modules=False),
        Method("in-context", "the examples before every question", _in_context, uses_modules=False),
        Method("best-single", "the module with the lowest loss on the examples", _best_single),
        Method("uniform", "the mean of all modules", _uniform),
        Method("best-mean", "the mean of the six modules that are best alone, at the best of six scales", _best_mean),
        _of_search("random-null", "`edge` over random modules", _Search("edge", over_random_modules=True)),
        _of_search("lorahub-code", "the released code's search", _Search("lorahub-code")),
        _of_search("lorahub-paper", "the search as the paper describes it", _Search("paper")),
        _of_search("edge", "preset `edge`", _Search("edge")),
        _of_search("edge-deltas", "`edge` with the deltas added up", _Search("edge", composition="deltas")),
        _of_search(
            "edge-equal-budget",
            f"`edge` with the evaluations of `{REFERENCE}`",
            _Search("edge", budget=PRESETS[REFERENCE].budget),
        ),
        _of_search(
            "edge-equal-time",
            f"`edge` in the time of `{REFERENCE}`",
            _Search("edge", as_long_as=REFERENCE),
            after=(REFERENCE, "edge"),
        ),
        of_tuning("lora-tuning", "new LoRA factors by gradient", Tuning("lora", 2e-4)),
        of_tuning("ia3", "(IA)3 by gradient", Tuning("ia3", 2e-4)),
        of_tuning("full-tuning", "all parameters by gradient", Tuning("full", 3e-5)),
        Method(
            CEILING,
            "the module that was trained on the task, alone: what the others could reach at best",
            _own_module,
            lambda trial: {"module_sha256": modules_sha256([_own_module_of(trial)])},
            uses_modules=False,
            is_for=lambda rows: rows.own_module is not None,
        ),
    )
}


def methods_by_name(names: Sequence[str]) -> list[Method]:
    """Look up methods, in the tables' order.

    Raises:
        InvalidInput: an unknown name; a method without one that it is compared with.
    """
    if unknown := [name for name in names if name not in METHODS]:
        raise InvalidInput(f"method '{unknown[0]}' is not known; expected {', '.join(METHODS)}")
    for name in names:
        if missing := [other for other in METHODS[name].after if other not in names]:
            raise InvalidInput(f"method '{name}' is measured against {', '.join(missing)}: name these too")
    return [method for name, method in METHODS.items() if name in names]


def methods_for(tasks: Sequence[TaskRows], names: Sequence[str]) -> list[Method]:
    """Look up methods that are for some of the tasks at least.

    Raises:
        InvalidInput: see `methods_by_name`; or one that is for none.
    """
    methods = methods_by_name(names)
    for method in methods:
        if not any(map(method.is_for, tasks)):
            raise InvalidInput(
                f"method '{method.name}' ({method.meaning}): no task has one; with leave_out it is the module of the "
                f"task's name, in the pool or in the ceilings. The tasks are {', '.join(t.name for t in tasks)}"
            )
    return methods
