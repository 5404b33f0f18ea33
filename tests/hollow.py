"""Models and modules of any size that take no disk: safetensors files with a header and, for values, a hole."""

import json
import math
from pathlib import Path

import torch
from accelerate import init_empty_weights
from transformers import AutoModelForSeq2SeqLM, T5Config

from bench.t5_large import write_tokenizer

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16}


def write_hollow_base(folder: Path, config: T5Config) -> Path:
    """A T5 with a head of its own, in bfloat16."""
    folder.mkdir(parents=True)
    with init_empty_weights():
        model = AutoModelForSeq2SeqLM.from_config(config)
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items() if "embed_tokens" not in name}
    shapes["lm_head.weight"] = shapes["shared.weight"]
    _write(folder / "model.safetensors", shapes, "BF16")
    record = {**config.to_dict(), "tie_word_embeddings": False, "architectures": ["T5ForConditionalGeneration"]}
    (folder / "config.json").write_text(json.dumps(record))
    write_tokenizer(folder, config.vocab_size)
    return folder


def write_hollow_modules(folder: Path, base: Path, n_modules: int, *, rank: int = 16) -> Path:
    """Modules on q and v of all attention layers, as LoRAHub's are."""
    config = json.loads((base / "config.json").read_text())
    inner, d_model = config["num_heads"] * config["d_kv"], config["d_model"]
    kinds = ("encoder.block.{}.layer.0.SelfAttention", "decoder.block.{}.layer.0.SelfAttention")
    kinds += ("decoder.block.{}.layer.1.EncDecAttention",)
    shapes = {}
    for target in (f"{kind.format(n)}.{name}" for kind in kinds for n in range(config["num_layers"]) for name in "qv"):
        shapes[f"base_model.model.{target}.lora_A.weight"] = (rank, d_model)
        shapes[f"base_model.model.{target}.lora_B.weight"] = (inner, rank)
    settings = {"peft_type": "LORA", "task_type": "SEQ_2_SEQ_LM", "target_modules": ["q", "v"], "r": rank}
    for k in range(n_modules):
        place = folder / f"m{k:03d}"
        place.mkdir(parents=True)
        _write(place / "adapter_model.safetensors", shapes, "F32")
        (place / "adapter_config.json").write_text(json.dumps({**settings, "lora_alpha": 2 * rank}))
    return folder


def _write(path: Path, shapes: dict[str, tuple[int, ...]], dtype: str) -> None:
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * _DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
