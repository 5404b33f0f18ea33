"""How the command line looks: the progress bar and the answers' tables. Data in, text out; no arithmetic of its own.

All text goes through `messages` or `answers`, which make it harmless: names in it come from strangers' files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from lorahub_edge.errors import printable

if TYPE_CHECKING:
    from lorahub_edge.adaptation import Progress as RunProgress
    from lorahub_edge.adaptation.memory_plan import MemoryPlan
    from lorahub_edge.adaptation.progress import OnProgress
    from lorahub_edge.catalogue import Check, Entry
    from lorahub_edge.exporting import Exported, GgufAdapter
    from lorahub_edge.merging import Merged


class PlainConsole(Console):
    """Shows every text as it is: a bracket in it is no markup, and a control character has no power."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Every string that is printed comes by here, be it a line or a table's cell."""
        shown = printable(text).encode(self.encoding, "backslashreplace").decode(self.encoding)
        return super().render_str(shown, **{**options, "markup": False, "emoji": False})


# stderr carries progress and messages, so that stdout is the answer and nothing else
messages = PlainConsole(stderr=True, highlight=False)
answers = PlainConsole(highlight=False)


def place(path: str | Path) -> str:
    """A path for people: as the next command takes it, so relative to the current folder if it is below that."""
    whole, here = Path(path).absolute(), Path.cwd()
    return str(whole.relative_to(here)) if whole != here and here in whole.parents else str(whole)


def _is_seen() -> bool:
    """Whether somebody watches: a terminal or a notebook."""
    return messages.is_terminal or messages.is_jupyter


_STAGES = {
    "load": "loading base and modules",
    "choose": "choosing modules",
    "controls": "controls",
    "search": "search",
    "null": "random-LoRA null",
    "test": "answering the test",
}


