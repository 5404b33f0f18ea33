"""int8_epilogue: the kernel against exact sums and its NumPy twin."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from lorahub_edge import _native
from lorahub_edge.kernels import ops, reference
from tests.kernels.helpers import SIZES, assert_outputs, assert_same_bytes, run_with_isa

DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Layer:
    product: torch.Tensor
    x_scale: torch.Tensor
    row_scale: torch.Tensor
    bias: torch.Tensor | None = None
    side: ops.SidePath | None = None

    def output(self, **options) -> torch.Tensor:
        return ops.int8_epilogue(self.product, self.x_scale, self.row_scale, bias=self.bias, side=self.side, **options)


def layer_of(
    n_rows: int, out_features: int, *, rank: int | None = None, n_groups: int = 1, bias: bool = False
) -> Layer:
    """Products up to the largest of 1024 codes, scales over six orders of magnitude, side paths of the same size."""
    rng = np.random.default_rng(0)

    def floats(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal(shape)).float()

    product = torch.from_numpy(rng.integers(-(127**2) * 1024, 127**2 * 1024, (n_rows, out_features))).int()
    x_scale = torch.from_numpy(10.0 ** rng.uniform(-6, 0, n_rows)).float()
    row_scale = torch.from_numpy(10.0 ** rng.uniform(-6, 0, out_features)).float()
    side = None
    if rank is not None:
        side = ops.SidePath(floats(n_rows, rank) * x_scale[:, None] * 1e3, floats(n_groups, out_features, rank) * 10)
    return Layer(product, x_scale, row_scale, floats(out_features) if bias else None, side)


def assert_output(y: torch.Tensor, layer: Layer) -> None:
    scaled = layer.product.double() * layer.x_scale.double()[:, None] * layer.row_scale.double()
    assert_outputs(y, scaled, scaled.abs(), n_blocks=1, bias=layer.bias, side=layer.side)


def assert_equals_twin(y: torch.Tensor, layer: Layer) -> None:
    side = None if layer.side is None else (layer.side.inner.numpy(), layer.side.B.numpy())
    bias = None if layer.bias is None else layer.bias.numpy()
    twin = reference.int8_epilogue(layer.product.numpy(), layer.x_scale.numpy(), layer.row_scale.numpy(), bias, side)
    assert_same_bytes(y, torch.from_numpy(twin).to(y.dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("out_features", SIZES)
@pytest.mark.parametrize("n_rows", SIZES)
def test_sizes(n_rows: int, out_features: int, dtype: torch.dtype) -> None:
    for layer in (layer_of(n_rows, out_features), layer_of(n_rows, out_features, rank=3, bias=True)):
        assert_output(layer.output(dtype=dtype), layer)


@pytest.mark.parametrize("n_groups", [1, 2, 3, 6, 66])
@pytest.mark.parametrize("rank", SIZES)
def test_groups_have_their_own_side_paths(rank: int, n_groups: int) -> None:
    layer = layer_of(66, 129, rank=rank, n_groups=n_groups)
    assert_output(layer.output(), layer)


@pytest.mark.parametrize("isa", _native.runnable_isas())
def test_each_instruction_set(isa: str) -> None:
    """Without fused multiply-add: equal to the bit."""
    script = """
from tests.kernels.test_int8_epilogue import *
for dtype in DTYPES:
    for n_rows, out_features, n_groups in ((1, 1, 1), (36, 33, 4), (15, 257, 3), (66, 128, 1)):
        for rank in (None, 0, 1, 16, 33):
            for bias in (False, True):
                layer = layer_of(n_rows, out_features, rank=rank, n_groups=n_groups, bias=bias)
                y = layer.output(dtype=dtype)
                assert_output(y, layer)
                if ops.isa() == "baseline":
                    assert_equals_twin(y, layer)
"""
    run_with_isa(isa, script)


@pytest.mark.parametrize("rank", [96, 416])
def test_ranks_of_several_modules(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Side by side in one group; with native kernels and without."""
    layer = layer_of(33, 129, rank=rank, bias=True)
    assert_output(layer.output(), layer)
    monkeypatch.setenv("LORAHUB_EDGE_KERNELS", "reference")
    assert_output(layer.output(), layer)


def test_reference_route(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAHUB_EDGE_KERNELS", "reference")
    for layer in (layer_of(33, 31), layer_of(32, 257, rank=16, n_groups=4, bias=True)):
        for dtype in DTYPES:
            assert_output(layer.output(dtype=dtype), layer)
            assert_equals_twin(layer.output(dtype=dtype), layer)


def test_result_does_not_depend_on_threads_nor_on_other_rows() -> None:
    layer = layer_of(66, 1027, rank=16, n_groups=6, bias=True)
    alone = layer.output(n_threads=1)
    for n_threads in (2, 3, 16):
        assert_same_bytes(layer.output(n_threads=n_threads), alone)
    for group in range(6):
        rows = slice(11 * group, 11 * group + 11)
        side = ops.SidePath(layer.side.inner[rows], layer.side.B[group : group + 1])
        part = Layer(layer.product[rows], layer.x_scale[rows], layer.row_scale, layer.bias, side)
        assert_same_bytes(part.output(), alone[rows])


def test_a_scale_that_is_not_finite_shows() -> None:
    layer = layer_of(3, 33, rank=2)
    layer.x_scale[1] = torch.nan
    assert torch.isnan(layer.output()).all(1).tolist() == [False, True, False]


def arguments() -> dict:
    return {
        "product": torch.zeros(4, 8, dtype=torch.int32),
        "x_scale": torch.ones(4),
        "row_scale": torch.ones(8),
    }


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"product": torch.zeros(4, 8)}, TypeError, "expected product of dtype int32, received float32"),
        ({"product": torch.zeros(8, 4, dtype=torch.int32).T}, ValueError, "expected a C-contiguous product"),
        ({"x_scale": torch.ones(5)}, ValueError, r"expected x_scale of shape \(4\), received \(5,\)"),
        ({"row_scale": torch.ones(8).double()}, TypeError, "expected row_scale of dtype float32, received float64"),
        ({"bias": torch.ones(7)}, ValueError, r"expected bias of shape \(8\), received \(7,\)"),
        ({"side": ops.SidePath(torch.ones(3, 2), torch.ones(1, 8, 2))}, ValueError, r"expected side.inner of shape"),
        ({"side": ops.SidePath(torch.ones(4, 2), torch.ones(1, 8, 3))}, ValueError, r"expected side.B of shape"),
        ({"side": ops.SidePath(torch.ones(4, 2), torch.ones(3, 8, 2))}, ValueError, "divides 4 rows, received 3"),
        ({"side": ops.SidePath(torch.ones(4, 2), torch.ones(0, 8, 2))}, ValueError, "divides 4 rows, received 0"),
        ({"dtype": torch.float16}, TypeError, "expected dtype float32 or bfloat16, received torch.float16"),
        ({"n_threads": 0}, ValueError, "expected n_threads of at least 1, received 0"),
    ],
)
def test_refuses(changes: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"int8_epilogue: .*{message}"):
        ops.int8_epilogue(**{**arguments(), **changes})
