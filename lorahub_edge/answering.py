"""load_adapted: what adapt, merge or export wrote, ready to answer and to be scored, each by the same few methods.

An exported folder needs no torch, so what does is imported where a folder turns out to be of another kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorahub_edge.errors import InvalidInput, needed_by
from lorahub_edge.serve import OnnxModel, generate, open_folder
from lorahub_edge.serve.folder import RECORD
from lorahub_edge.serve.generate import checked_prompt
from lorahub_edge.sources import local_path
from lorahub_edge.tasks import Examples, PromptFormat, Score, as_examples
from lorahub_edge.tasks.lengths import TOKENS_PER_CALL, batches_of
from lorahub_edge.texts import checked_texts

if TYPE_CHECKING:
    from lorahub_edge.adaptation import AdaptedModel


@dataclass(frozen=True)
class ExportedModel:
    """An exported folder that answers by onnxruntime, as the service does.

    Attributes:
        model: its graphs, with one adapter or none.
    """

    model: OnnxModel

    def predict(self, inputs: Sequence[str], *, batch_size: int = 16) -> list[str]:
        """Greedy answers to texts, in order.

        Raises:
            TypeError: one text instead of a list of texts.
            InvalidInput: a text that is longer than the export takes; nothing is cut.
        """
        texts = checked_texts(inputs, "inputs")
        lengths = [self._length(number, text) for number, text in enumerate(texts, start=1)]
        order = sorted(range(len(texts)), key=lengths.__getitem__)
        answers = [""] * len(texts)
        for batch in batches_of([lengths[row] for row in order], batch_size, TOKENS_PER_CALL["cpu"]):
            rows = order[batch]
            for row, completion in zip(rows, generate(self.model, [texts[row] for row in rows]), strict=True):
                answers[row] = completion.text.strip()
        return answers

    def evaluate(self, examples: Examples) -> Score:
        """Scores of the answers to a file or a list of examples; there is no loss, since the graphs only answer.

        Raises:
            InvalidInput: see `predict`.
        """
        rows = as_examples(examples)
        return Score.of(self.predict([e.input for e in rows]), rows, loss=None)

    def _length(self, number: int, text: str) -> int:
        """Most tokens that a text and its answer take."""
        try:
            return len(checked_prompt(self.model.files, text)) + self.model.files.max_new_tokens
        except InvalidInput as error:
            raise InvalidInput(f"input {number}: {error}") from error

    def __repr__(self) -> str:
        return f"ExportedModel({self.model.files!r})"


def load_adapted(
    folder: str | Path, *, device: str = "auto", adapter: str | Path | None = None
) -> AdaptedModel | ExportedModel:
    """Open what `adapt`, `merge` or `export` wrote.

    Args:
        folder: a run folder (its module beside its base), a merged folder, or an exported folder (by onnxruntime).
        device: "auto", "cpu" or "cuda"; an exported folder answers on the CPU.
        adapter: of an exported folder; see `open_folder`.

    Raises:
        InvalidInput: none of the three; a base that is gone or no longer the same; a setting that this kind of folder
            does not take.
        UnsupportedFormat: a file that is broken, or not what was written.
        NotInstalled: a plain install, and no exported folder.
    """
    folder = local_path(folder)
    if (folder / RECORD).is_file():
        if device == "cuda":
            raise InvalidInput(f"device: {folder} is an exported folder, which answers on the CPU; received 'cuda'")
        return ExportedModel(OnnxModel(open_folder(folder, adapter=adapter)))
    if adapter is not None:
        raise InvalidInput(f"adapter: {folder} is no exported folder, so it takes none; received '{adapter}'")
    with needed_by(f"{folder} is no exported folder; any other"):
        return _load_with_torch(folder, device)


def _load_with_torch(folder: Path, device: str) -> AdaptedModel:
    from lorahub_edge.adaptation import AdaptedModel, open_run
    from lorahub_edge.base import load_base
    from lorahub_edge.cache import default_cache
    from lorahub_edge.merging import is_merged_folder, open_merged
    from lorahub_edge.modules import LoraModule

    if not is_merged_folder(folder):
        return AdaptedModel.of_run(open_run(folder), device=device)
    merged = open_merged(folder)
    precision = str(merged.record.get("precision"))
    base = load_base(str(merged.folder), precision=precision, device=device, cache=default_cache())
    nothing_beside = LoraModule("merged", {})
    prompt = PromptFormat.of_record(base, merged.prompt)
    return AdaptedModel.of_module(base, nothing_beside, prompt, merged.max_new_tokens)
