"""Run: what adapt() returns, and how it becomes files."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from lorahub_edge.adaptation.adapted import AdaptedModel
from lorahub_edge.adaptation.controls import ADAPTED, ZERO_SHOT, Row
from lorahub_edge.adaptation.objective import Value
from lorahub_edge.adaptation.report import notebook_html, report_html
from lorahub_edge.adaptation.run_folder import (
    ADAPTER,
    COEFFICIENTS,
    EXAMPLES,
    MANIFEST,
    REPORT_HTML,
    REPORT_JSON,
    RunFolder,
)
from lorahub_edge.adaptation.samples import samples
from lorahub_edge.adaptation.stages import ContentHashes
from lorahub_edge.adaptation.task import Task
from lorahub_edge.adaptation.verdict import verdict_on
from lorahub_edge.base import Base
from lorahub_edge.errors import LorahubEdgeError
from lorahub_edge.integrity import file_hashes
from lorahub_edge.json_text import plain
from lorahub_edge.kernels import ops
from lorahub_edge.measure import machine, peak_memory, versions
from lorahub_edge.modules import RUN_FORMAT, LoraModule, ModuleFolder, rank_note, write_module
from lorahub_edge.outputs import write_errors
from lorahub_edge.search import Evaluated, SearchResult
from lorahub_edge.tasks import Examples, Score, examples_text
from lorahub_edge.tasks.score import SCORES, loss_text


class RunNotWritten(LorahubEdgeError):
    """A run is finished and its folder cannot be written. Carries it as `run`, so that nothing is lost."""

    def __init__(self, message: str, run: Run) -> None:
        super().__init__(message)
        self.run = run


@dataclass(frozen=True)
class Run:
    """A finished search and everything that puts it in perspective.

    Attributes:
        task: the examples it learned from and the test rows.
        model: base + modules + coefficients; answers and scores.
        module: the composed module, as PEFT could load it.
        coefficients: module name -> coefficient, in the order given.
        table: the controls and, last, the adapted model.
        single_losses: module name -> loss of that module alone on the examples.
        search: how the search ended.
        journal: every evaluation, in order.
        manifest: inputs with hashes, versions, seeds, optimiser, timings, peak memory.
        folder: where it was written, or None.
    """

    task: Task
    model: AdaptedModel
    module: LoraModule
    coefficients: Mapping[str, float]
    table: tuple[Row, ...]
    single_losses: Mapping[str, float]
    search: SearchResult[Value]
    journal: tuple[Evaluated[Value], ...]
    manifest: Mapping[str, Any]
    folder: Path | None = None

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the search before its budget was spent."""
        return self.search.interrupted

    @property
    def loss(self) -> float:
        """Cross-entropy per answer token of the adapted model on the examples."""
        return self.search.best.value.mean_loss

    def row(self, name: str) -> Row | None:
        """A line of the table by name, or None."""
        return next((row for row in self.table if row.name == name), None)

    @property
    def verdict(self) -> str:
        """See `verdict_on`."""
        return verdict_on(self.table)

    def predict(self, inputs: Sequence[str]) -> list[str]:
        """Greedy answers to texts, in order."""
        return self.model.predict(inputs)

    def evaluate(self, examples: Examples) -> Score:
        """Loss and scores of the answers on a file or a list of examples."""
        return self.model.evaluate(examples)

    def report(self) -> dict[str, Any]:
        """The result as plain data: what report.json and --json hold. None stands for a number that is not finite."""
        report = {
            "headline": headline(self),
            "verdict": self.verdict,
            "task": self.task.name,
            "n_examples": len(self.task.examples),
            "n_test": len(self.task.test),
            "table": [_row_record(row) for row in self.table],
            "samples": samples(self.table, self.task.test),
            "coefficients": dict(self.coefficients),
            "single_module_losses": dict(self.single_losses),
            "search": dict(self.manifest["search"]),
            "chosen_modules": self.manifest["chosen_modules"],
            "rank_cut": self.manifest["rank_cut"],
            "adapter_rank": self.module.rank,
            "rank_note": rank_note(self.module, self.model.base.family),
            "timings": dict(self.manifest["timings"]),
            "peak_memory": dict(self.manifest["peak_memory"]),
            "folder": str(self.folder) if self.folder else None,
        }
        return cast("dict[str, Any]", plain(report))

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Run:
        """Write the run folder; returns the run with `folder` set.

        Raises:
            OutputExists: the folder is not ours, or an earlier run and not `overwrite`.
            RunNotWritten: it cannot be written.
        """
        with RunFolder(folder, overwrite=overwrite) as target:
            target.begin(self.manifest["inputs"]).search.append(self.journal)
            return self.save_into(target)

    def save_into(self, target: RunFolder) -> Run:
        """Write all but the journal into a run folder in the making and finish it.

        Raises:
            RunNotWritten: it cannot be written.
        """
        saved = replace(self, folder=target.folder)
        report = saved.report()
        losses = [(e.value.mean_loss, e.value.objective) for e in self.journal]
        try:
            self._write_adapter(target.adapter)
            target.write(COEFFICIENTS, self.coefficients)
            target.write(EXAMPLES, examples_text(self.task.examples))
            target.write(REPORT_JSON, report)
            target.write(REPORT_HTML, report_html(report, losses))
            hashes = file_hashes(target.unfinished, (target.unfinished / ADAPTER).iterdir())
            target.write(MANIFEST, {**self.manifest, "files": hashes})
            target.finish(keep_journals=self.interrupted)
        except LorahubEdgeError as error:
            raise RunNotWritten(str(error), self) from error
        return saved

    def _write_adapter(self, folder: Path) -> None:
        base = self.model.base
        with write_errors(folder):
            write_module(
                self.module,
                folder,
                base_name=base.source.spec.split("@")[0],
                task_type=base.family.task_type,
                targets=_target_modules(list(self.module.factors), list(base.linear_shapes())),
            )

    def _repr_html_(self) -> str:
        """For notebooks: the table beside the controls."""
        return notebook_html(self.report())

    def __repr__(self) -> str:
        state = "interrupted" if self.interrupted else "finished"
        return f"Run({self.task.name}, {len(self.coefficients)} modules, loss {self.loss:.4f}, {state})"


