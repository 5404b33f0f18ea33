"""Small questions about ONNX nodes: what they say, what they read, which of them are needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnx import AttributeProto, TensorProto, helper

from lorahub_edge.exporting.graphs import Axes


def node_attributes(node: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if attribute.type == AttributeProto.STRING:
            value = value.decode()
        elif attribute.type == AttributeProto.STRINGS:
            value = [v.decode() for v in value]
        values[attribute.name] = value
    return values


def node_as_division(node: Any, reciprocals: Mapping[str, Any]) -> Any:
    first, second = node.input
    x, inverse = (first, second) if second in reciprocals else (second, first)
    return helper.make_node("Div", [x, reciprocals[inverse].input[0]], list(node.output), name=node.name)


def used_nodes(nodes: list[Any], outputs: list[str]) -> list[Any]:
    """The nodes that the outputs depend on, in order."""
    needed = set(outputs)
    kept = []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(_reads(node))
    return kept[::-1]


def _reads(node: Any) -> set[str]:
    names = set(node.input)
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            for inner in attribute.g.node:
                names |= _reads(inner)
    return names


def needed_tensors(initializers: list[Any], nodes: list[Any]) -> list[Any]:
    names = set().union(*(_reads(node) for node in nodes)) if nodes else set()
    return [tensor for tensor in initializers if tensor.name in names]


_INTEGERS = (
    "input_ids", "attention_mask", "encoder_attention_mask", "decoder_attention_mask", "position_ids", "logits_from"
)  # fmt: skip


def tensor_type(name: str) -> int:
    """The type of a graph's input or output, of onnx.TensorProto."""
    if name == "use_cache_branch":
        return int(TensorProto.BOOL)
    return int(TensorProto.INT64 if name in _INTEGERS else TensorProto.FLOAT)


def value_infos(axes: Mapping[str, Axes]) -> list[Any]:
    return [helper.make_tensor_value_info(name, tensor_type(name), list(shape)) for name, shape in axes.items()]
