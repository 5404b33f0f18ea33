"""What is exported: a base with its module merged, or a base and the module that goes beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorahub_edge.adaptation import open_run
from lorahub_edge.adaptation.run_folder import is_run_folder
from lorahub_edge.adaptation.side_path import SidePath
from lorahub_edge.base import Base, load_base
from lorahub_edge.errors import InvalidInput
from lorahub_edge.exporting.symbols import weight_path
from lorahub_edge.measure import versions
from lorahub_edge.merging import is_merged_folder, merge, open_merged
from lorahub_edge.modules import LoraModule, ModuleStack
from lorahub_edge.sources import local_path
from lorahub_edge.tasks import Example

# LoRAHub's, for a base that no run has set a length for.
_DEFAULT_MAX_NEW_TOKENS = 256


@dataclass(frozen=True)
class ExportSource:
    """What is exported and what its answers are checked on.

    Attributes:
        name: of the run or folder.
        base: int8 or float32 on the CPU.
        module: what stays beside the base; None if it is merged or there is none.
        examples, prompt, max_new_tokens: of the run.
        provenance: how it was made, for lorahub_edge.json.
    """

    name: str
    base: Base
    module: LoraModule | None
    examples: tuple[Example, ...]
    prompt: Mapping[str, Any]
    max_new_tokens: int
    provenance: Mapping[str, Any]

    def adapted(self) -> dict[str, str]:
        """Path of the stored weight -> target, for each target of the module beside the base."""
        return {} if self.module is None else {weight_path(self.base, t): t for t in self.module.factors}

    @contextmanager
    def module_active(self) -> Iterator[None]:
        """Let the torch model answer with its module, inside a with block."""
        if self.module is None:
            yield
            return
        stack = ModuleStack.build([self.module], self.base)
        with self.base.turn:
            side_path = SidePath(self.base, stack)
            with side_path.active(side_path.prepare(torch.ones(1, 1))):
                yield


def open_source(
    source: str | Path, precision: str, *, with_adapter: bool, in_place_int8: bool, min_survival: float
) -> ExportSource:
    """Load what is exported.

    Args:
        source: a run folder, a merged folder, or any base that `load_base` takes.
        precision: of the export: "int8", "fp16" or "fp32".
        with_adapter: keep the run's module beside the base instead of merging it.
        in_place_int8, min_survival: of the merge.

    Raises:
        InvalidInput: settings that do not go with this source; see also `merge` and `load_base`.
    """
    folder = local_path(source)
    stored = "int8" if precision == "int8" else "fp32"
    if with_adapter:
        found = _with_module(folder, stored)
    elif is_run_folder(folder):
        merged = merge(folder, precision=stored, in_place_int8=in_place_int8, min_survival=min_survival)
        run = merged.source
        found = ExportSource(
            folder.resolve().name, merged.base, None, run.examples, run.prompt, run.max_new_tokens, merged.record
        )
    elif in_place_int8:
        raise InvalidInput(f"export: {source} is no run folder, so there is nothing to merge in place")
    else:
        found = _merged(folder, stored) if is_merged_folder(folder) else _base(source, folder, stored)
    if precision == "fp16":
        _round_to_half(found.base)
    return found


def _with_module(folder: Path, stored: str) -> ExportSource:
    if not is_run_folder(folder):
        raise InvalidInput(f"export: {folder} is no run folder, so there is no adapter to keep beside the base")
    run = open_run(folder)
    base = run.load_base(stored)
    provenance = {
        "base": {"spec": run.base_spec, "files": dict(run.base_files), "family": base.family.name},
        "versions": versions(),
    }
    return ExportSource(
        folder.resolve().name, base, run.module, run.examples, run.prompt, run.max_new_tokens, provenance
    )


def _merged(folder: Path, stored: str) -> ExportSource:
    merged = open_merged(folder)
    base = load_base(str(folder), precision=stored, device="cpu")
    return ExportSource(
        folder.resolve().name, base, None, merged.examples, merged.prompt, merged.max_new_tokens, merged.record
    )


def _base(source: str | Path, folder: Path, stored: str) -> ExportSource:
    base = load_base(str(source), precision=stored, device="cpu")
    provenance = {"base": {"spec": str(source), "family": base.family.name}, "versions": versions()}
    return ExportSource(folder.name, base, None, (), {}, _DEFAULT_MAX_NEW_TOKENS, provenance)


def _round_to_half(base: Base) -> None:
    """Give the torch model the weights that will be written, so that it is the reference for exactly those."""
    for module in base.model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.data = module.weight.data.half().float()
