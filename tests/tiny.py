"""Tiny models, tokenizers and LoRA modules, made in a temporary folder: 2 layers, width 32, random weights."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    Gemma2Config,
    Gemma3TextConfig,
    GenerationConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    T5Config,
)

SPECIAL = ["<pad>", "</s>", "<unk>", "<s>"]
WORDS = [*SPECIAL, *"is a the not red blue green dog cat fish yes no one two three four five . ?".split(" ")]  # noqa: SIM905
TARGETS = {"t5": ["q", "v"], "llama": ["q_proj", "v_proj"], "gemma2": ["q_proj", "v_proj"], "gemma3": ["q_proj"]}
ROWS = [
    ("is red a dog ?", "no"),
    ("is the cat blue ?", "yes"),
    ("one two three", "four five"),
    ("not the dog .", "the dog ."),
    ("is a fish a fish ?", "yes"),
    ("two three four", "five"),
]

_SMALL = {"vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512}
_SPECIAL = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 3}


def save_tokenizer(folder: Path, *, is_seq2seq: bool) -> None:
    """One token per word; a seq2seq tokenizer ends every text with </s>."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if is_seq2seq:
        tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    special |= {} if is_seq2seq else {"bos_token": "<s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def make_model(kind: str, *, tied: bool = False, seed: int = 0) -> Any:
    """A float32 model: "t5", "llama", "qwen3", "gemma2" or "gemma3"; weights wide enough for clear answers."""
    torch.manual_seed(seed)
    configs = {
        "t5": lambda: T5Config(
            vocab_size=len(WORDS),
            d_model=32,
            d_kv=8,
            num_heads=4,
            d_ff=64,
            num_layers=2,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=tied,
            decoder_start_token_id=0,
            pad_token_id=0,
            eos_token_id=1,
        ),
        "llama": lambda: LlamaConfig(**_SMALL, **_HEADS, **_SPECIAL, tie_word_embeddings=tied),
        "qwen3": lambda: Qwen3Config(**_SMALL, **_HEADS, **_SPECIAL),
        "gemma2": lambda: Gemma2Config(**_SMALL, **_HEADS, **_SPECIAL, query_pre_attn_scalar=8),
        "gemma3": lambda: Gemma3TextConfig(**_SMALL, **_HEADS, **_SPECIAL, query_pre_attn_scalar=8),
    }
    auto = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    model = auto.from_config(configs[kind]())
    if kind == "t5" and not tied:  # transformers 5 ties every fresh T5
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            std = 0.3 if "relative" not in name else 0.5
            torch.nn.init.normal_(parameter, std=std)
    return model.eval()


def save_model(model: Any, folder: Path, kind: str, *, tied: bool = False) -> Path:
    """A transformers folder with an honest `tie_word_embeddings`, as the original FLAN-T5 has it."""
    model.save_pretrained(folder)
    if kind == "t5":
        config = json.loads((folder / "config.json").read_text())
        config["tie_word_embeddings"] = tied
        config.pop("scale_decoder_outputs", None)
        (folder / "config.json").write_text(json.dumps(config))
    start = 0 if kind == "t5" else None
    GenerationConfig(eos_token_id=1, pad_token_id=0, decoder_start_token_id=start).save_pretrained(folder)
    save_tokenizer(folder, is_seq2seq=kind == "t5")
    return folder


def save_module(
    base: Path, folder: Path, kind: str, *, seed: int, std: float = 0.2, base_name: str = "", **config: Any
) -> Path:
    """A LoRA module with random factors, made and written by PEFT itself; it names no base unless told one."""
    torch.manual_seed(seed)
    auto, task = (AutoModelForSeq2SeqLM, "SEQ_2_SEQ_LM") if kind == "t5" else (AutoModelForCausalLM, "CAUSAL_LM")
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS[kind], "task_type": task, **config}
    model = get_peft_model(auto.from_pretrained(base), LoraConfig(**settings))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=std)
    model.peft_config["default"].base_model_name_or_path = base_name
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder
