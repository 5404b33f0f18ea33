"""The commands that list what is embedded: tasks and modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer
from rich.table import Table

from lorahub_edge import pocket
from lorahub_edge.commands import JsonOption, one_line_errors
from lorahub_edge.json_text import to_json
from lorahub_edge.sources import read_json
from lorahub_edge.terminal import answers


def add_commands(app: typer.Typer) -> None:
    """Add them to the command line."""
    for command in (tasks, modules):
        app.command()(command)


@one_line_errors
def tasks(as_json: JsonOption = False) -> None:
    """List the embedded tasks, each with a question and its answer. Nothing in the pool was trained on them.

    Example: lorahub-edge tasks
    """
    from lorahub_edge.tasks import load_examples

    rows = []
    for name in pocket.heldout_names():
        first = load_examples(pocket.task_file(name, "examples"))[0]
        rows.append({"task": f"pocket/{name}", "question": first.input, "answer": first.target})
    _print(rows, f"{len(rows)} tasks; adapt --examples takes one by its name", as_json=as_json)


@one_line_errors
def modules(as_json: JsonOption = False) -> None:
    """List the embedded LoRA modules. adapt --modules pocket takes them all.

    Example: lorahub-edge modules
    """
    rows = []
    for name in pocket.module_names():
        config = read_json(pocket.modules_folder() / name / "adapter_config.json")
        rows.append({"module": f"pocket/{name}", "rank": config["r"], "layers": ", ".join(config["target_modules"])})
    headline = f"{len(rows)} modules; adapt --modules takes one by its name, and all of them as pocket"
    _print(rows, headline, as_json=as_json)


def _print(rows: Sequence[dict[str, Any]], headline: str, *, as_json: bool) -> None:
    if as_json:
        typer.echo(to_json(list(rows)))
        return
    answers.print(headline, style="bold", soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for k, column in enumerate(rows[0]):
        table.add_column(column, no_wrap=k == 0)  # a name is typed again
    for row in rows:
        table.add_row(*map(str, row.values()))
    answers.print(table)
