"""emit: put each layer's stored weight in the place of its symbol.

Int8 layers compute as the base does: the input gets one scale per row, so that an answer does not depend on what else
is in the batch. The codes are written as they are; nothing is quantised again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from lorahub_edge.exporting.forms import INT8_FORMS, SPLIT, LayerForm
from lorahub_edge.exporting.graphs import OPSET, Axes, Traced
from lorahub_edge.exporting.nodes import needed_tensors, node_as_division, node_attributes, used_nodes, value_infos
from lorahub_edge.exporting.onnx_file import BigTensor
from lorahub_edge.exporting.symbols import CROSS, DOMAIN, EMBEDDING, LATER, LINEAR
from lorahub_edge.exporting.weights import Weights
from lorahub_edge.exporting.writer import Scope, Writer
from lorahub_edge.serve.adapter import SCALE_INPUT, input_names

# Opset 21 came with version 10; onnxruntime reads it from 1.18 on.
IR_VERSION = 10
# 1.0, but not as a constant: onnxruntime would multiply a constant into the weights' scales before it looks for the
# nodes that it makes one operation.
UNIT = "edge_unit"


def emit(
    traced: Traced, weights: Weights, forms: Mapping[str, LayerForm], adapted: Mapping[str, str] | None = None
) -> tuple[Any, list[BigTensor]]:
    """An ONNX model without symbols, and the big tensors that belong to it.

    Args:
        traced: a graph with symbols.
        weights: where the layers' weights are.
        forms: path of the weight -> form.
        adapted: path of the weight -> target whose A and B are inputs of the graph; a graph to which nobody hands any
            takes zeros, and is the base.
    """
    return _Emitter(traced, weights, forms, adapted or {}).emit()


class _Emitter(Writer):
    def __init__(
        self, traced: Traced, weights: Weights, forms: Mapping[str, LayerForm], adapted: Mapping[str, str]
    ) -> None:
        super().__init__()
        self.traced = traced
        self.weights = weights
        self.forms = forms
        self.adapted = adapted
        self.optional: dict[str, Axes] = {}
        linears = [n for n in traced.model.graph.node if n.domain == DOMAIN and n.op_type == LINEAR]
        self.linear_targets = {node_attributes(n)["target"] for n in linears}
        self.groups = self._groups(linears)

    def emit(self) -> tuple[Any, list[BigTensor]]:
        graph = self.traced.model.graph
        scope = Scope()
        for name, (axes, default) in self.traced.optional.items():
            self.optional_input(name, axes, default)
        self._unit(scope)
        reciprocals = {n.output[0]: n for n in graph.node if n.op_type == "Reciprocal"}
        taken: dict[str, str] = {}
        for node in graph.node:
            if node.domain == DOMAIN and node.op_type == CROSS:
                self.cross_attention(scope, node, node_attributes(node))
                taken = dict(zip(node.input[2:], node.output, strict=True))
        for node in graph.node:
            # lengths too are those of what the branch hands on, not of what the client handed in
            node.input[:] = [taken.get(name, name) for name in node.input]
            if node.domain == DOMAIN:
                if node.op_type != CROSS:
                    self._symbol(scope, node)
            elif node.op_type == "Mul" and any(name in reciprocals for name in node.input):
                # onnxruntime knows x / sqrt(mean(x**2)) as one operation, but not x * (1 / sqrt(...))
                scope.nodes.append(node_as_division(node, reciprocals))
            else:
                scope.nodes.append(node)
        nodes = used_nodes(scope.nodes, [o.name for o in graph.output])
        proto = helper.make_graph(
            nodes,
            "lorahub_edge",
            value_infos({**self.traced.inputs, **self.optional}),
            value_infos(self.traced.outputs),
            needed_tensors([*graph.initializer, *self.small.values()], nodes),
        )
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(proto, opset_imports=opsets, ir_version=IR_VERSION, producer_name="lorahub_edge")
        return model, list(self.big.values())

    def _unit(self, scope: Scope) -> None:
        size = self.add(scope, "Size", next(iter(self.traced.inputs)))
        self.add(scope, "Cast", self.add(scope, "Equal", size, size), to=TensorProto.FLOAT, output=UNIT)

    def _groups(self, linears: list[Any]) -> dict[str, list[tuple[str, str]]]:
        """First output of a group -> (target, output) of each: int8 layers with one input become one product."""
        by_input: dict[tuple[str, str], list[tuple[str, str]]] = {}
        for node in linears:
            target = node_attributes(node)["target"]
            form = self.forms[target].form
            alone = form not in INT8_FORMS or target == self.weights.embedding
            key = (node.input[0], node.output[0] if alone else form)
            by_input.setdefault(key, []).append((target, node.output[0]))
        return {group[0][1]: group for group in by_input.values()}

    def _symbol(self, scope: Scope, node: Any) -> None:
        found = node_attributes(node)
        if node.op_type == LINEAR:
            if node.output[0] in self.groups:  # the others of its group come with the first
                self.linear(scope, node.input[0], self.groups[node.output[0]])
        elif node.op_type == EMBEDDING:
            self.embedding(scope, node.input[0], found["target"], node.output[0])
        elif node.op_type == LATER:
            end = self.constant([np.iinfo(np.int64).max], np.int64)
            self.add(scope, "Slice", *node.input, end, output=node.output[0])
        else:
            raise ValueError(f"emit: no such symbol {node.op_type}")

    def linear(self, scope: Scope, x: str, layers: Sequence[tuple[str, str]]) -> None:
        """output = x @ W.T + bias for each (target, output), all in one form and, in int8, by one product."""
        targets = tuple(target for target, _ in layers)
        form, biases = self.forms[targets[0]].form, [self.weights.bias(target) for target in targets]
        products = [
            output if bias is None and target not in self.adapted else self.name("product")
            for (target, output), bias in zip(layers, biases, strict=True)
        ]
        whole = products[0] if len(products) == 1 else self.name("products")
        if form == "int8_rows":
            self._int8_rows(scope, x, targets, whole)
        elif form == "int8_split":
            self._int8_split(scope, x, targets, whole)
        else:
            self.add(scope, "MatMul", x, self._float_weight(scope, targets[0], form), output=whole)
        if len(products) > 1:
            sizes = self.constant([self.weights.shape(target)[0] for target in targets], np.int64)
            scope.nodes.append(helper.make_node("Split", [whole, sizes], products, axis=-1))
        for (target, output), product, bias in zip(layers, products, biases, strict=True):
            side = self._side_path(scope, x, target) if target in self.adapted else None
            if bias is not None:
                into = "" if side else output
                product = self.add(scope, "Add", product, self.constant_of(bias, f"{target}.bias"), output=into)
            if side is not None:
                self.add(scope, "Add", product, side, output=output)

    def _side_path(self, scope: Scope, x: str, target: str) -> str:
        """((x @ A.T) * scale) @ B.T in float32; A and B are zeros and the scale is 1 unless they are given."""
        n_out, n_in = self.weights.shape(target)
        rank = f"{target}.rank"
        A, B = input_names(self.adapted[target])
        self.optional_input(A, (rank, n_in), np.zeros((1, n_in), np.float32))
        self.optional_input(B, (n_out, rank), np.zeros((n_out, 1), np.float32))
        self.optional_input(SCALE_INPUT, ("lora_batch", 1, "lora_rank"), np.ones((1, 1, 1), np.float32))
        x = self.add(scope, "MatMul", x, self.add(scope, "Transpose", A, perm=[1, 0]))
        x = self.add(scope, "Mul", x, SCALE_INPUT)
        return self.add(scope, "MatMul", x, self.add(scope, "Transpose", B, perm=[1, 0]))

    def optional_input(self, name: str, axes: Axes, default: NDArray[Any]) -> None:
        """An input of the graph that clients may leave out."""
        self.optional[name] = axes
        self.constant_of(default, name)

    def _int8_rows(self, scope: Scope, x: str, targets: tuple[str, ...], output: str) -> None:
        if x not in scope.quantised:
            steps, scale = self._in_steps(scope, x)
            scope.quantised[x] = (self._as_codes(scope, steps), scale)
        codes, x_scale = scope.quantised[x]
        self.add(scope, "Mul", self._int8_product(scope, codes, targets), x_scale, output=output)

    def _int8_split(self, scope: Scope, x: str, targets: tuple[str, ...], output: str) -> None:
        """x = scale * (high + low / 254), both int8; one product of both with the weight, which is read once."""
        key = f"{x} in two parts"
        if key not in scope.quantised:
            steps, scale = self._in_steps(scope, x)
            rest = self.add(scope, "Sub", steps, self.add(scope, "Round", steps))
            low = self.add(scope, "Mul", rest, self.constant(SPLIT, np.float32))
            scope.quantised[key] = (self._as_codes(scope, self.add(scope, "Concat", steps, low, axis=0)), scale)
        codes, x_scale = scope.quantised[key]
        product = self._int8_product(scope, codes, targets)
        high, low = self.name("high"), self.name("low")
        scope.nodes.append(helper.make_node("Split", [product], [high, low], axis=0, num_outputs=2))
        low = self.add(scope, "Div", low, self.constant(SPLIT, np.float32))
        self.add(scope, "Mul", self.add(scope, "Add", high, low), x_scale, output=output)

    def _int8_product(self, scope: Scope, codes: str, targets: tuple[str, ...]) -> str:
        """float32: codes @ weight, times the weight's scales; onnxruntime makes these nodes one operation.

        It does so where a scale of the whole input is a factor as well, for which UNIT stands. The rows' own scales
        come later: it would take them for one.
        """
        weight = self.keep(self.weights.codes_transposed(*targets))
        product = self.add(scope, "MatMulInteger", codes, weight, self.constant(128, np.uint8))
        scales = self.add(scope, "Mul", UNIT, self.keep(self.weights.row_scale(*targets)))
        return self.add(scope, "Mul", self.add(scope, "Cast", product, to=TensorProto.FLOAT), scales)

    def _in_steps(self, scope: Scope, x: str) -> tuple[str, str]:
        """x in steps of its row's scale, not rounded yet, and the scales; a row of zeros has scale 0, so any steps."""
        absmax = self.add(scope, "ReduceMax", self.add(scope, "Abs", x), self.constant([-1], np.int64), keepdims=1)
        scale = self.add(scope, "Div", absmax, self.constant(127, np.float32))
        return self.add(scope, "Div", x, scale), scale

    def _as_codes(self, scope: Scope, steps: str) -> str:
        """Rounded to uint8 with zero point 128: int8 by another name, fast on every CPU."""
        return self.add(scope, "QuantizeLinear", steps, self.constant(1, np.float32), self.constant(128, np.uint8))

    def _float_weight(self, scope: Scope, target: str, form: str) -> str:
        if target == self.weights.embedding:  # one copy for both uses
            rows = self._as_float32(scope, self.keep(self.weights.rows(target, form)), form)
            return self.add(scope, "Transpose", rows, perm=[1, 0])
        return self._as_float32(scope, self.keep(self.weights.float_transposed(target, form)), form)

    def _as_float32(self, scope: Scope, name: str, form: str) -> str:
        return self.add(scope, "Cast", name, to=TensorProto.FLOAT) if form == "fp16" else name

    def embedding(self, scope: Scope, ids: str, target: str, output: str) -> None:
        """Rows of the embedding; of the head's own tensor if the graph has that as well."""
        form = self.forms[target].form if target in self.linear_targets else self.weights.embedding_form
        if form in ("fp32", "fp16"):
            rows = self.keep(self.weights.rows(target, form))
            self._as_float32_rows(scope, self.add(scope, "Gather", rows, ids), form, output)
            return
        codes = self._embedding_codes(scope, ids, target)
        scale = self.add(scope, "Gather", self.keep(self.weights.row_scale(target)), ids)
        scale = self.add(scope, "Unsqueeze", scale, self.constant([-1], np.int64))
        self.add(scope, "Mul", codes, scale, output=output)

    def _as_float32_rows(self, scope: Scope, rows: str, form: str, output: str) -> None:
        if form == "fp16":
            self.add(scope, "Cast", rows, to=TensorProto.FLOAT, output=output)
        else:
            self.add(scope, "Identity", rows, output=output)

    def _embedding_codes(self, scope: Scope, ids: str, target: str) -> str:
        if target not in self.linear_targets:
            codes = self.add(scope, "Gather", self.keep(self.weights.codes(target)), ids)
        else:  # stored (in, out) for the head: pick columns
            columns = self.add(scope, "Gather", self.keep(self.weights.codes_transposed(target)), ids, axis=1)
            codes = self.add(scope, "Transpose", columns, perm=[1, 2, 0])
        return self.add(scope, "Cast", codes, to=TensorProto.FLOAT)

    def cross_attention(self, scope: Scope, node: Any, attributes: Mapping[str, Any]) -> None:
        """One branch for all layers: caches as they were given, or projections of the encoder's output."""
        condition, hidden, *past = node.input
        reused, fresh = Scope(), Scope()
        branches: dict[str, Any] = {}
        for name, branch in (("then_branch", reused), ("else_branch", fresh)):
            outputs = []
            for index, given in enumerate(past):
                output = f"{node.output[index]}_{name}"
                if branch is reused:
                    self.add(branch, "Identity", given, output=output)
                elif index % 4 < 2:
                    # some clients hand over a cache of one zero position in the first step: it is not part of the text
                    bounds = [self.constant([value], np.int64) for value in (0, 0, 2)]
                    self.add(branch, "Slice", given, *bounds, output=output)
                else:
                    target = attributes["targets"][2 * (index // 4) + index % 2]
                    self._project_heads(branch, hidden, target, attributes, output)
                outputs.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
            branches[name] = helper.make_graph(branch.nodes, name, [], outputs)
        scope.nodes.append(helper.make_node("If", [condition], list(node.output), **branches))

    def _project_heads(
        self, scope: Scope, hidden: str, target: str, attributes: Mapping[str, Any], output: str
    ) -> None:
        flat = self.name("projected")
        self.linear(scope, hidden, [(target, flat)])
        heads = self.constant([0, 0, attributes["n_heads"], attributes["head_width"]], np.int64)
        self.add(scope, "Transpose", self.add(scope, "Reshape", flat, heads), perm=[0, 2, 1, 3], output=output)
