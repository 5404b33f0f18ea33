"""The command that computes many runs: sweep, with its progress."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.live import Live
from rich.table import Table

from lorahub_edge.commands import CacheOption, RayOption, WorkersOption, one_line_errors
from lorahub_edge.json_text import to_json
from lorahub_edge.terminal import answers, messages, place

if TYPE_CHECKING:
    from lorahub_edge.sweeping import Event, Swept


def add_commands(app: typer.Typer) -> None:
    """Add them to the command line."""
    app.command()(sweep)


@one_line_errors
def sweep(
    file: Annotated[Path, typer.Argument(help="TOML file with base, tasks, pools, presets, seeds and settings.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the sweep. Default: the file's place without its ending.")
    ] = None,
    workers: WorkersOption = None,
    ray: RayOption = None,
    threads: Annotated[
        int | None, typer.Option(help="Of each worker. Default: cores divided among workers; one on Ray.", min=1)
    ] = None,
    num_gpus: Annotated[float, typer.Option(help="GPUs of each worker on Ray, or a part of one.")] = 0.0,
    max_memory: Annotated[
        str | None,
        typer.Option(help="Of all workers together, for instance 8GB. Fewer start if it has room for fewer."),
    ] = None,
    cache: CacheOption = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a line of JSON for each event, the last one the result, on stdout.")
    ] = False,
) -> None:
    """Adapt to every task with every seed, pool of modules and preset; then a table. docs/scale.md has the file.

    The same command again goes on: it computes what is missing, what was begun, and what failed.

    Example: lorahub-edge sweep study.toml --workers 2
    """
    import lorahub_edge

    show = _json_lines() if as_json else _live() if messages.is_terminal else _plain_lines()
    try:
        with show as on_event:
            swept = lorahub_edge.sweep(
                file,
                out,
                workers=workers,
                ray=ray,
                threads=threads,
                num_gpus=num_gpus,
                max_memory=max_memory,
                cache=cache,
                on_event=on_event,
            )
    except KeyboardInterrupt:
        messages.print("interrupted; what is done is kept, and the same command goes on", style="red")
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(to_json({"event": "end", "folder": str(swept.folder), **swept.report()}, indent=None))
    else:
        _print(swept)
    if swept.failures:
        messages.print(f"{len(swept.failures)} points failed; the same command tries them again", style="red")
        raise typer.Exit(1)


@contextlib.contextmanager
def _json_lines() -> Iterator[Callable[[Event], None]]:
    def show(event: Event) -> None:
        fields = asdict(event)
        typer.echo(to_json({"event": fields.pop("kind"), **fields}, indent=None))

    yield show


@contextlib.contextmanager
def _plain_lines() -> Iterator[Callable[[Event], None]]:
    def show(event: Event) -> None:
        if event.kind not in ("known", "started"):
            messages.print(f"{_news(event)}; {_standing(event)}", soft_wrap=True)

    yield show


_WORDS = {"done": "is done", "failed": "failed", "lost": "lost its worker and starts again"}


@contextlib.contextmanager
def _live() -> Iterator[Callable[[Event], None]]:
    """What is computed now, failures above it, and where the sweep stands."""
    with Live(console=messages, transient=True, refresh_per_second=2) as live:

        def show(event: Event) -> None:
            if event.kind in ("failed", "lost"):
                messages.print(_news(event))
            table = Table(box=None, show_header=False, pad_edge=False)
            table.add_row(_standing(event), style="bold")
            for name in event.running:
                table.add_row(f"  {name}", style="dim")
            live.update(table)

        yield show


def _news(event: Event) -> str:
    return f"{event.point} {_WORDS[event.kind]}" + (f": {event.reason}" if event.reason else "")


def _standing(event: Event) -> str:
    ended = event.n_known + event.n_done
    parts = [f"{ended} of {event.n_points} done"]
    parts += [f"{len(event.running)} running"] if event.running else []
    parts += [f"{event.n_failed} failed"] if event.n_failed else []
    if event.per_hour is not None and event.left_s is not None:
        hours, minutes = divmod(round(event.left_s) // 60, 60)
        parts += [f"{event.per_hour:.0f} per hour", f"{hours}:{minutes:02}:{round(event.left_s) % 60:02} left"]
    return ", ".join(parts)


def _print(swept: Swept) -> None:
    """A table for each pool and preset, failures, where the files are."""
    from lorahub_edge.sweeping.page import LEGEND
    from lorahub_edge.sweeping.table import COLUMNS, WITH_ERROR

    for table in swept.tables():
        answers.print(f"pool {table.pool}, preset {table.preset}", style="bold")
        shown = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
        shown.add_column("", overflow="fold")
        for column in COLUMNS:  # as narrow as its longest word and its numbers: a terminal may have 80 columns
            width = max(11 if column in WITH_ERROR else 5, *map(len, column.split()))
            shown.add_column(column, justify="right", min_width=width, max_width=width)
        for task, cells in table.rows.items():
            shown.add_row(task, *(str(c) if name in WITH_ERROR else c.mean_text for name, c in cells.items()))
        answers.print(shown)
    answers.print(LEGEND, style="dim")
    for name, reason in swept.failures.items():
        answers.print(f"failed: {name}: {reason}", soft_wrap=True)
    answers.print(f"sweep folder: {place(swept.folder)}  (table.html, table.json, runs/)", soft_wrap=True)
