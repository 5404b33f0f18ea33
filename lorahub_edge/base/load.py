"""load_base: weights into the empty model, from the checkpoint or, for a large int8 base, from the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import PreTrainedModel

from lorahub_edge.base.attention import use_own_attention
from lorahub_edge.base.checkpoint import Checkpoint, map_safetensors
from lorahub_edge.base.engines import choose_engines, layer_engines, set_engines
from lorahub_edge.base.families import Family
from lorahub_edge.base.filler import Adjust, Filler
from lorahub_edge.base.gated import fuse_gated_layers
from lorahub_edge.base.int8 import int8_matmul_available
from lorahub_edge.base.model import Base, head_is_tied
from lorahub_edge.base.open import OpenBase, need_device, open_base
from lorahub_edge.base.save import base_tensors
from lorahub_edge.cache import Cache, Entry, key_of
from lorahub_edge.errors import refused_as

_WEIGHTS = "model.safetensors"


def load_base(
    spec: str,
    *,
    precision: str = "int8",
    device: str = "auto",
    adjust: Adjust | None = None,
    cache: Cache | None = None,
) -> Base:
    """Load a base, quantising each tensor as it is read.

    Args:
        spec: "pocket", a folder, a .gguf file, or a Hub id: org/name, with an optional :Q8_0 or /FILE.gguf that picks
            one of several GGUF files, and an optional @revision.
        precision: "int8" (rows, bitsandbytes layout), "bf16" or "fp32" for matrices. What is left float computes
            in float32 on a CPU and bfloat16 on CUDA, "bf16" in bfloat16 everywhere.
        device: "auto", "cpu" or "cuda".
        adjust: changes tensors on their way from the file (a merge adds its deltas there); None for none.
        cache: keeps the int8 form of a large checkpoint, so that the next start maps it instead of making it again.

    Raises:
        InvalidInput: the spec, precision or device cannot be used.
        UnsupportedFormat: an unknown model type, or a checkpoint that is broken or lacks tensors.

    Cost: peak memory is the finished base plus one float tensor.
    """
    return load_opened(open_base(spec, precision=precision, device=device), adjust=adjust, cache=cache)


def load_opened(opened: OpenBase, *, adjust: Adjust | None = None, cache: Cache | None = None) -> Base:
    """The rest of `load_base`, for a base that is open already."""
    need_device(opened.device)
    if cache is None or adjust is not None or not _is_worth_keeping(opened, cache):
        return _finish(opened, opened.checkpoint, adjust=adjust)
    key = _key(opened, cache)
    if entry := cache.open(key):
        return _finish(opened, map_safetensors(entry.folder / _WEIGHTS), entry=entry)
    base = _finish(opened, opened.checkpoint)
    cache.store(key, lambda folder: _write(base, folder))
    return base


def _is_worth_keeping(opened: OpenBase, cache: Cache) -> bool:
    n_bytes = sum(path.stat().st_size for path in opened.checkpoint.files)
    return opened.precision == "int8" and n_bytes >= cache.min_bytes


def _key(opened: OpenBase, cache: Cache) -> str:
    """Of what decides the codes and the choice of engines."""
    return key_of(
        "base",
        weights=cache.sha256_files(opened.checkpoint.files),
        config=opened.model.config.to_dict(),
        device=opened.device.type,
        int8_matmul=int8_matmul_available(opened.device),
    )


def _write(base: Base, folder: Path) -> dict[str, Any]:
    save_file(base_tensors(base), folder / _WEIGHTS)
    return {"engines": layer_engines(base.model), "head_is_tied": head_is_tied(base.model, base.family)}


def _finish(
    opened: OpenBase, checkpoint: Checkpoint, *, adjust: Adjust | None = None, entry: Entry | None = None
) -> Base:
    """Fill the empty model; an entry of the cache also says what else is known of it."""
    model, family = opened.model, opened.family
    tied = None if entry is None else bool(entry.record["head_is_tied"])
    Filler(opened, checkpoint, adjust=adjust, head_is_tied=tied).fill()
    _stop_scaling_an_untied_head(model, family)
    model.to(opened.device).eval().requires_grad_(False)  # type: ignore[arg-type]
    if opened.precision == "int8":  # a float base stays what transformers computes, to the bit
        fuse_gated_layers(model, family)
        use_own_attention(model)
    with refused_as(f"base '{opened.source.spec}': the model that its config describes cannot compute"):
        engines = choose_engines(model, family, opened.device) if entry is None else entry.record["engines"]
    set_engines(model, engines)
    counts = {name: list(engines.values()).count(name) for name in sorted(set(engines.values()))}
    return Base(
        model,
        opened.tokenizer,
        family,
        opened.source,
        opened.precision,
        opened.device,
        opened.checkpoint.files,
        counts,
    )


def _stop_scaling_an_untied_head(model: PreTrainedModel, family: Family) -> None:
    """Trust the tensors, not the config: T5 scales its logits by d_model**-0.5 only when the head is the embedding.

    transformers 5 keeps `tie_word_embeddings` true for every T5 in memory and in the configs it saves, so a reload of
    an untied FLAN-T5 may scale its logits: same answers, wrong loss.
    """
    if hasattr(model.config, "scale_decoder_outputs") and not head_is_tied(model, family):
        model.config.scale_decoder_outputs = False
