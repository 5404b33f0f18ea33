"""triton: what Triton Inference Server must be told about a graph, from the graph's own names and axes.

    <folder>/triton/<name>-<graph>/config.pbtxt
    <folder>/triton/<name>-<graph>/1/model.onnx

`max_batch_size` is 0: the batch is an axis like any other, since caches of unequal lengths cannot be batched by the
server, and one input (`use_cache_branch`) has no batch axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from onnx import TensorProto

from lorahub_edge.exporting.graphs import Axes
from lorahub_edge.exporting.nodes import tensor_type

REPOSITORY = "triton"
_TYPES: dict[int, str] = {
    TensorProto.INT64: "TYPE_INT64",
    TensorProto.FLOAT: "TYPE_FP32",
    TensorProto.BOOL: "TYPE_BOOL",
}


def model_file(folder: Path, name: str, graph: str) -> Path:
    """Where a graph goes; the folders on the way are made."""
    path = folder / REPOSITORY / f"{name}-{graph}" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    return path


def write_config(path: Path, inputs: Mapping[str, Axes], outputs: Mapping[str, Axes]) -> None:
    """Write config.pbtxt for the graph at `path`, as `model_file` named it.

    Args:
        path: of the graph.
        inputs, outputs: name -> axes; a string is a free axis.
    """
    model = path.parent.parent
    lines = [f'name: "{model.name}"', 'backend: "onnxruntime"', "max_batch_size: 0"]
    for field, tensors in (("input", inputs), ("output", outputs)):
        for name, axes in tensors.items():
            dims = ", ".join("-1" if isinstance(axis, str) else str(axis) for axis in axes)
            lines.append(f'{field} {{ name: "{name}" data_type: {_TYPES[tensor_type(name)]} dims: [ {dims} ] }}')
    lines.append("instance_group { count: 1 kind: KIND_CPU }")
    (model / "config.pbtxt").write_text("\n".join(lines) + "\n", encoding="utf-8")
