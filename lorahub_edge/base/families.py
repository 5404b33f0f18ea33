"""What differs between model families, in one table.

Everything else in the package treats a base the same way: it asks its `Family` instead of the model's type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from lorahub_edge.errors import UnsupportedFormat


@dataclass(frozen=True)
class Family:
    """How one family of models names its parts and where its loss sits.

    Attributes:
        name: "t5" or "decoder-only".
        model_types: values of `model_type` in config.json.
        is_seq2seq: the answer is produced by a decoder of its own; the loss covers all its positions.
            Otherwise input and answer are one sequence and the loss sits behind the input.
        embedding: module path of the token embedding.
        embedding_copies: module paths that share its tensor (checkpoints may hold it once more there).
        head: module path of the output layer.
        lora_targets: layers that a LoRA module changes unless told otherwise (PEFT's default for the family).
        gated_layer: what a gated feed-forward layer calls its gate, up and down matrices and its activation.
        float_tensors: name endings of matrices that are never quantised.
        default_max_input_tokens: inputs are cut here if the config names no limit.
    """

    name: str
    model_types: tuple[str, ...]
    is_seq2seq: bool
    embedding: str
    embedding_copies: tuple[str, ...]
    head: str
    lora_targets: tuple[str, ...]
    gated_layer: tuple[str, str, str, str]
    float_tensors: tuple[str, ...]
    default_max_input_tokens: int

    @property
    def auto_class(self) -> Any:
        """The transformers factory for this family."""
        return AutoModelForSeq2SeqLM if self.is_seq2seq else AutoModelForCausalLM

    @property
    def task_type(self) -> str:
        """PEFT's name of the family, as adapter_config.json carries it."""
        return "SEQ_2_SEQ_LM" if self.is_seq2seq else "CAUSAL_LM"


FAMILIES = (
    Family(
        name="t5",
        model_types=("t5", "mt5", "umt5"),
        is_seq2seq=True,
        embedding="shared",
        embedding_copies=("encoder.embed_tokens", "decoder.embed_tokens"),
        head="lm_head",
        lora_targets=("q", "v"),
        gated_layer=("wi_0", "wi_1", "wo", "act"),
        float_tensors=("relative_attention_bias",),
        # relative positions: no limit of its own; LoRAHub cuts here
        default_max_input_tokens=2048,
    ),
    Family(
        name="decoder-only",
        model_types=("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2", "gemma3_text"),
        is_seq2seq=False,
        embedding="model.embed_tokens",
        embedding_copies=(),
        head="lm_head",
        lora_targets=("q_proj", "v_proj"),
        gated_layer=("gate_proj", "up_proj", "down_proj", "act_fn"),
        float_tensors=(),
        default_max_input_tokens=2048,
    ),
)


def family_of(model_type: str, *, where: str) -> Family:
    """The family that `model_type` belongs to.

    Raises:
        UnsupportedFormat: names the type found at `where` and all known ones.
    """
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(t for f in FAMILIES for t in f.model_types)
    raise UnsupportedFormat(f"{where}: model type '{model_type}' is not supported; expected one of {known}")
