"""GGUF files as transformers models: one table of what each architecture calls its keys and tensors.

The table is closed. What a file says about its model beyond it is refused by name, for it would change the answers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerBase

from lorahub_edge.base.checkpoint import Checkpoint
from lorahub_edge.base.gguf_header import GgufHeader
from lorahub_edge.base.gguf_rope import ROPE_TENSOR, rope_scaling
from lorahub_edge.errors import UnsupportedFormat


@dataclass(frozen=True)
class Architecture:
    """What llama.cpp's converter makes of a family.

    Attributes:
        keys: metadata key without the architecture -> name in config.json.
        parts: llama.cpp's name of a tensor, within a block or outside -> transformers'.
        blocks: what a block's name begins with -> what it begins with in transformers.
        defaults: name in config.json -> value where no key says otherwise. A key without a default must be there.
        norms_have_one_added: norm weights are stored plus 1.
        pairs_are_neighbours: the rows of q and k are reordered, for rotations of neighbours.
        n_layers_27b: of the one size of Gemma that scales its attention by hidden_size / heads; no key says so.
    """

    keys: Mapping[str, str]
    parts: Mapping[str, str]
    blocks: Mapping[str, str]
    defaults: Mapping[str, Any]
    norms_have_one_added: bool = False
    pairs_are_neighbours: bool = False
    n_layers_27b: int = 0

    def rename(self, name: str) -> str:
        """transformers' name of a tensor; a name that is not in the table stays as it is."""
        stem, _, ending = name.rpartition(".")
        for begin, new in self.blocks.items():
            if match := re.fullmatch(rf"{begin}\.(\d+)\.(\w+)", stem):
                part = self.parts.get(f"{begin}.{match[2]}", self.parts.get(match[2]))
                return name if part is None else f"{new}.{match[1]}.{part}.{ending}"
        return f"{self.parts[stem]}.{ending}" if stem in self.parts else name


