"""Read and write LoRA modules in PEFT's layout: adapter_config.json beside adapter_model.safetensors (or .bin).

Files come from strangers: nothing in them is executed, and what this package cannot compose exactly is refused by
name instead of being ignored. Knows nothing of the base.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from lorahub_edge.base.checkpoint import load_bin
from lorahub_edge.errors import UnsupportedFormat
from lorahub_edge.modules.adapter_config import CONFIG_FILE, pattern_value, read_config

WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")

_PREFIX = "base_model.model."
# "….q.lora_A.weight"; some tools keep PEFT's adapter name: "….q.lora_A.default.weight"
_KEY = re.compile(r"^(?P<target>.+)\.lora_(?P<factor>[AB])(\.[\w-]+)?\.weight$")


@dataclass(frozen=True)
class LoraFactors:
    """What one module does to one target: delta = scaling * B @ A.

    Attributes:
        A: float32 (rank, in_features).
        B: float32 (out_features, rank).
        scaling: alpha / rank, or alpha / sqrt(rank) when rank-stabilised.
    """

    A: torch.Tensor
    B: torch.Tensor
    scaling: float

    @property
    def rank(self) -> int:
        """Inner size of the product."""
        return self.A.shape[0]

    def delta(self) -> torch.Tensor:
        """float32 (out_features, in_features): the change to the target's weight."""
        return self.scaling * (self.B @ self.A)


@dataclass(frozen=True)
class LoraModule:
    """One trained LoRA.

    Attributes:
        name: unique among the modules of a run.
        factors: target -> its factors; a target is a module path in the base, for instance
            "encoder.block.0.layer.0.SelfAttention.q".
        files: the files it was read from (none for a module made in memory).
        spec: what the user wrote to name it.
        revision: the Hub's commit, if it came from there.
    """

    name: str
    factors: Mapping[str, LoraFactors]
    files: tuple[Path, ...] = ()
    spec: str = ""
    revision: str | None = None

    def outline(self) -> LoraModule:
        """Itself; see `ModuleFolder`."""
        return self

    def read(self) -> LoraModule:
        """Itself; see `ModuleFolder`."""
        return self

    def __repr__(self) -> str:
        ranks = sorted({f.rank for f in self.factors.values()})
        return f"LoraModule({self.name}, {len(self.factors)} targets, rank {'/'.join(map(str, ranks))})"


@dataclass(frozen=True)
class ModuleFolder:
    """A LoRA module on disk, found and not yet read: two hundred of them need no memory.

    Attributes:
        name, spec, revision: see `LoraModule`.
        folder: PEFT's.
    """

    name: str
    folder: Path
    spec: str = ""
    revision: str | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """Config and weights.

        Raises:
            UnsupportedFormat: there are no weights.
        """
        return (self.folder / CONFIG_FILE, _weights_of(self.folder))

    def outline(self) -> LoraModule:
        """The module without its values: factors on torch's device "meta". Reads only headers of safetensors files.

        Raises:
            UnsupportedFormat: as for `read_module`, but for the values.
        """
        return self._read(outline=True)

    def read(self) -> LoraModule:
        """The module; see `read_module`."""
        return self._read(outline=False)

    def _read(self, *, outline: bool) -> LoraModule:
        config, weights = read_config(self.folder), _weights_of(self.folder)
        tensors = _outline_tensors(weights) if outline else _read_tensors(weights)
        factors = _factors(tensors, config, where=f"module {self.folder}")
        return LoraModule(self.name, factors, self.files, self.spec, self.revision)


def is_module_folder(folder: Path) -> bool:
    """Whether a folder looks like one PEFT adapter."""
    return (folder / CONFIG_FILE).is_file()


def read_module(folder: str | Path, *, name: str | None = None) -> LoraModule:
    """Read one module from a PEFT folder of today or of 2023.

    Args:
        folder: with adapter_config.json and adapter_model.safetensors or adapter_model.bin.
        name: defaults to the folder's name.

    Raises:
        UnsupportedFormat: not a LoRA, a LoRA with parts that factor-wise composition cannot carry, broken files,
            or factors with NaN or infinite values. The message names the folder and the reason.
    """
    folder = Path(folder)
    return ModuleFolder(name or folder.name, folder, str(folder)).read()


