"""A run folder made of drawn coefficients, and whether a merged folder is what its formula says."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open

from lorahub_edge.adaptation.run_folder import ADAPTER, COEFFICIENTS, MANIFEST
from lorahub_edge.json_text import to_json
from lorahub_edge.modules import RUN_FORMAT, LoraFactors, LoraModule, find_modules, read_module, write_module
from lorahub_edge.outputs import whole_folder
from lorahub_edge.sources import sha256_files


def made_run(folder: Path, base: Path, modules: Path) -> Path:
    """A run folder as merge reads it; how its coefficients were found is not merge's matter, so they are drawn.

    They are positive, since PEFT's weights stand for squares of them.
    """
    shutil.rmtree(folder, ignore_errors=True)
    names = [module.name for module in find_modules(modules)]
    drawn = torch.rand(len(names), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    coefficients = dict(zip(names, drawn.tolist(), strict=True))
    files = sha256_files(sorted(base.glob("*.safetensors")))
    spec = {"spec": str(base.absolute()), "revision": None, "precision": "int8", "files": files}
    manifest = {"format": RUN_FORMAT, "base": spec, "prompt": {}, "max_new_tokens": 16}
    module = _composed(modules, coefficients)
    with whole_folder(folder) as run:
        (run / ADAPTER).mkdir()
        write_module(module, run / ADAPTER, base_name=str(base), task_type="SEQ_2_SEQ_LM", targets=["q", "v"])
        for name, record in ((COEFFICIENTS, coefficients), (MANIFEST, manifest)):
            (run / name).write_text(to_json(record))
    return folder


def _composed(modules: Path, coefficients: dict[str, float]) -> LoraModule:
    """LoRAHub's rule in plain torch: sums of the A and of the B factors."""
    sums: dict[str, LoraFactors] = {}
    for name, c in coefficients.items():
        for target, f in read_module(modules / name).factors.items():
            A, B = (sums[target].A, sums[target].B) if target in sums else (0.0, 0.0)
            sums[target] = LoraFactors(A + c * f.A, B + c * f.B, f.scaling)
    return LoraModule("composed", sums)


# By the contender's number format: what rounding may add to a value, as a share of its row's largest.
ROUNDING = {"fp32": 0.0, "bf16": 1 / 256, "int8": 1 / 254}


def check_merged(out: Path, base: Path, run: Path, precision: str, *, in_place: bool = False) -> None:
    """Compare every target of a merged folder with W + scaling * B @ A, by the largest error of each row.

    Args:
        out: the merged folder.
        base, run: what it was made of.
        precision: of its targets.
        in_place: W was rounded to int8 before.

    Raises:
        SystemExit: an error is larger than the rounding explains.
    """
    before, after = _Tensors(base), _Tensors(out)
    for target, factors in read_module(run / "adapter").factors.items():
        weight = before.matrix(target)
        expected = weight + factors.delta()
        allowed = (1e-5 + ROUNDING[precision]) * expected.abs().amax(1)
        if in_place:
            allowed += 1.01 * ROUNDING["int8"] * weight.abs().amax(1)
        error = (after.matrix(target) - expected).abs().amax(1)
        if not (error <= allowed).all():
            raise SystemExit(f"{out.name}: '{target}' is off by {error.max():.3g}; a wrong result is not timed")


class _Tensors:
    """The matrices of a transformers folder, one at a time, whatever its files."""

    def __init__(self, folder: Path) -> None:
        self.files: dict[str, Path] = dict(_names(folder))

    def matrix(self, target: str) -> torch.Tensor:
        """A layer's weight in float32; codes of bitsandbytes' layout times their scales."""
        weight, scales = self._read(f"{target}.weight").float(), f"{target}.SCB"
        return weight * self._read(scales)[:, None] / 127 if scales in self.files else weight

    def _read(self, name: str) -> torch.Tensor:
        with safe_open(self.files[name], "pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor


def _names(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  no dictionary
                yield name, path
