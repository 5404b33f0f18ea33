"""writer: nodes and tensors of a graph in the making, each under a name of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from lorahub_edge.exporting.onnx_file import BigTensor


class Scope:
    """The nodes of a graph or of a branch in it, and the inputs that were quantised there already."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.quantised: dict[str, tuple[str, str]] = {}


class Writer:
    """Appends nodes to scopes, and keeps the tensors that they read."""

    def __init__(self) -> None:
        self.small: dict[str, Any] = {}
        self.big: dict[str, BigTensor] = {}
        self.n_names = 0

    def add(self, scope: Scope, op_type: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Append a node; returns the name of its output."""
        output = output or self.name(op_type)
        scope.nodes.append(helper.make_node(op_type, list(inputs), [output], **attributes))
        return output

    def name(self, stem: str) -> str:
        """A name that no other value has."""
        self.n_names += 1
        return f"edge_{stem}_{self.n_names}"

    def constant(self, value: Any, dtype: Any) -> str:
        """A small tensor; equal ones are one."""
        array = np.asarray(value, dtype)
        name = f"edge_{array.dtype}_{'x'.join(map(str, array.shape))}_{'_'.join(map(str, array.ravel()))}"
        self.small.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def keep(self, tensor: BigTensor) -> str:
        """Note a big tensor; returns its name."""
        self.big.setdefault(tensor.name, tensor)
        return tensor.name

    def constant_of(self, values: Any, name: str) -> str:
        """A tensor of some size that stays in the graph itself."""
        self.small.setdefault(name, numpy_helper.from_array(values, name))
        return name
