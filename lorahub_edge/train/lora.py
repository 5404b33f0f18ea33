"""train_module: one LoRA module for one task by gradient descent, so that a user can grow a hub.

PEFT makes and saves the module; this file is the loop around it. Defaults are those of LoRAHub's training script.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional

from lorahub_edge.adaptation.settings import check_numbers
from lorahub_edge.base import Base, load_base
from lorahub_edge.errors import InvalidInput, LorahubEdgeError, OutputExists
from lorahub_edge.modules import LoraModule, read_module
from lorahub_edge.tasks import EncodedExample, Example, PromptFormat, load_examples

_IGNORED = -100


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Attributes:
        rank, alpha, dropout: of the LoRA.
        targets: layer names; None is the family's usual pair (q and v).
        epochs: passes over the rows; max_steps, if not None, ends it earlier.
        learning_rate: AdamW's, falling linearly to 0.
        batch_size: rows per step.
        max_input_tokens, max_target_tokens: longer ones are cut.
        seed: of the initial factors, the order of rows and dropout.
    """

    rank: int = 16
    alpha: float = 32
    dropout: float = 0.1
    targets: tuple[str, ...] | None = None
    epochs: int = 20
    max_steps: int | None = None
    learning_rate: float = 2e-4
    batch_size: int = 10
    max_input_tokens: int = 1024
    max_target_tokens: int = 256
    seed: int = 42

    def check(self) -> None:
        """Refuse numbers out of range.

        Raises:
            InvalidInput: names the setting, what was expected and what came.
        """
        positive = ("rank", "alpha", "epochs", "max_steps", "learning_rate", "batch_size", "max_input_tokens")
        for name in (*positive, "max_target_tokens"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InvalidInput(f"{name}: expected a number above 0, received {value}")
        check_numbers(seed=self.seed)
        if not 0 <= self.dropout < 1:
            raise InvalidInput(f"dropout: expected 0 <= dropout < 1, received {self.dropout}")


def train_module(
    base: str | Path | Base,
    examples: str | Path | Sequence[Example],
    out: str | Path,
    *,
    settings: TrainSettings | None = None,
    prompt: str = "auto",
    device: str = "auto",
    on_step: Callable[[int, int, float], None] | None = None,
) -> LoraModule:
    """Train one LoRA module and write it as a PEFT folder.

    Args:
        base: see `load_base`; loaded in float32 (bfloat16 on CUDA), since gradients need a float base. A loaded base
            must be float.
        examples: a file (rows with "split" other than "train" are left out) or the rows.
        out: the new folder; its name is the module's name.
        settings: default TrainSettings().
        prompt: see `PromptFormat.for_base`; adapt with the same one.
        device: "auto", "cpu" or "cuda".
        on_step: called with (step, total steps, loss) after each step.

    Returns:
        The module as `read_module` reads it back from `out`.

    Raises:
        InvalidInput: an int8 base, an example file that cannot be used, a setting out of range, an unknown target.
        OutputExists: `out` is there already.
    """
    settings = settings or TrainSettings()
    settings.check()
    out = Path(out).expanduser().absolute()
    if out.exists():
        raise OutputExists(f"output folder {out} exists; name a new one")
    rows = load_examples(examples, split="train") if isinstance(examples, (str, Path)) else list(examples)
    loaded = base if isinstance(base, Base) else _load_float(str(base), device)
    if loaded.precision == "int8":
        raise InvalidInput("train: the base is int8; load it with precision='fp32' or 'bf16'")
    torch.manual_seed(settings.seed)  # PEFT initialises and drops out from torch's global state
    model = _peft_model(loaded, settings)
    format_ = PromptFormat.for_base(
        loaded,
        template=prompt,
        max_input_tokens=settings.max_input_tokens,
        max_target_tokens=settings.max_target_tokens,
    )
    encoded = format_.encode_all(rows)
    format_.warn_of_cuts((e.was_cut for e in encoded), "rows")
    try:
        final_loss = _train(model, loaded, encoded, settings, on_step)
        _save(model, loaded, out, {**asdict(settings), "prompt": prompt, "rows": len(rows), "final_loss": final_loss})
    finally:
        model.unload()
        loaded.model.eval().requires_grad_(False)  # type: ignore[no-untyped-call]
    return read_module(out)


def _load_float(spec: str, device: str) -> Base:
    base = load_base(spec, precision="fp32", device=device)
    return load_base(spec, precision="bf16", device=device) if base.device.type == "cuda" else base


def _peft_model(base: Base, settings: TrainSettings) -> Any:
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # PEFT takes floats too
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets or base.family.lora_targets),
        task_type=base.family.task_type,
        base_model_name_or_path=base.source.spec,
    )
    try:
        model = get_peft_model(base.model, config)
    except ValueError as error:
        known = sorted({name.rpartition(".")[2] for name in base.linear_shapes()})
        raise InvalidInput(f"targets {settings.targets}: not layers of this base; it has {', '.join(known)}") from error
    # PEFT takes the name from the model object, which a stranger could not load from
    model.peft_config["default"].base_model_name_or_path = base.source.spec
    return model