def headline(run: Run) -> str:
    """What happened, in one line."""
    by_name = {row.name: row for row in run.table}
    rows = [by_name[ZERO_SHOT], by_name[ADAPTED]]
    losses = " -> ".join(loss_text(row.value.mean_loss, digits=3) for row in rows if row.value)
    text = f"adapted to {run.task.name} in {run.search.n_evaluations} evaluations: loss {losses}"
    scores = [f"{row.score.exact_match:.0f} %" for row in rows if row.score]
    if scores:
        text += f", exact match {' -> '.join(scores)}"
    return text + (" (interrupted)" if run.interrupted else "")


def manifest_of(
    *,
    base: Base,
    modules: Sequence[LoraModule | ModuleFolder],
    task: Task,
    hashes: ContentHashes,
    search: Mapping[str, Any],
    **rest: Any,
) -> dict[str, Any]:
    """The manifest: everything needed to do the run again and to know what produced its numbers."""
    return {
        "format": RUN_FORMAT,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "base": {
            "spec": base.source.spec if base.source.revision or base.source.spec == "pocket" else _absolute(base),
            "revision": base.source.revision,
            "files": dict(hashes.base),
            "family": base.family.name,
            "precision": base.precision,
            "device": base.device.type,
            "layer_engines": base.layer_engines,
            "weight_bytes": base.weight_bytes(),
        },
        "modules": [
            {"name": m.name, "spec": m.spec, "revision": m.revision, "base": m.base_name, "files": dict(files)}
            for m, files in zip(modules, hashes.modules, strict=True)
        ],
        "task": dict(task.record),
        "search": dict(search),
        "kernels": {"compose_factors": ops.route(base.device), "isa": ops.isa()},
        **rest,
        "versions": versions(),
        "machine": machine(),
        "peak_memory": peak_memory(),
    }


def _absolute(base: Base) -> str:
    """A local base's place, such that the run finds it from anywhere."""
    return str(base.weight_files[0] if base.weight_files[0].suffix == ".gguf" else base.source.folder)


def _row_record(row: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "detail": row.detail,
        "loss": row.value and row.value.mean_loss,
        "objective": row.value and row.value.objective,
        **{name: getattr(row.score, name, None) for name in SCORES},
        "coefficients": list(row.coefficients),
    }


def _target_modules(targets: Sequence[str], all_linears: Sequence[str]) -> list[str]:
    """Layer names such as ["q", "v"] if they mean exactly these targets to PEFT, else the whole paths."""
    names = sorted({t.rpartition(".")[2] for t in targets})
    meant = {linear for linear in all_linears if linear.rpartition(".")[2] in names}
    return names if meant == set(targets) else list(targets)
