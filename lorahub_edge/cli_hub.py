"""The commands of the catalogue: lorahub-edge hub add, list, search, show, verify, remove."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorahub_edge.commands import JsonOption, one_line_errors
from lorahub_edge.json_text import to_json
from lorahub_edge.terminal import answers, messages, print_entries, print_entry, print_faults

if TYPE_CHECKING:
    from lorahub_edge.catalogue import Entry

hub = typer.Typer(help="Keep a catalogue of LoRA modules, and choose among thousands by what they say of themselves.")

CatalogueOption = Annotated[
    Path | None,
    typer.Option(help="SQLite file. Default: $LORAHUB_EDGE_CATALOGUE, or catalogue.sqlite in the cache's folder."),
]
NamesArgument = Annotated[list[str], typer.Argument(help="Names of modules, as list shows them.")]


def add_commands(app: typer.Typer) -> None:
    """Add them to the command line."""
    app.add_typer(hub, name="hub")


@hub.command()
@one_line_errors
def add(
    modules: Annotated[list[str], typer.Argument(help="PEFT folders, folders of such folders, pocket, or Hub ids.")],
    catalogue: CatalogueOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add modules, or read again those that changed. Exit code 1 if one is refused; the others are added.

    Example: lorahub-edge hub add my_modules/ org/sentiment@main
    """
    from lorahub_edge.catalogue import Catalogue

    target = Catalogue(catalogue)
    try:
        with messages.status("adding modules") as status:
            done = target.add(modules, on_added=lambda name: status.update(f"adding {name}"))
    except KeyboardInterrupt:
        messages.print(f"interrupted; what was read is in {target.path}, and the same command goes on", style="red")
        raise typer.Exit(130) from None
    if as_json:
        named = {word: [e.as_record() for e in getattr(done, word)] for word in ("added", "updated")}
        typer.echo(to_json({**named, "unchanged": done.n_unchanged, "refused": done.refused}))
    else:
        counts = f"added {len(done.added)}, updated {len(done.updated)}, unchanged {done.n_unchanged}"
        refused = f", refused {len(done.refused)}" if done.refused else ""
        answers.print(f"{counts}{refused}; catalogue: {target.path}", style="bold", soft_wrap=True)
        print_entries([*done.added, *done.updated])
    for reason in done.refused.values():
        messages.print(f"error: {reason}", style="red", soft_wrap=True)
    if done.refused:
        raise typer.Exit(1)


@hub.command("list")
@one_line_errors
def list_(catalogue: CatalogueOption = None, as_json: JsonOption = False) -> None:
    """List all modules of the catalogue.

    Example: lorahub-edge hub list
    """
    from lorahub_edge.catalogue import Catalogue

    source = Catalogue(catalogue)
    entries = source.entries()
    _show(entries, f"catalogue of {len(entries)}: {source.path}", as_json=as_json)


@hub.command()
@one_line_errors
def search(
    words: Annotated[
        list[str], typer.Argument(help="Words, filters such as rank:16, licence:mit, base:NAME and tag:NAME, or all.")
    ],
    base: Annotated[
        str | None, typer.Option(help="Only modules for this base: a Hub id, a folder or its name.")
    ] = None,
    rank: Annotated[float | None, typer.Option(help="Only modules of this rank.")] = None,
    licence: Annotated[str | None, typer.Option(help="Only modules whose card names this licence.")] = None,
    catalogue: CatalogueOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find modules by words in name, base, tags, card and training rows, the best match first.

    Example: lorahub-edge hub search sentiment reviews --rank 16 --licence mit
    """
    from lorahub_edge.catalogue import Catalogue, Query

    source = Catalogue(catalogue)
    query = Query.parse(" ".join(words))
    rank = query.rank if rank is None else rank
    query = replace(query, base=base or query.base, rank=rank, licence=licence or query.licence)
    entries = source.search(query)
    _show(entries, f"found {len(entries)} in {source.path}", as_json=as_json)


@hub.command()
@one_line_errors
def show(
    name: Annotated[str, typer.Argument(help="Name of a module, as list shows it.")],
    catalogue: CatalogueOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show all that the catalogue knows of a module, its card too.

    Example: lorahub-edge hub show sentiment
    """
    from lorahub_edge.catalogue import Catalogue

    entry = Catalogue(catalogue).get(name)
    if as_json:
        typer.echo(to_json({**entry.as_record(), "card": entry.card}))
    else:
        print_entry(entry)


@hub.command()
@one_line_errors
def verify(
    names: Annotated[list[str] | None, typer.Argument(help="Names of modules. Default: all.")] = None,
    catalogue: CatalogueOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare files with their hashes, and Hub ids with their commits. Exit code 1 if something is missing or changed.

    Example: lorahub-edge hub verify
    """
    from lorahub_edge.catalogue import Catalogue

    checks = []
    with messages.status("reading files") as status:
        for check in Catalogue(catalogue).verify(names or ()):
            checks.append(check)
            status.update(f"read {check.name}")
    faulty = [check for check in checks if check.faults]
    if as_json:
        typer.echo(to_json({check.name: list(check.faults) for check in checks}))
    else:
        right = len(checks) - len(faulty)
        answers.print(f"{right} of {len(checks)} modules are as they were added", style="bold", soft_wrap=True)
        print_faults(faulty)
    if faulty:
        raise typer.Exit(1)


@hub.command()
@one_line_errors
def remove(names: NamesArgument, catalogue: CatalogueOption = None, as_json: JsonOption = False) -> None:
    """Forget modules. Their files stay.

    Example: lorahub-edge hub remove sentiment
    """
    from lorahub_edge.catalogue import Catalogue

    target = Catalogue(catalogue)
    removed = target.remove(names)
    _show(removed, f"removed {len(removed)} from {target.path}; the files stay", as_json=as_json)


def _show(entries: Sequence[Entry], headline: str, *, as_json: bool) -> None:
    """What happened and to which modules, or these alone as JSON."""
    if as_json:
        typer.echo(to_json([entry.as_record() for entry in entries]))
    else:
        answers.print(headline, style="bold", soft_wrap=True)
        print_entries(entries)
