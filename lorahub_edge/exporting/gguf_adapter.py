"""export_gguf_adapter: a run's composed module as llama.cpp's LoRA file, for any GGUF file of the run's base.

llama.cpp finds a target by the name of the base's tensor and throws where it finds none, so all names and shapes are
looked up before anything is written. Each pair of tensors may have a rank of its own there, and alpha / rank scales it;
an alpha of 0 leaves it as it is. So alpha is 0, and B carries the scaling.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorahub_edge.adaptation import SavedRun, open_run
from lorahub_edge.base import OpenBase
from lorahub_edge.base.gguf_names import Architecture, architecture_of
from lorahub_edge.errors import UnsupportedFormat
from lorahub_edge.modules import StackLayout, rank_note
from lorahub_edge.outputs import check_free, whole_file, write_errors
from lorahub_edge.sources import local_path
from lorahub_edge.tasks import PromptFormat

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class GgufAdapter:
    """A LoRA file of llama.cpp.

    Attributes:
        path: where it is.
        architecture: llama.cpp's name of the base's family.
        base: the base's GGUF file, if the run was made on one.
        n_targets: layers that it changes.
        rank: the largest of them.
        n_bytes: its size.
        before, after: the text around an input that the run was adapted on.
        is_seq2seq: whether the base has an encoder.
        is_chat: whether that is what the base's chat template puts there.
        note: see `rank_note`.
    """

    path: Path
    architecture: str
    base: Path | None
    n_targets: int
    rank: int
    n_bytes: int
    before: str
    after: str
    is_seq2seq: bool
    is_chat: bool
    note: str

    def as_record(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "path": str(self.path), "base": None if self.base is None else str(self.base)}


def export_gguf_adapter(run: str | Path, out: str | Path) -> GgufAdapter:
    """Write a run's composed module as the LoRA file that llama.cpp, and what is built on it, takes beside a base.

    Args:
        run: a run folder. Its base is looked at, and need not be a GGUF file itself.
        out: new file, float32.

    Raises:
        UnsupportedFormat: GGUF names are not known for the base, or it has no tensor of its own for a target.
        InvalidInput: no run folder, or its base is gone or has changed.
        IncompatibleModules: the module does not fit the base.
        OutputExists: `out` is there already.
    """
    out = local_path(out).absolute()
    check_free(out)
    saved = open_run(run)
    base = saved.open_base()
    StackLayout.of([saved.module], base.linear_shapes(), base.source.spec)
    config = base.model.config.to_dict()
    architecture = architecture_of(config, where=f"export: base '{base.source.spec}'")
    tensors = dict(_tensors(saved, base, architecture, config))
    prompt = PromptFormat.of_record(base, saved.prompt)
    with write_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(out) as partial:
        _write(partial, architecture.name, saved.folder.resolve().name, tensors)
    module, (file, *_) = saved.module, base.weight_files
    return GgufAdapter(
        out, architecture.name, file if file.suffix == ".gguf" else None, len(module.factors), module.rank,
        out.stat().st_size, prompt.before, prompt.after, base.family.is_seq2seq, _is_chat(prompt),
        rank_note(module, base.family),
    )  # fmt: skip


def _is_chat(prompt: PromptFormat) -> bool:
    return prompt.template == "chat" or (prompt.template == "auto" and prompt.before != "")


def _tensors(
    run: SavedRun, base: OpenBase, architecture: Architecture, config: dict[str, Any]
) -> Iterator[tuple[str, Array]]:
    """llama.cpp's name -> A (rank, in_features) and B (out_features, rank), of every target."""
    names = base.checkpoint.names()
    for target, factors in run.module.factors.items():
        stored = architecture.stored_name(f"{target}.weight")
        is_tied = target == base.family.head and (f"{target}.weight" not in names or _says_tied(base))
        if stored is None or is_tied:
            why = "its output layer is its embedding" if is_tied else f"'{architecture.name}' has no name for it"
            raise UnsupportedFormat(
                f"export: run {run.folder} changes '{target}', for which a GGUF file of base '{base.source.spec}' has "
                f"no tensor ({why}); adapt with modules that leave it out"
            )
        yield f"{stored}.lora_a", factors.A.numpy()
        B = (factors.scaling * factors.B).numpy()
        yield f"{stored}.lora_b", architecture.to_stored_rows(B, stored, config)


def _says_tied(base: OpenBase) -> bool:
    """T5's config in memory always says so, so only its tensors can tell."""
    return not base.family.is_seq2seq and bool(base.model.config.tie_word_embeddings)


def _write(path: Path, architecture: str, task: str, tensors: dict[str, Array]) -> None:
    import gguf  # takes a while

    writer = gguf.GGUFWriter(path, architecture)
    try:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", 0.0)
        writer.add_string("adapter.lora.task_name", task)
        for name, values in tensors.items():
            writer.add_tensor(name, np.ascontiguousarray(values))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
