"""Random models and LoRA modules of FLAN-T5's shapes, written tensor by tensor.

The real ones cannot be shipped, and speed and memory do not depend on the values.

python -m bench.t5_large FOLDER [--shape small|base|large|xl] [--modules N]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForSeq2SeqLM, GenerationConfig, PreTrainedTokenizerFast, T5Config

SPECIAL = ["<pad>", "</s>", "<unk>"]


def large_config(n_layers: int = 24) -> T5Config:
    """google/flan-t5-large's sizes."""
    return _config(d_model=1024, d_ff=2816, num_heads=16, num_layers=n_layers)


def xl_config(n_layers: int = 24) -> T5Config:
    """google/flan-t5-xl's sizes."""
    return _config(d_model=2048, d_ff=5120, num_heads=32, num_layers=n_layers)


def small_config(n_layers: int = 8) -> T5Config:
    """google/flan-t5-small's sizes."""
    return _config(d_model=512, d_ff=1024, num_heads=6, num_layers=n_layers)


def base_config(n_layers: int = 12) -> T5Config:
    """google/flan-t5-base's sizes."""
    return _config(d_model=768, d_ff=2048, num_heads=12, num_layers=n_layers)


SHAPES = {"small": small_config, "base": base_config, "large": large_config, "xl": xl_config}


def _config(**sizes: int) -> T5Config:
    return T5Config(
        vocab_size=32128,
        d_kv=64,
        **sizes,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )


def write_random_model(folder: Path, config: T5Config, *, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write a transformers folder with random weights, two layers to a file.

    Args:
        folder: must not exist.
        config: the sizes; the head is its own tensor, as in FLAN-T5.
        seed: of the weights.
        dtype: of the file; float32 on the Hub, and readers that follow it then compute in float32.

    Returns:
        The folder. Peak memory is that of two layers or of the embedding.
    """
    folder.mkdir(parents=True)
    with init_empty_weights():
        model = AutoModelForSeq2SeqLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items() if "embed_tokens" not in name}
    shapes["lm_head.weight"] = shapes["shared.weight"]
    groups: dict[str, dict[str, torch.Size]] = {}
    for name, shape in shapes.items():
        parts = name.split(".")
        groups.setdefault(f"{parts[0]}-{int(parts[2]) // 2}" if "block" in parts else name, {})[name] = shape
    weight_map = {}
    for number, group in enumerate(groups.values()):
        file = f"model-{number:05d}.safetensors"
        save_file({name: _tensor(name, shape, generator).to(dtype) for name, shape in group.items()}, folder / file)
        weight_map |= dict.fromkeys(group, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    record = {**config.to_dict(), "tie_word_embeddings": False, "architectures": ["T5ForConditionalGeneration"]}
    record["dtype"] = str(dtype).removeprefix("torch.")
    record.pop("scale_decoder_outputs", None)
    (folder / "config.json").write_text(json.dumps(record))
    generation = GenerationConfig(eos_token_id=1, pad_token_id=0, decoder_start_token_id=0)  # type: ignore[no-untyped-call]
    generation.save_pretrained(folder)
    write_tokenizer(folder, config.vocab_size)
    return folder


def _tensor(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Values that bfloat16 holds, whatever they are stored as."""
    if "layer_norm" in name:
        return torch.ones(shape, dtype=torch.bfloat16)
    # T5's own initialisation: attention is not scaled in T5, so its queries must be small, or a random model is chaotic
    # and no two right computations of it agree
    std = shape[-1] ** -0.5
    if name.endswith(".q.weight"):
        std = (shape[-1] * 64) ** -0.5
    elif name == "shared.weight":
        std = 1.0
    return torch.randn(shape, generator=generator).mul_(std).bfloat16()


def write_random_modules(folder: Path, config: T5Config, n_modules: int, *, rank: int = 16) -> Path:
    """Write PEFT folders m000, m001, ... with random float32 factors for q and v, as LoRAHub's modules have them.

    Args:
        folder: of the folders; modules that are there already are kept.
        config: of the base.
        n_modules: at least 1.
        rank: of the factors.
    """
    inner = config.num_heads * config.d_kv
    for k in range(n_modules):
        place = folder / f"m{k:03d}"
        if place.is_dir():
            continue
        place.mkdir(parents=True)
        generator = torch.Generator().manual_seed(k)
        tensors = {}
        for target in _attention_targets(config.num_layers):
            A = torch.randn(rank, config.d_model, generator=generator) * config.d_model**-0.5
            tensors[f"base_model.model.{target}.lora_A.weight"] = A
            tensors[f"base_model.model.{target}.lora_B.weight"] = 0.01 * torch.randn(inner, rank, generator=generator)
        save_file(tensors, place / "adapter_model.safetensors")
        settings = {"peft_type": "LORA", "task_type": "SEQ_2_SEQ_LM", "target_modules": ["q", "v"]}
        settings |= {"r": rank, "lora_alpha": 2 * rank, "lora_dropout": 0.1, "bias": "none", "inference_mode": True}
        (place / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": "random"}))
    return folder


def _attention_targets(n_layers: int) -> list[str]:
    kinds = ("encoder.block.{}.layer.0.SelfAttention", "decoder.block.{}.layer.0.SelfAttention")
    kinds += ("decoder.block.{}.layer.1.EncDecAttention",)
    return [f"{kind.format(layer)}.{name}" for kind in kinds for layer in range(n_layers) for name in "qv"]


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """One token per word w3, w4, ...; a text ends with </s>."""
    words = SPECIAL + [f"w{i}" for i in range(len(SPECIAL), vocab_size)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = {**json.loads(path.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(config))  # by a name that transformers 4 knows as well, which the peers use


def main() -> None:
    """Write the model, and modules beside it."""
    parser = argparse.ArgumentParser(prog="python -m bench.t5_large", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="large")
    parser.add_argument("--modules", type=int, default=0, help="so many go to FOLDER-modules")
    options = parser.parse_args()
    config = SHAPES[options.shape]()
    write_random_model(options.folder, config)
    write_random_modules(options.folder.with_name(f"{options.folder.name}-modules"), config, options.modules)


if __name__ == "__main__":
    main()
