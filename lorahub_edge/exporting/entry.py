"""export: a run or a checkpoint as an ONNX folder, verified before it gets its name."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lorahub_edge.errors import InvalidInput, UnsupportedFormat, refused_as
from lorahub_edge.exporting.adapters import (
    adapter_paths,
    adapter_record,
    check_same_base,
    remove_adapter,
    write_adapter,
)
from lorahub_edge.exporting.drift import Drift, SourceAnswers, answer_source, measure_drift
from lorahub_edge.exporting.folder import seal_record, write_graphs, write_record, write_side_files
from lorahub_edge.exporting.forms import LayerForm
from lorahub_edge.exporting.genai import write_genai_config
from lorahub_edge.exporting.onnx_file import INLINE_LIMIT_BYTES
from lorahub_edge.exporting.reference import reference_arrays, write_reference
from lorahub_edge.exporting.source import ExportSource, open_source
from lorahub_edge.exporting.verification import VerificationFailed, check_export, compare, headline
from lorahub_edge.json_text import to_json
from lorahub_edge.kernels import memory
from lorahub_edge.measure import peak_memory
from lorahub_edge.merging import DEFAULT_MIN_SURVIVAL
from lorahub_edge.outputs import check_free, claimed, whole_folder, write_text
from lorahub_edge.serve.folder import RECORD, REFERENCE, VERIFICATION, read_record
from lorahub_edge.sources import local_path
from lorahub_edge.tasks import EncodedExample, Example, Examples, PromptFormat

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
        drift: how far it answers the test as the run does; None without a test.
    """

    folder: Path
    report: Mapping[str, Any]
    n_bytes: int
    precision: str
    peak_memory: Mapping[str, int]
    drift: Drift | None = None

    def __repr__(self) -> str:
        return f"Exported({self.folder.name}, {self.precision}, {self.n_bytes / 1e6:.1f} MB, {headline(self.report)})"


def export(
    source: str | Path,
    out: str | Path,
    *,
    precision: str = "int8",
    with_adapter: bool = False,
    triton: bool = False,
    in_place_int8: bool = False,
    min_survival: float = DEFAULT_MIN_SURVIVAL,
    test: Examples | None = None,
    inline_limit_bytes: int = INLINE_LIMIT_BYTES,
) -> Exported:
    """Write an ONNX folder for onnxruntime, Optimum and transformers.js, and prove that it answers as torch does.

    Args:
        source: a run folder (its module is merged first), a merged folder, or any base that `load_base` takes.
        out: new folder; with `with_adapter` also one that another run with the same base was exported to.
        precision: "int8": the very codes and scales of the merge; "fp16": weights in half precision, computed in
            float32 (T5 overflows in half precision); "fp32".
        with_adapter: leave the base as it is, with A and B of the run's targets as inputs of the graphs, and put the
            run's module beside it: `adapters/<run>.safetensors`. If `out` is such a folder, only the module is added.
        triton: lay the graphs out as a model repository of Triton Inference Server, `<out>/triton`, instead of as
            Optimum and transformers.js want them; `verify` and `lorahub_edge.serve` read both.
        in_place_int8, min_survival: of the merge; see `merge`.
        test: a file, the name of an embedded task, or rows that the run (or merged folder) and its export both answer:
            how far they agree is in the result and in `lorahub_edge.json`.
        inline_limit_bytes: graphs with more bytes of weights keep them in `<file>.onnx_data`.

    Raises:
        VerificationFailed: it does not; nothing is left or changed, but `<out>.verification.json` says where.
        InvalidInput, UnsupportedFormat, MergeLost: see `merge` and `load_base`.
        OutputExists: `out` is there already.

    Cost: peak memory is the base in `precision` plus its largest matrix, and later the graphs in onnxruntime; with
    `test`, before that, the run's own base and module for as long as they answer.
    """
    _check(precision, with_adapter, triton, in_place_int8)
    out = local_path(out).absolute()
    adds_adapter = with_adapter and (out / RECORD).is_file()
    if adds_adapter:
        check_export(out)
    else:
        check_free(out)
    before = None if test is None else answer_source(source, test)
    found = open_source(
        source, precision, with_adapter=with_adapter, in_place_int8=in_place_int8, min_survival=min_survival
    )
    if not found.base.tokenizer.is_fast:  # ByT5's
        kind = type(found.base.tokenizer).__name__
        raise UnsupportedFormat(f"export: {source}: tokenizer.json cannot hold a {kind}, so clients could not read it")
    if adds_adapter:
        with claimed(out, out):
            report, drift = _add_adapter(found, out, precision, before)
    else:
        triton_name = out.name if triton else None
        report, drift = _write_new(found, out, precision, triton_name, inline_limit_bytes, before)
    n_bytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return Exported(out, report, n_bytes, precision, peak_memory(), drift)


