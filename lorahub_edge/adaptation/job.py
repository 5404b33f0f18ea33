"""One run, stage by stage: open, encode, plan, load, controls, search, test, null."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lorahub_edge.adaptation.adapted import AdaptedModel
from lorahub_edge.adaptation.controls import Row, fixed_controls
from lorahub_edge.adaptation.generate import greedy_answers
from lorahub_edge.adaptation.memory_plan import MemoryPlan, Workload, check_use, choose_plan, memory_plans
from lorahub_edge.adaptation.objective import FORMS, Objective, Value, objective_on
from lorahub_edge.adaptation.progress import OnProgress, Progress
from lorahub_edge.adaptation.run import Run, journal_record, manifest_of
from lorahub_edge.adaptation.run_folder import RunFolder
from lorahub_edge.adaptation.settings import SearchSettings
from lorahub_edge.adaptation.task import Task
from lorahub_edge.base import Base, OpenBase, load_opened, open_base
from lorahub_edge.cache import Cache
from lorahub_edge.kernels import memory
from lorahub_edge.measure import Stopwatch
from lorahub_edge.modules import (
    LoraModule,
    ModuleFolder,
    ModuleStack,
    NullModules,
    StackLayout,
    can_map,
    find_modules,
    load_stack,
)
from lorahub_edge.search import Evaluated, SearchResult, load_optimisers, make_searcher, run_search
from lorahub_edge.tasks import EncodedExample, PromptFormat, exact_match


class Job:
    """The stages of one run, in order; each leaves its value as an attribute for the next."""

    opened: Base | OpenBase
    base: Base
    modules: Sequence[LoraModule | ModuleFolder]
    stack: ModuleStack
    prompt: PromptFormat
    prompt_record: dict[str, Any]
    encoded: list[EncodedExample]
    encoded_test: list[list[int]]
    n_cut: int
    max_new_tokens: int
    settings: SearchSettings
    plan: MemoryPlan

    def __init__(self, task: Task, folder: RunFolder | None, on_progress: OnProgress, cache: Cache | None) -> None:
        self.task = task
        self.folder = folder
        self.on_progress = on_progress
        self.cache = cache
        self.stopwatch = Stopwatch()
        self.journal: list[Evaluated[Value]] = []

    def open(self, base: str | Path | Base, modules: Any, *, precision: str, device: str) -> None:
        """Find the base and the modules, all but their weights."""
        self.on_progress(Progress("load", 0, 1))
        with self.stopwatch.stage("load_base"):
            opened = base if isinstance(base, Base) else open_base(str(base), precision=precision, device=device)
            self.opened = opened
        with self.stopwatch.stage("load_modules"):
            given = [] if isinstance(modules, (str, Path)) else list(modules)
            loaded = given and all(isinstance(m, LoraModule) for m in given)
            self.modules = given if loaded else find_modules(given or modules)

    def encode(self, template: str, max_input_tokens: int | None, max_new_tokens: int | None) -> None:
        """Tokenise the examples and the test, once."""
        self.prompt = PromptFormat.for_base(self.opened, template=template, max_input_tokens=max_input_tokens)
        self.prompt_record = {"template": template, "max_input_tokens": self.prompt.max_input_tokens}
        self.encoded = self.prompt.encode_all(self.task.examples)
        self.n_cut = self.prompt.warn_of_cuts((e.was_cut for e in self.encoded), "examples")
        self.encoded_test = self.prompt.encode_inputs([e.input for e in self.task.test], "test inputs")
        self.max_new_tokens = max_new_tokens or 2 * max(len(e.target_ids) for e in self.encoded) + 8

    def make_plan(
        self, budget_bytes: int | None, stack_dtype: str | None, evaluate_by: str, optimizer: str = "cma-es"
    ) -> list[MemoryPlan]:
        """Decide what the run does with memory; returns all there was to choose from."""
        load_optimisers(optimizer)  # before what Python itself takes is measured
        with self.stopwatch.stage("load_modules"):
            outlines = [module.outline() for module in self.modules]
            layout = StackLayout.of(outlines, self.opened.linear_shapes(), self.opened.source.spec)
        plans = memory_plans(
            self.opened,
            layout,
            self._workload(evaluate_by),
            budget_bytes=budget_bytes,
            stack_dtype=stack_dtype,
            can_map=can_map(self.modules, self.opened.device, self.cache),
        )
        self.plan = choose_plan(plans)
        return plans

    def _workload(self, evaluate_by: str) -> Workload:
        tested_tokens = max((len(ids) + self.max_new_tokens for ids in self.encoded_test), default=0)
        return Workload(self.encoded, tested_tokens, evaluate_by)

    def load(self) -> None:
        """Load what the plan says, as it says."""
        with self.stopwatch.stage("load_base"):
            opened = self.opened
            self.base = opened if isinstance(opened, Base) else load_opened(opened, cache=self.cache)
        with self.stopwatch.stage("load_modules"):
            plan = self.plan
            self.stack = load_stack(
                self.modules, self.base, dtype=plan.stack_dtype, mapping=plan.mapping, cache=self.cache
            )

    def run(self, *, null_control: bool) -> Run:
        """Controls and search and their test; then the null, for which the real stack makes room."""
        with self._objective_on(self.stack) as objective:
            contenders, single_losses = self._controls(objective)
            with self.stopwatch.stage("search"):
                result = self._search(objective, "search", self._journal_writer())
            recordings = objective.recordings()
        del objective  # its composed candidates make room for the test's
        best = result.best
        n_evaluations = f"best of {result.n_evaluations} evaluations"
        adapted = Row("adapted", n_evaluations, tuple(best.coefficients.tolist()), best.value)
        n_tested = len(contenders) + 1 + null_control
        *controls, adapted = self._test([*contenders, adapted], self.stack, n_tested)
        coefficients = dict(zip(self.stack.names, best.coefficients.tolist(), strict=True))
        module = self.stack.composed_module(torch.from_numpy(best.coefficients), "composed")
        was_tested = adapted.exact_match is not None or not self.task.test
        wants_null = null_control and was_tested and not result.interrupted
        null_modules = NullModules.like(self.stack) if wants_null else None
        del self.stack
        memory.give_back()
        if null_modules is not None:
            with contextlib.suppress(KeyboardInterrupt):  # the search is done; a half-searched null compares nothing
                controls.append(self._null(null_modules, n_tested))
        stack = ModuleStack.build([module], self.base)
        return Run(
            task=self.task,
            model=AdaptedModel(self.base, stack, torch.ones(1, dtype=torch.float64), self.prompt, self.max_new_tokens),
            module=module,
            coefficients=coefficients,
            table=(*controls, adapted),
            single_losses=dict(zip(coefficients, single_losses, strict=True)),
            search=result,
            journal=tuple(self.journal),
            manifest=self._manifest(result, recordings),
        )

    def _objective_on(self, stack: ModuleStack) -> AbstractContextManager[Objective]:
        return objective_on(self.base, stack, self.encoded, self.settings, tokens_per_call=self.plan.tokens_per_call)

    def _controls(self, objective: Objective) -> tuple[list[Row], list[float]]:
        self.on_progress(Progress("controls", 0, 1))
        with self.stopwatch.stage("controls"):
            return fixed_controls(self.stack.names, objective)

    def _journal_writer(self) -> Callable[[Evaluated[Value]], None]:
        started = time.perf_counter()

        def note(evaluated: Evaluated[Value]) -> None:
            self.journal.append(evaluated)
            if self.folder is not None:
                elapsed_s = round(time.perf_counter() - started, 4)
                self.folder.append({**journal_record(evaluated), "elapsed_s": elapsed_s})

        return note

    def _null(self, modules: NullModules, n_tested: int) -> Row:
        stack = modules.draw(self.settings.seed)
        with self.stopwatch.stage("null"), self._objective_on(stack) as objective:
            result = self._search(objective, "null", lambda evaluated: None)
        if result.interrupted:
            raise KeyboardInterrupt
        detail = f"the same search over {len(stack.names)} random modules"
        row = Row("random-LoRA null", detail, tuple(result.best.coefficients.tolist()), result.best.value)
        return self._test([row], stack, n_tested, n_done=n_tested - 1)[0]

    def _search(
        self, objective: Objective, stage: str, note: Callable[[Evaluated[Value]], None]
    ) -> SearchResult[Value]:
        s = self.settings
        searcher = make_searcher(s.optimizer, len(self.modules), bound=s.bound, budget=s.budget, seed=s.seed)
        best: Value | None = None

        def on_evaluated(evaluated: Evaluated[Value]) -> None:
            nonlocal best
            if best is None or evaluated.value.objective < best.objective:
                best = evaluated.value
            note(evaluated)
            check_use(self.plan)
            self.on_progress(Progress(stage, evaluated.index + 1, s.budget, best.mean_loss))

        self.on_progress(Progress(stage, 0, s.budget))
        return run_search(objective, searcher, s.budget, on_evaluated)

    def _test(self, rows: list[Row], stack: ModuleStack, n_tested: int, n_done: int = 0) -> list[Row]:
        """The rows with their exact match; an interrupt leaves it empty but keeps the run.

        Args:
            rows: of coefficients for `stack`.
            n_tested, n_done: rows of the whole table, and those tested before, for the progress bar.
        """
        if not self.task.test:
            return rows
        targets = [e.target for e in self.task.test]
        done, total = n_done * len(targets), n_tested * len(targets)

        def answered(n: int) -> None:
            nonlocal done
            done += n
            self.on_progress(Progress("test", done, total))

        def score(coefficients: Sequence[float]) -> float:
            answers = greedy_answers(
                self.base,
                stack,
                torch.tensor(coefficients, dtype=torch.float64),
                self.encoded_test,
                self.prompt,
                max_new_tokens=self.max_new_tokens,
                tokens_per_call=self.plan.tokens_per_call,
                on_answered=answered,
            )
            check_use(self.plan)
            return exact_match(answers, targets)

        self.on_progress(Progress("test", done, total))
        with self.stopwatch.stage("test"), contextlib.suppress(KeyboardInterrupt):
            rows = [replace(row, exact_match=score(row.coefficients)) for row in rows]
        return rows

    def _manifest(self, result: SearchResult[Value], recordings: list[dict[str, Any]]) -> dict[str, Any]:
        return manifest_of(
            base=self.base,
            modules=self.modules,
            task=self.task,
            prompt=self.prompt_record,
            max_new_tokens=self.max_new_tokens,
            n_cut=self.n_cut,
            cache=self.cache,
            memory_plan=self.plan.as_record(),
            search={
                **dataclasses.asdict(self.settings),
                "formula": FORMS[self.settings.objective_form].formula,
                "resolved_optimizer": result.resolved_optimizer,
                "evaluations": result.n_evaluations,
                "interrupted": result.interrupted,
                "cuda_graphs": recordings,
            },
            timings=self.stopwatch.as_record(),
        )
