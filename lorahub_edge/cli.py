"""The command line: parse, call one public function, print. No arithmetic, and no command calls another.

`cli_adapt.py`: what finds coefficients. Here: what asks a model and makes modules. `cli_delivery.py`: what brings a
model to its users. `cli_bench.py`: what measures it. `cli_sweep.py`: many runs.
`cli_hub.py`: the catalogue of modules. `cli_embedded.py`: what is there from the start.

Heavy imports happen inside the commands, so that --help answers at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from lorahub_edge import __version__, cli_adapt, cli_bench, cli_delivery, cli_embedded, cli_hub, cli_sweep
from lorahub_edge.commands import (
    AdaptedArgument,
    AdapterOption,
    BaseOption,
    DeviceOption,
    JsonOption,
    PromptOption,
    app,
    one_line_errors,
)
from lorahub_edge.json_text import to_json
from lorahub_edge.terminal import answers, messages, place, step_bar


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


cli_adapt.add_commands(app)


@app.command()
@one_line_errors
def evaluate(
    folder: AdaptedArgument,
    data: Annotated[str, typer.Option(help="JSONL, BBH json or CSV with the rows to score on.")],
    device: DeviceOption = "auto",
    adapter: AdapterOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score an adapted model again, on other data, as a run or as what was merged or exported of it.

    An exported folder answers by onnxruntime, which gives no loss.

    Example: lorahub-edge evaluate runs/navigate --data more.jsonl
    """
    import lorahub_edge
    from lorahub_edge.tasks.score import SCORES, STRICT_NOTE, loss_text

    score = lorahub_edge.load_adapted(folder, device=device, adapter=adapter).evaluate(data)
    if as_json:
        record = {"loss": score.loss, **{name: getattr(score, name) for name in SCORES}}
        typer.echo(to_json({**record, "n": score.n_examples, "answers": score.answers}))
    else:
        loss = "" if score.loss is None else f", loss {loss_text(score.loss)}"
        answers.print(f"exact match {score.exact_match:.1f} %{loss} on {score.n_examples} rows")
        answers.print(
            f"most frequent answer {score.most_frequent:.1f} %, valid form {score.valid_form:.1f} %", style="dim"
        )
        if score.strict_match != score.exact_match:
            answers.print(f"strict {score.strict_match:.1f} %. {STRICT_NOTE}")


@app.command()
@one_line_errors
def predict(
    folder: AdaptedArgument,
    device: DeviceOption = "auto",
    adapter: AdapterOption = None,
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
    model = lorahub_edge.load_adapted(folder, device=device, adapter=adapter)
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
    keep_rows: Annotated[
        int,
        typer.Option(help="Rows kept in the module's folder, for --choose-modules similar; they travel with it."),
    ] = 0,
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
            base,
            examples,
            out,
            settings=settings,
            prompt=prompt,
            device=device,
            on_step=on_step,
            keep_rows=keep_rows,
        )
    answers.print(f"trained module {module.name}: {len(module.factors)} targets, rank {rank}")
    answers.print(f"module folder: {place(out)}", soft_wrap=True)


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
cli_sweep.add_commands(app)
cli_embedded.add_commands(app)
cli_hub.add_commands(app)


def main() -> None:
    """Entry point of the `lorahub-edge` command."""
    if not messages.is_terminal:  # a download's bar is for people
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    app()


if __name__ == "__main__":
    main()
