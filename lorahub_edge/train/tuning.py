"""tuned: a float base trained on a few rows for the length of a with block. What is trained has a name.

One loop for all kinds; `train_module` keeps what the kind "lora" gives, benches compare the others with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import IA3Config, LoraConfig, PeftConfig, get_peft_model

from lorahub_edge.base import Base
from lorahub_edge.errors import InvalidInput
from lorahub_edge.tasks import EncodedExample, Example, PromptFormat
from lorahub_edge.train.loop import OnStep, descend
from lorahub_edge.train.settings import TrainSettings


@dataclass(frozen=True)
class Tuned:
    """A base in training clothes.

    Attributes:
        model: what PEFT would save; the base's own model where everything was trained. `base.model` answers as tuned.
        losses: of each step, in order.
        n_parameters: how many numbers were trained.
    """

    model: Any
    losses: tuple[float, ...]
    n_parameters: int

    @property
    def final_loss(self) -> float:
        """Mean loss of the last tenth of the steps."""
        last = self.losses[-max(1, len(self.losses) // 10) :]
        return sum(last) / len(last)

    def __repr__(self) -> str:
        return f"Tuned({self.n_parameters} parameters, {len(self.losses)} steps, loss {self.final_loss:.4f})"


@contextmanager
def tuned(
    base: Base,
    rows: Sequence[Example],
    kind: str = "lora",
    *,
    settings: TrainSettings | None = None,
    prompt: str = "auto",
    on_step: OnStep | None = None,
) -> Iterator[Tuned]:
    """Train on rows; when the block ends, the base is as it was, bit for bit.

    Args:
        base: float; changed in place inside the block.
        rows: what to train on.
        kind: "lora" (new factors), "ia3" (PEFT's (IA)3 on its usual layers) or "full" (every parameter).
        settings: default TrainSettings(); rank, alpha, dropout and targets are LoRA's.
        prompt: see `PromptFormat.for_base`.
        on_step: called with (step, total steps, loss) after each step.

    Raises:
        InvalidInput: an int8 base, an unknown kind, a setting out of range, an unknown target.
        LorahubEdgeError: the loss became NaN.
    """
    settings = settings or TrainSettings()
    settings.check()
    if kind not in KINDS:
        raise InvalidInput(f"kind '{kind}' is not known; expected {', '.join(KINDS)}")
    if base.precision == "int8":
        raise InvalidInput("train: the base is int8; load it with precision='fp32' or 'bf16'")
    with base.turn:
        torch.manual_seed(settings.seed)  # PEFT initialises and drops out from torch's global state
        model, restore = KINDS[kind](base, settings)
        try:
            n_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
            losses = descend(model, base, _encoded(base, rows, settings, prompt), settings, on_step)
            base.model.eval().requires_grad_(False)  # type: ignore[no-untyped-call]
            yield Tuned(model, tuple(losses), n_parameters)
        finally:
            restore()
            base.model.eval().requires_grad_(False)  # type: ignore[no-untyped-call]


def _encoded(base: Base, rows: Sequence[Example], settings: TrainSettings, prompt: str) -> list[EncodedExample]:
    limits = {"max_input_tokens": settings.max_input_tokens, "max_target_tokens": settings.max_target_tokens}
    encoded, _ = PromptFormat.for_base(base, template=prompt, **limits).encode_examples(rows, "rows")
    return encoded


def _lora(base: Base, settings: TrainSettings) -> tuple[Any, Callable[[], object]]:
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # PEFT takes floats too
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets or base.family.lora_targets),
        task_type=base.family.task_type,
    )
    return _with_peft(base, config, f"targets {settings.targets}: not layers of this base")


def _ia3(base: Base, settings: TrainSettings) -> tuple[Any, Callable[[], object]]:
    config = IA3Config(task_type=base.family.task_type)
    return _with_peft(base, config, "ia3: PEFT names no layers of this base to scale")


def _with_peft(base: Base, config: PeftConfig, complaint: str) -> tuple[Any, Callable[[], object]]:
    try:
        model = get_peft_model(base.model, config)
    except ValueError as error:
        known = sorted({name.rpartition(".")[2] for name in base.linear_shapes()})
        raise InvalidInput(f"{complaint}; it has {', '.join(known)}") from error
    # PEFT takes the name from the model object, which a stranger could not load from
    model.peft_config["default"].base_model_name_or_path = base.source.spec
    return model, model.unload


def _full(base: Base, settings: TrainSettings) -> tuple[Any, Callable[[], object]]:
    before = {name: p.detach().clone() for name, p in base.model.named_parameters()}
    base.model.requires_grad_(True)

    @torch.no_grad()
    def restore() -> None:
        for name, parameter in base.model.named_parameters():
            parameter.copy_(before[name])

    return base.model, restore


KINDS: Mapping[str, Callable[[Base, TrainSettings], tuple[Any, Callable[[], object]]]] = {
    "lora": _lora,
    "ia3": _ia3,
    "full": _full,
}
