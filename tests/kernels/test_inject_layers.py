"""inject_layers is inject_delta for each layer, from and into the same places every time."""

import pytest
import torch

from lorahub_edge.kernels import ops
from tests.kernels.helpers import assert_same_bytes
from tests.kernels.test_inject_delta import DTYPES, ROUNDINGS, SCALING, Layer, layer_of

# rows, columns and rank of each layer; the second has no rows
SHAPES = ((33, 256, 16), (0, 256, 4), (1, 512, 1), (64, 128, 33), (7, 1028, 0))


def to_inject(layer: Layer, dtype: torch.dtype) -> ops.LayerToInject:
    out = torch.empty(layer.codes.shape, dtype=dtype, device=layer.codes.device)
    return ops.LayerToInject(layer.codes, layer.row_scale, layer.A, layer.B, SCALING, out)


def assert_same_result(received: ops.Injected, expected: ops.Injected) -> None:
    assert_same_bytes(received.values, expected.values)
    assert_same_bytes(received.row_scale, expected.row_scale)
    for name in ("delta_rms", "error", "survived", "n_clipped"):
        assert_same_bytes(getattr(received.report, name), getattr(expected.report, name))


@pytest.mark.parametrize("rounding", ROUNDINGS, ids=lambda r: r.kind)
@pytest.mark.parametrize("dtype", DTYPES)
def test_each_layer_gets_what_inject_delta_gives_it_also_after_its_factors_have_changed(dtype, rounding):
    layers = [layer_of(*shape, seed=seed) for seed, shape in enumerate(SHAPES)]
    together = ops.InjectLayers([to_inject(layer, dtype) for layer in layers], rounding=rounding)
    for scale in (1.0, -0.5):
        for layer in layers:
            layer.A.mul_(scale)
        results = together.inject()
        assert results is together.results
        for layer, received in zip(layers, results, strict=True):
            assert_same_result(received, layer.inject(dtype=dtype, rounding=rounding))


def test_what_does_not_fit_is_refused():
    layer, device = layer_of(3, 5, 2), torch.device("meta")
    assert ops.InjectLayers([]).inject() == []
    with pytest.raises(ValueError, match=r"inject_layers: expected B of shape \(3, 2\)"):
        ops.InjectLayers(
            [to_inject(Layer(layer.codes, layer.row_scale, layer.A, layer.B[:2].contiguous()), torch.int8)]
        )
    there = Layer(*(tensor.to(device) for tensor in vars(layer).values()))
    with pytest.raises(ValueError, match="expected layers on one device, received 2 devices"):
        ops.InjectLayers([to_inject(one, torch.int8) for one in (layer, there)])
    layer.B[1, 1] = float("nan")
    with pytest.raises(ValueError, match="expected finite values, received nan in row 1"):
        ops.InjectLayers([to_inject(layer, torch.int8)]).inject()
