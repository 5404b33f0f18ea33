"""Which form each int8 layer gets in the graph, by what the form does to the layer's output.

The weight is the same in all forms: the very codes and scales of the base. They differ in how the input is rounded:

    int8_rows     one int8 number per value, with one scale per row of the input. Fastest.
    int8_split    two int8 numbers per value, the second for what the first leaves over: nearly exact. The weight is
                  still read once. For inputs with outliers, such as those of T5's `wo`.
    fp32, fp16    no rounding of the input; the weight in float.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from lorahub_edge.base import Base, Int8Linear
from lorahub_edge.exporting.symbols import weight_path
from lorahub_edge.kernels import ops
from lorahub_edge.tasks import EncodedExample
from lorahub_edge.tasks.batches import answer_batch

INT8_FORMS = ("int8_rows", "int8_split")
# What is left over is at most half a step: in steps of 1/254 it takes -127 to 127.
SPLIT = 254.0
# A row of 1024 Gaussian values, quantised to int8, gives outputs that are off by 0.8 %. Twice and a half of that is an
# input with outliers.
MAX_ROWS_ERROR = 0.02
_MAX_ROWS = 64


@dataclass(frozen=True)
class LayerForm:
    """One layer's form and what was measured.

    Attributes:
        form: the choice.
        errors: form -> norm of the output's error relative to the output; empty if nothing was measured.
    """

    form: str
    errors: Mapping[str, float]


def choose_forms(base: Base, examples: Sequence[EncodedExample], precision: str) -> dict[str, LayerForm]:
    """A form for every linear layer.

    Args:
        base: int8 for precision "int8", float for "fp32" and "fp16".
        examples: what the inputs are measured on.
        precision: "int8", "fp32" or "fp16".

    Returns:
        Path of the weight -> its form. "int8_rows" unless the layer's error is above 2 %, or the base computes
        there with split inputs too; then the form with the smaller error.
    """
    paths = {path: weight_path(base, path) for path in base.linear_shapes()}
    if precision != "int8":
        return {stored: LayerForm(precision, {}) for stored in paths.values()}
    errors = measure_errors(base, examples)
    forms = {}
    for path, stored in paths.items():
        found = errors.get(path, {})
        is_rows = base.model.get_submodule(path).engine in ("int8", "dequantize")
        form = "int8_rows" if is_rows or found else "int8_split"
        if found and (not is_rows or found["int8_rows"] > MAX_ROWS_ERROR):
            form = min(INT8_FORMS, key=lambda name: found[name])
        forms[stored] = LayerForm(form, found)
    return forms


def measure_errors(base: Base, examples: Sequence[EncodedExample]) -> dict[str, dict[str, float]]:
    """Per layer and form the relative error of the output, over all examples: at most 64 rows of each call."""
    sums: dict[str, torch.Tensor] = {}
    with _watched(base, sums), torch.inference_mode():
        for example in examples:
            base.model(**answer_batch([example]).model_inputs)
    errors = {}
    for path, (output, *off) in sums.items():
        if output > 0:
            errors[path] = {
                form: float((o / output).sqrt()) for form, o in zip(INT8_FORMS, torch.stack(off), strict=True)
            }
    return errors


@contextmanager
def _watched(base: Base, sums: dict[str, torch.Tensor]) -> Iterator[None]:
    """Add up squares of each layer's output and of its error in each form, while the base runs."""

    def watch(path: str) -> Any:
        def add(layer: Int8Linear, inputs: tuple[torch.Tensor, ...]) -> None:
            rows = inputs[0].reshape(-1, layer.in_features).float()
            rows = rows[torch.linspace(0, len(rows) - 1, min(len(rows), _MAX_ROWS)).long()]
            once = _rounded(rows)
            scale = rows.abs().amax(1, keepdim=True) / 127
            twice = once + torch.round((rows - once) / scale.clamp_min(1e-30) * SPLIT) * scale / SPLIT
            parts = [rows, once - rows, twice - rows]
            output = layer.float_product(torch.cat(parts))
            squares = output.double().square().view(len(parts), -1).sum(1)
            sums[path] = sums[path] + squares if path in sums else squares

        return add

    layers = [(path, m) for path, m in base.model.named_modules() if isinstance(m, Int8Linear)]
    handles = [layer.register_forward_pre_hook(watch(path)) for path, layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rounded(rows: torch.Tensor) -> torch.Tensor:
    """Rows as int8 leaves them, with one scale per row."""
    codes, scale = ops.quantize_activations(rows)
    return codes.float() * scale[:, None]
