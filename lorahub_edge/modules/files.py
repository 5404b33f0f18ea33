"""Read and write LoRA modules in PEFT's layout: adapter_config.json beside adapter_model.safetensors (or .bin).

Files come from strangers: nothing in them is executed, and what this package cannot compose exactly is refused by
name instead of being ignored. Knows nothing of the base.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lorahub_edge.catalogue.folders import CONFIG_FILE, WEIGHT_FILES, weights_of
from lorahub_edge.errors import UnsupportedFormat
from lorahub_edge.modules.adapter_config import AdapterConfig, read_config
from lorahub_edge.modules.adapter_weights import (
    PREFIX,
    Header,
    factor_keys,
    headers_of,
    tensors_of,
)


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
        base_name: the base that it was trained for, as its config names it.
    """

    name: str
    factors: Mapping[str, LoraFactors]
    files: tuple[Path, ...] = ()
    spec: str = ""
    revision: str | None = None
    base_name: str | None = None

    def outline(self) -> LoraModule:
        """Itself; see `ModuleFolder`."""
        return self

    def read(self) -> LoraModule:
        """Itself; see `ModuleFolder`."""
        return self

    @property
    def rank(self) -> int:
        """The largest of its targets."""
        return max((f.rank for f in self.factors.values()), default=0)

    def __repr__(self) -> str:
        ranks = sorted({f.rank for f in self.factors.values()})
        return f"LoraModule({self.name}, {len(self.factors)} targets, rank {'/'.join(map(str, ranks))})"


@dataclass(frozen=True)
class ModuleFolder:
    """A LoRA module on disk, found and not yet read: two hundred of them need no memory.

    Attributes:
        name, spec, revision: see `LoraModule`.
        folder: PEFT's.
        words: what it says of itself, where a catalogue has kept it; None for what its folder says.
    """

    name: str
    folder: Path
    spec: str = ""
    revision: str | None = None
    words: str | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """Config and weights.

        Raises:
            UnsupportedFormat: there are no weights.
        """
        return (self.folder / CONFIG_FILE, weights_of(self.folder))

    @property
    def base_name(self) -> str | None:
        """The base that it was trained for, as its config names it.

        Raises:
            UnsupportedFormat: the config is not that of a LoRA.
        """
        return read_config(self.folder).base_name

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
        where = f"module {self.folder}"
        config, weights = read_config(self.folder), weights_of(self.folder)
        headers = headers_of(weights)
        keys = factor_keys(headers, where)
        scalings = {t: _scaling(t, headers[a].shape, headers[b].shape, config, where) for t, (a, b) in keys.items()}
        # only what the headers promise is read
        tensors = None if outline else tensors_of(weights)
        factors = {}
        for target, pair in keys.items():
            A, B = (_factor(headers[key], tensors, key, where) for key in pair)
            factors[target] = LoraFactors(A, B, scalings[target])
        return LoraModule(self.name, factors, self.files, self.spec, self.revision, config.base_name)


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


def _scaling(target: str, a: tuple[int, ...], b: tuple[int, ...], config: AdapterConfig, where: str) -> float:
    """A target's scaling, once its factors' shapes fit each other and the config."""
    (rank, in_features), (out_features, _) = a, b
    if rank != b[1] or 0 in (*a, *b):
        raise UnsupportedFormat(
            f"{where}: target {target} has A {a} and B {b}; expected (rank, in_features) and (out_features, rank)"
        )
    # no delta of a layer needs more; such a module would make every other one as large in the stack
    if rank > in_features + out_features:
        raise UnsupportedFormat(
            f"{where}: target {target} has rank {rank} between {in_features} and {out_features} features; "
            "its factors are larger than the layer itself"
        )
    declared = config.rank_of(target)
    if rank != declared:
        raise UnsupportedFormat(
            f"{where}: target {target} has rank {rank}, {CONFIG_FILE} says {declared:g}; "
            "the files do not belong together"
        )
    return config.scaling_of(target, rank)


def _factor(header: Header, tensors: Mapping[str, torch.Tensor] | None, key: str, where: str) -> torch.Tensor:
    if tensors is None:
        return torch.empty(header.shape, device="meta")
    values = tensors[key].detach().to(torch.float32).contiguous()
    if not torch.isfinite(values).all():
        raise UnsupportedFormat(f"{where}: {key} has NaN or infinite values")
    return values


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
        tensors[f"{PREFIX}{target}.lora_A.weight"] = factors.A.contiguous()
        tensors[f"{PREFIX}{target}.lora_B.weight"] = factors.B.contiguous()
    save_file(tensors, folder / WEIGHT_FILES[0], metadata={"format": "pt"})
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _most_common(values: list[Any]) -> Any:
    return max(set(values), key=lambda v: (values.count(v), v))
