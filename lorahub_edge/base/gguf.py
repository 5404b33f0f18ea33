"""GGUF files as transformers models, by the table of gguf_names.py.

The table is closed. What a file says about its model beyond it is refused by name, for it would change the answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerBase

from lorahub_edge.base.checkpoint import Checkpoint
from lorahub_edge.base.gguf_header import GgufHeader
from lorahub_edge.base.gguf_names import ARCHITECTURES, architecture_of
from lorahub_edge.base.gguf_rope import ROPE_TENSOR, rope_scaling
from lorahub_edge.errors import UnsupportedFormat

_TOKEN_IDS = {"bos": "bos_token_id", "eos": "eos_token_id", "unknown": "unk_token_id", "padding": "pad_token_id"}
# What tokenizer.ggml.pre may say: what transformers has a pattern for, and what is mended below.
_INDIVIDUAL_DIGITS = ("smollm",)
_PRE_TOKENIZERS = (
    *("default", "gpt-2", "llama3", "llama-v3", "llama-bpe", "falcon3", "dbrx", "smaug-bpe", "tekken", "pixtral"),
    *("qwen2", "deepseek-r1-qwen", "megrez", "gpt-4o", *_INDIVIDUAL_DIGITS),
)


def gguf_config(header: GgufHeader) -> dict[str, Any]:
    """What the config.json of this model says.

    Raises:
        UnsupportedFormat: another architecture, a key that is missing, or one that is not read.
    """
    name = header.architecture
    if name not in ARCHITECTURES:
        expected = ", ".join(ARCHITECTURES)
        raise UnsupportedFormat(
            f"{header.path}: GGUF architecture '{name}' is not supported; expected one of {expected}; "
            "use the transformers folder it was made from"
        )
    architecture = ARCHITECTURES[name]
    said = {k.removeprefix(f"{name}."): v for k, v in header.metadata.items() if k.startswith(f"{name}.")}
    config = {**architecture.defaults, **{new: said.pop(key) for key, new in architecture.keys.items() if key in said}}
    missing = [f"lacks {name}.{key}" for key, new in architecture.keys.items() if new not in config]
    uneven = [f"gives each layer its own {new}" for new, value in config.items() if isinstance(value, list)]
    neutral = {} if missing or uneven else _complete(header, config, said)
    unread = [f"says {name}.{k} = {v}" for k, v in said.items() if k not in neutral or v != neutral[k]]
    for problem in (*missing, *uneven, *unread):
        raise UnsupportedFormat(
            f"{header.path}: its metadata {problem}, which is not supported; "
            "use the transformers folder it was made from"
        )
    return config


def _complete(header: GgufHeader, config: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    """Add what follows from other values; returns the keys that may be there because they say nothing new."""
    embedding = header.tensors.get("token_embd.weight")
    ids = {new: header.metadata.get(f"tokenizer.ggml.{key}_token_id") for key, new in _TOKEN_IDS.items()}
    config |= {name: token for name, token in ids.items() if token is not None}
    config["vocab_size"] = embedding.shape[0] if embedding else None
    config["tie_word_embeddings"] = "output.weight" not in header.tensors
    neutral = (_complete_t5 if header.architecture == "t5" else _complete_decoder)(header, config, said)
    return {**neutral, "vocab_size": config["vocab_size"]}


def _complete_decoder(header: GgufHeader, config: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    name, n_heads, hidden_size = header.architecture, config["num_attention_heads"], config["hidden_size"]
    head_dim = config["head_dim"] or said.get("rope.dimension_count") or hidden_size // n_heads
    scaling = rope_scaling(
        header, said, head_dim=head_dim, theta=config["rope_theta"], context=config["max_position_embeddings"]
    )
    config["model_type"] = ARCHITECTURES[name].model_types[0]
    if name == "llama" and config["sliding_window"]:
        config["model_type"] = "mistral"
    config["head_dim"] = head_dim
    config["num_key_value_heads"] = config["num_key_value_heads"] or n_heads
    if config["num_hidden_layers"] == ARCHITECTURES[name].n_layers_27b:
        config["query_pre_attn_scalar"] = hidden_size // n_heads
    if scaling:
        config["rope_scaling"] = scaling
    widths = ("attention.value_length", "attention.key_length_swa", "attention.value_length_swa",
              "rope.dimension_count", "rope.dimension_count_swa")  # fmt: skip
    return {**dict.fromkeys(widths, head_dim), "attention.causal": True, "expert_count": 0, "expert_used_count": 0}


def _complete_t5(header: GgufHeader, config: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    config["model_type"] = "umt5" if "enc.blk.1.attn_rel_b.weight" in header.tensors else "t5"
    # no key names the activation: llama.cpp takes GELU where there is a gate, else ReLU
    config["feed_forward_proj"] = "gated-gelu" if "enc.blk.0.ffn_gate.weight" in header.tensors else "relu"
    return {
        "attention.value_length": config["d_kv"],
        "attention.head_count_kv": config["num_heads"],
        "attention.layer_norm_rms_epsilon": config["layer_norm_epsilon"],
    }


class GgufCheckpoint(Checkpoint):
    """A GGUF file's tensors, dequantised when read, under transformers' names and in its order of rows."""

    def __init__(self, header: GgufHeader, config: Mapping[str, Any]) -> None:
        super().__init__([header.path])
        self._header = header
        self._config = config
        self._architecture = architecture_of(config, where=str(header.path))
        self._stored = {self._architecture.rename(n): n for n in header.tensors if n != ROPE_TENSOR}

    def names(self) -> set[str]:
        return set(self._stored)

    def describe(self, name: str) -> tuple[tuple[int, ...], str]:
        return self._header.tensors[self._stored[name]].shape, "F32"

    def read(self, name: str) -> torch.Tensor:
        stored = self._stored[name]
        values = self._header.values(stored)
        if self._architecture.norms_have_one_added and stored.endswith("norm.weight"):
            values = values - 1
        values = self._architecture.from_stored_rows(values, stored, self._config)
        return torch.from_numpy(np.array(values, np.float32))


def follow_the_file(tokenizer: PreTrainedTokenizerBase, header: GgufHeader) -> None:
    """Name the special tokens and cut text as the file says, where transformers does not, or not in all versions.

    Raises:
        UnsupportedFormat: the file names a way of cutting that is not known, so its tokens would be others.
    """
    for key, name in _TOKEN_IDS.items():
        if (token_id := header.metadata.get(f"tokenizer.ggml.{key}_token_id")) is not None:
            setattr(tokenizer, name.removesuffix("_id"), tokenizer.convert_ids_to_tokens(token_id))
    kind = header.metadata.get("tokenizer.ggml.pre", "default")
    if header.metadata.get("tokenizer.ggml.model") != "gpt2":
        return
    if kind not in _PRE_TOKENIZERS:
        raise UnsupportedFormat(
            f"{header.path}: cuts text like '{kind}', which is not known; expected {_PRE_TOKENIZERS}"
        )
    if kind in _INDIVIDUAL_DIGITS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
