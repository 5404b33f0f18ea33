"""Adapters: a run's composed module as a file beside an exported base, with a reference of its own.

`adapters/<run>.safetensors` is what is fed to the graphs (serve/adapter.py), `adapters/<run>.reference.npz` what torch
answers with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from lorahub_edge.errors import InvalidInput, OutputExists
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
    input_names,
    read_adapter,
    tensors_sha256,
)
from lorahub_edge.serve.folder import REFERENCE
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


def adapter_names(folder: Path) -> list[str]:
    """The adapters in a folder."""
    return sorted(path.stem for path in (folder / ADAPTERS).glob(f"*{ADAPTER_SUFFIX}") if path.name[0] != ".")


def write_adapter(source: ExportSource, folder: Path, prompt: PromptFormat, forms: Mapping[str, LayerForm]) -> None:
    """Write a run's module and its reference into an exported folder, each under a temporary name first.

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
    tensors = {}
    for target, factors in source.module.factors.items():
        A, B = input_names(target)
        tensors[A] = factors.A.float().contiguous()
        tensors[B] = (factors.scaling * factors.B.float()).contiguous()
    record = {
        "format": ADAPTER_FORMAT,
        "base_files": source.provenance["base"]["files"],
        "prompt": prompt_record(prompt),
        **generation_record(prompt, source.max_new_tokens),
        "tensors_sha256": tensors_sha256({name: tensor.numpy() for name, tensor in tensors.items()}),
    }
    path.parent.mkdir(exist_ok=True)
    with whole_file(path) as partial, whole_file(reference) as partial_reference:
        write_reference(partial_reference, arrays)
        record["reference_sha256"] = sha256_file(partial_reference)
        save_file(tensors, partial, {"lorahub_edge": json.dumps(sealed(record))})


def check_adapters(folder: Path, record: Mapping[str, Any]) -> None:
    """Compare every adapter in a folder, and its reference, with the hashes in the adapter.

    Raises:
        UnsupportedFormat, InvalidInput: see `read_adapter`; a reference that is gone or not what was exported.
    """
    for name in adapter_names(folder):
        path, reference = adapter_paths(folder, name)
        if expected := read_adapter(path, record).record.get("reference_sha256"):
            check_files(folder, {reference.relative_to(folder).as_posix(): expected}, "exported")


def remove_adapter(folder: Path, name: str) -> None:
    """Take an adapter out of a folder again."""
    for path in adapter_paths(folder, name):
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
