"""save_base: a transformers folder that loads again with the same loss."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lorahub_edge.base.int8 import Int8Embedding, Int8Linear
from lorahub_edge.base.model import Base, head_is_tied
from lorahub_edge.errors import OutputExists

SIDE_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def save_base(base: Base, folder: str | Path) -> Path:
    """Write the base as it is in memory: int8 codes and absmax in the bitsandbytes layout, or float tensors.

    Args:
        base: any loaded base.
        folder: must not exist yet.

    Returns:
        The folder, with config.json, generation_config.json, model.safetensors and the source's tokenizer files.

    Raises:
        OutputExists: the folder is there already.
        OSError: nothing is left behind.
    """
    folder = Path(folder)
    if folder.exists():
        raise OutputExists(f"output folder {folder} exists; name a new one")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        save_file(_tensors(base), partial / "model.safetensors", metadata={"format": "pt"})
        (partial / "config.json").write_text(json.dumps(_config(base), indent=2) + "\n", encoding="utf-8")
        _copy_side_files(base, partial)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return folder


def _tensors(base: Base) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    skip = set(base.family.embedding_copies)
    if head_is_tied(base.model, base.family):
        skip.add(base.family.head)
    for path, module in base.model.named_modules(remove_duplicate=False):
        if path in skip:
            continue
        if isinstance(module, (Int8Linear, Int8Embedding)):
            tensors.update(_int8_tensors(path, module))
            continue
        for name, parameter in module.named_parameters(recurse=False):
            tensors[f"{path}.{name}"] = parameter.detach().cpu().contiguous()
    return tensors


def _int8_tensors(path: str, module: Int8Linear | Int8Embedding) -> dict[str, torch.Tensor]:
    weight = module.int8_weight
    tensors = {
        f"{path}.weight": weight.codes.cpu().contiguous(),
        f"{path}.SCB": weight.absmax().cpu(),
        f"{path}.weight_format": torch.tensor(0, dtype=torch.uint8),  # bitsandbytes: 0 is plain rows
    }
    bias = getattr(module, "bias", None)
    return tensors if bias is None else {**tensors, f"{path}.bias": bias.cpu()}


def _config(base: Base) -> dict[str, Any]:
    config: dict[str, Any] = base.model.config.to_dict()
    # to_dict says "tied" for every T5; what the next reader must know is what the tensors are
    config["tie_word_embeddings"] = head_is_tied(base.model, base.family)
    config["dtype"] = "bfloat16" if base.precision == "bf16" else "float32"
    config["architectures"] = [type(base.model).__name__]
    if base.precision == "int8":
        config["quantization_config"] = {
            "quant_method": "bitsandbytes",
            "load_in_8bit": True,
            "llm_int8_threshold": 0.0,
        }
    return config


def _copy_side_files(base: Base, folder: Path) -> None:
    """Copy the source's files byte for byte: a tokenizer saved anew may not load in other versions."""
    found = {n: base.source.folder / n for n in SIDE_FILES if (base.source.folder / n).is_file()}
    if "tokenizer.json" not in found and "spiece.model" not in found:  # GGUF carries its tokenizer inside
        base.tokenizer.save_pretrained(folder)
    for name, path in found.items():
        shutil.copyfile(path, folder / name)
