"""A stranger's config and tokenizer, checked before anything is built from them."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from lorahub_edge.base.checkpoint import Checkpoint
from lorahub_edge.errors import UnsupportedFormat

# Each layer has tensors of its own.
_LAYER_COUNTS = ("num_hidden_layers", "num_layers", "num_decoder_layers")
# Each of these is a dimension of some tensor, or divides one; transformers makes a list of num_labels, so it is here.
_WIDTHS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("d_model", "d_kv", "d_ff", "num_heads", "relative_attention_num_buckets", "num_labels"),
)
# Code, or places where transformers would look for code.
_NEVER_TAKEN = ("auto_map", "attn_implementation", "_attn_implementation", "_attn_implementation_internal")
_OWN_QUANTISATION = {"quant_method": "bitsandbytes", "load_in_8bit": True}
_QUANTISATIONS = ("quantization_config", "compression_config")
MAX_NUMBER = 3.0e38  # beyond it float32 is infinite
# Of a tokenizer's normalizer: its steps, and how many times longer they may make a text.
_MAX_STEPS, _MAX_GROWTH = 1000, 64


def refuse_foreign_quantisation(config: Mapping[str, Any], *, where: str) -> None:
    """Only bitsandbytes' int8 rows are read; any other packing would give wrong weights.

    Raises:
        UnsupportedFormat: names the other method.
    """
    for key in _QUANTISATIONS:
        stated = config.get(key) or {}
        own = (
            isinstance(stated, dict) and {"quant_method": "bitsandbytes", **stated}.items() >= _OWN_QUANTISATION.items()
        )
        if stated and not (own and not stated.get("load_in_4bit")):
            method = stated.get("quant_method", stated) if isinstance(stated, dict) else stated
            raise UnsupportedFormat(
                f"{where}: its weights are quantised ({key}: {str(method)[:80]}); read are float weights and "
                "bitsandbytes' load_in_8bit; give the float base it was made from"
            )


def make_config(config: Mapping[str, Any], checkpoint: Checkpoint, *, where: str) -> PreTrainedConfig:
    """transformers' config of these values.

    Args:
        config: the values of config.json, with a known model_type.
        checkpoint: the weights; no size may be beyond what they hold.
        where: the base, for messages.

    Raises:
        UnsupportedFormat: a size that does not fit the weights, or a number that float32 does not hold.
    """
    shapes = [checkpoint.describe(name)[0] for name in checkpoint.names()]
    limits = {
        **dict.fromkeys(_LAYER_COUNTS, len(shapes)),
        **dict.fromkeys(_WIDTHS, max((n for shape in shapes for n in shape), default=0)),
    }
    for name in limits.keys() & config.keys():
        value = config[name]
        if value is not None and (type(value) is not int or not 1 <= value <= limits[name]):
            raise UnsupportedFormat(
                f"{where}: its config says {name} = {str(value)[:40]}, but the weights allow 1 to {limits[name]}"
            )
    for number in _numbers(config):
        if not abs(number) <= MAX_NUMBER:  # nor NaN
            raise UnsupportedFormat(
                f"{where}: its config has the number {str(number)[:40]}, which float32 does not hold"
            )
    taken = {key: value for key, value in config.items() if key not in (*_NEVER_TAKEN, *_QUANTISATIONS)}
    made: PreTrainedConfig = CONFIG_MAPPING[config["model_type"]].from_dict(taken)
    return made


def _numbers(value: Any) -> Iterator[int | float]:
    if isinstance(value, (int, float)):
        yield value
    elif isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _numbers(part)


def check_normalizer(path: Path) -> None:
    """Refuse a tokenizer.json whose normalizer could make a text many times longer: each step may double it again.

    Raises:
        UnsupportedFormat: names the factor. A file that is no JSON is left to whoever reads it.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    for found in re.finditer(r'(?<!\\)"normalizer"\s*:\s*', text):  # the rest of the file is megabytes of vocabulary
        with contextlib.suppress(ValueError, RecursionError):
            normalizer, _ = json.JSONDecoder().raw_decode(text, found.end())
            if (growth := _growth(normalizer)) > _MAX_GROWTH:
                raise UnsupportedFormat(
                    f"{path}: its normalizer could make a text {growth:.3g} times longer; expected at most "
                    f"{_MAX_GROWTH} times"
                )


def _growth(normalizer: Any) -> float:
    """How many times longer a text can become, at most."""
    if not isinstance(normalizer, dict):
        return 1.0
    steps = normalizer.get("normalizers")
    if isinstance(steps, list):
        return math.prod(_growth(step) for step in steps[:_MAX_STEPS]) if len(steps) <= _MAX_STEPS else math.inf
    pattern, content = normalizer.get("pattern"), normalizer.get("content")
    if not isinstance(pattern, dict) or not isinstance(content, str):
        return 1.0
    replaced = pattern.get("String")
    return max(1.0, len(content) / max(1, len(replaced) if isinstance(replaced, str) else 1))
