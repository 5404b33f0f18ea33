"""save_base: a transformers folder that loads again with the same loss."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from lorahub_edge.base.files import SIDE_FILES
from lorahub_edge.base.int8 import Int8Embedding, Int8Linear
from lorahub_edge.base.model import Base, head_is_tied
from lorahub_edge.outputs import whole_folder


def save_base(base: Base, folder: str | Path, *, for_transformers: bool = False) -> Path:
    """Write the base as it is in memory: int8 codes and absmax in the bitsandbytes layout, or float tensors.

    Args:
        base: any loaded base.
        folder: must not exist yet.
        for_transformers: leave in float32 what transformers does not read as int8 rows: embeddings, the head, and
            what the model's class keeps in float32 (T5's `wo`). The values are those of the codes, so that
            `load_base` finds the same codes and scales again. Larger: without it every matrix is int8.

    Returns:
        The folder, with config.json, generation_config.json, model.safetensors and the source's tokenizer files.

    Raises:
        OutputExists, LorahubEdgeError: see `whole_folder`.
    """
    folder = Path(folder)
    with whole_folder(folder) as partial:
        write_base(base, partial, for_transformers=for_transformers)
    return folder


def write_base(base: Base, folder: Path, *, for_transformers: bool = False) -> None:
    """The files of `save_base`, into a folder that is there."""
    float_layers = _float_layers(base) if for_transformers else ()
    save_file(base_tensors(base, float_layers), folder / "model.safetensors", metadata={"format": "pt"})
    copy_side_files(base, folder)
    (folder / "config.json").write_text(json.dumps(_config(base, float_layers), indent=2) + "\n", encoding="utf-8")


def _float_layers(base: Base) -> tuple[str, ...]:
    """Module paths, or last parts of them, that transformers leaves out of int8."""
    kept: set[str] = set(base.model._keep_in_fp32_modules or ())
    return (base.family.embedding, base.family.head, *sorted(kept))


def _stays_float(path: str, float_layers: Sequence[str]) -> bool:
    return path in float_layers or path.rpartition(".")[2] in float_layers


def base_tensors(base: Base, float_layers: Sequence[str] = ()) -> dict[str, torch.Tensor]:
    """Name -> tensor of a checkpoint that loads as this base, on the CPU; layers named in float_layers as float32."""
    tensors: dict[str, torch.Tensor] = {}
    skip = set(base.family.embedding_copies)
    if head_is_tied(base.model, base.family):
        skip.add(base.family.head)
    for path, module in base.model.named_modules(remove_duplicate=False):
        if path in skip:
            continue
        if isinstance(module, (Int8Linear, Int8Embedding)):
            tensors.update(_int8_tensors(path, module, as_float=_stays_float(path, float_layers)))
            continue
        for name, parameter in module.named_parameters(recurse=False):
            tensors[f"{path}.{name}"] = parameter.detach().cpu().contiguous()
    return tensors


def _int8_tensors(path: str, module: Int8Linear | Int8Embedding, *, as_float: bool) -> dict[str, torch.Tensor]:
    weight = module.int8_weight
    if as_float:
        tensors = {f"{path}.weight": weight.to_float().cpu()}
    else:
        tensors = {
            f"{path}.weight": weight.codes.cpu().contiguous(),
            f"{path}.SCB": weight.absmax().cpu(),
            f"{path}.weight_format": torch.tensor(0, dtype=torch.uint8),  # bitsandbytes: 0 is plain rows
        }
    bias = getattr(module, "bias", None)
    return tensors if bias is None else {**tensors, f"{path}.bias": bias.cpu()}


def plain_config(base: Base) -> dict[str, Any]:
    """What config.json must say about a base, whatever its weights are stored as."""
    config: dict[str, Any] = base.model.config.to_dict()
    config.pop("quantization_config", None)
    # to_dict says "tied" for every T5; what the next reader must know is what the tensors are
    config["tie_word_embeddings"] = head_is_tied(base.model, base.family)
    config["dtype"] = "bfloat16" if base.precision == "bf16" else "float32"
    config["architectures"] = [type(base.model).__name__]
    return config


def _config(base: Base, float_layers: Sequence[str]) -> dict[str, Any]:
    config = plain_config(base)
    if base.precision == "int8":
        config["quantization_config"] = {
            "quant_method": "bitsandbytes",
            "load_in_8bit": True,
            "llm_int8_threshold": 0.0,
            **({"llm_int8_skip_modules": list(float_layers)} if float_layers else {}),
        }
    return config


def copy_side_files(base: Base, folder: Path) -> None:
    """generation_config.json and the tokenizer, byte for byte; from a GGUF file the tokenizer that it carries.

    A tokenizer saved anew may not load in other versions.
    """
    if base.weight_files[0].suffix == ".gguf":  # what lies beside the file need not belong to it
        _save_tokenizer(base.tokenizer, folder)
        return
    found = {n: base.source.folder / n for n in SIDE_FILES if (base.source.folder / n).is_file()}
    if "tokenizer.json" not in found and "spiece.model" not in found:
        base.tokenizer.save_pretrained(folder)
    for name, path in found.items():
        shutil.copyfile(path, folder / name)


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """In words that transformers 4 understands too: its class, its inputs, and special tokens under its name."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["model_input_names"] = ["input_ids", "attention_mask"]
    further = config.pop("extra_special_tokens", None)
    if further:
        config["additional_special_tokens"] = list(further)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
