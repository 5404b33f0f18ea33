"""The main job: from a base, modules and a handful of examples to one composed module, with its controls beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lorahub_edge.adaptation.job import Job
from lorahub_edge.adaptation.journal import Journals
from lorahub_edge.adaptation.memory_plan import MemoryPlan, check_budget, choose_plan, memory_errors
from lorahub_edge.adaptation.prefilter import Choice, LossFilter, choose_unread
from lorahub_edge.adaptation.progress import OnProgress, Progress
from lorahub_edge.adaptation.run import Run
from lorahub_edge.adaptation.run_folder import RunFolder
from lorahub_edge.adaptation.settings import RunSettings
from lorahub_edge.adaptation.stages import (
    ContentHashes,
    Opened,
    encode,
    evaluation_inputs,
    find_inputs,
    open_inputs,
    plan_memory,
)
from lorahub_edge.adaptation.task import Task, load_task
from lorahub_edge.base import Base, need_device, resolve_device
from lorahub_edge.cache import Cache, default_cache
from lorahub_edge.measure import Stopwatch
from lorahub_edge.modules import LoraModule
from lorahub_edge.search import check_optimizer
from lorahub_edge.tasks import Examples


def adapt(
    base: str | Path | Base = "pocket",
    modules: str | Path | Iterable[str | Path] | Sequence[LoraModule] = "pocket",
    examples: Examples | None = None,
    *,
    test: Examples | None = None,
    n_examples: int = 5,
    example_seed: int = 42,
    n_test: int | None = None,
    preset: str = "edge",
    optimizer: str | None = None,
    budget: int | None = None,
    alpha: float | None = None,
    bound: float | None = None,
    seed: int = 42,
    device: str = "auto",
    precision: str = "int8",
    prompt: str = "auto",
    max_input_tokens: int | None = None,
    max_new_tokens: int | None = None,
    null_control: bool = True,
    evaluate_by: str = "side",
    composition: str | None = None,
    rank: int | None = None,
    max_memory: int | str | None = None,
    stack_dtype: str | None = None,
    max_modules: int | None = None,
    choose_modules: str = "loss",
    cache: Cache | bool = True,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    on_progress: OnProgress | None = None,
) -> Run:
    """Find one coefficient per LoRA module such that their composition answers a new task.

    Meaning, per target layer, with s the scaling:

        minimise over c in [-bound, bound]^n:  loss(examples; base + delta(c)) + penalty(c)
        factors    delta(c) = s * sum_k(c[k] * B[k]) @ sum_k(c[k] * A[k])
        deltas     delta(c) = sum_k(c[k] * s * B[k] @ A[k])

    Args:
        base: see `load_base`; or a loaded base, whose precision and device then count.
        modules: see `load_modules`; or loaded modules.
        examples: a file, "pocket/TASK", or the examples themselves; None is the embedded default task.
        test: the same; answers to it are scored, see `Score`. Rows that are among the drawn examples are left out.
        n_examples, example_seed: how many examples the search sees, and the seed of LoRAHub's draw.
        n_test: at most so many test rows.
        preset: "edge", "paper" or "lorahub-code"; the next four, and `composition`, change parts of it.
        optimizer: "guided-cma", "cma-es" or any nevergrad name.
        budget: evaluations of the search, at least 1.
        alpha: weight of the L1 penalty, at least 0.
        bound: half width of the box.
        seed: of the search, of the random-LoRA null, and of `choose_modules` "random".
        device, precision: see `load_base`.
        prompt: see `PromptFormat.for_base`.
        max_input_tokens: inputs are cut here; default 2048 or what the model takes.
        max_new_tokens: answers are cut here; default twice the longest example answer plus 8.
        null_control: also search over random modules of the same size: the same budget once more.
        evaluate_by: "side" adds the delta beside the frozen base; "inject" rounds it into the int8 base as an in-place
            merge does, one candidate at a time.
        composition: "factors", LoRAHub's, where c and -c are the same model; or "deltas", whose rank and cost grow with
            the modules in use. None for the preset's.
        rank: cut the composed module's targets to this rank, at least 1, after the search; see `cut_rank`. The table
            shows it uncut; `manifest["rank_cut"]` says what is lost.
        max_memory: in bytes, or a text such as "5GiB"; what to give up for it is planned before anything is loaded.
        stack_dtype: "fp32", "bf16" or "int8" for the modules; None for what the plan says ("fp32" without a budget).
        max_modules: search among at most so many of the modules, at least 1; None for all.
        choose_modules: how they are chosen. "loss": those whose loss on the examples is lowest alone; every module is
            read, and evaluated once. "random": LoRAHub's draw, random.Random(seed).sample of the names.
            "similar": by TF-IDF cosine of the examples to a module's README.md and training_rows.jsonl; modules that
            have neither come last. By the last two, only the chosen modules are opened.
        cache: keeps the int8 base and the modules' stack between starts; True is the user's, see `default_cache`; False
            is none.
        out: a run folder to write; nothing is written without it. If a run with the same inputs ended early there, this
            one goes on from its evaluations, and comes to what an uninterrupted one would have come to, bit for bit.
        overwrite: replace an earlier run in `out`; drop one that ended early with other inputs.
        resume: refuse to begin anew.
        on_progress: called as the run goes on.

    Returns:
        The run. Ctrl-C during the search ends it early with the best so far (`run.interrupted`).

    Raises:
        InvalidInput, IncompatibleModules, UnsupportedFormat, OutputExists: see there.
        RunNotWritten: `out` cannot be written at the end; carries the run.
        MemoryExceeded: the run does not fit `max_memory`, or the system has no more; says what would help.

    Source: LoRAHub, arXiv:2307.13269.
    """
    settings = RunSettings(
        preset=preset,
        optimizer=optimizer,
        budget=budget,
        alpha=alpha,
        bound=bound,
        seed=seed,
        device=device,
        precision=precision,
        prompt=prompt,
        max_input_tokens=max_input_tokens,
        max_new_tokens=max_new_tokens,
        null_control=null_control,
        evaluate_by=evaluate_by,
        composition=composition,
        rank=rank,
        max_memory=max_memory,
        stack_dtype=stack_dtype,
        max_modules=max_modules,
        choose_modules=choose_modules,
    )
    task = load_task(examples, test, n_examples=n_examples, example_seed=example_seed, n_test=n_test)
    report_to = on_progress or (lambda progress: None)
    if out is None:
        return run_task(base, modules, task, settings, chosen_cache(cache), report_to)
    with RunFolder(out, overwrite=overwrite, resume=resume) as folder:
        return run_task(base, modules, task, settings, chosen_cache(cache), report_to, folder=folder)


def run_task(
    base: str | Path | Base,
    modules: Any,
    task: Task,
    settings: RunSettings,
    cache: Cache | None,
    on_progress: OnProgress,
    *,
    folder: RunFolder | None = None,
    plan: MemoryPlan | None = None,
) -> Run:
    """`adapt` for a task that is drawn and settings that are checked.

    Args:
        base, modules: see `adapt`; modules may also be found already, as `ModuleFolder`s.
        folder: where the run is written.
        plan: decided elsewhere; None to decide here.
        task, settings, cache, on_progress: the earlier stages' values.

    Raises: see `adapt`.
    """
    stopwatch = Stopwatch()
    on_progress(Progress("load", 0, 1))
    if not isinstance(base, Base):  # before anything is downloaded
        need_device(resolve_device(settings.device))
    opened, choice = _opened(base, modules, task, settings, stopwatch)
    encoded = encode(opened, task, settings)
    n_searched = settings.n_searched(len(opened.modules))
    search = settings.search(n_searched)
    check_optimizer(search.optimizer, n_searched, search.budget)
    chosen = plan or choose_plan(plan_memory(opened, encoded, settings, cache))
    check_budget(chosen)
    hashes = ContentHashes.of(opened, cache)
    inputs = evaluation_inputs(opened, encoded, search, chosen, hashes, n_searched)
    is_pending = n_searched < len(opened.modules)
    journals = Journals.in_memory() if folder is None else folder.begin(inputs)
    job = Job(
        task=task,
        opened=opened,
        encoded=encoded,
        settings=search,
        plan=chosen,
        choice=choice,
        loss_filter=LossFilter(opened, encoded, search, chosen, n_searched, cache) if is_pending else None,
        null_control=settings.null_control,
        rank=settings.rank,
        inputs=inputs,
        hashes=hashes,
        journals=journals,
        cache=cache,
        on_progress=on_progress,
        stopwatch=stopwatch,
    )
    with memory_errors(chosen):
        run = job.run()
    return run if folder is None else run.save_into(folder)


def plan(
    base: str | Path = "pocket",
    modules: str | Path | Iterable[str | Path] = "pocket",
    examples: Examples | None = None,
    *,
    test: Examples | None = None,
    n_examples: int = 5,
    example_seed: int = 42,
    n_test: int | None = None,
    max_memory: int | str | None = None,
    optimizer: str | None = None,
    seed: int = 42,
    device: str = "auto",
    precision: str = "int8",
    prompt: str = "auto",
    max_input_tokens: int | None = None,
    max_new_tokens: int | None = None,
    evaluate_by: str = "side",
    composition: str | None = None,
    stack_dtype: str | None = None,
    max_modules: int | None = None,
    choose_modules: str = "loss",
    cache: Cache | bool = True,
) -> list[MemoryPlan]:
    """What `adapt` would need in memory, known without reading a weight.

    Args:
        device: "cuda" need not be there: its own memory is planned, without what CUDA's context takes.
        all others: see `adapt`.

    Returns:
        All plans, that which gives up least first; `adapt` takes the first that fits.

    Raises:
        InvalidInput, IncompatibleModules, UnsupportedFormat: see `adapt`.
    """
    settings = RunSettings(
        optimizer=optimizer,
        seed=seed,
        device=device,
        precision=precision,
        prompt=prompt,
        max_input_tokens=max_input_tokens,
        max_new_tokens=max_new_tokens,
        evaluate_by=evaluate_by,
        composition=composition,
        max_memory=max_memory,
        stack_dtype=stack_dtype,
        max_modules=max_modules,
        choose_modules=choose_modules,
    )
    task = load_task(examples, test, n_examples=n_examples, example_seed=example_seed, n_test=n_test)
    opened, _ = _opened(base, modules, task, settings, Stopwatch())
    return plan_memory(opened, encode(opened, task, settings), settings, chosen_cache(cache))


def _opened(
    base: str | Path | Base, modules: Any, task: Task, settings: RunSettings, stopwatch: Stopwatch
) -> tuple[Opened, Choice | None]:
    """Base and modules, of which only those are opened that the choice has left."""
    found, choice = choose_unread(find_inputs(base, modules, settings, stopwatch), task, settings)
    return open_inputs(found, stopwatch), choice


def chosen_cache(cache: Cache | bool) -> Cache | None:
    """The cache that a caller means; see `adapt`."""
    return cache if isinstance(cache, Cache) else default_cache() if cache else None
