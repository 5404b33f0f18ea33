"""The command line: parse, call one public function, print. No arithmetic, and no command calls another.

Here: what makes an adapted model. `cli_delivery.py`: what brings it to its users. `cli_bench.py`: what measures it.

Heavy imports happen inside the commands, so that --help answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from lorahub_edge import __version__, cli_bench, cli_delivery, pocket
from lorahub_edge.commands import (
    BaseOption,
    CacheOption,
    DeviceOption,
    EvaluateByOption,
    ExampleSeedOption,
    ExamplesOption,
    JsonOption,
    MaxInputTokensOption,
    MaxNewTokensOption,
    ModulesOption,
    NExamplesOption,
    NTestOption,
    OptimizerOption,
    PrecisionOption,
    PromptOption,
    RunArgument,
    StackDtypeOption,
    app,
    one_line_errors,
)
from lorahub_edge.json_text import to_json
from lorahub_edge.terminal import answers, messages, print_plans, print_run, progress_bar, step_bar


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lorahub-edge {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before any command."""


@app.command()
@one_line_errors
def adapt(
    base: BaseOption = "pocket",
    modules: ModulesOption = ["pocket"],  # noqa: B006  typer copies it
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
    seed: Annotated[int, typer.Option(help="Seed of the search.")] = 42,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "int8",
    prompt: PromptOption = "auto",
    max_input_tokens: MaxInputTokensOption = None,
    max_new_tokens: MaxNewTokensOption = None,
    null_control: Annotated[bool, typer.Option(help="Search over random modules too, as a control.")] = True,
    evaluate_by: EvaluateByOption = "side",
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
            max_memory=max_memory,
            stack_dtype=stack_dtype,
            cache=cache,
            out=out or _default_out(examples, resume=resume),
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


def _default_out(examples: str | None, *, resume: bool) -> Path:
    from lorahub_edge.adaptation.run_folder import default_name, newest_unfinished
    from lorahub_edge.tasks import task_name

    task, runs = task_name(examples or pocket.DEFAULT_TASK), Path("runs")
    found = newest_unfinished(runs, task) if resume else None
    return found or runs / default_name(task)


@app.command()
@one_line_errors
def plan(
    base: BaseOption = "pocket",
    modules: ModulesOption = ["pocket"],  # noqa: B006  typer copies it
    examples: ExamplesOption = None,
    test: Annotated[str | None, typer.Option(help="Rows that adapt would score.")] = None,
    n_examples: NExamplesOption = 5,
    example_seed: ExampleSeedOption = 42,
    n_test: NTestOption = None,
    optimizer: OptimizerOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "int8",
    prompt: PromptOption = "auto",
    max_input_tokens: MaxInputTokensOption = None,
    max_new_tokens: MaxNewTokensOption = None,
    evaluate_by: EvaluateByOption = "side",
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
        device=device,
        precision=precision,
        prompt=prompt,
        max_input_tokens=max_input_tokens,
        max_new_tokens=max_new_tokens,
        evaluate_by=evaluate_by,
        stack_dtype=stack_dtype,
        cache=cache,
    )
    if as_json:
        typer.echo(to_json([plan.as_record() for plan in plans]))
    else:
        print_plans(plans)
    if not any(plan.fits for plan in plans):
        raise typer.Exit(1)


@app.command()
@one_line_errors
def evaluate(
    run: RunArgument,
    data: Annotated[str, typer.Option(help="JSONL, BBH json or CSV with the rows to score on.")],
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Score an adapted model again, on other data.

    Example: lorahub-edge evaluate runs/navigate --data more.jsonl
    """
    import lorahub_edge
    from lorahub_edge.adaptation.report import loss_text

    score = lorahub_edge.load_adapted(run, device=device).evaluate(data)
    if as_json:
        record = {"loss": score.loss, "exact_match": score.exact_match, "n": score.n_examples, "answers": score.answers}
        typer.echo(to_json(record))
    else:
        answers.print(f"exact match {score.exact_match:.1f} %, loss {loss_text(score.loss)} on {score.n_examples} rows")


@app.command()
@one_line_errors
def predict(
    run: RunArgument,
    device: DeviceOption = "auto",
    batch_size: Annotated[int, typer.Option(help="Lines answered together.", min=1)] = 16,
    as_json: JsonOption = False,
) -> None:
    """Answer the lines of stdin, one answer line each; \\n in a line stands for a line break.

    A blank line is no question: a blank line answers it.

    Example: echo "not ( True ) and ( True ) is" | lorahub-edge predict runs/boolean
    """
    import lorahub_edge

    if hasattr(sys.stdin, "reconfigure"):  # bytes that are no text become a mark instead of an error far inside
        sys.stdin.reconfigure(encoding="utf-8", errors="replace", newline="\n")
    model = lorahub_edge.load_adapted(run, device=device)
    while batch := _read_lines(batch_size):
        answered = iter(model.predict([line for line in batch if line.strip()]))
        for line in batch:
            answer = next(answered) if line.strip() else ""
            shown = (
                to_json({"input": line, "answer": answer}, indent=None) if as_json else "\\n".join(answer.splitlines())
            )
            typer.echo(shown)


def _read_lines(n: int) -> list[str]:
    """Up to n lines; fewer at the end of input, or one from a person at a terminal."""
    lines: list[str] = []
    for raw in iter(sys.stdin.readline, ""):
        lines.append(raw.rstrip("\r\n").replace("\\n", "\n"))
        if len(lines) == n or sys.stdin.isatty():
            break
    return lines


@app.command()
@one_line_errors
def train(
    examples: Annotated[Path, typer.Argument(help="JSONL, BBH json or CSV of one upstream task.")],
    out: Annotated[Path, typer.Option(help="New PEFT folder; its name is the module's name.")],
    base: BaseOption = "pocket",
    rank: Annotated[int, typer.Option(help="Rank of the factors.")] = 16,
    alpha: Annotated[float, typer.Option(help="lora_alpha.")] = 32,
    dropout: Annotated[float, typer.Option(help="On the inputs of the factors.")] = 0.1,
    targets: Annotated[list[str] | None, typer.Option(help="Layer name, repeatable. Default: q and v.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the rows.")] = 20,
    max_steps: Annotated[int | None, typer.Option(help="Stop after so many steps.")] = None,
    learning_rate: Annotated[float, typer.Option("--learning-rate", "--lr", help="AdamW's, falling to 0.")] = 2e-4,
    batch_size: Annotated[int, typer.Option(help="Rows per step.")] = 10,
    max_input_tokens: Annotated[int, typer.Option(help="Cut inputs here.")] = 1024,
    seed: Annotated[int, typer.Option(help="Of factors, order and dropout.")] = 42,
    prompt: PromptOption = "auto",
    device: DeviceOption = "auto",
) -> None:
    """Train a LoRA module for one upstream task, to grow a hub of modules. Defaults are LoRAHub's.

    Example: lorahub-edge train sentiment.jsonl --base google/flan-t5-large --out my_modules/sentiment
    """
    import lorahub_edge
    from lorahub_edge.train import TrainSettings

    settings = TrainSettings(
        rank=rank,
        alpha=alpha,
        dropout=dropout,
        targets=tuple(targets) if targets else None,
        epochs=epochs,
        max_steps=max_steps,
        learning_rate=learning_rate,
        batch_size=batch_size,
        max_input_tokens=max_input_tokens,
        seed=seed,
    )
    with step_bar() as on_step:
        module = lorahub_edge.train_module(
            base, examples, out, settings=settings, prompt=prompt, device=device, on_step=on_step
        )
    answers.print(f"trained module {module.name}: {len(module.factors)} targets, rank {rank}")
    answers.print(f"module folder: {out.absolute()}", soft_wrap=True)


@app.command()
@one_line_errors
def doctor(as_json: JsonOption = False) -> None:
    """Show what this installation computes with: kernels, instruction set, GPUs, and why one is missing.

    Example: lorahub-edge doctor
    """
    from lorahub_edge.doctor import doctor as look

    diagnosis = look()
    if as_json:
        typer.echo(to_json(diagnosis.report()))
    else:
        for name, text in diagnosis.lines():
            answers.print(f"{name:<13} {text}", soft_wrap=True)


cli_delivery.add_commands(app)
cli_bench.add_commands(app)


def main() -> None:
    """Entry point of the `lorahub-edge` command."""
    if not messages.is_terminal:  # a download's bar is for people
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    app()


if __name__ == "__main__":
    main()