_DECODER_KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
}
_GEMMA_KEYS = {
    **_DECODER_KEYS,
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_T5_KEYS = {
    "context_length": "n_positions",
    "embedding_length": "d_model",
    "block_count": "num_layers",
    "decoder_block_count": "num_decoder_layers",
    "feed_forward_length": "d_ff",
    "attention.head_count": "num_heads",
    "attention.key_length": "d_kv",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
    "attention.relative_buckets_count": "relative_attention_num_buckets",
    "decoder_start_token_id": "decoder_start_token_id",
}
_DECODER_PARTS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA_PARTS = {
    **_DECODER_PARTS,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_T5_PARTS = {
    "token_embd": "shared",
    "output": "lm_head",
    "enc.output_norm": "encoder.final_layer_norm",
    "dec.output_norm": "decoder.final_layer_norm",
    "attn_norm": "layer.0.layer_norm",
    **{f"attn_{x}": f"layer.0.SelfAttention.{x}" for x in "qkvo"},
    "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias",
    "cross_attn_norm": "layer.1.layer_norm",
    **{f"cross_attn_{x}": f"layer.1.EncDecAttention.{x}" for x in "qkvo"},
    "cross_attn_rel_b": "layer.1.EncDecAttention.relative_attention_bias",
    **{
        f"{side}.blk.ffn_{part}": f"layer.{k}.{name}"
        for side, k in (("enc", 1), ("dec", 2))
        for part, name in {
            "norm": "layer_norm",
            "gate": "DenseReluDense.wi_0",
            "up": "DenseReluDense.wi_1",
            "down": "DenseReluDense.wo",
        }.items()
    },
}
_DECODER_BLOCKS = {"blk": "model.layers"}
_T5_BLOCKS = {"enc.blk": "encoder.block", "dec.blk": "decoder.block"}
_PLAIN: dict[str, Any] = {"rope_theta": 10_000.0, "head_dim": None, "num_key_value_heads": None}
_GEMMA2 = {**_PLAIN, "sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
           "query_pre_attn_scalar": 256}  # fmt: skip
_GEMMA3 = {**_PLAIN, "rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0, "attn_logit_softcapping": None,
           "final_logit_softcapping": None, "query_pre_attn_scalar": 256}  # fmt: skip

ARCHITECTURES = {
    "llama": Architecture(
        {**_DECODER_KEYS, "attention.sliding_window": "sliding_window"},
        _DECODER_PARTS, _DECODER_BLOCKS, {**_PLAIN, "sliding_window": None}, pairs_are_neighbours=True,
    ),
    "qwen2": Architecture(_DECODER_KEYS, _DECODER_PARTS, _DECODER_BLOCKS, _PLAIN),
    "qwen3": Architecture(_DECODER_KEYS, _DECODER_PARTS, _DECODER_BLOCKS, _PLAIN),
    "gemma2": Architecture(
        _GEMMA_KEYS, _GEMMA_PARTS, _DECODER_BLOCKS, _GEMMA2, norms_have_one_added=True, n_layers_27b=46
    ),
    "gemma3": Architecture(
        {**_GEMMA_KEYS, "rope.freq_base_swa": "rope_local_base_freq"},
        _GEMMA_PARTS, _DECODER_BLOCKS, _GEMMA3, norms_have_one_added=True, n_layers_27b=62,
    ),
    "t5": Architecture(_T5_KEYS, _T5_PARTS, _T5_BLOCKS, {"num_decoder_layers": None, "decoder_start_token_id": 0}),
}  # fmt: skip
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
    config["model_type"] = {"gemma3": "gemma3_text"}.get(name, name)
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
    config["feed_forward_proj"] = "gated-gelu" if _is_gated(header) else "relu"
    return {
        "attention.value_length": config["d_kv"],
        "attention.head_count_kv": config["num_heads"],
        "attention.layer_norm_rms_epsilon": config["layer_norm_epsilon"],
    }


def _is_gated(header: GgufHeader) -> bool:
    return "enc.blk.0.ffn_gate.weight" in header.tensors


class GgufCheckpoint(Checkpoint):
    """A GGUF file's tensors, dequantised when read, under transformers' names and in its order of rows."""

    def __init__(self, header: GgufHeader, config: Mapping[str, Any]) -> None:
        super().__init__([header.path])
        self._header = header
        self._architecture = ARCHITECTURES[header.architecture]
        self._n_heads = {"attn_q": config.get("num_attention_heads"), "attn_k": config.get("num_key_value_heads")}
        self._stored = {self._architecture.rename(n): n for n in header.tensors if n != ROPE_TENSOR}
        if header.architecture == "t5" and not _is_gated(header):
            self._stored = {n.replace("DenseReluDense.wi_1.", "DenseReluDense.wi."): s for n, s in self._stored.items()}

    def names(self) -> set[str]:
        return set(self._stored)

    def describe(self, name: str) -> tuple[tuple[int, ...], str]:
        return self._header.tensors[self._stored[name]].shape, "F32"

    def read(self, name: str) -> torch.Tensor:
        stored = self._stored[name]
        values = self._header.values(stored)
        if self._architecture.norms_have_one_added and stored.endswith("norm.weight"):
            values = values - 1
        n_heads = self._n_heads.get(stored.split(".")[-2])
        if self._architecture.pairs_are_neighbours and n_heads:
            values = _halves(values, n_heads)
        return torch.from_numpy(np.array(values, np.float32))


def _halves(rows: np.ndarray[Any, Any], n_heads: int) -> np.ndarray[Any, Any]:
    """A head's rows from llama.cpp's order for rotations, (x0, y0, x1, y1, ...), to transformers': x's, then y's."""
    pairs = rows.reshape(n_heads, rows.shape[0] // n_heads // 2, 2, *rows.shape[1:])
    ordered: np.ndarray[Any, Any] = pairs.swapaxes(1, 2).reshape(rows.shape)
    return ordered


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
