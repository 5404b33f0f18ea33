"""Write an exported folder: graphs under onnx/, config, tokenizer, our record and the reference."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lorahub_edge.base import Base
from lorahub_edge.base.save import copy_side_files, plain_config
from lorahub_edge.exporting import triton
from lorahub_edge.exporting.emit import emit
from lorahub_edge.exporting.forms import LayerForm, choose_forms
from lorahub_edge.exporting.graphs import OPSET, trace_causal, trace_decoder, trace_encoder
from lorahub_edge.exporting.onnx_file import INLINE_LIMIT_BYTES, write_model
from lorahub_edge.exporting.symbols import skeleton
from lorahub_edge.exporting.weights import Weights
from lorahub_edge.integrity import file_hashes, sealed
from lorahub_edge.json_text import to_json
from lorahub_edge.outputs import write_text
from lorahub_edge.serve.adapter import ADAPTERS
from lorahub_edge.serve.folder import EXPORT_FORMAT, RECORD, VERIFICATION
from lorahub_edge.tasks import EncodedExample, PromptFormat

# transformers.js finds a file by the name's ending; Optimum takes any.
SUFFIXES = {"fp32": "", "fp16": "_fp16", "int8": "_int8"}
GRAPHS = "onnx"


def write_graphs(
    base: Base,
    examples: Sequence[EncodedExample],
    folder: Path,
    precision: str,
    *,
    adapted: Mapping[str, str] | None = None,
    triton_name: str | None = None,
    inline_limit_bytes: int = INLINE_LIMIT_BYTES,
) -> tuple[dict[str, str], dict[str, LayerForm]]:
    """Trace, fill and write the graphs.

    Args:
        base: whose graphs.
        examples: what layers' forms are chosen on.
        folder: of the export.
        precision: "int8", "fp16" or "fp32".
        adapted: path of the weight -> target whose A and B become inputs.
        triton_name: what Triton's models are called; None for the folder contract of the other clients.
        inline_limit_bytes: graphs with more bytes of weights keep them in `<file>.onnx_data`.

    Returns:
        Graph name -> file within the folder, and the form of each layer.
    """
    forms = choose_forms(base, examples, precision)
    weights, model = Weights(base, precision), skeleton(base)
    if base.family.is_seq2seq:
        todo = {"encoder": ("encoder_model", trace_encoder), "decoder": ("decoder_model_merged", trace_decoder)}
    else:
        todo = {"model": ("model", trace_causal)}
    files = {}
    for name, (stem, trace) in todo.items():
        if triton_name is None:
            (folder / GRAPHS).mkdir(exist_ok=True)
            path = folder / GRAPHS / f"{stem}{SUFFIXES[precision]}.onnx"
        else:
            path = triton.model_file(folder, triton_name, name)
        traced = trace(model)
        graph, tensors = emit(traced, weights, forms, adapted)
        write_model(path, graph, tensors, inline_limit_bytes=inline_limit_bytes)
        if triton_name is not None:
            triton.write_config(path, traced.inputs, traced.outputs)
        files[name] = path.relative_to(folder).as_posix()
        del traced
        gc.collect()  # the traced program refers to itself in circles
    return files, forms


def write_side_files(base: Base, folder: Path, precision: str) -> None:
    """config.json, generation_config.json and the source's tokenizer files, tokenizer.json in any case."""
    copy_side_files(base, folder)
    has_data = any(folder.rglob("*.onnx_data"))
    config = plain_config(base)
    config["transformers.js_config"] = {"dtype": precision, **({"use_external_data_format": True} if has_data else {})}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if not (folder / "tokenizer.json").is_file():
        base.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    generation = folder / "generation_config.json"
    if not generation.is_file():
        names = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
        found = {name: value for name in names if (value := getattr(base.model.config, name, None)) is not None}
        generation.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def write_record(
    base: Base,
    folder: Path,
    precision: str,
    graphs: Mapping[str, str],
    forms: Mapping[str, LayerForm],
    *,
    prompt: PromptFormat,
    max_new_tokens: int,
    provenance: Mapping[str, Any],
    adapter: Mapping[str, Any] | None = None,
) -> None:
    """lorahub_edge.json, the last file: all that serving needs besides the graphs and the tokenizer."""
    config: Any = base.model.config
    record = {
        "format": EXPORT_FORMAT,
        "family": base.family.name,
        "precision": precision,
        "opset": OPSET,
        "graphs": dict(graphs),
        "files": file_hashes(folder, _files_that_answer(folder)),
        "prompt": prompt_record(prompt),
        "generation": {
            **generation_record(prompt, max_new_tokens),
            "max_positions": None if base.family.is_seq2seq else config.max_position_embeddings,
        },
        "adapter": adapter,
        "source": dict(provenance),
        "forms": {path: asdict(form) for path, form in forms.items()},
    }
    seal_record(folder, record)


def seal_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write lorahub_edge.json with the hash of itself."""
    write_text(folder / RECORD, to_json(sealed(record)) + "\n")


def _files_that_answer(folder: Path) -> list[Path]:
    """All files but the record, the last verification, adapters, which hold their own hashes, and Triton's settings,
    which an operator may tune.
    """
    changing = (folder / RECORD, folder / VERIFICATION)
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and path not in changing and path.parent != folder / ADAPTERS and path.suffix != ".pbtxt"
    ]


def prompt_record(prompt: PromptFormat) -> dict[str, Any]:
    """The prompt as serving reads it."""
    names = ("before", "after", "strip_input", "opening_ids", "closing_ids", "max_input_tokens")
    return {name: value for name, value in prompt.as_record().items() if name in names}


def generation_record(prompt: PromptFormat, max_new_tokens: int) -> dict[str, Any]:
    """How an answer begins and ends, as serving reads it."""
    return {
        "pad_id": prompt.pad_id,
        "start_id": prompt.start_id,
        "end_ids": list(prompt.stop_ids),
        "max_new_tokens": max_new_tokens,
    }
