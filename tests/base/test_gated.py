"""Gated feed-forward layers of int8 bases are fused; what they compute is what transformers computes."""

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from lorahub_edge.base import load_base
from lorahub_edge.base.families import family_of
from lorahub_edge.base.gated import GatedFeedForward, fuse_gated_layers


class Gated(nn.Module):
    """As transformers writes a decoder-only model's."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (nn.Linear(*sizes) for sizes in ((8, 24), (8, 24), (24, 8)))
        self.act_fn = ACT2FN[activation]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def fused_layers(model: nn.Module) -> list[GatedFeedForward]:
    return [m for m in model.modules() if isinstance(m, GatedFeedForward)]


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_pytorch_tanh", "silu", "swish"])
def test_computes_what_transformers_computes(activation):
    torch.manual_seed(0)
    model = nn.Sequential(Gated(activation)).requires_grad_(False)
    x = 3 * torch.randn(5, 7, 8)
    expected = model(x)
    fuse_gated_layers(model, family_of("llama", where=""))
    assert len(fused_layers(model)) == 1
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


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
