"""adapter_config.json: PEFT's settings of a module, read and checked. Files come from strangers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorahub_edge.errors import UnsupportedFormat

CONFIG_FILE = "adapter_config.json"
MAX_CONFIG_BYTES = 1 << 20
MAX_PATTERN_LENGTH = 300

# Settings that change what a module computes, and the values under which it is a plain LoRA.
_PLAIN_VALUES: dict[str, tuple[Any, ...]] = {
    "fan_in_fan_out": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
    "alora_invocation_tokens": (None, []),
    "megatron_config": (None, {}),
}
# Initialisations that move part of the base into the module: it only fits a base changed in the same way.
_BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")


def read_config(folder: Path) -> dict[str, Any]:
    """A module folder's settings.

    Raises:
        UnsupportedFormat: not a LoRA, or one with parts that factor-wise composition cannot carry; names file and key.
    """
    path = folder / CONFIG_FILE
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise UnsupportedFormat(f"{path}: larger than {MAX_CONFIG_BYTES} bytes; not an adapter config")
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UnsupportedFormat(f"module {folder}: no {CONFIG_FILE}; expected a PEFT adapter folder") from error
    except (ValueError, RecursionError, OSError) as error:
        raise UnsupportedFormat(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(config, dict):
        raise UnsupportedFormat(f"{path}: expected a JSON object, received {type(config).__name__}")
    _refuse_what_is_not_plain(config, path)
    return config


def _refuse_what_is_not_plain(config: Mapping[str, Any], path: Path) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UnsupportedFormat(f"{path}: peft_type is {kind!r}; only 'LORA' modules can be composed")
    for key, plain in _PLAIN_VALUES.items():
        if key in config and config[key] not in plain:
            raise UnsupportedFormat(
                f"{path}: {key} is {config[key]!r}; only plain LoRA ({key} = {plain[0]!r}) can be composed"
            )
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(_BASE_CHANGING_INITS):
        raise UnsupportedFormat(
            f"{path}: init_lora_weights is {init!r}, which changes the base itself; convert the module with PEFT's "
            "save_pretrained(path_initial_model_for_weight_conversion=...)"
        )
    if config.get("use_rslora") not in (True, False, None):
        raise UnsupportedFormat(f"{path}: use_rslora is {config['use_rslora']!r}; expected true or false")
    for key in ("r", "lora_alpha"):
        _check_number(config.get(key), f"{path}: {key}")
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(key) or {}
        if not isinstance(patterns, dict):
            raise UnsupportedFormat(f"{path}: {key} is {patterns!r}; expected an object")
        for pattern, value in patterns.items():
            _check_pattern(pattern, f"{path}: {key}")
            _check_number(value, f"{path}: {key}[{pattern!r}]")


def _check_number(value: Any, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UnsupportedFormat(f"{where} is {value!r}; expected a number")


def _check_pattern(pattern: str, where: str) -> None:
    """A stranger's expression is matched against every target: short, valid, no repeat inside a repeat."""
    if len(pattern) > MAX_PATTERN_LENGTH or re.search(r"[*+}]\)?[*+{]", pattern):
        raise UnsupportedFormat(f"{where} has {pattern[:80]!r}; expected a module path or a simple pattern")
    try:
        re.compile(pattern)
    except re.error as error:
        raise UnsupportedFormat(f"{where} has {pattern!r}, which is no pattern ({error})") from error


def pattern_value(patterns: Mapping[str, Any] | None, target: str, default: Any) -> Any:
    """The value for a target from PEFT's rank_pattern or alpha_pattern: keys match whole trailing path parts."""
    for pattern, value in (patterns or {}).items():
        # PEFT: a leading ^ anchors at the start of the path
        expression = pattern if pattern.startswith("^") else rf"(.*\.)?({pattern})"
        if re.match(rf"{expression}$", target):
            return value
    return default
