"""merge: a run's composed module folded into its base, written as a transformers folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lorahub_edge.adaptation import Run, SavedRun, open_run
from lorahub_edge.adaptation.settings import check_numbers
from lorahub_edge.base import Base, Int8Linear, Int8Weight
from lorahub_edge.base.open import PRECISIONS
from lorahub_edge.base.save import write_base
from lorahub_edge.errors import IncompatibleModules, InvalidInput, LorahubEdgeError
from lorahub_edge.integrity import file_hashes, sealed
from lorahub_edge.json_text import to_json
from lorahub_edge.kernels import ops
from lorahub_edge.measure import versions
from lorahub_edge.merging.inject import inject_float, inject_int8
from lorahub_edge.merging.saved_merge import EXAMPLES, MERGE_FORMAT, MERGE_RECORD, SURVIVAL
from lorahub_edge.merging.survival import LayerSurvival, Survival
from lorahub_edge.outputs import check_free, whole_folder
from lorahub_edge.sources import local_path
from lorahub_edge.tasks import examples_text

ROUNDINGS = ("nearest", "stochastic")
# Below it the merged model is another one than the search found. Composition sets each coefficient by five examples;
# a tenth of the change is about what that leaves open. The float source gives 1 but for noise, so only --in-place-int8
# and bf16 can fall under it (docs/decisions/0007-merge.md).
DEFAULT_MIN_SURVIVAL = 0.9

_STORED = {"int8": torch.int8, "bf16": torch.bfloat16, "fp32": torch.float32}


class MergeLost(LorahubEdgeError):
    """Too little of the delta survived: caught by who can merge in another way. Carries the report as `survival`."""

    def __init__(self, message: str, survival: Survival) -> None:
        super().__init__(message)
        self.survival = survival


@dataclass(frozen=True)
class Merged:
    """A base with the module folded in.

    Attributes:
        base: ready to be evaluated, saved or exported; it needs no module beside it.
        survival: what became of the delta, target by target.
        source: the run it came from.
        record: how it was made, as merge.json has it.
        folder: where it was written, or None.
    """

    base: Base
    survival: Survival
    source: SavedRun
    record: Mapping[str, Any]
    folder: Path | None = None

    def __repr__(self) -> str:
        return f"Merged({self.base!r}, {self.survival.headline()})"


def merge(
    run: str | Path | Run,
    out: str | Path | None = None,
    *,
    precision: str = "int8",
    in_place_int8: bool = False,
    rounding: str = "nearest",
    seed: int = 0,
    min_survival: float = DEFAULT_MIN_SURVIVAL,
) -> Merged:
    """Fold a run's composed module into its base.

    Meaning, for each target, with s the scaling:

        float source    W' = round(W + s * B @ A)                          W as the checkpoint has it
        in place        W' = quantise(codes * row_scale + s * B @ A)       for when only the int8 base is left

    Args:
        run: a run folder, or a Run that was saved.
        out: new folder for a transformers checkpoint, or None to keep the result in memory.
        precision: "int8" (bitsandbytes' layout), "bf16" or "fp32".
        in_place_int8: start from the int8 codes instead of the float checkpoint; precision must be "int8".
        rounding: in place only: "nearest" or "stochastic".
        seed: of stochastic rounding.
        min_survival: least share of the delta that must survive, from 0 to 1.

    Raises:
        MergeLost: less than `min_survival` of the delta survived; nothing is written.
        InvalidInput: a setting, or a run whose base is gone, has changed or is no float source.
        IncompatibleModules: a target that cannot be merged alone, such as a head that is the embedding.
        OutputExists: `out` is there already.

    Cost: peak memory is the merged base plus one float tensor.
    """
    _check(precision, in_place_int8, rounding, seed, min_survival, out)
    source = _source(run)
    layers: dict[str, LayerSurvival] = {}
    if in_place_int8:
        base = source.load_base("int8")
        _inject_in_place(base, source, layers, rounding=rounding, seed=seed)
    else:
        base = source.load_base(precision, adjust=_adder(source, _STORED[precision], layers))
    _check_all_merged(source, layers)
    survival = Survival(tuple(layers[target] for target in source.module.factors))
    _gate(survival, min_survival, in_place_int8=in_place_int8, rounding=rounding, precision=precision)
    how = {"precision": precision, "in_place_int8": in_place_int8, "rounding": rounding, "seed": seed}
    merged = Merged(base, survival, source, _record(source, base, survival, {**how, "min_survival": min_survival}))
    return merged if out is None else _save(merged, local_path(out).absolute())


def _check(
    precision: str, in_place_int8: bool, rounding: str, seed: int, min_survival: float, out: str | Path | None
) -> None:
    if precision not in PRECISIONS:
        raise InvalidInput(f"precision: expected one of {', '.join(PRECISIONS)}, received '{precision}'")
    if in_place_int8 and precision != "int8":
        raise InvalidInput(f"in_place_int8 writes int8; expected precision int8, received '{precision}'")
    if rounding not in ROUNDINGS:
        raise InvalidInput(f"rounding: expected one of {', '.join(ROUNDINGS)}, received '{rounding}'")
    if rounding != "nearest" and not in_place_int8:
        raise InvalidInput("rounding: the float source is rounded to nearest; stochastic goes with --in-place-int8")
    check_numbers(seed=seed, min_survival=min_survival)
    if out is not None:
        check_free(local_path(out))


def _source(run: str | Path | Run) -> SavedRun:
    if isinstance(run, Run):
        if run.folder is None:
            raise InvalidInput("merge: this run was never written; call run.save(folder) first")
        return open_run(run.folder)
    return open_run(run)


def _adder(
    source: SavedRun, dtype: torch.dtype, layers: dict[str, LayerSurvival]
) -> Callable[[str, torch.Tensor], torch.Tensor]:
    """What adds a target's delta to its float tensor on the way from the file, and notes what will survive."""
    factors = source.module.factors

    def add(name: str, weight: torch.Tensor) -> torch.Tensor:
        target, _, kind = name.rpartition(".")
        if kind != "weight" or target not in factors:
            return weight
        _check_shape(source, target, (int(weight.shape[0]), int(weight.shape[1])))
        if not weight.is_floating_point():
            raise InvalidInput(
                f"run {source.folder}: base '{source.base_spec}' holds int8 codes, no float source, at '{target}'; "
                "merge with --in-place-int8, or restore the float checkpoint"
            )
        exact, injected = inject_float(weight, factors[target], dtype=dtype)
        layers[target] = LayerSurvival.from_rows(target, injected.report, injected.row_scale, weight.shape[1])
        return exact

    return add


def _inject_in_place(
    base: Base, source: SavedRun, layers: dict[str, LayerSurvival], *, rounding: str, seed: int
) -> None:
    shared = base.model.get_submodule(base.family.embedding).weight
    for index, (target, factors) in enumerate(source.module.factors.items()):
        try:
            layer = base.model.get_submodule(target)
        except AttributeError:
            layer = None
        if not isinstance(layer, Int8Linear) or layer.weight is shared:
            continue  # _check_all_merged names it
        _check_shape(source, target, (layer.out_features, layer.in_features))
        injected = inject_int8(layer.int8_weight, factors, rounding=ops.Rounding(rounding, seed + index))
        merged = Int8Weight(injected.values, injected.row_scale)
        layer.codes, layer.row_scale = merged.codes, merged.row_scale
        layers[target] = LayerSurvival.from_rows(target, injected.report, injected.row_scale, layer.in_features)


def _check_shape(source: SavedRun, target: str, expected: tuple[int, int]) -> None:
    factors = source.module.factors[target]
    received = (factors.B.shape[0], factors.A.shape[1])
    if received != expected:
        raise IncompatibleModules(
            f"run {source.folder}: its module at '{target}' is for (out_features, in_features) {received}, "
            f"base '{source.base_spec}' has {expected}; it was made for another base"
        )


def _check_all_merged(source: SavedRun, layers: Mapping[str, LayerSurvival]) -> None:
    for target in source.module.factors:
        if target not in layers:
            raise IncompatibleModules(
                f"run {source.folder}: target '{target}' is no linear layer of its own in base '{source.base_spec}' "
                "(a head that is the embedding cannot be merged alone); keep the module beside the base"
            )


def _gate(survival: Survival, least: float, *, in_place_int8: bool, rounding: str, precision: str) -> None:
    if survival.survived >= least:
        return
    remedies = ["keep it beside the base (the run's folder adapter/ loads with PEFT)"]
    if in_place_int8:
        if rounding == "nearest":
            remedies.insert(0, "round at random (--rounding stochastic)")
        remedies.insert(0, "merge into the float source (without --in-place-int8)")
    elif precision != "fp32":
        remedies.insert(0, "write --precision fp32")
    raise MergeLost(
        f"merge: {survival.headline()}; expected at least {100 * least:g} % (--min-survival). "
        f"Remedies: {'; '.join(remedies)}",
        survival,
    )


def _record(source: SavedRun, base: Base, survival: Survival, how: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "format": MERGE_FORMAT,
        "run": source.folder.name,
        "base": {"spec": source.base_spec, "files": dict(source.base_files), "family": base.family.name},
        **how,
        "survived": survival.survived,
        "prompt": dict(source.prompt),
        "max_new_tokens": source.max_new_tokens,
        "versions": versions(),
    }


def _save(merged: Merged, out: Path) -> Merged:
    texts = {SURVIVAL: to_json(merged.survival.as_record()) + "\n"}
    if merged.source.examples:
        texts[EXAMPLES] = examples_text(merged.source.examples)
    with whole_folder(out) as partial:
        write_base(merged.base, partial, for_transformers=True)
        for name, text in texts.items():
            (partial / name).write_text(text, encoding="utf-8")
        record = sealed({**merged.record, "files": file_hashes(partial, partial.iterdir())})
        (partial / MERGE_RECORD).write_text(to_json(record) + "\n", encoding="utf-8")
    return replace(merged, record=record, folder=out)