@contextmanager
def progress_bar() -> Iterator[OnProgress]:
    """A bar for the stage a run is in: what is done, the best loss, the time left."""
    columns = (
        TextColumn("{task.description:<26}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=messages, transient=True, disable=not _is_seen()) as bar:
        task = bar.add_task("", total=None, note="")
        stage = ""

        def show(progress: RunProgress) -> None:
            nonlocal stage
            if progress.stage != stage:
                stage = progress.stage
                bar.reset(task, total=progress.total, description=_STAGES[stage])
            note = "" if progress.best_loss is None else f"best loss {progress.best_loss:.4f}"
            bar.update(task, completed=progress.done, note=note)

        yield show


@contextmanager
def step_bar() -> Iterator[Any]:
    """A bar for training: step, total, loss."""
    columns: tuple[ProgressColumn, ...] = (
        TextColumn("training"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    columns += (TimeRemainingColumn(compact=True),)
    with Progress(*columns, console=messages, transient=True, disable=not _is_seen()) as bar:
        task = bar.add_task("", total=None, note="")

        def show(step: int, total: int, loss: float) -> None:
            bar.update(task, total=total, completed=step, note=f"loss {loss:.4f}")

        yield show


def print_run(report: Mapping[str, Any]) -> None:
    """What happened, the controls' table, the coefficients that matter, where the files are."""
    from lorahub_edge.adaptation.report import (
        choice_text,
        coefficients_text,
        legend,
        numbers_of,
        sentences,
        shown_scores,
    )
    from lorahub_edge.tasks.score import loss_text

    answers.print(report["headline"], style="bold", soft_wrap=True)
    scores = shown_scores(report)
    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("loss", justify="right", no_wrap=True)
    for heading in scores.values():  # as narrow as its longest word: a terminal may have 80 columns
        table.add_column(heading, justify="right", max_width=max(map(len, heading.split())))
    table.add_column("", style="dim", overflow="fold")
    for row in report["table"]:
        style = "bold" if row["name"] == "adapted" else None
        table.add_row(row["name"], *numbers_of(row, scores), row["detail"], style=style)
    answers.print(table)
    for sentence in sentences(report):
        answers.print(sentence)
    answers.print(legend(report), style="dim")
    if report["chosen_modules"]:
        answers.print(f"searched: {choice_text(report)}", style="dim", soft_wrap=True)
    answers.print(coefficients_text(report["coefficients"]), soft_wrap=True)
    if cut := report["rank_cut"]:
        answers.print(
            f"adapter cut from rank {cut['rank_before']} to {cut['rank']}: relative error {cut['relative_error']:.2g} "
            f"of the deltas, loss {loss_text(cut['loss'])}; the table shows it uncut",
            style="dim",
            soft_wrap=True,
        )
    if n_earlier := report["search"].get("evaluations_of_earlier_starts"):
        answers.print(f"{n_earlier} evaluations are from the start that ended early", style="dim")
    peak = report["peak_memory"].get("VmHWM_bytes")
    memory = f", peak memory {peak / 1e6:.0f} MB" if peak else ""
    answers.print(f"{report['timings']['total_s']:.1f} s{memory}", style="dim")
    if report["folder"]:
        answers.print(f"run folder: {place(report['folder'])}  (report.html, adapter/)", soft_wrap=True)
    if report["rank_note"]:
        answers.print(report["rank_note"], soft_wrap=True)


def print_plans(plans: Sequence[MemoryPlan]) -> None:
    """The verdict, what the chosen plan is made of, and all that there is to choose from."""
    from lorahub_edge.adaptation import choose_plan
    from lorahub_edge.measure import format_bytes

    chosen = choose_plan(plans)
    answers.print(chosen.headline(), style="bold", soft_wrap=True)
    parts = {
        "Python and libraries": chosen.runtime_bytes,
        "base": chosen.base_bytes,
        f"modules as {chosen.stack_dtype}, {chosen.mapping}": chosen.stack_bytes,
        f"workspace, {chosen.tokens_per_call} tokens at once": chosen.workspace_bytes,
        "peak": chosen.peak_bytes,
    }
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, n_bytes in parts.items():
        if n_bytes:  # a card has nothing of Python
            table.add_row(name, format_bytes(n_bytes))
    answers.print(table)
    table = Table(box=None, pad_edge=False)
    for column in ("modules as", "mapping", "tokens at once", "needed", "fits"):
        table.add_column(column, justify="right" if column in ("tokens at once", "needed") else "left")
    for plan in plans:
        style = "bold" if plan is chosen else None
        fits = "yes" if plan.fits else "no"
        row = (plan.stack_dtype, plan.mapping, str(plan.tokens_per_call), format_bytes(plan.needed_bytes), fits)
        table.add_row(*row, style=style)
    answers.print()
    answers.print(table)


def print_merge(merged: Merged, n_rows: int = 5) -> None:
    """What happened, the targets that lost most, where the files are."""
    survival = merged.survival
    answers.print(f"merged: {survival.headline()}", style="bold", soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    table.add_column("least survival at")
    for column in ("survived %", "rms of delta in steps", "clipped"):
        table.add_column(column, justify="right")
    weakest = sorted(survival.layers, key=lambda layer: layer.survived)[:n_rows]
    for layer in weakest:
        numbers = (f"{100 * layer.survived:.1f}", f"{layer.delta_steps:.3g}", str(layer.n_clipped))
        table.add_row(layer.target, *numbers)
    answers.print(table)
    if merged.folder:
        answers.print(f"merged folder: {place(merged.folder)}  (survival.json)", soft_wrap=True)


def print_export(exported: Exported) -> None:
    """What happened, what was verified, where the folder is."""
    size = f"{exported.n_bytes / 1e6:.1f} MB"
    answers.print(f"exported {exported.precision}, {size}", style="bold", soft_wrap=True)
    print_verification(exported.report)
    if exported.drift is not None:
        answers.print(exported.drift.headline(), style="bold", soft_wrap=True)
    answers.print(f"exported folder: {place(exported.folder)}", soft_wrap=True)


def print_gguf_adapter(adapter: GgufAdapter) -> None:
    """What was written, how llama.cpp and Ollama take it, the prompt it wants."""
    size = f"{adapter.n_targets} targets of rank {adapter.rank}, {adapter.n_bytes / 1e6:.1f} MB"
    answers.print(f"wrote a LoRA file for llama.cpp ({adapter.architecture}), {size}", style="bold", soft_wrap=True)
    base = adapter.base or "BASE.gguf"
    program = "llama-cli" if adapter.is_chat else "llama-completion -no-cnv -p PROMPT"
    template = "" if adapter.is_chat else ' and TEMPLATE "{{ .Prompt }}"'
    answers.print(f"llama.cpp: {program} -m {base} --lora {adapter.path}", soft_wrap=True)
    if not adapter.is_seq2seq:  # Ollama runs none with an encoder
        answers.print(f"Ollama: a Modelfile with FROM {base} and ADAPTER {adapter.path}{template}", soft_wrap=True)
    whose = "the base's chat template" if adapter.is_chat else "as the run had it"
    answers.print(f"prompt: {whose}: {adapter.before!r}, question, {adapter.after!r}", soft_wrap=True)
    if adapter.note:
        answers.print(adapter.note, soft_wrap=True)


def print_verification(report: Mapping[str, Any]) -> None:
    """The verdict, then its cases."""
    from lorahub_edge.exporting.verification import headline

    answers.print(headline(report), soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    table.add_column("cases")
    for column in ("batch", "prompt tokens", "logits off by", "through the cache", "torch's own", "ties", "mismatches"):
        table.add_column(column, justify="right")
    for case in report["cases"]:
        errors = (f"{case[name]:.2g}" for name in ("logits_error", "cached_error", "noise"))
        counts = (str(case["ties"]), str(case["mismatches"]))
        beside = f"{case['adapter']}: " if case["adapter"] else ""
        table.add_row(beside + case["kind"], str(case["batch_size"]), str(case["n_prompt_tokens"]), *errors, *counts)
    answers.print(table)


def print_entries(entries: Sequence[Entry]) -> None:
    """Modules of the catalogue, a line each; what else is known of one, `print_entry` shows."""
    if not entries:
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("module", no_wrap=True)  # a name is typed again
    table.add_column("base", overflow="fold")
    for column in ("rank", "size"):
        table.add_column(column, justify="right")
    table.add_column("licence")
    for e in entries:
        base = (e.base or "").rpartition("/")[2]
        table.add_row(e.name, base, f"{e.rank:g}", f"{e.n_bytes / 1e6:.1f} MB", e.licence or "")
    answers.print(table)


def print_entry(entry: Entry) -> None:
    """One module of the catalogue: what it is, where it is, its hashes, its card."""
    answers.print(f"{entry.name}, added {entry.added}", style="bold", soft_wrap=True)
    lora = f"rank {entry.rank:g}, alpha {entry.alpha:g}, on {', '.join(entry.targets)}"
    weights = f"{entry.weights}, {entry.n_bytes / 1e6:.1f} MB"
    known = {"base": entry.base, "lora": lora, "weights": weights, "licence": entry.licence}
    places = {"added as": entry.asked, "folder": str(entry.folder), "revision": entry.revision}
    hashes = {name: f"sha256 {record.sha256}" for name, record in entry.files.items()}
    for name, text in {**known, "tags": ", ".join(entry.tags), **places, **hashes}.items():
        if text:
            answers.print(f"{name}: {text}", soft_wrap=True)
    for line in ("", *entry.card.splitlines()):
        answers.print(line, soft_wrap=True)


def print_faults(checks: Sequence[Check]) -> None:
    """What is wrong with modules of the catalogue, a line each."""
    for check in checks:
        for fault in check.faults:
            answers.print(f"{check.name}: {fault}", soft_wrap=True)