def _weights_of(folder: Path) -> Path:
    weights = next((folder / n for n in WEIGHT_FILES if (folder / n).is_file()), None)
    if weights is None:
        raise UnsupportedFormat(f"module {folder}: expected {' or '.join(WEIGHT_FILES)}, found neither")
    return weights


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".bin":
        return load_bin(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UnsupportedFormat(f"{path}: not a whole safetensors file ({error}); copy it again") from error


def _outline_tensors(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".bin":  # memory-mapped: nothing is read but the names and shapes
        return {name: tensor.to("meta") for name, tensor in load_bin(path).items()}
    try:
        with safe_open(path, framework="pt") as handle:
            return {name: _outline_tensor(handle.get_slice(name)) for name in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UnsupportedFormat(f"{path}: not a whole safetensors file ({error}); copy it again") from error


def _outline_tensor(stored: Any) -> torch.Tensor:
    is_float = stored.get_dtype() in ("F64", "F32", "F16", "BF16")
    return torch.empty(stored.get_shape(), dtype=torch.float32 if is_float else torch.int8, device="meta")


def _factors(tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], *, where: str) -> dict[str, LoraFactors]:
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.match(key.removeprefix(_PREFIX))
        if match is None or tensor.ndim != 2 or not tensor.is_floating_point():
            raise UnsupportedFormat(
                f"{where}: tensor {key} {tuple(tensor.shape)} is not a LoRA factor of a linear layer; "
                "only modules made of such factors can be composed"
            )
        pairs.setdefault(match["target"], {})[match["factor"]] = tensor
    if not pairs:
        raise UnsupportedFormat(f"{where}: holds no LoRA factors")
    return {target: _pair(target, pair, config, where) for target, pair in sorted(pairs.items())}


def _pair(target: str, pair: Mapping[str, torch.Tensor], config: Mapping[str, Any], where: str) -> LoraFactors:
    if set(pair) != {"A", "B"}:
        raise UnsupportedFormat(f"{where}: target {target} has lora_{min(pair)} only; expected lora_A and lora_B")
    a, b = (pair[k].to(torch.float32).contiguous() for k in "AB")
    if a.shape[0] != b.shape[1] or a.shape[0] == 0:
        raise UnsupportedFormat(
            f"{where}: target {target} has A {tuple(a.shape)} and B {tuple(b.shape)}; "
            "expected (rank, in_features) and (out_features, rank)"
        )
    declared = pattern_value(config.get("rank_pattern"), target, config["r"])
    if a.shape[0] != declared:
        raise UnsupportedFormat(
            f"{where}: target {target} has rank {a.shape[0]}, {CONFIG_FILE} says {declared}; "
            "the files do not belong together"
        )
    for factor, values in (("A", a), ("B", b)):
        if not values.is_meta and not torch.isfinite(values).all():
            raise UnsupportedFormat(f"{where}: lora_{factor} of target {target} has NaN or infinite values")
    return LoraFactors(a, b, _scaling(target, a.shape[0], config))


def _scaling(target: str, rank: int, config: Mapping[str, Any]) -> float:
    alpha = float(pattern_value(config.get("alpha_pattern"), target, config["lora_alpha"]))
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def write_module(module: LoraModule, folder: Path, *, base_name: str, task_type: str, targets: list[str]) -> None:
    """Write a module so that PeftModel.from_pretrained loads it.

    Args:
        module: one scaling and rank per target; differing ones go into alpha_pattern and rank_pattern.
        folder: an existing folder.
        base_name: base_model_name_or_path, so that PEFT and people find the base.
        task_type: PEFT's, e.g. "SEQ_2_SEQ_LM".
        targets: target_modules as PEFT matches them: layer names ("q", "v") or whole paths.
    """
    ranks = {t: f.rank for t, f in module.factors.items()}
    alphas = {t: f.scaling * f.rank for t, f in module.factors.items()}
    rank, alpha = (_most_common(list(values.values())) for values in (ranks, alphas))
    config = {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_name,
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "target_modules": targets,
        "rank_pattern": {re.escape(t): r for t, r in ranks.items() if r != rank},
        "alpha_pattern": {re.escape(t): a for t, a in alphas.items() if a != alpha},
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "use_rslora": False,
        "use_dora": False,
    }
    tensors = {}
    for target, factors in module.factors.items():
        tensors[f"{_PREFIX}{target}.lora_A.weight"] = factors.A.contiguous()
        tensors[f"{_PREFIX}{target}.lora_B.weight"] = factors.B.contiguous()
    save_file(tensors, folder / WEIGHT_FILES[0], metadata={"format": "pt"})
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _most_common(values: list[Any]) -> Any:
    return max(set(values), key=lambda v: (values.count(v), v))
