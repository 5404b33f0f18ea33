"""One run, stage by stage: load, encode, controls, search, null, test."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lorahub_edge.adaptation.adapted import AdaptedModel
from lorahub_edge.adaptation.controls import Contender, Row, fixed_controls, with_exact_match
from lorahub_edge.adaptation.generate import greedy_answers
from lorahub_edge.adaptation.objective import FORMS, Objective, Value, objective_on
from lorahub_edge.adaptation.progress import OnProgress, Progress
from lorahub_edge.adaptation.run import Run, journal_record, manifest_of
from lorahub_edge.adaptation.run_folder import RunFolder
from lorahub_edge.adaptation.settings import SearchSettings
from lorahub_edge.adaptation.task import Task
from lorahub_edge.base import Base, load_base
from lorahub_edge.measure import Stopwatch
from lorahub_edge.modules import LoraModule, ModuleStack, load_modules, random_modules
from lorahub_edge.search import Evaluated, SearchResult, make_searcher, run_search
from lorahub_edge.tasks import EncodedExample, PromptFormat, exact_match


class Job:
    """The stages of one run, in order; each leaves its value as an attribute for the next."""

    base: Base
    modules: list[LoraModule]
    stack: ModuleStack
    prompt: PromptFormat
    prompt_record: dict[str, Any]
    encoded: list[EncodedExample]
    n_cut: int
    max_new_tokens: int
    settings: SearchSettings

    def __init__(self, task: Task, folder: RunFolder | None, on_progress: OnProgress) -> None:
        self.task = task
        self.folder = folder
        self.on_progress = on_progress
        self.stopwatch = Stopwatch()
        self.journal: list[Evaluated[Value]] = []

    def load(self, base: str | Path | Base, modules: Any, *, precision: str, device: str) -> None:
        """Load the base and the modules and check that they fit."""
        self.on_progress(Progress("load", 0, 1))
        with self.stopwatch.stage("load_base"):
            self.base = base if isinstance(base, Base) else load_base(str(base), precision=precision, device=device)
        with self.stopwatch.stage("load_modules"):
            given = [] if isinstance(modules, (str, Path)) else list(modules)
            loaded = given and all(isinstance(m, LoraModule) for m in given)
            self.modules = given if loaded else load_modules(given or modules)
            self.stack = ModuleStack.build(self.modules, self.base)

    def encode(self, template: str, max_input_tokens: int | None, max_new_tokens: int | None) -> None:
        """Tokenise the examples, once."""
        self.prompt = PromptFormat.for_base(self.base, template=template, max_input_tokens=max_input_tokens)
        self.prompt_record = {"template": template, "max_input_tokens": self.prompt.max_input_tokens}
        self.encoded = self.prompt.encode_all(self.task.examples)
        self.n_cut = self.prompt.warn_of_cuts((e.was_cut for e in self.encoded), "examples")
        self.max_new_tokens = max_new_tokens or 2 * max(len(e.target_ids) for e in self.encoded) + 8

    def run(self, *, null_control: bool) -> Run:
        """Controls and search, then the null, then the test."""
        with objective_on(self.base, self.stack, self.encoded, self.settings) as objective:
            contenders, single_losses = self._controls(objective)
            with self.stopwatch.stage("search"):
                result = self._search(objective, "search", self._journal_writer())
        detail = f"best of {result.n_evaluations} evaluations"
        adapted = self._contender("adapted", detail, result, self.stack)
        if null_control and not result.interrupted:
            with contextlib.suppress(KeyboardInterrupt):  # the search is done; a half-searched null compares nothing
                contenders.append(self._null())
        contenders = self._test([*contenders, adapted])
        coefficients = torch.from_numpy(result.best.coefficients)
        return Run(
            task=self.task,
            model=AdaptedModel(self.base, self.stack, coefficients, self.prompt, self.max_new_tokens),
            module=self.stack.composed_module(coefficients, "composed"),
            coefficients=dict(zip(self.stack.names, coefficients.tolist(), strict=True)),
            table=tuple(c.row for c in contenders),
            single_losses=dict(zip(self.stack.names, single_losses, strict=True)),
            search=result,
            journal=tuple(self.journal),
            manifest=self._manifest(result),
        )

    def _controls(self, objective: Objective) -> tuple[list[Contender], list[float]]:
        self.on_progress(Progress("controls", 0, 1))
        with self.stopwatch.stage("controls"):
            return fixed_controls(self.stack, objective)

    def _journal_writer(self) -> Callable[[Evaluated[Value]], None]:
        started = time.perf_counter()

        def note(evaluated: Evaluated[Value]) -> None:
            self.journal.append(evaluated)
            if self.folder is not None:
                elapsed_s = round(time.perf_counter() - started, 4)
                self.folder.append({**journal_record(evaluated), "elapsed_s": elapsed_s})

        return note

    def _null(self) -> Contender:
        stack = random_modules(self.stack, self.settings.seed)
        with self.stopwatch.stage("null"), objective_on(self.base, stack, self.encoded, self.settings) as objective:
            result = self._search(objective, "null", lambda evaluated: None)
        if result.interrupted:
            raise KeyboardInterrupt
        detail = f"the same search over {len(stack.names)} random modules"
        return self._contender("random-LoRA null", detail, result, stack)

    def _search(
        self, objective: Objective, stage: str, note: Callable[[Evaluated[Value]], None]
    ) -> SearchResult[Value]:
        s = self.settings
        searcher = make_searcher(s.optimizer, len(self.stack.names), bound=s.bound, budget=s.budget, seed=s.seed)
        best: Value | None = None

        def on_evaluated(evaluated: Evaluated[Value]) -> None:
            nonlocal best
            if best is None or evaluated.value.objective < best.objective:
                best = evaluated.value
            note(evaluated)
            self.on_progress(Progress(stage, evaluated.index + 1, s.budget, best.mean_loss))

        self.on_progress(Progress(stage, 0, s.budget))
        return run_search(objective, searcher, s.budget, on_evaluated)

    def _contender(self, name: str, detail: str, result: SearchResult[Value], stack: ModuleStack) -> Contender:
        return Contender(Row(name, detail, tuple(result.best.coefficients.tolist()), result.best.value), stack)

    def _test(self, contenders: list[Contender]) -> list[Contender]:
        """Exact match of every contender; an interrupt leaves the column empty but keeps the run."""
        if not self.task.test:
            return contenders
        encoded = self.prompt.encode_inputs([e.input for e in self.task.test], "test inputs")
        targets = [e.target for e in self.task.test]
        total = len(encoded) * len(contenders)
        done = 0

        def answered(n: int) -> None:
            nonlocal done
            done += n
            self.on_progress(Progress("test", done, total))

        def score(stack: ModuleStack, coefficients: torch.Tensor) -> float:
            answers = greedy_answers(
                self.base,
                stack,
                coefficients,
                encoded,
                self.prompt,
                max_new_tokens=self.max_new_tokens,
                on_answered=answered,
            )
            return exact_match(answers, targets)

        self.on_progress(Progress("test", 0, total))
        with self.stopwatch.stage("test"), contextlib.suppress(KeyboardInterrupt):
            contenders = with_exact_match(contenders, score)
        return contenders

    def _manifest(self, result: SearchResult[Value]) -> dict[str, Any]:
        return manifest_of(
            base=self.base,
            modules=self.modules,
            task=self.task,
            prompt=self.prompt_record,
            max_new_tokens=self.max_new_tokens,
            n_cut=self.n_cut,
            search={
                **dataclasses.asdict(self.settings),
                "formula": FORMS[self.settings.objective_form].formula,
                "resolved_optimizer": result.resolved_optimizer,
                "evaluations": result.n_evaluations,
                "interrupted": result.interrupted,
            },
            timings=self.stopwatch.as_record(),
        )
