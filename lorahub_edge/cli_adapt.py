"""The commands that find coefficients: adapt, and plan, which says what adapt would need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from lorahub_edge import pocket
from lorahub_edge.commands import (
    BaseOption,
    CacheOption,
    ChooseModulesOption,
    CompositionOption,
    DeviceOption,
    EvaluateByOption,
    ExampleSeedOption,
    ExamplesOption,
    JsonOption,
    MaxInputTokensOption,
    MaxModulesOption,
    MaxNewTokensOption,
    ModulesOption,
    NExamplesOption,
    NTestOption,
    OptimizerOption,
    PrecisionOption,
    PromptOption,
    StackDtypeOption,
    one_line_errors,
)
from lorahub_edge.json_text import to_json
from lorahub_edge.tasks import task_name
from lorahub_edge.terminal import messages, print_plans, print_run, progress_bar


def add_commands(app: typer.Typer) -> None:
    """Add them to the command line."""
    for command in (adapt, plan):
        app.command()(command)


@one_line_errors
def adapt(
    base: BaseOption = "pocket",
    modules: ModulesOption = ["pocket"],  # noqa: B006  typer copies it
    max_modules: MaxModulesOption = None,
    choose_modules: ChooseModulesOption = "loss",
    examples: ExamplesOption = None,
    test: Annotated[str | None, typer.Option(help="Score on these rows too, by exact match.")] = None,
    n_examples: NExamplesOption = 5,
    example_seed: ExampleSeedOption = 42,
    n_test: NTestOption = None,
    preset: Annotated[str, typer.Option(help="edge, paper or lorahub-code.")] = "edge",
    optimizer: OptimizerOption = None,
    budget: Annotated[int | None, typer.Option(help="Evaluations of the search.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Weight of the L1 penalty.")] = None,
    bound: Annotated[float | None, typer.Option(help="Coefficients stay within +-bound.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the search, and of --choose-modules random.")] = 42,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "int8",
    prompt: PromptOption = "auto",
    max_input_tokens: MaxInputTokensOption = None,
    max_new_tokens: MaxNewTokensOption = None,
    null_control: Annotated[bool, typer.Option(help="Search over random modules too, as a control.")] = True,
    evaluate_by: EvaluateByOption = "side",
    composition: CompositionOption = None,
    rank: Annotated[int | None, typer.Option(help="Cut the composed module to this rank, by SVD.")] = None,
    max_memory: Annotated[
        str | None, typer.Option(help="Stay below, for instance 1.5GB; see plan. Refused if it cannot be.")
    ] = None,
    stack_dtype: StackDtypeOption = None,
    cache: CacheOption = True,
    out: Annotated[Path | None, typer.Option(help="Run folder to write. Default: runs/TASK-TIME.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in --out.")] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with a run that ended early: that of --out, or the newest of this task in runs/."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Find one coefficient per LoRA module from a few examples of a new task.

    Example: lorahub-edge adapt --base google/flan-t5-large --modules my_modules/ --examples task.jsonl --out run
    """
    import lorahub_edge

    task = task_name(examples or pocket.DEFAULT_TASK)
    messages.print(f"adapting {base} to {task}", style="dim", soft_wrap=True)  # torch and transformers take seconds
    with progress_bar() as on_progress, _printed_if_not_written():
        run = lorahub_edge.adapt(
            base,
            modules,
            examples,
            test=test,
            n_examples=n_examples,
            example_seed=example_seed,
            n_test=n_test,
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
            cache=cache,
            out=out or _default_out(task, resume=resume),
            overwrite=overwrite,
            resume=resume,
            on_progress=on_progress,
        )
    if as_json:
        typer.echo(to_json(run.report()))
    else:
        print_run(run.report())


@contextmanager
def _printed_if_not_written() -> Iterator[None]:
    """What could not be kept on disk goes to stdout: the report and the journal, as one line of JSON."""
    from lorahub_edge.adaptation import RunNotWritten
    from lorahub_edge.adaptation.journal import journal_record

    try:
        yield
    except RunNotWritten as error:
        run = error.run
        typer.echo(
            to_json({**run.report(), "journal": [journal_record(evaluated) for evaluated in run.journal]}, indent=None)
        )
        raise


def _default_out(task: str, *, resume: bool) -> Path:
    from lorahub_edge.adaptation.run_folder import default_place, newest_unfinished

    runs = Path("runs")
    found = newest_unfinished(runs, task) if resume else None
    return found or default_place(runs, task)


@one_line_errors
def plan(
    base: BaseOption = "pocket",
    modules: ModulesOption = ["pocket"],  # noqa: B006  typer copies it
    max_modules: MaxModulesOption = None,
    choose_modules: ChooseModulesOption = "loss",
    examples: ExamplesOption = None,
    test: Annotated[str | None, typer.Option(help="Rows that adapt would score.")] = None,
    n_examples: NExamplesOption = 5,
    example_seed: ExampleSeedOption = 42,
    n_test: NTestOption = None,
    optimizer: OptimizerOption = None,
    seed: Annotated[int, typer.Option(help="Of --choose-modules random.")] = 42,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "int8",
    prompt: PromptOption = "auto",
    max_input_tokens: MaxInputTokensOption = None,
    max_new_tokens: MaxNewTokensOption = None,
    evaluate_by: EvaluateByOption = "side",
    composition: CompositionOption = None,
    max_memory: Annotated[str | None, typer.Option(help="What there is, for instance 5GiB.")] = None,
    stack_dtype: StackDtypeOption = None,
    cache: CacheOption = True,
    as_json: JsonOption = False,
) -> None:
    """Say what adapt would need in memory, before any weight is read. Exit code 1 if it does not fit.

    Takes the options of adapt that change what it needs; others are not needed here.

    Example: lorahub-edge plan --base google/flan-t5-large --modules my_modules/ --max-memory 1.5GB
    """
    import lorahub_edge

    plans = lorahub_edge.plan(
        base,
        modules,
        examples,
        test=test,
        n_examples=n_examples,
        example_seed=example_seed,
        n_test=n_test,
        max_memory=max_memory,
        optimizer=optimizer,
        seed=seed,
        device=device,
        precision=precision,
        prompt=prompt,
        max_input_tokens=max_input_tokens,
        max_new_tokens=max_new_tokens,
        evaluate_by=evaluate_by,
        composition=composition,
        stack_dtype=stack_dtype,
        max_modules=max_modules,
        choose_modules=choose_modules,
        cache=cache,
    )
    if as_json:
        typer.echo(to_json([plan.as_record() for plan in plans]))
    else:
        print_plans(plans)
    if not any(plan.fits for plan in plans):
        raise typer.Exit(1)
