"""One run, from a plan to its result: load, controls, search, test, null."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lorahub_edge.adaptation.adapted import AdaptedModel
from lorahub_edge.adaptation.controls import (
    ADAPTED,
    N_FIXED_CONTROLS,
    RANDOM_NULL,
    Row,
    constant_control,
    fixed_controls,
)
from lorahub_edge.adaptation.generate import greedy_answers
from lorahub_edge.adaptation.journal import Journal, Journals
from lorahub_edge.adaptation.memory_plan import MemoryPlan, check_use
from lorahub_edge.adaptation.objective import FORMS, Objective, Value, objective_on
from lorahub_edge.adaptation.outcome import Outcome
from lorahub_edge.adaptation.prefilter import Choice, LossFilter
from lorahub_edge.adaptation.progress import OnProgress, Progress
from lorahub_edge.adaptation.run import Run, manifest_of
from lorahub_edge.adaptation.settings import SearchSettings
from lorahub_edge.adaptation.stages import ContentHashes, Encoded, Opened
from lorahub_edge.adaptation.task import Task
from lorahub_edge.base import Base, load_opened
from lorahub_edge.cache import Cache
from lorahub_edge.kernels import memory
from lorahub_edge.measure import Stopwatch
from lorahub_edge.modules import ModuleStack, NullModules, RankCut, cut_rank, load_stack
from lorahub_edge.search import Evaluated, SearchResult, finite_objective, make_searcher, run_search
from lorahub_edge.tasks import score_answers


@dataclass(frozen=True)
class Job:
    """A run that only has to be carried out.

    Attributes:
        task, opened, encoded, settings, plan: the earlier stages' values.
        choice: how the opened modules were chosen from a larger pool; None if they were not.
        loss_filter: chooses among them once the base is loaded; None if all are searched.
        null_control: whether to search over random modules too.
        rank: to which the composed module is cut; None for as it is.
        inputs, hashes: for the manifest; see `evaluation_inputs`.
        journals: where evaluations are noted and found again.
        cache: of the int8 base and the stack.
        on_progress, stopwatch: told where the run stands.
    """

    task: Task
    opened: Opened
    encoded: Encoded
    settings: SearchSettings
    plan: MemoryPlan
    choice: Choice | None
    loss_filter: LossFilter | None
    null_control: bool
    rank: int | None
    inputs: Mapping[str, str]
    hashes: ContentHashes
    journals: Journals
    cache: Cache | None
    on_progress: OnProgress
    stopwatch: Stopwatch

    @property
    def names(self) -> tuple[str, ...]:
        """Of the modules, in order."""
        return self.opened.layout.names

    def run(self) -> Run:
        """Controls and search and their test; then the null, for which the real stack has made room."""
        base = self._load_base()
        return self._with_choice(base)._run(base)

    def _run(self, base: Base) -> Run:
        outcome = self._adapt(base)
        memory.give_back()
        *controls, adapted = outcome.rows
        if outcome.null_modules is not None:
            with contextlib.suppress(KeyboardInterrupt):  # the search is done; a half-searched null compares nothing
                controls.append(self._null(base, outcome.null_modules))
        encoded = self.encoded
        coefficients = dict(zip(self.names, outcome.result.best.coefficients.tolist(), strict=True))
        model = AdaptedModel.of_module(base, outcome.module, encoded.prompt, encoded.max_new_tokens)
        return Run(
            task=self.task,
            model=model,
            module=outcome.module,
            coefficients=coefficients,
            table=(*constant_control(self.task.examples, self.task.test), *controls, adapted),
            single_losses=dict(zip(self.names, outcome.single_losses, strict=True)),
            search=outcome.result,
            journal=tuple(self.journals.search.evaluated),
            manifest=self._manifest(base, outcome, self._rank_cut(model, outcome.rank_cut)),
        )

    def _load_base(self) -> Base:
        with self.stopwatch.stage("load_base"):
            opened = self.opened.base
            return opened if isinstance(opened, Base) else load_opened(opened, cache=self.cache)

    def _with_choice(self, base: Base) -> Job:
        """The same with the modules that the search weighs, where that is known only once the base is there."""
        if self.loss_filter is None:
            return self
        with self.stopwatch.stage("choose_modules"):
            choice = self.loss_filter.choose(base, self.journals.choice, self.on_progress)
        opened, hashes = self.opened.only(choice.places), self.hashes.only(choice.places)
        return replace(self, opened=opened, hashes=hashes, choice=choice)

    def _load_stack(self, base: Base) -> ModuleStack:
        with self.stopwatch.stage("load_modules"):
            stack = load_stack(
                self.opened.modules,
                base,
                layout=self.opened.layout,
                dtype=self.plan.stack_dtype,
                mapping=self.plan.mapping,
                cache=self.cache,
            )
        return stack.composed_by(self.settings.composition)

    def _adapt(self, base: Base) -> Outcome:
        stack = self._load_stack(base)
        journals = self.journals
        with self._objective_on(base, stack, journals.computed_before) as objective:
            controls, single_losses = self._controls(objective)
            with self.stopwatch.stage("search"):
                result = self._search(objective, "search", journals.search)
            recordings = objective.recordings()
        del objective  # its composed candidates make room for the test's
        best = result.best
        detail = f"best of {result.n_evaluations} evaluations"
        rows = [*controls, Row(ADAPTED, detail, tuple(best.coefficients.tolist()), best.value)]
        rows = self._test(base, stack, rows)
        was_tested = rows[-1].score is not None or not self.task.test
        wants_null = self.null_control and was_tested and not result.interrupted
        module, rank_cut = stack.composed_module(torch.from_numpy(best.coefficients), "composed"), None
        if self.rank is not None:
            module, rank_cut = cut_rank(module, self.rank)
        null_modules = NullModules.like(stack) if wants_null else None
        return Outcome(result, rows, single_losses, module, rank_cut, null_modules, recordings)

    def _objective_on(
        self, base: Base, stack: ModuleStack, computed_before: Mapping[bytes, Value]
    ) -> AbstractContextManager[Objective]:
        return objective_on(
            base,
            stack,
            self.encoded.examples,
            self.settings,
            tokens_per_call=self.plan.tokens_per_call,
            computed_before=computed_before,
        )

    def _controls(self, objective: Objective) -> tuple[list[Row], list[float]]:
        self.on_progress(Progress("controls", 0, 1))
        with self.stopwatch.stage("controls"):
            return fixed_controls(self.names, objective, self.journals.controls.append)

    def _null(self, base: Base, modules: NullModules) -> Row:
        stack = modules.draw(self.settings.seed)
        journal = self.journals.null
        with self.stopwatch.stage("null"), self._objective_on(base, stack, journal.known) as objective:
            result = self._search(objective, "null", journal)
        if result.interrupted:
            raise KeyboardInterrupt
        detail = f"the same search over {len(stack.names)} random modules"
        row = Row(RANDOM_NULL, detail, tuple(result.best.coefficients.tolist()), result.best.value)
        return self._test(base, stack, [row], is_last=True)[0]

    def _search(self, objective: Objective, stage: str, journal: Journal) -> SearchResult[Value]:
        s = self.settings

        def guide() -> npt.NDArray[np.float64]:
            return np.array(journal.noted("mixture", lambda: objective.mixture(s.bound).tolist()))

        searcher = make_searcher(s.optimizer, len(self.names), bound=s.bound, budget=s.budget, seed=s.seed, guide=guide)
        started = time.perf_counter()
        best: Value | None = None

        def on_evaluated(batch: Sequence[Evaluated[Value]]) -> None:
            nonlocal best
            journal.append(batch, elapsed_s=time.perf_counter() - started)
            check_use(self.plan)
            for evaluated in batch:
                new = finite_objective(evaluated.value.objective)
                if best is None or new < finite_objective(best.objective):
                    best = evaluated.value
                self.on_progress(Progress(stage, evaluated.index + 1, s.budget, best.mean_loss))

        self.on_progress(Progress(stage, 0, s.budget))
        return run_search(objective, searcher, s.budget, on_evaluated)

    def _mixture(self) -> dict[str, float] | None:
        """What the surrogate named; None of a search that asks for no guide."""
        weights = self.journals.search.notes.get("mixture")
        return None if weights is None else dict(zip(self.names, weights, strict=True))

    def _test(self, base: Base, stack: ModuleStack, rows: Sequence[Row], *, is_last: bool = False) -> list[Row]:
        """The rows with their scores; an interrupt leaves it empty but keeps the run.

        Args:
            base, stack: what answers.
            rows: with coefficients for `stack`.
            is_last: whether they are the last of the table, for the progress bar.
        """
        if not self.task.test:
            return list(rows)
        total = (N_FIXED_CONTROLS + 1 + self.null_control) * len(self.task.test)
        done = total - len(rows) * len(self.task.test) if is_last else 0

        def answered(n: int) -> None:
            nonlocal done
            done += n
            self.on_progress(Progress("test", done, total))

        self.on_progress(Progress("test", done, total))
        tested = list(rows)
        with self.stopwatch.stage("test"), contextlib.suppress(KeyboardInterrupt):
            tested = [self._tested(base, stack, row, answered) for row in rows]
        return tested

    def _tested(self, base: Base, stack: ModuleStack, row: Row, on_answered: Callable[[int], None]) -> Row:
        answers = greedy_answers(
            base,
            stack,
            torch.tensor(row.coefficients, dtype=torch.float64),
            self.encoded.test,
            self.encoded.prompt,
            max_new_tokens=self.encoded.max_new_tokens,
            tokens_per_call=self.plan.tokens_per_call,
            on_answered=on_answered,
        )
        check_use(self.plan)
        score = score_answers(answers, [e.target for e in self.task.test])
        return replace(row, score=score, answers=tuple(answers))

    def _rank_cut(self, model: AdaptedModel, cut: RankCut | None) -> dict[str, Any] | None:
        """What the cut has done, and the loss on the examples since: that in the table is from before."""
        if cut is None:
            return None
        stack = model.stack.composed_by(self.settings.composition)
        with self._objective_on(model.base, stack, {}) as objective:
            return {**dataclasses.asdict(cut), "loss": objective(np.ones((1, 1)))[0].mean_loss}

    def _manifest(self, base: Base, outcome: Outcome, rank_cut: Mapping[str, Any] | None) -> dict[str, Any]:
        return manifest_of(
            base=base,
            modules=self.opened.modules,
            task=self.task,
            hashes=self.hashes,
            inputs=dict(self.inputs),
            prompt=self.encoded.prompt.as_record(),
            max_new_tokens=self.encoded.max_new_tokens,
            answer_tokens=[len(example.target_ids) for example in self.encoded.examples],
            **self.encoded.lost,
            memory_plan=self.plan.as_record(),
            module_specs=list(self.opened.specs),
            chosen_modules=self.choice and self.choice.as_record(),
            search={
                **dataclasses.asdict(self.settings),
                "formula": FORMS[self.settings.objective_form].formula,
                "resolved_optimizer": outcome.result.resolved_optimizer,
                "evaluations": outcome.result.n_evaluations,
                "evaluations_of_earlier_starts": self.journals.search.n_known,
                "interrupted": outcome.result.interrupted,
                "mixture": self._mixture(),
                "cuda_graphs": list(outcome.recordings),
            },
            rank_cut=rank_cut,
            timings=self.stopwatch.as_record(),
        )
