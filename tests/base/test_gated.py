"""Gated feed-forward layers of int8 bases are fused; what they compute is what transformers computes."""

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from lorahub_edge.base import load_base
from lorahub_edge.base.engines import one_part_errors
from lorahub_edge.base.families import family_of
from lorahub_edge.base.gated import GatedFeedForward, fuse_gated_layers
from lorahub_edge.base.int8 import Int8Linear, Int8Weight
from lorahub_edge.base.side import SideFactors


class Gated(nn.Module):
    """As transformers writes a decoder-only model's."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        sizes = ((24, 64), (24, 64), (64, 24))
        weights = (Int8Weight.from_float(torch.randn(*size)) for size in sizes)
        self.gate_proj, self.up_proj, self.down_proj = (Int8Linear(weight) for weight in weights)
        self.act_fn = ACT2FN[activation]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def fused_layers(model: nn.Module) -> list[GatedFeedForward]:
    return [m for m in model.modules() if isinstance(m, GatedFeedForward)]


@pytest.mark.parametrize("engine", ["int8", "int8-blocks", "int8-split", "dequantize"])
@pytest.mark.parametrize("activation", ["gelu_new", "gelu_pytorch_tanh", "silu", "swish"])
def test_computes_what_transformers_computes(activation, engine):
    """Its last layer's inputs to within float rounding; their rounding to int8 may fall to either side."""
    torch.manual_seed(0)
    model = nn.Sequential(Gated(activation))
    model[0].up_proj.engine = engine
    model[0].down_proj.engine = "dequantize"
    A_t, B = torch.randn(1, 64, 3), torch.randn(1, 24, 3)
    model[0].up_proj.side = SideFactors(A_t, B, 0.5)
    x = 3 * torch.randn(5, 7, 64)
    expected = model(x)
    fuse_gated_layers(model, family_of("llama", where=""))
    assert len(fused_layers(model)) == 1
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-4 * expected.abs().max().item())


def test_layers_that_are_not_int8_stay():
    model = nn.Sequential(Gated("silu"))
    model[0].up_proj = nn.Linear(64, 24)
    fuse_gated_layers(model, family_of("llama", where=""))
    assert isinstance(model[0], Gated)


def test_choosing_engines_sees_outputs_before_the_gate(bases, monkeypatch):
    """The layer of a gated pair that takes the gate would show another error, were it measured behind it."""

    def errors():
        model = load_base(str(bases["t5"]), device="cpu").model
        layers = {name: m for name, m in model.named_modules() if isinstance(m, Int8Linear)}
        for layer in layers.values():
            layer.engine = "dequantize"
        ids = torch.arange(12)[None] + 4
        return one_part_errors(layers, lambda: model(input_ids=ids, decoder_input_ids=ids[:, :4]))

    fused = errors()
    monkeypatch.setattr("lorahub_edge.base.load.fuse_gated_layers", lambda model, family: None)
    as_it_was = errors()
    assert fused.keys() == as_it_was.keys()
    for name, of_engines in fused.items():
        assert of_engines == pytest.approx(as_it_was[name], rel=1e-3), name


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_other_activations_stay(activation):
    model = nn.Sequential(Gated(activation))
    fuse_gated_layers(model, family_of("llama", where=""))
    assert isinstance(model[0], Gated)


@pytest.mark.parametrize("kind", ["t5", "llama", "gemma2", "gemma3"])
def test_all_layers_of_an_int8_base_and_none_of_a_float_one(bases, kind):
    int8, exact = (load_base(str(bases[kind]), precision=p, device="cpu") for p in ("int8", "fp32"))
    gates = [path for path, _ in exact.model.named_modules() if path.endswith(exact.family.gated_layer[0])]
    assert len(fused_layers(int8.model)) == len(gates) > 0
    assert not fused_layers(exact.model)
    paths = [{path for path, _ in base.model.named_modules() if "dropout" not in path} for base in (int8, exact)]
    assert paths[0] == paths[1]  # modules are found, saved and merged by these names