def _train(
    model: Any,
    base: Base,
    encoded: list[EncodedExample],
    settings: TrainSettings,
    on_step: Callable[[int, int, float], None] | None,
) -> float:
    """The loop; returns the mean loss of the last tenth of the steps."""
    steps_per_epoch = -(-len(encoded) // settings.batch_size)
    total = min(settings.epochs * steps_per_epoch, settings.max_steps or 10**12)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
    model.train()
    losses: list[float] = []
    for step, rows in zip(range(total), _batches(len(encoded), settings), strict=False):
        loss = _loss(model, base, [encoded[i] for i in rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if losses[-1] != losses[-1]:
            raise LorahubEdgeError(f"train: the loss became NaN at step {step + 1}; lower the learning rate")
        if on_step is not None:
            on_step(step + 1, total, losses[-1])
    last = losses[-max(1, total // 10) :]
    return sum(last) / len(last)


def _batches(n_rows: int, settings: TrainSettings) -> Iterator[list[int]]:
    """Endless batches of row numbers; each epoch in a new order."""
    rng = random.Random(settings.seed)
    while True:
        order = rng.sample(range(n_rows), n_rows)
        for start in range(0, n_rows, settings.batch_size):
            yield order[start : start + settings.batch_size]


def _loss(model: Any, base: Base, batch: Sequence[EncodedExample]) -> torch.Tensor:
    """Cross-entropy per answer token of a padded batch."""
    tensors = seq2seq_batch(batch) if base.family.is_seq2seq else causal_batch(batch)
    labels = tensors.pop("labels").to(base.device)
    if base.family.is_seq2seq:
        decoder_input_ids = labels.new_full(labels.shape, base.model.config.pad_token_id)
        decoder_input_ids[:, 0] = base.model.config.decoder_start_token_id
        decoder_input_ids[:, 1:] = labels[:, :-1].clamp(min=0)
        tensors["decoder_input_ids"] = decoder_input_ids
    else:  # the head runs where an answer is, not over the whole prompt: it is the largest product of a small model
        keep = (labels != _IGNORED).any(dim=0).nonzero()[:, 0]
        tensors["logits_to_keep"], labels = keep, labels[:, keep]
    logits = model(**{k: v.to(base.device) for k, v in tensors.items()}, use_cache=False).logits
    return functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=_IGNORED)


def seq2seq_batch(batch: Sequence[EncodedExample]) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask (b, t), labels (b, t_target), padded on the right."""
    input_ids = _padded([e.input_ids for e in batch], 0)
    mask = _padded([(1,) * len(e.input_ids) for e in batch], 0)
    return {"input_ids": input_ids, "attention_mask": mask, "labels": _padded([e.target_ids for e in batch], _IGNORED)}


def causal_batch(batch: Sequence[EncodedExample]) -> dict[str, torch.Tensor]:
    """input_ids, attention_mask and labels (b, t); labels[i] is what follows input_ids[i], answers only."""
    sequences = [e.input_ids + e.target_ids[:-1] for e in batch]
    labels = [(_IGNORED,) * (len(e.input_ids) - 1) + e.target_ids for e in batch]
    mask = _padded([(1,) * len(s) for s in sequences], 0)
    return {"input_ids": _padded(sequences, 0), "attention_mask": mask, "labels": _padded(labels, _IGNORED)}


def _padded(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    result = torch.full((len(rows), max(map(len, rows))), fill)
    for i, row in enumerate(rows):
        result[i, : len(row)] = torch.tensor(row)
    return result


def _save(model: Any, base: Base, out: Path, record: dict[str, Any]) -> None:
    """PEFT's folder plus training.json, under a temporary name until it is whole."""
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.save_pretrained(partial, save_embedding_layers=False)
        (partial / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        training = {"base": base.source.spec, "base_revision": base.source.revision, **record}
        (partial / "training.json").write_text(json.dumps(training, indent=2) + "\n", encoding="utf-8")
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.rename(out)
    except Exception as error:  # safetensors reports a full disk by an exception of its own
        raise LorahubEdgeError(f"output folder {out}: cannot be written ({error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
