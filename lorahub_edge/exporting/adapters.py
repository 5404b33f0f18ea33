"""Adapters: a run's composed module as a file beside an exported base, with a reference of its own.

`adapters/<run>.safetensors` is what is fed to the graphs (serve/adapter.py), `adapters/<run>.reference.npz` what torch
answers with it. `adapters/<run>.onnx_adapter` holds the same tensors in onnxruntime's own format: one file per graph,
since a graph refuses a file with a name that is none of its inputs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray
from safetensors.numpy import save_file

from lorahub_edge.errors import InvalidInput, OutputExists, UnsupportedFormat, first_line
from lorahub_edge.exporting.folder import generation_record, prompt_record
from lorahub_edge.exporting.forms import LayerForm
from lorahub_edge.exporting.reference import reference_arrays, write_reference
from lorahub_edge.exporting.source import ExportSource
from lorahub_edge.integrity import check_files, sealed
from lorahub_edge.outputs import whole_file
from lorahub_edge.serve.adapter import (
    ADAPTER_FORMAT,
    ADAPTER_SUFFIX,
    ADAPTERS,
    ONNX_ADAPTER_SUFFIX,
    input_names,
    read_adapter,
    tensors_sha256,
)
from lorahub_edge.serve.folder import GRAPH_NAMES, REFERENCE
from lorahub_edge.sources import sha256_file
from lorahub_edge.tasks import PromptFormat


def adapter_record(source: ExportSource) -> dict[str, Any]:
    """What lorahub_edge.json says about the adapters that the graphs take."""
    shapes = source.base.linear_shapes()
    targets = sorted(source.adapted().values())
    return {
        "default": source.name,
        "targets": {target: list(shapes[target]) for target in targets},
        "base_files": source.provenance["base"]["files"],
    }


def adapter_paths(folder: Path, name: str) -> tuple[Path, Path]:
    """Where an adapter and its reference are."""
    return folder / ADAPTERS / f"{name}{ADAPTER_SUFFIX}", folder / ADAPTERS / f"{name}.{REFERENCE}"


def onnx_adapter_path(folder: Path, name: str, graph: str) -> Path:
    """Where an adapter is in onnxruntime's format, for one of the graphs."""
    part = "" if graph == "model" else f".{graph}"
    return folder / ADAPTERS / f"{name}{part}{ONNX_ADAPTER_SUFFIX}"


def adapter_names(folder: Path) -> list[str]:
    """The adapters in a folder."""
    return sorted(path.stem for path in (folder / ADAPTERS).glob(f"*{ADAPTER_SUFFIX}") if path.name[0] != ".")


def write_adapter(source: ExportSource, folder: Path, prompt: PromptFormat, forms: Mapping[str, LayerForm]) -> None:
    """Write a run's module and its reference into an exported folder, each file under a temporary name first.

    Raises:
        OutputExists: the folder has an adapter of that name.
        IncompatibleModules: the module does not fit the base.
    """
    assert source.module is not None
    path, reference = adapter_paths(folder, source.name)
    if path.exists():
        raise OutputExists(f"{path} exists; rename the run's folder, or remove that adapter")
    examples = prompt.encode_all(source.examples)
    with source.module_active():
        arrays = reference_arrays(source.base, examples, prompt, source.max_new_tokens, forms)
    by_graph = _tensors(source)
    tensors = {name: tensor for taken in by_graph.values() for name, tensor in taken.items()}
    record = {
        "format": ADAPTER_FORMAT,
        "base_files": source.provenance["base"]["files"],
        "prompt": prompt_record(prompt),
        **generation_record(prompt, source.max_new_tokens),
        "tensors_sha256": tensors_sha256(tensors),
        "onnx_adapters_sha256": {},
    }
    path.parent.mkdir(exist_ok=True)
    with ExitStack() as files:  # the last to come gets its name first: an adapter is there once all of it is
        partial, partial_reference = (files.enter_context(whole_file(place)) for place in (path, reference))
        write_reference(partial_reference, arrays)
        record["reference_sha256"] = sha256_file(partial_reference)
        for graph, taken in by_graph.items():
            partial_onnx = files.enter_context(whole_file(onnx_adapter_path(folder, source.name, graph)))
            _write_onnx_adapter(partial_onnx, taken)
            record["onnx_adapters_sha256"][graph] = sha256_file(partial_onnx)
        save_file(tensors, partial, {"lorahub_edge": json.dumps(sealed(record))})


