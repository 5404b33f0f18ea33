"""export: every model type that the families name, beyond those that all tests use."""

import json

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GemmaConfig,
    GenerationConfig,
    MistralConfig,
    MT5Config,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
    UMT5Config,
)

import lorahub_edge
from lorahub_edge.base import FAMILIES
from tests import tiny

CAUSAL = {
    "vocab_size": len(tiny.WORDS), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 3,
}  # fmt: skip
SEQ2SEQ = {
    "vocab_size": len(tiny.WORDS), "d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 64, "num_layers": 2,
    "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1, "tie_word_embeddings": False,
}  # fmt: skip
CONFIGS = {
    # biases at q, k and v
    "qwen2": lambda: Qwen2Config(**CAUSAL, tie_word_embeddings=False),
    # norms within the heads, whose width is not hidden_size / heads
    "qwen3": lambda: Qwen3Config(**CAUSAL, head_dim=16, tie_word_embeddings=True),
    # a window shorter than the longest prompt that is verified
    "mistral": lambda: MistralConfig(**CAUSAL, sliding_window=16, tie_word_embeddings=False),
    # rotary positions in the first layer only
    "smollm3": lambda: SmolLM3Config(**CAUSAL, no_rope_layers=[1, 0], tie_word_embeddings=True),
    "gemma": lambda: GemmaConfig(**CAUSAL, head_dim=8),
    "mt5": lambda: MT5Config(**SEQ2SEQ),
    # relative positions in every layer
    "umt5": lambda: UMT5Config(**SEQ2SEQ),
}
TESTED_ELSEWHERE = {"t5", "llama", "gemma2", "gemma3_text"}


def save(kind, folder):
    torch.manual_seed(0)
    is_seq2seq = kind in ("mt5", "umt5")
    auto = AutoModelForSeq2SeqLM if is_seq2seq else AutoModelForCausalLM
    model = auto.from_config(CONFIGS[kind]())
    if is_seq2seq:
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3)
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    if is_seq2seq:  # as in tiny.save_model
        config["tie_word_embeddings"] = False
        config.pop("scale_decoder_outputs", None)
        (folder / "config.json").write_text(json.dumps(config))
    GenerationConfig(eos_token_id=1, pad_token_id=0, decoder_start_token_id=0 if is_seq2seq else None).save_pretrained(
        folder
    )
    tiny.save_tokenizer(folder, is_seq2seq=is_seq2seq)
    return folder


def test_every_model_type_is_tested():
    assert {t for family in FAMILIES for t in family.model_types} == {*CONFIGS, *TESTED_ELSEWHERE}


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_model_type_answers_as_torch_does(kind, tmp_path):
    base = save(kind, tmp_path / "base")
    report = lorahub_edge.export(str(base), tmp_path / "out").report
    assert report["passed"]
    exact = lorahub_edge.export(str(base), tmp_path / "fp32", precision="fp32").report
    assert exact["models"][0]["worst_error"] < 1e-4
