"""adapter_config.json: PEFT's settings of a module, read and checked. Files come from strangers."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorahub_edge.base.config import MAX_NUMBER
from lorahub_edge.catalogue.folders import CONFIG_FILE, MAX_CONFIG_BYTES
from lorahub_edge.errors import UnsupportedFormat
from lorahub_edge.modules.patterns import Patterns
from lorahub_edge.sources import read_json

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

_SHORT = reprlib.Repr()  # a stranger's value may be as large as the file, or nested as deep
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


@dataclass(frozen=True)
class AdapterConfig:
    """What a module's settings say about its factors.

    Attributes:
        base_name: the base that it was trained for, as the file names it; None where it does not.
        rank, alpha: of targets that no pattern matches.
        ranks, alphas: PEFT's rank_pattern and alpha_pattern.
        use_rslora: whether alpha is divided by the root of the rank.
    """

    base_name: str | None
    rank: float
    alpha: float
    ranks: Patterns
    alphas: Patterns
    use_rslora: bool

    def rank_of(self, target: str) -> float:
        """The rank that a target's factors should have."""
        return float(self.ranks.value(target, self.rank))

    def scaling_of(self, target: str, rank: int) -> float:
        """What B @ A of a target is multiplied with."""
        alpha = float(self.alphas.value(target, self.alpha))
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


def read_config(folder: Path) -> AdapterConfig:
    """A module folder's settings.

    Raises:
        UnsupportedFormat: not a LoRA, or one with parts that factor-wise composition cannot carry; names file and key.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UnsupportedFormat(f"module {folder}: no {CONFIG_FILE} that is a file; expected a PEFT adapter folder")
    config = read_json(path, max_bytes=MAX_CONFIG_BYTES, keys_once=True)
    _refuse_what_is_not_plain(config, path)
    base_name = config.get("base_model_name_or_path")
    return AdapterConfig(
        base_name if isinstance(base_name, str) and base_name.strip() else None,
        _number(config.get("r"), f"{path}: r"),
        _number(config.get("lora_alpha"), f"{path}: lora_alpha"),
        _patterns(config.get("rank_pattern"), f"{path}: rank_pattern"),
        _patterns(config.get("alpha_pattern"), f"{path}: alpha_pattern"),
        bool(config.get("use_rslora")),
    )


def _refuse_what_is_not_plain(config: Mapping[str, Any], path: Path) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UnsupportedFormat(f"{path}: peft_type is {_SHORT.repr(kind)}; only 'LORA' modules can be composed")
    for key, plain in _PLAIN_VALUES.items():
        if key in config and config[key] not in plain:
            raise UnsupportedFormat(
                f"{path}: {key} is {_SHORT.repr(config[key])}; only plain LoRA ({key} = {plain[0]!r}) can be composed"
            )
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(_BASE_CHANGING_INITS):
        raise UnsupportedFormat(
            f"{path}: init_lora_weights is {_SHORT.repr(init)}, which changes the base itself; convert the module with "
            "PEFT's save_pretrained(path_initial_model_for_weight_conversion=...)"
        )
    if config.get("use_rslora") not in (True, False, None):
        raise UnsupportedFormat(f"{path}: use_rslora is {_SHORT.repr(config['use_rslora'])}; expected true or false")


def _patterns(patterns: Any, where: str) -> Patterns:
    if patterns is not None and not isinstance(patterns, dict):
        raise UnsupportedFormat(f"{where} is {_SHORT.repr(patterns)}; expected an object")
    values = {p: _number(value, f"{where}[{_SHORT.repr(p)}]") for p, value in (patterns or {}).items()}
    return Patterns(values, where)


def _number(value: Any, where: str) -> float:
    """A number that float32 holds."""
    if not isinstance(value, bool) and isinstance(value, (int, float)) and abs(value) <= MAX_NUMBER:
        return float(value)
    raise UnsupportedFormat(f"{where} is {_SHORT.repr(value)}; expected a number")
