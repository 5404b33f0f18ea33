"""train_module: one LoRA module for one task by gradient descent, so that a user can grow a hub.

PEFT makes and saves the module. Defaults are those of LoRAHub's training script.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lorahub_edge.adaptation.settings import COUNTS, Range, check_ranges
from lorahub_edge.base import Base, load_base
from lorahub_edge.json_text import to_json
from lorahub_edge.modules import TRAINING_ROWS, LoraModule, read_module
from lorahub_edge.outputs import check_free, whole_folder
from lorahub_edge.sources import local_path
from lorahub_edge.tasks import Example, Row, draw_examples, examples_text, load_examples, to_examples
from lorahub_edge.train.loop import OnStep
from lorahub_edge.train.settings import TrainSettings
from lorahub_edge.train.tuning import tuned

# A kept row is cut here, question and answer alike: it is to show what the task is.
_MAX_KEPT_CHARACTERS = 2000


def train_module(
    base: str | Path | Base,
    examples: str | Path | Iterable[Row],
    out: str | Path,
    *,
    settings: TrainSettings | None = None,
    prompt: str = "auto",
    device: str = "auto",
    on_step: OnStep | None = None,
    keep_rows: int = 0,
) -> LoraModule:
    """Train one LoRA module and write it as a PEFT folder.

    Args:
        base: see `load_base`; loaded in float32 (bfloat16 on CUDA), since gradients need a float base. A loaded base
            must be float.
        examples: a file (rows with "split" other than "train" are left out) or the rows; see `to_examples`.
        out: the new folder; its name is the module's name.
        settings: default TrainSettings().
        prompt: see `PromptFormat.for_base`; adapt with the same one.
        device: "auto", "cpu" or "cuda".
        on_step: called with (step, total steps, loss) after each step.
        keep_rows: so many of the rows, cut to 2000 characters, are kept in the module's training_rows.jsonl, by which
            `adapt(choose_modules="similar")` finds it. They travel with the module, so none are kept unless asked for.

    Returns:
        The module as `read_module` reads it back from `out`.

    Raises:
        InvalidInput: an int8 base, an example file that cannot be used, a setting out of range, an unknown target.
        OutputExists: `out` is there already.
    """
    settings = settings or TrainSettings()
    settings.check()
    check_ranges({"keep_rows": keep_rows}, {"keep_rows": Range(0, COUNTS.high)})
    out = local_path(out).absolute()
    check_free(out)
    rows = load_examples(examples, split="train") if isinstance(examples, (str, Path)) else to_examples(examples)
    loaded = base if isinstance(base, Base) else _load_float(str(base), device)
    with tuned(loaded, rows, "lora", settings=settings, prompt=prompt, on_step=on_step) as result:
        record = {**asdict(settings), "prompt": prompt, "rows": len(rows), "final_loss": result.final_loss}
        _save(result.model, loaded, out, record, draw_examples(rows, keep_rows, settings.seed))
    return read_module(out)


def _load_float(spec: str, device: str) -> Base:
    base = load_base(spec, precision="fp32", device=device)
    return load_base(spec, precision="bf16", device=device) if base.device.type == "cuda" else base


def _save(model: Any, base: Base, out: Path, record: dict[str, Any], kept: Sequence[Example]) -> None:
    """PEFT's folder plus training.json and the rows that are kept."""
    with whole_folder(out) as partial:
        model.save_pretrained(partial, save_embedding_layers=False)
        (partial / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        training = {"base": base.source.spec, "base_revision": base.source.revision, **record}
        (partial / "training.json").write_text(to_json(training) + "\n", encoding="utf-8")
        if kept:
            cut = [Example(e.input[:_MAX_KEPT_CHARACTERS], e.target[:_MAX_KEPT_CHARACTERS]) for e in kept]
            (partial / TRAINING_ROWS).write_text(examples_text(cut), encoding="utf-8")
