"""Int8 layers: side factors and shared inputs. That a whole int8 model is right: test_load_base.py."""

import pytest
import torch

from lorahub_edge.base.int8 import Int8Linear, Int8Weight
from lorahub_edge.base.side import SideDeltas, SideFactors
from lorahub_edge.kernels import ops


def side_factors(n_candidates: int, layer: Int8Linear, rank: int = 3) -> SideFactors:
    rng = torch.Generator().manual_seed(1)
    A_t = torch.randn(n_candidates, layer.in_features, rank, generator=rng)
    return SideFactors(A_t, torch.randn(n_candidates, layer.out_features, rank, generator=rng), 0.5)


@pytest.mark.parametrize("engine", ["int8", "int8-blocks", "int8-split", "dequantize"])
@pytest.mark.parametrize("bias", [False, True])
def test_side_factors_add_each_candidates_delta(engine, bias):
    layer = Int8Linear(Int8Weight.from_float(torch.randn(33, 128)), torch.randn(33) if bias else None, engine=engine)
    x = torch.randn(4, 5, 128)
    plain = layer(x)
    layer.side = side_factors(2, layer)
    delta = 0.5 * torch.einsum("cbti,cir,cor->cbto", x.view(2, 2, 5, 128), layer.side.A_t, layer.side.B)
    # two float32 sums of 128 and 3 terms
    torch.testing.assert_close(layer(x), plain + delta.flatten(0, 1), rtol=1e-5, atol=1e-5)
    layer.side = None
    assert torch.equal(layer(x), plain)


@pytest.mark.parametrize("engine", ["int8", "int8-blocks", "int8-split", "dequantize"])
@pytest.mark.parametrize("rank", [3, 96, 416])
def test_side_deltas_are_each_candidates_weighed_factors(engine, rank):
    """The same as factors of its own for every candidate, with its weighing in B; exact zeros where it has none."""
    layer = Int8Linear(Int8Weight.from_float(torch.randn(33, 128)), torch.randn(33), engine=engine)
    x = torch.randn(6, 5, 128)
    plain = layer(x)
    rng = torch.Generator().manual_seed(1)
    A_t, B = torch.randn(128, rank, generator=rng), torch.randn(1, 33, rank, generator=rng)
    weighing = (1 + torch.rand(3, rank, generator=rng)) * (torch.arange(rank) % 2)
    weighing[1] = 0
    layer.side = SideFactors(A_t.expand(3, 128, rank), B * weighing[:, None], 1.0)
    expected = layer(x)
    layer.side = SideDeltas(A_t, B, weighing)
    # two float32 sums of 128 and `rank` terms, each up to about 100
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-3)
    assert torch.equal(layer(x)[2:4], plain[2:4])
    assert not torch.allclose(layer(x)[:2], plain[:2], atol=1)


def test_layers_that_read_one_tensor_quantise_it_once(monkeypatch):
    calls = []
    quantize = ops.quantize_activations
    monkeypatch.setattr(ops, "quantize_activations", lambda x: calls.append(tuple(x.shape)) or quantize(x))
    layers = [Int8Linear(Int8Weight.from_float(torch.randn(8, 16)), engine="int8") for _ in range(3)]
    shared = layers[0].inputs
    for layer in layers:
        layer.inputs = shared
    x, other = torch.randn(2, 3, 16), torch.randn(4, 16)
    expected = [Int8Linear(layer.int8_weight)(x) for layer in layers]
    calls.clear()
    for layer, y in zip(layers, expected, strict=True):
        assert torch.equal(layer(x), y)
        layer(other)
    assert calls == [(6, 16), (4, 16)]
    shared.forget()
    layers[0](x)
    assert len(calls) == 3


def test_a_tensor_that_has_changed_is_quantised_again():
    layer = Int8Linear(Int8Weight.from_float(torch.randn(8, 16)), engine="int8")
    x = torch.randn(3, 16)
    layer(x)
    x.mul_(-1)
    assert torch.equal(layer(x), Int8Linear(layer.int8_weight)(x.clone()))


def test_the_float_product_has_neither_bias_nor_side_path():
    """Export measures errors with it: a bias would count as one."""
    layer = Int8Linear(Int8Weight.from_float(torch.randn(33, 31)), torch.randn(33), engine="dequantize")
    x = torch.randn(5, 31)
    plain = layer.float_product(x)
    torch.testing.assert_close(layer(x), plain + layer.bias)
    layer.side = side_factors(1, layer)
    assert torch.equal(layer.float_product(x), plain)
    assert not layer.float_product(torch.zeros(5, 31)).any()
