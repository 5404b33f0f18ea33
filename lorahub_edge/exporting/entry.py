"""export: a run or a checkpoint as an ONNX folder, verified before it gets its name."""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lorahub_edge.adaptation.run_folder import is_run_folder
from lorahub_edge.base import Base, load_base
from lorahub_edge.errors import InvalidInput, LorahubEdgeError, OutputExists
from lorahub_edge.exporting.folder import write_graphs, write_record, write_side_files
from lorahub_edge.exporting.onnx_file import INLINE_LIMIT_BYTES
from lorahub_edge.exporting.reference import Settings, reference_arrays, write_reference
from lorahub_edge.exporting.verification import VerificationFailed, compare, headline
from lorahub_edge.measure import peak_memory, versions
from lorahub_edge.merging import DEFAULT_MIN_SURVIVAL, merge
from lorahub_edge.merging.entry import EXAMPLES, MERGE_FORMAT, MERGE_RECORD
from lorahub_edge.serve.folder import REFERENCE, VERIFICATION
from lorahub_edge.tasks import EncodedExample, Example, PromptFormat, load_examples

PRECISIONS = ("int8", "fp16", "fp32")
# What layers' inputs and the reference are measured on where there are no examples.
_NEUTRAL_TEXT = "the quick brown fox jumps over the lazy dog"


@dataclass(frozen=True)
class Exported:
    """An exported folder.

    Attributes:
        folder: where it is.
        report: the verification, as verification.json has it.
        n_bytes: size of all files.
        precision: of the weights.
        peak_memory: of the process that exported.
    """

    folder: Path
    report: Mapping[str, Any]
    n_bytes: int
    precision: str
    peak_memory: Mapping[str, int]

    def __repr__(self) -> str:
        return f"Exported({self.folder.name}, {self.precision}, {self.n_bytes / 1e6:.1f} MB, {headline(self.report)})"


@dataclass
class _Source:
    """What is exported and what its answers are checked on."""

    base: Base
    examples: tuple[Example, ...]
    prompt: Mapping[str, Any]
    max_new_tokens: int
    provenance: Mapping[str, Any]


def export(
    source: str | Path,
    out: str | Path,
    *,
    precision: str = "int8",
    in_place_int8: bool = False,
    min_survival: float = DEFAULT_MIN_SURVIVAL,
    inline_limit_bytes: int = INLINE_LIMIT_BYTES,
) -> Exported:
    """Write an ONNX folder for onnxruntime, Optimum and transformers.js, and prove that it answers as torch does.

    Args:
        source: a run folder (its module is merged first), a merged folder, or any base that `load_base` takes.
        out: new folder.
        precision: "int8": the very codes and scales of the merge; "fp16": weights in half precision, computed in
            float32 (T5 overflows in half precision); "fp32".
        in_place_int8, min_survival: of the merge; see `merge`.
        inline_limit_bytes: graphs with more bytes of weights keep them in `<file>.onnx_data`.

    Raises:
        VerificationFailed: it does not; no folder is left, but `<out>.verification.json` says where they differ.
        InvalidInput, UnsupportedFormat, MergeLost: see `merge` and `load_base`.
        OutputExists: `out` is there already.

    Cost: peak memory is the base in `precision` plus its largest matrix, and later the graphs in onnxruntime.
    """
    if precision not in PRECISIONS:
        raise InvalidInput(f"precision: expected one of {', '.join(PRECISIONS)}, received '{precision}'")
    out = Path(out).expanduser().absolute()
    if out.exists():
        raise OutputExists(f"output folder {out} exists; name a new one")
    found = _open(source, "int8" if precision == "int8" else "fp32", in_place_int8, min_survival)
    if precision == "fp16":
        _round_to_half(found.base)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _write(found, partial, precision, inline_limit_bytes)
        del found  # onnxruntime needs the room
        gc.collect()
        report = compare(partial)
        _keep_or_fail(report, partial, out)
        partial.rename(out)
    except OSError as error:
        raise LorahubEdgeError(f"output folder {out}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    n_bytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return Exported(out, report, n_bytes, precision, peak_memory())


def _open(source: str | Path, precision: str, in_place_int8: bool, min_survival: float) -> _Source:
    folder = Path(source).expanduser()
    if is_run_folder(folder):
        merged = merge(folder, precision=precision, in_place_int8=in_place_int8, min_survival=min_survival)
        run = merged.source
        return _Source(merged.base, run.examples, run.prompt, run.max_new_tokens, merged.record)
    if in_place_int8:
        raise InvalidInput(f"export: {source} is no run folder, so there is nothing to merge in place")
    base = load_base(str(source), precision=precision, device="cpu")
    record = _merge_record(folder)
    path = folder / EXAMPLES
    examples = tuple(load_examples(path)) if record and path.is_file() else ()
    provenance = record or {"base": {"spec": str(source), "family": base.family.name}, "versions": versions()}
    return _Source(base, examples, record.get("prompt", {}), int(record.get("max_new_tokens", 256)), provenance)


def _round_to_half(base: Base) -> None:
    """Give the torch model the weights that will be written, so that it is the reference for exactly those."""
    for module in base.model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.data = module.weight.data.half().float()


def _merge_record(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / MERGE_RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) and record.get("format") == MERGE_FORMAT else {}


def _write(source: _Source, folder: Path, precision: str, inline_limit_bytes: int) -> None:
    base = source.base
    prompt = PromptFormat.for_base(base, **source.prompt)
    examples = prompt.encode_all(source.examples)
    eos, pad = base.tokenizer.eos_token_id, base.tokenizer.pad_token_id
    end_ids = tuple(sorted({int(eos), *map(int, prompt.end_ids[:1])}))
    pad_id = int(eos if pad is None else pad)
    measured = examples or [_neutral(prompt)]
    graphs, forms = write_graphs(base, measured, folder, precision, inline_limit_bytes=inline_limit_bytes)
    write_side_files(base, folder, precision)
    settings = Settings(pad_id, end_ids, source.max_new_tokens)
    write_reference(folder / REFERENCE, reference_arrays(base, examples, settings))
    write_record(
        base, folder, precision, graphs, forms, prompt=prompt, pad_id=pad_id, end_ids=end_ids,
        max_new_tokens=source.max_new_tokens, provenance=source.provenance,
    )  # fmt: skip


def _neutral(prompt: PromptFormat) -> EncodedExample:
    return prompt.encode(Example(_NEUTRAL_TEXT, _NEUTRAL_TEXT))


def _keep_or_fail(report: Mapping[str, Any], partial: Path, out: Path) -> None:
    text = json.dumps(report, indent=2) + "\n"
    if report["passed"]:
        (partial / VERIFICATION).write_text(text, encoding="utf-8")
        return
    kept = out.with_name(f"{out.name}.{VERIFICATION}")
    kept.write_text(text, encoding="utf-8")
    raise VerificationFailed(f"export: {headline(report)}; no folder was written, the report is {kept}", report)