def _check(precision: str, with_adapter: bool, triton: bool, in_place_int8: bool) -> None:
    if precision not in PRECISIONS:
        raise InvalidInput(f"precision: expected one of {', '.join(PRECISIONS)}, received '{precision}'")
    if with_adapter and in_place_int8:
        raise InvalidInput("in_place_int8: with an adapter nothing is merged; leave one of the two out")
    if with_adapter and triton:
        raise InvalidInput("triton: its models take no adapter; leave one of the two out")


def _write_new(
    source: ExportSource,
    out: Path,
    precision: str,
    triton_name: str | None,
    inline_limit_bytes: int,
    before: SourceAnswers | None,
) -> tuple[dict[str, Any], Drift | None]:
    """Write and verify; a folder that does not verify never gets its name."""
    with whole_folder(out) as partial:
        _write(source, partial, precision, triton_name, inline_limit_bytes)
        _free(source)  # onnxruntime needs the room
        return _verify(source, partial, out, before)


def _add_adapter(
    source: ExportSource, out: Path, precision: str, before: SourceAnswers | None
) -> tuple[dict[str, Any], Drift | None]:
    """Put a run's module beside the base that is there already, and verify the whole folder with it."""
    record = read_record(out)
    check_same_base(out, record, source, precision)
    with refused_as(f"{out / RECORD}: its forms are incomplete", "export to a new folder"):
        forms = {path: LayerForm(**form) for path, form in record["forms"].items()}
    write_adapter(source, out, PromptFormat.of_record(source.base, source.prompt), forms)
    try:
        _free(source)
        return _verify(source, out, out, before)
    except BaseException:
        remove_adapter(out, source.name)
        raise


def _verify(
    source: ExportSource, folder: Path, out: Path, before: SourceAnswers | None
) -> tuple[dict[str, Any], Drift | None]:
    """Verify what was written, measure its drift, and put both results beside it."""
    report = compare(folder)
    _check_report(report, out)
    drift = None
    if before is not None:
        adapter = None if source.module is None else adapter_paths(folder, source.name)[0]
        drift = measure_drift(before, folder, adapter)
        record = read_record(folder)
        seal_record(folder, {**record, "tests": {**record.get("tests", {}), source.name: drift.as_record()}})
    write_text(folder / VERIFICATION, to_json(report) + "\n")
    return report, drift


def _free(source: ExportSource) -> None:
    """Let go of the torch model's weights; whoever holds the source keeps its names only."""
    nn.Module.to(source.base.model, device="meta")
    gc.collect()
    memory.give_back()


def _write(
    source: ExportSource, folder: Path, precision: str, triton_name: str | None, inline_limit_bytes: int
) -> None:
    base = source.base
    prompt = PromptFormat.of_record(base, source.prompt)
    examples = prompt.encode_all(source.examples)
    measured = examples or [_neutral(prompt)]
    graphs, forms = write_graphs(
        base, measured, folder, precision, adapted=source.adapted(), triton_name=triton_name,
        inline_limit_bytes=inline_limit_bytes,
    )  # fmt: skip
    write_side_files(base, folder, precision)
    if "model" in graphs and triton_name is None:
        write_genai_config(folder, graphs["model"], base.model.config, prompt, source.max_new_tokens)
    if source.module is not None:
        write_adapter(source, folder, prompt, forms)
    own_examples = examples if source.module is None else ()  # the base alone was not adapted to them
    write_reference(folder / REFERENCE, reference_arrays(base, own_examples, prompt, source.max_new_tokens, forms))
    write_record(
        base, folder, precision, graphs, forms, prompt=prompt, max_new_tokens=source.max_new_tokens,
        provenance=source.provenance,
        adapter=None if source.module is None else adapter_record(source),
    )  # fmt: skip


def _neutral(prompt: PromptFormat) -> EncodedExample:
    return prompt.encode(Example(_NEUTRAL_TEXT, _NEUTRAL_TEXT))


def _check_report(report: Mapping[str, Any], out: Path) -> None:
    if report["passed"]:
        return
    kept = out.with_name(f"{out.name}.{VERIFICATION}")
    write_text(kept, to_json(report) + "\n")
    raise VerificationFailed(f"export: {headline(report)}; nothing was written but the report, {kept}", report)
