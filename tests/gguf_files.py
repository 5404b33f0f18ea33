"""GGUF files of tiny models, written as llama.cpp's converters write them: its names, reordered rows, norms plus 1."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    T5Config,
    UMT5Config,
)

from tests import tiny

_SIZES: dict[str, Any] = {
    "vocab_size": len(tiny.WORDS), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 3, "tie_word_embeddings": False, "rms_norm_eps": 1e-5,
}  # fmt: skip
_GEMMA: dict[str, Any] = {
    **_SIZES,
    "tie_word_embeddings": True,
    "head_dim": 8,
    "query_pre_attn_scalar": 256,
    "sliding_window": 3,
}
_T5: dict[str, Any] = {
    "vocab_size": len(tiny.WORDS), "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
    "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
}  # fmt: skip

# kind -> architecture in GGUF, config
KINDS: dict[str, tuple[str, Any]] = {
    "llama": ("llama", lambda **k: LlamaConfig(**{**_SIZES, **k})),
    "mistral": ("llama", lambda **k: MistralConfig(**{**_SIZES, "head_dim": 8, "sliding_window": 3, **k})),
    "qwen2": ("qwen2", lambda **k: Qwen2Config(**{**_SIZES, "tie_word_embeddings": True, **k})),
    "qwen3": ("qwen3", lambda **k: Qwen3Config(**{**_SIZES, "head_dim": 128, **k})),
    "gemma2": ("gemma2", lambda **k: Gemma2Config(**{**_GEMMA, "final_logit_softcapping": 5.0, **k})),
    "gemma3": ("gemma3", lambda **k: Gemma3TextConfig(**{**_GEMMA, "num_hidden_layers": 7, **k})),
    "t5": ("t5", lambda **k: T5Config(**{**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, **k})),
    "t5-first": ("t5", lambda **k: T5Config(**{**_T5, "feed_forward_proj": "relu", "tie_word_embeddings": True, **k})),
    "umt5": (
        "t5",
        lambda **k: UMT5Config(**{**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, **k}),
    ),
}


def make_model(kind: str, **values: Any) -> Any:
    """A float32 model whose every tensor is random, norms and biases too."""
    torch.manual_seed(0)
    config = KINDS[kind][1](**values)
    is_seq2seq = config.is_encoder_decoder
    model = (AutoModelForSeq2SeqLM if is_seq2seq else AutoModelForCausalLM).from_config(config)
    if kind in ("t5", "umt5"):  # transformers 5 ties every fresh T5
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def metadata_of(config: Any) -> dict[str, Any]:
    """What the converters say about a model, without the architecture's name before each key."""
    if config.is_encoder_decoder:
        return {
            "context_length": 512, "embedding_length": config.d_model, "feed_forward_length": config.d_ff,
            "block_count": config.num_layers, "attention.head_count": config.num_heads,
            "attention.key_length": config.d_kv, "attention.value_length": config.d_kv,
            "attention.layer_norm_epsilon": config.layer_norm_epsilon,
            "attention.layer_norm_rms_epsilon": config.layer_norm_epsilon,
            "attention.relative_buckets_count": config.relative_attention_num_buckets, "decoder_start_token_id": 0,
        }  # fmt: skip
    said = {
        "context_length": config.max_position_embeddings, "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers, "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads, "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps, "vocab_size": config.vocab_size,
    }  # fmt: skip
    theta = config.rope_parameters.get("rope_theta") or config.rope_parameters["full_attention"]["rope_theta"]
    if config.model_type != "gemma2":
        said["rope.freq_base"] = theta
    if config.model_type in ("llama", "mistral"):
        said["rope.dimension_count"] = config.head_dim
    if config.model_type in ("qwen3", "gemma2", "gemma3_text"):
        said |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    if config.model_type == "gemma2":
        said |= {"attn_logit_softcapping": 50.0, "final_logit_softcapping": config.final_logit_softcapping}
    if config.model_type in ("mistral", "gemma2", "gemma3_text"):
        said["attention.sliding_window"] = config.sliding_window
    return said


def write(
    folder: Path,
    kind: str,
    model: Any = None,
    *,
    metadata: dict[str, Any] | None = None,
    tensors: dict[str, Any] | None = None,
    name: str = "model.gguf",
    architecture: str | None = None,
    quantisation: str = "F32",
) -> Path:
    """Write a file.

    Args:
        folder, name: where.
        kind, model: one of KINDS, and a model of it.
        metadata, tensors: further ones, or others of that name; None as a value leaves one out. Keys without a dot at
            their start are the architecture's.
        architecture: another than the kind's.
        quantisation: of matrices, as ggml names it.
    """
    architecture = architecture or KINDS[kind][0]
    model = make_model(kind) if model is None else model
    path = folder / name
    writer = gguf.GGUFWriter(path, architecture)
    said = {f"{architecture}.{key}": value for key, value in metadata_of(model.config).items()}
    said["general.name"] = "umt5" if kind == "umt5" else "tiny"  # by which transformers knows UMT5
    for key, value in {**said, **_tokenizer(model), **(metadata or {})}.items():
        if value is not None:
            _add(writer, key, value)
    for key, values in {**_tensors(KINDS[kind][0], model), **(tensors or {})}.items():
        _add_tensor(writer, key, values, quantisation)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tokenizer(model: Any) -> dict[str, Any]:
    words = [*tiny.WORDS[:-1], "aa"]  # what the one merge makes
    said = {
        "tokenizer.ggml.model": "t5" if model.config.is_encoder_decoder else "gpt2",
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.scores": [-float(i) for i in range(len(words))],
        "tokenizer.ggml.token_type": [3] * 4 + [1] * (len(words) - 4),
        **{f"tokenizer.ggml.{k}_token_id": i for k, i in (("padding", 0), ("eos", 1), ("unknown", 2), ("bos", 3))},
    }
    # twice: up to transformers 5.20 a list of one is read as what it holds
    return said if model.config.is_encoder_decoder else {**said, "tokenizer.ggml.merges": ["a a", "a a"]}


def _add(writer: Any, key: str, value: Any) -> None:
    kinds = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}
    getattr(writer, f"add_{kinds[type(value)]}")(key, value)


def _add_tensor(writer: Any, name: str, values: Any, quantisation: str) -> None:
    if values is None:
        return
    if values.ndim == 2 and quantisation != "F32":
        kind = gguf.GGMLQuantizationType[quantisation]
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, values)


def _tensors(architecture: str, model: Any) -> dict[str, Any]:
    """llama.cpp's name -> values, by the tensor map that its converters use."""
    config = model.config
    index = {v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(index, config.num_hidden_layers)
    embedding = model.get_input_embeddings().weight
    found = {}
    for name, parameter in model.state_dict().items():
        is_copy = (
            name != "shared.weight"
            and "embed" not in name.partition(".")[2]
            and parameter.data_ptr() == embedding.data_ptr()
        )
        if is_copy or name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
            continue
        values = parameter.detach().numpy().copy()
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            values += 1
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            n_heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            values = values.reshape(n_heads, 2, -1, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)
        new = names.get_name(name, (".weight", ".bias"))
        assert new, name
        found[new] = np.ascontiguousarray(values)
    return found
