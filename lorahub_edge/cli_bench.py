"""The commands that measure: lorahub-edge bench quality, lorahub-edge bench bbh."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorahub_edge.commands import (
    BaseOption,
    DeviceOption,
    JsonOption,
    PrecisionOption,
    PromptOption,
    RayOption,
    WorkersOption,
    one_line_errors,
)
from lorahub_edge.json_text import to_json
from lorahub_edge.terminal import answers, messages, place

if TYPE_CHECKING:
    from lorahub_edge.benchmark.records import Record
    from lorahub_edge.scheduling import Workers

bench = typer.Typer(help="Measure quality beside the baselines, with results that a second run continues.")

OutOption = Annotated[Path, typer.Option(help="Result file; it only grows, and points it has are not measured again.")]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        help="Threads of torch, in each worker. Default: its own choice; the cores divided among workers.", min=1
    ),
]
BatchOption = Annotated[int, typer.Option(help="Test rows answered together.", min=1)]
AgainOption = Annotated[bool, typer.Option("--again", help="Measure also what the result file has.")]
TokensOption = Annotated[int | None, typer.Option(help="Cut answers here.")]
RowsOption = Annotated[int | None, typer.Option(help="At most so many test rows.")]


def add_commands(app: typer.Typer) -> None:
    """Add them to the command line."""
    app.add_typer(bench, name="bench")


@bench.command()
@one_line_errors
def quality(
    base: BaseOption = "pocket",
    modules: Annotated[list[str], typer.Option(help="As adapt takes them. Repeatable.")] = ["pocket"],  # noqa: B006
    tasks: Annotated[
        list[str], typer.Option(help="pocket, pocket/TASK, a file of rows or a folder of such. Repeatable.")
    ] = ["pocket"],  # noqa: B006  typer copies it
    out: OutOption = Path("quality.jsonl"),
    methods: Annotated[
        list[str], typer.Option(help="Method, repeatable. Default: all; an unknown name lists them.")
    ] = [],  # noqa: B006
    seeds: Annotated[int, typer.Option(help="Seeds 1 ... n, each with its own draw of examples.")] = 3,
    against: Annotated[
        str | None, typer.Option(help="Method that the others are compared with. Default: lorahub-code, if measured.")
    ] = None,
    leave_out: Annotated[
        bool, typer.Option("--leave-out", help="Measure a task without the module of its name, which is its ceiling.")
    ] = False,
    ceilings: Annotated[
        list[str], typer.Option(help="Modules named like tasks that have none in the pool; ceilings only. Repeatable.")
    ] = [],  # noqa: B006
    n_examples: Annotated[int, typer.Option(help="Examples that a method may learn from.")] = 5,
    n_test: RowsOption = None,
    prompt: PromptOption = "auto",
    max_new_tokens: TokensOption = None,
    batch_size: BatchOption = 16,
    precision: PrecisionOption = "int8",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    workers: WorkersOption = None,
    ray: RayOption = None,
    again: AgainOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare all methods on tasks: exact match, losses, tokens, time, memory.

    Example: lorahub-edge bench quality --tasks pocket --seeds 3 --out quality.jsonl
    """
    from lorahub_edge.benchmark import Protocol, bench_quality
    from lorahub_edge.benchmark.summary import check_against

    check_against(against, methods)
    protocol = Protocol(
        "quality",
        prompt=prompt,
        n_examples=n_examples,
        n_test=n_test,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    _run(
        lambda: bench_quality(
            base,
            modules,
            tasks,
            out=out,
            methods=methods,
            n_seeds=seeds,
            leave_out=leave_out,
            ceilings=ceilings,
            protocol=protocol,
            precision=precision,
            device=device,
            again=again,
            workers=_workers(workers, ray, threads),
            say=_say,
        ),
        threads,
        out,
        as_json=as_json,
        against=against,
    )


@bench.command()
@one_line_errors
def bbh(
    base: BaseOption = "google/flan-t5-large",
    modules: Annotated[
        list[str], typer.Option(help='"lorahub" (the published ones, from the Hub) or a folder of modules. Repeatable.')
    ] = ["lorahub"],  # noqa: B006
    data: Annotated[
        str | None, typer.Option(help="Folder or zip with one folder per task. Default: LoRAHub's release, downloaded.")
    ] = None,
    tasks: Annotated[list[str], typer.Option(help="Only this task, repeatable. Default: all.")] = [],  # noqa: B006
    out: OutOption = Path("bbh.jsonl"),
    methods: Annotated[
        list[str], typer.Option(help="Method, repeatable. Default: zero-shot, in-context, lorahub-code, edge.")
    ] = [],  # noqa: B006
    seeds: Annotated[int, typer.Option(help="Seeds 1 ... n; each draws its modules.")] = 5,
    n_modules: Annotated[int, typer.Option(help="Modules that a seed draws.")] = 20,
    n_test: RowsOption = None,
    prompt: PromptOption = "plain",
    max_new_tokens: TokensOption = 256,
    batch_size: BatchOption = 16,
    precision: PrecisionOption = "int8",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    workers: WorkersOption = None,
    ray: RayOption = None,
    again: AgainOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run the protocol of LoRAHub's Table 1: five seeds x 20 modules x 27 tasks of BIG-Bench Hard.

    Example: lorahub-edge bench bbh --base google/flan-t5-large --modules lorahub --out bbh.jsonl
    """
    from lorahub_edge.benchmark import Protocol, bench_bbh
    from lorahub_edge.benchmark.published import DATA_URL

    protocol = Protocol("bbh", prompt=prompt, n_test=n_test, max_new_tokens=max_new_tokens, batch_size=batch_size)
    _run(
        lambda: bench_bbh(
            base,
            modules,
            data or DATA_URL,
            out=out,
            only=tasks,
            methods=methods,
            n_seeds=seeds,
            n_modules=n_modules,
            protocol=protocol,
            precision=precision,
            device=device,
            again=again,
            workers=_workers(workers, ray, threads),
            say=_say,
        ),
        threads,
        out,
        as_json=as_json,
    )


def _workers(n: int | None, ray: str | None, threads: int | None) -> Workers | None:
    from lorahub_edge.scheduling import Workers

    return None if n is None and ray is None else Workers(n, ray, threads)


def _say(line: str) -> None:
    messages.print(line, soft_wrap=True)


def _run(
    measure: Callable[[], Sequence[Record]],
    threads: int | None,
    out: Path,
    *,
    as_json: bool,
    against: str | None = None,
) -> None:
    """Measure, then print the tables or the records; an interrupt says how to go on."""
    import torch

    from lorahub_edge.benchmark.summary import summary

    if threads is not None:
        torch.set_num_threads(threads)
    try:
        records = measure()
    except KeyboardInterrupt:
        messages.print(f"interrupted; what was measured is in {out}, and the same command goes on", style="red")
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(to_json(list(records)))
        return
    for text in summary(records, against=against):
        for line in (*text.splitlines(), ""):
            answers.print(line, soft_wrap=True)
    messages.print(f"result file: {place(out)}", soft_wrap=True)
