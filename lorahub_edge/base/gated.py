"""Gated feed-forward layers whose activation and gate cost no pass over memory of their own.

transformers makes four tensors on the way: the gate's, the other half's, the activation's (GELU's tanh form as eight
operations) and the product's. Here the gate's is the only one: the layer of the other half multiplies its outputs with
the active gate and writes them into its place.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.activations import GELUTanh, NewGELUActivation, SiLUActivation

from lorahub_edge.base.families import Family
from lorahub_edge.base.int8 import ONE_PART_ENGINES, Int8Linear
from lorahub_edge.kernels import ops

_ACTIVATIONS: dict[type[nn.Module], ops.Activation] = {
    NewGELUActivation: "gelu_tanh",
    GELUTanh: "gelu_tanh",
    nn.SiLU: "silu",
    SiLUActivation: "silu",
}


class GatedFeedForward(nn.Module):
    """down(activation(gate(x)) * up(x)), for inference.

    Args:
        layer: what transformers made, whose parts are taken over under the names that they have.
        names: of gate, up, down and activation among the parts.
        activation: which it is.
    """

    def __init__(self, layer: nn.Module, names: tuple[str, str, str, str], activation: ops.Activation) -> None:
        super().__init__()
        for name, part in layer.named_children():
            self.add_module(name, part)
        self.names = names
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up, down, _ = (getattr(self, name) for name in self.names)
        gates = gate(x)
        if up.engine in ONE_PART_ENGINES:
            y = up(x, ops.Gate(gates, self.activation))
        else:
            y = ops.gated_activation(gates, up(x), activation=self.activation, out=gates)
        result: torch.Tensor = down(y)
        return result


def fuse_gated_layers(model: nn.Module, family: Family) -> None:
    """Put a GatedFeedForward in the place of every gated layer of int8 linears whose activation is known.

    Other activations, and layers without a gate, stay what transformers computes.
    """
    for path, layer in list(model.named_modules()):
        if all(hasattr(layer, name) for name in family.gated_layer):
            _, up, _, act = (getattr(layer, name) for name in family.gated_layer)
            activation = _ACTIVATIONS.get(type(act))
            if activation is not None and isinstance(up, Int8Linear):
                model.set_submodule(path, GatedFeedForward(layer, family.gated_layer, activation))