def _tensors(source: ExportSource) -> dict[str, dict[str, NDArray[Any]]]:
    """Graph -> its inputs' names -> float32 arrays, for each graph that has a target of the run's module."""
    assert source.module is not None
    by_graph: dict[str, dict[str, NDArray[Any]]] = {}
    for target, factors in source.module.factors.items():
        graph = "model"
        if source.base.family.is_seq2seq:
            graph = "encoder" if target.startswith("encoder.") else "decoder"
        A, B = factors.A.float(), factors.scaling * factors.B.float()
        arrays = (tensor.contiguous().numpy() for tensor in (A, B))
        by_graph.setdefault(graph, {}).update(zip(input_names(target), arrays, strict=True))
    return by_graph


def _write_onnx_adapter(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    file = onnxruntime.AdapterFormat()
    file.set_adapter_version(1)
    file.set_model_version(1)
    file.set_parameters({name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in tensors.items()})
    try:
        file.export_adapter(str(path))
    except RuntimeError as error:  # onnxruntime's word for a full disk
        raise OSError(first_line(error).rpartition("> ")[2]) from error


def check_adapters(folder: Path, record: Mapping[str, Any]) -> None:
    """Compare every adapter in a folder, its reference and its files for onnxruntime with the hashes in the adapter.

    Raises:
        UnsupportedFormat, InvalidInput: see `read_adapter`; one of its files is gone or not what was exported.
    """
    for name in adapter_names(folder):
        path, reference = adapter_paths(folder, name)
        found = read_adapter(path, record).record
        hashes = {} if "reference_sha256" not in found else {reference: found["reference_sha256"]}
        by_graph = found.get("onnx_adapters_sha256", {})
        if not isinstance(by_graph, dict):
            raise UnsupportedFormat(f"adapter {path}: onnx_adapters_sha256 is no table of hashes; export it again")
        hashes |= {onnx_adapter_path(folder, name, graph): value for graph, value in by_graph.items()}
        check_files(folder, {file.relative_to(folder).as_posix(): value for file, value in hashes.items()}, "exported")


def remove_adapter(folder: Path, name: str) -> None:
    """Take an adapter out of a folder again."""
    for path in (*adapter_paths(folder, name), *(onnx_adapter_path(folder, name, graph) for graph in GRAPH_NAMES)):
        path.unlink(missing_ok=True)


def check_same_base(folder: Path, record: Mapping[str, Any], source: ExportSource, precision: str) -> None:
    """Whether a run's module can go beside the base of an exported folder.

    Raises:
        InvalidInput: the folder's module is merged, or its base, precision or targets are others.
    """
    takes = record.get("adapter")
    if takes is None:
        raise InvalidInput(f"{folder}: its module is merged, so it takes no adapter; name a new folder")
    if record["precision"] != precision:
        raise InvalidInput(
            f"{folder}: its base is {record['precision']}, received --precision {precision}; name a new folder, "
            f"or export with --precision {record['precision']}"
        )
    if takes["base_files"] != source.provenance["base"]["files"]:
        raise InvalidInput(f"{folder}: its base is not that of run {source.name}; name a new folder")
    if unknown := sorted(set(source.adapted().values()) - set(takes["targets"])):
        raise InvalidInput(
            f"{folder}: its graphs take no adapter at '{unknown[0]}', which run {source.name} has; name a new folder"
        )
