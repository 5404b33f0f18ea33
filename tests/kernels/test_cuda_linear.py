"""int8_linear on CUDA in one kernel: the bits of the CPU's kernel, whatever the tiles."""

from dataclasses import replace

import pytest
import torch

from lorahub_edge.kernels import ops
from lorahub_edge.kernels.int8_product import is_fused
from tests.kernels.cuda_helpers import FLOATS, needs_gpu, on_gpu, shifted
from tests.kernels.helpers import assert_same_bytes
from tests.kernels.test_int8_linear import Layer, layer_of

pytestmark = needs_gpu


@pytest.fixture(autouse=True)
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAHUB_EDGE_INT8_PRODUCT", "fused")
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs compute capability 8.0")


def assert_equals_the_cpu(layer: Layer, dtype: torch.dtype = torch.float32) -> None:
    there = on_gpu(layer)
    assert is_fused(there.x, there.w)
    assert_same_bytes(there.output(dtype=dtype).cpu(), layer.output(dtype=dtype))


@pytest.mark.parametrize("in_features", [16, 64, 208])
@pytest.mark.parametrize("out_features", [1, 7, 66])
@pytest.mark.parametrize("n_rows", [1, 65])
def test_sizes(n_rows: int, out_features: int, in_features: int) -> None:
    assert_equals_the_cpu(layer_of(n_rows, out_features, in_features))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("n_rows", "out_features"), [(257, 130)])
def test_many_tiles_are_large_ones(n_rows: int, out_features: int, dtype: torch.dtype) -> None:
    assert_equals_the_cpu(layer_of(n_rows, out_features, 80, rank=2, n_groups=257, bias=True), dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rank", [1, 16, 33])
@pytest.mark.parametrize("n_groups", [1, 3, 45])
def test_a_tile_has_rows_of_one_candidate_or_of_many(n_groups: int, rank: int, dtype: torch.dtype) -> None:
    assert_equals_the_cpu(layer_of(90, 34, 32, rank=rank, n_groups=n_groups, bias=True), dtype)


def test_no_rows_and_no_columns() -> None:
    for n_rows, out_features in ((0, 5), (5, 0)):
        assert on_gpu(layer_of(n_rows, out_features, 32)).output().shape == (n_rows, out_features)


@pytest.mark.parametrize("in_features", [20, 33])
def test_other_widths_and_addresses_are_left_to_the_product_in_memory(in_features: int) -> None:
    layer = on_gpu(layer_of(5, 8, in_features))
    assert not is_fused(layer.x, layer.w)
    wide = on_gpu(layer_of(5, 8, 32))
    assert is_fused(wide.x, wide.w)
    moved = replace(wide, x=shifted(wide.x))
    assert not is_fused(moved.x, moved.w)


def test_a_gate_is_multiplied_in_afterwards() -> None:
    layer = layer_of(33, 40, 64, rank=4)
    values = torch.linspace(-3, 3, 33 * 40).view(33, 40)
    expected = layer.output(gate=ops.Gate(values.clone(), "silu"))
    received = on_gpu(layer).output(gate=ops.Gate(on_gpu(values), "silu"))
    torch.testing.assert_close(received.cpu(), expected, rtol=1e-5, atol=1e-6)
