"""What llama.cpp calls what transformers has: one table of GGUF's architectures, read in both directions.

The table is closed: a model that it does not have is refused by name, and so is what a file says beyond it (gguf.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lorahub_edge.errors import UnsupportedFormat

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Architecture:
    """What llama.cpp's converter makes of a family.

    Attributes:
        name: llama.cpp's.
        model_types: transformers', the usual one first.
        keys: metadata key without the architecture -> name in config.json.
        parts: llama.cpp's name of a tensor, within a block or outside -> transformers'.
        blocks: what a block's name begins with -> what it begins with in transformers.
        defaults: name in config.json -> value where no key says otherwise. A key without a default must be there.
        norms_have_one_added: norm weights are stored plus 1.
        pairs_are_neighbours: the rows of q and k are reordered, for rotations of neighbours.
        n_layers_27b: of the one size of Gemma that scales its attention by hidden_size / heads; no key says so.
    """

    name: str
    model_types: tuple[str, ...]
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

    def stored_name(self, name: str) -> str | None:
        """llama.cpp's name of a tensor of transformers, the one that `rename` turns into it; None if there is none."""
        return next((stored for stored in self._candidates(name) if self.rename(stored) == name), None)

    def _candidates(self, name: str) -> Iterator[str]:
        ending = name.rpartition(".")[2]
        number = next(iter(re.findall(r"\.(\d+)\.", name)), "")
        for part in sorted(self.parts, key=lambda part: "." not in part):  # one kind of block's own before any block's
            yield f"{part}.{ending}"
            for begin in self.blocks if number else ():
                yield f"{begin}.{number}.{part.removeprefix(f'{begin}.')}.{ending}"

    def from_stored_rows(self, values: Array, stored: str, config: Mapping[str, Any]) -> Array:
        """Rows of the tensor `stored` in transformers' order.

        Args:
            values: (rows, ...), in llama.cpp's order.
            config: the model's.
        """
        n_heads = self._reordered_heads(stored, config)
        # a head's rows (x0, y0, x1, y1, ...) become (x0, x1, ..., y0, y1, ...)
        return _swapped(values, n_heads, (-1, 2)) if n_heads else values

    def to_stored_rows(self, values: Array, stored: str, config: Mapping[str, Any]) -> Array:
        """The inverse of `from_stored_rows`: rows for the tensor `stored`, from transformers' order."""
        n_heads = self._reordered_heads(stored, config)
        return _swapped(values, n_heads, (2, -1)) if n_heads else values

    def _reordered_heads(self, stored: str, config: Mapping[str, Any]) -> int:
        """Into how many heads the rows fall that are stored in another order; 0 where they are not."""
        if not self.pairs_are_neighbours:
            return 0
        heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
        return config.get(heads.get(stored.split(".")[-2], "")) or 0

    def without_gate(self) -> Architecture:
        """The same with one matrix in the place of gate and up, as in the first T5."""
        parts = {part: re.sub(r"\bwi_1$", "wi", new) for part, new in self.parts.items() if not new.endswith("wi_0")}
        return replace(self, parts=parts)


def _swapped(values: Array, n_heads: int, order: tuple[int, int]) -> Array:
    """Each head's rows as a table of the shape `order`, read by columns."""
    table = values.reshape(n_heads, *order, *values.shape[1:])
    swapped: Array = table.swapaxes(1, 2).reshape(values.shape)
    return swapped


def architecture_of(config: Mapping[str, Any], *, where: str) -> Architecture:
    """The architecture of a model in GGUF.

    Args:
        config: what its config.json says.
        where: the model, for messages.

    Raises:
        UnsupportedFormat: the table has none.
    """
    kind = config.get("model_type")
    for architecture in ARCHITECTURES.values():
        if kind in architecture.model_types:
            is_gated = str(config.get("feed_forward_proj", "gated")).startswith("gated")
            return architecture if is_gated else architecture.without_gate()
    known = ", ".join(name for a in ARCHITECTURES.values() for name in a.model_types)
    raise UnsupportedFormat(f"{where}: GGUF names are known for model types {known}, not for '{kind}'")


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

_ALL = (
    Architecture(
        "llama", ("llama", "mistral"), {**_DECODER_KEYS, "attention.sliding_window": "sliding_window"},
        _DECODER_PARTS, _DECODER_BLOCKS, {**_PLAIN, "sliding_window": None}, pairs_are_neighbours=True,
    ),
    Architecture("qwen2", ("qwen2",), _DECODER_KEYS, _DECODER_PARTS, _DECODER_BLOCKS, _PLAIN),
    Architecture("qwen3", ("qwen3",), _DECODER_KEYS, _DECODER_PARTS, _DECODER_BLOCKS, _PLAIN),
    Architecture(
        "gemma2", ("gemma2",), _GEMMA_KEYS, _GEMMA_PARTS, _DECODER_BLOCKS, _GEMMA2,
        norms_have_one_added=True, n_layers_27b=46,
    ),
    Architecture(
        "gemma3", ("gemma3_text",), {**_GEMMA_KEYS, "rope.freq_base_swa": "rope_local_base_freq"},
        _GEMMA_PARTS, _DECODER_BLOCKS, _GEMMA3, norms_have_one_added=True, n_layers_27b=62,
    ),
    Architecture(
        "t5", ("t5", "umt5", "mt5"), _T5_KEYS, _T5_PARTS, _T5_BLOCKS,
        {"num_decoder_layers": None, "decoder_start_token_id": 0},
    ),
)  # fmt: skip
ARCHITECTURES = {architecture.name: architecture for architecture in _ALL}
