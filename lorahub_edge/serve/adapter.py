"""Adapter: one composed module as a file beside an exported base whose graphs take it as input.

The file is safetensors with the graphs' own input names, float32 and with the scaling in B, so that any client can hand
it over without arithmetic. What else belongs to it (base, prompt, length of answers) is its metadata. Knows NumPy only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from lorahub_edge.errors import InvalidInput, UnsupportedFormat, refused_as
from lorahub_edge.integrity import check_hash, check_record
from lorahub_edge.sources import local_path

ADAPTER_FORMAT = "lorahub-edge-adapter/1"
ADAPTERS, ADAPTER_SUFFIX, ONNX_ADAPTER_SUFFIX = "adapters", ".safetensors", ".onnx_adapter"
NO_ADAPTER = "none"
_MAX_BYTES = 1 << 30
SCALE_INPUT = "lora_scale"  # of a graph: (rows, 1, rank), ones unless it is given


@dataclass(frozen=True, eq=False)  # two are the same if they are one object; a file that was read anew is another one
class Adapter:
    """A composed module, ready to be fed.

    Attributes:
        name: of the file, without its ending.
        tensors: input name -> float32: "<target>.lora_A" (rank, in_features), "<target>.lora_B" (out_features, rank).
        record: its metadata: format, base_files, prompt, max_new_tokens, hashes of its tensors, reference and self.
    """

    name: str
    tensors: Mapping[str, NDArray[np.float32]]
    record: Mapping[str, Any]

    def __repr__(self) -> str:
        n_bytes = sum(tensor.nbytes for tensor in self.tensors.values())
        return f"Adapter({self.name}, {len(self.tensors) // 2} targets, {n_bytes / 1e6:.1f} MB)"


Mix = tuple[tuple[Adapter, float], ...]  # a row's adapters, each with its scale; () for the base alone


def input_names(target: str) -> tuple[str, str]:
    """What a target's A and B are called as inputs of a graph."""
    return f"{target}.lora_A", f"{target}.lora_B"


def tensors_sha256(tensors: Mapping[str, NDArray[Any]]) -> str:
    """Hex SHA-256 of tensors: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        digest.update(np.ascontiguousarray(tensor).data)
    return digest.hexdigest()


def adapter_file(folder: Path, record: Mapping[str, Any], wanted: str | Path | None) -> Path | None:
    """Which adapter is meant.

    Args:
        folder: an exported folder.
        record: its lorahub_edge.json.
        wanted: a file, the name of one in the folder, "none" for the base alone, or None for the folder's own.

    Returns:
        The file, or None for none.

    Raises:
        InvalidInput: no such file, or a folder whose module is merged.
    """
    takes = record.get("adapter")
    if takes is None:
        if wanted in (None, NO_ADAPTER):
            return None
        raise InvalidInput(f"{folder}: its module is merged, so it takes no adapter; export with --with-adapter")
    if wanted == NO_ADAPTER:
        return None
    places = [folder / ADAPTERS / f"{wanted or takes['default']}{ADAPTER_SUFFIX}"]
    if wanted is not None:
        places.insert(0, local_path(wanted))
    for place in places:
        if place.is_file():
            return place
    at_hand = sorted(path.stem for path in (folder / ADAPTERS).glob(f"*{ADAPTER_SUFFIX}"))
    raise InvalidInput(
        f"adapter '{wanted or takes['default']}': no such file, and none of {folder}; expected a file, "
        f"{NO_ADAPTER}, or one of: {', '.join(at_hand) or 'nothing'}"
    )


def read_adapter(path: Path, record: Mapping[str, Any]) -> Adapter:
    """Read an adapter and check that it belongs to a folder's base.

    Args:
        path: the file.
        record: lorahub_edge.json of the folder.

    Raises:
        UnsupportedFormat: not an adapter file, a broken one, or one that is not what was exported.
        InvalidInput: made for another base, or for targets that the graphs do not take.
    """
    if not path.is_file() or path.stat().st_size > _MAX_BYTES:
        raise UnsupportedFormat(f"adapter {path}: expected a file of at most {_MAX_BYTES >> 30} GiB")
    with refused_as(f"adapter {path}: expected a file that lorahub-edge export --with-adapter wrote"):
        content = path.read_bytes()  # not mapped: whoever cuts a mapped file ends the process that reads it
        tensors = load(content)
        header = content[8 : 8 + int.from_bytes(content[:8], "little")]
        found = json.loads(json.loads(header)["__metadata__"]["lorahub_edge"])
        is_adapter = found["format"] == ADAPTER_FORMAT
        base_files = found["base_files"]
    if not is_adapter:
        raise UnsupportedFormat(
            f"adapter {path}: expected format {ADAPTER_FORMAT}, received {found['format']!r}; export it again"
        )
    check_record(found, f"adapter {path}", "exported")
    if "tensors_sha256" in found:
        check_hash(f"adapter {path}", found["tensors_sha256"], tensors_sha256(tensors), "exported")
    if base_files != record["adapter"]["base_files"]:
        raise InvalidInput(f"adapter {path}: it was made for another base than this folder's; export its run again")
    _check_tensors(path, tensors, record["adapter"]["targets"])
    return Adapter(path.name.removesuffix(ADAPTER_SUFFIX), tensors, found)


def _check_tensors(path: Path, tensors: Mapping[str, NDArray[Any]], targets: Mapping[str, list[int]]) -> None:
    known = {name for target in targets for name in input_names(target)}
    if unknown := sorted(set(tensors) - known):
        raise InvalidInput(
            f"adapter {path}: this folder's graphs take no '{unknown[0]}'; export the run to a folder of its own"
        )
    for target, (n_out, n_in) in targets.items():
        A, B = (tensors.get(name) for name in input_names(target))
        if A is None and B is None:
            continue  # the graphs' own zeros stay
        if A is None or B is None:
            raise UnsupportedFormat(f"adapter {path}: one factor of '{target}' is missing; export it again")
        if A.dtype != np.float32 or B.dtype != np.float32:
            raise UnsupportedFormat(f"adapter {path}: '{target}' expected float32, received {A.dtype} and {B.dtype}")
        rank = A.shape[0] if A.ndim else 0
        if A.shape != (rank, n_in) or B.shape != (n_out, rank):
            raise UnsupportedFormat(
                f"adapter {path}: '{target}' expected shapes (rank, {n_in}) and ({n_out}, rank), "
                f"received {A.shape} and {B.shape}"
            )
        if not (np.isfinite(A).all() and np.isfinite(B).all()):
            raise UnsupportedFormat(f"adapter {path}: '{target}' holds values that are not finite; export it again")
