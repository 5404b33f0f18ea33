"""Drift: what shipping changed. The answers of a run, or of a merged folder, beside those of its export.

An int8 run keeps its module beside the rounded base; its int8 export rounds the sum of both once more. Verification
cannot see that: its torch model is the merged one.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorahub_edge.adaptation import AdaptedModel
from lorahub_edge.adaptation.run_folder import is_run_folder
from lorahub_edge.answering import ExportedModel, load_adapted
from lorahub_edge.errors import InvalidInput
from lorahub_edge.kernels import memory
from lorahub_edge.merging import is_merged_folder
from lorahub_edge.serve import OnnxModel, open_folder
from lorahub_edge.sources import local_path
from lorahub_edge.tasks import Example, Examples, exact_match, read_test


@dataclass(frozen=True)
class SourceAnswers:
    """What a run or a merged folder answers.

    Attributes:
        kind: "run" or "merged folder".
        rows: the test.
        answers: in order.
        test: number of rows; path and SHA-256 of a file.
    """

    kind: str
    rows: tuple[Example, ...]
    answers: tuple[str, ...]
    test: Mapping[str, Any]


@dataclass(frozen=True)
class Drift:
    """A test answered before and after the export.

    Attributes:
        source: "run" or "merged folder".
        test: number of rows; path and SHA-256 of a file.
        n_same_answers: how many the export answers as its source does, letter for letter.
        source_exact_match, export_exact_match: percentage of right answers.
    """

    source: str
    test: Mapping[str, Any]
    n_same_answers: int
    source_exact_match: float
    export_exact_match: float

    def headline(self) -> str:
        """The drift in one line."""
        return (
            f"test: {self.n_same_answers} of {self.test['rows']} answers as the {self.source}'s; exact match "
            f"{self.source_exact_match:.1f} % ({self.source}), {self.export_exact_match:.1f} % (export)"
        )

    def as_record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def answer_source(source: str | Path, test: Examples) -> SourceAnswers:
    """Answer a test as the source of an export does, and let go of its model again.

    Args:
        source: a run folder or a merged folder.
        test: a file or the rows.

    Raises:
        InvalidInput: another source, which has no answers of its own; a row that is longer than the export takes.

    Cost: the source's model is in memory for as long as it answers.
    """
    rows, record = read_test(test)
    folder = local_path(source)
    kind = "run" if is_run_folder(folder) else "merged folder" if is_merged_folder(folder) else None
    if kind is None:
        raise InvalidInput(f"test: expected a run or a merged folder to compare with, received {source}; leave it out")
    model = load_adapted(folder, device="cpu")
    assert isinstance(model, AdaptedModel)
    for number, row in enumerate(rows, start=1):
        if model.prompt.encode_input(row.input)[1]:
            raise InvalidInput(
                f"test: row {number} has more than {model.prompt.max_input_tokens} tokens, which an export refuses; "
                "shorten it, or leave it out"
            )
    answers = tuple(model.predict([row.input for row in rows]))
    del model
    gc.collect()
    memory.give_back()
    return SourceAnswers(kind, tuple(rows), answers, record)


def measure_drift(before: SourceAnswers, folder: Path, adapter: Path | None) -> Drift:
    """Answer the same test by an exported folder.

    Args:
        before: what the source answered.
        folder: the export; its files are not compared with their hashes again.
        adapter: the source's, if it is beside the base.
    """
    model = ExportedModel(OnnxModel(open_folder(folder, adapter=adapter, is_checked=True)))
    after = model.predict([row.input for row in before.rows])
    targets = [row.target for row in before.rows]
    return Drift(
        before.kind,
        before.test,
        sum(a == b for a, b in zip(before.answers, after, strict=True)),
        exact_match(before.answers, targets),
        exact_match(after, targets),
    )
