"""int8_linear: the kernel against exact sums and its NumPy twin."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from lorahub_edge import _native
from lorahub_edge.kernels import ops, reference
from tests.kernels.helpers import SIZES, assert_outputs, assert_same_bytes, run_with_isa

DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Layer:
    x: torch.Tensor
    x_scale: torch.Tensor
    w: torch.Tensor
    row_scale: torch.Tensor
    bias: torch.Tensor | None = None
    side: ops.SidePath | None = None

    def output(self, **options) -> torch.Tensor:
        arguments = (self.x, self.x_scale, self.w, self.row_scale)
        return ops.int8_linear(*arguments, bias=self.bias, side=self.side, **options)

    def twin(self) -> torch.Tensor:
        side = None if self.side is None else (self.side.inner.numpy(), self.side.B.numpy())
        arrays = (self.x.numpy(), self.x_scale.numpy(), self.w.numpy(), self.row_scale.numpy())
        return torch.from_numpy(reference.int8_linear(*arrays, None if self.bias is None else self.bias.numpy(), side))


def layer_of(
    n_rows: int,
    out_features: int,
    in_features: int,
    *,
    n_blocks: int = 1,
    rank: int | None = None,
    n_groups: int = 1,
    bias: bool = False,
) -> Layer:
    """All codes there are, the largest more often, scales over six orders of magnitude, side paths of the same size."""
    rng = np.random.default_rng(0)

    def floats(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal(shape)).float()

    def codes(least: int, *shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.integers(2 * least, 2 * 127, shape, endpoint=True).clip(least, 127)).to(torch.int8)

    x_scale = torch.from_numpy(10.0 ** rng.uniform(-6, 0, (n_rows, n_blocks))).float()
    row_scale = torch.from_numpy(10.0 ** rng.uniform(-6, 0, out_features)).float()
    side = None
    if rank is not None:
        inner = floats(n_rows, rank) * x_scale[:, :1] * 1e3
        side = ops.SidePath(inner, floats(n_groups, out_features, rank) * 10)
    w = codes(-128, out_features, in_features)
    return Layer(codes(-127, n_rows, in_features), x_scale, w, row_scale, floats(out_features) if bias else None, side)


def assert_output(y: torch.Tensor, layer: Layer) -> None:
    n_blocks = layer.x_scale.shape[1]
    scaled = torch.zeros(len(layer.x), len(layer.w), dtype=torch.float64)
    magnitude = scaled.clone()
    for b, (x, w) in enumerate(zip(layer.x.chunk(n_blocks, 1), layer.w.chunk(n_blocks, 1), strict=True)):
        term = (x.double() @ w.double().T) * layer.x_scale[:, b, None].double() * layer.row_scale.double()
        scaled, magnitude = scaled + term, magnitude + term.abs()
    assert_outputs(y, scaled, magnitude, n_blocks=n_blocks, bias=layer.bias, side=layer.side)


@pytest.mark.parametrize("in_features", SIZES)
@pytest.mark.parametrize("out_features", SIZES)
@pytest.mark.parametrize("n_rows", SIZES)
def test_sizes(n_rows: int, out_features: int, in_features: int) -> None:
    for layer in (
        layer_of(n_rows, out_features, in_features),
        layer_of(n_rows, out_features, in_features, rank=3, bias=True),
    ):
        for dtype in DTYPES:
            assert_output(layer.output(dtype=dtype), layer)


@pytest.mark.parametrize("in_features", [1, 64, 100, 257])
@pytest.mark.parametrize("out_features", [4, 68, 128])
def test_few_rows(out_features: int, in_features: int) -> None:
    """Also as rows of more than that: a row comes out the same, to the bit, whichever way it is computed."""
    many = layer_of(40, out_features, in_features, rank=3, n_groups=1, bias=True)
    for n_rows in (*range(1, 10), 15, 16, 17):
        side = ops.SidePath(many.side.inner[:n_rows], many.side.B)
        few = replace(many, x=many.x[:n_rows], x_scale=many.x_scale[:n_rows], side=side)
        assert_output(few.output(), few)
        assert_same_bytes(few.output(), many.output()[:n_rows])


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("out_features", [512, 520, 515])
def test_large_outputs(out_features: int, n_threads: int) -> None:
    """Above a megabyte, in whole cache lines or not: each row as if it were computed with a few others."""
    layer = layer_of(600, out_features, 12, rank=3, n_groups=2, bias=True)
    assert layer.output().nbytes > 1 << 20
    for dtype in DTYPES:
        y = layer.output(dtype=dtype, n_threads=n_threads)
        for first in range(0, 600, 60):
            rows, group = slice(first, first + 60), first // 300
            side = ops.SidePath(layer.side.inner[rows], layer.side.B[group : group + 1])
            part = replace(layer, x=layer.x[rows], x_scale=layer.x_scale[rows], side=side)
            assert_same_bytes(y[rows], part.output(dtype=dtype))


@pytest.mark.parametrize(("in_features", "n_blocks"), [(8, 2), (64, 16), (128, 2), (192, 3), (260, 5), (2816, 44)])
def test_blocks_have_their_own_scales(in_features: int, n_blocks: int) -> None:
    for n_rows, out_features in ((1, 64), (7, 65), (50, 130)):
        layer = layer_of(n_rows, out_features, in_features, n_blocks=n_blocks, rank=2, bias=True)
        assert_output(layer.output(), layer)


@pytest.mark.parametrize("n_groups", [1, 2, 3, 6, 66])
@pytest.mark.parametrize("rank", SIZES)
def test_groups_have_their_own_side_paths(rank: int, n_groups: int) -> None:
    layer = layer_of(66, 129, 32, rank=rank, n_groups=n_groups)
    assert_output(layer.output(), layer)


@pytest.mark.parametrize("n_rows", [3, 66])
@pytest.mark.parametrize("rank", [96, 416])
def test_ranks_of_several_modules(rank: int, n_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Side by side in one group; with native kernels and without."""
    layer = layer_of(n_rows, 129, 32, rank=rank, bias=True)
    assert_output(layer.output(), layer)
    monkeypatch.setenv("LORAHUB_EDGE_KERNELS", "reference")
    assert_output(layer.output(), layer)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize(("n_rows", "out_features", "n_blocks"), [(1, 4, 1), (9, 67, 1), (50, 130, 1), (50, 130, 4)])
def test_a_gate_is_gated_activation_of_the_output(
    n_rows: int, out_features: int, n_blocks: int, activation: ops.Activation
) -> None:
    """To the bit for float32; a bfloat16 output is rounded once, behind the gate. The output is in the gate's place."""
    layer = layer_of(n_rows, out_features, 64, n_blocks=n_blocks, rank=3, bias=True)
    values = torch.randn(n_rows, out_features, generator=torch.Generator().manual_seed(0)) * 3
    for dtype in DTYPES:
        gate = values.to(dtype)
        expected = ops.gated_activation(gate.float(), layer.output(), activation=activation).to(dtype)
        own = gate.clone()
        assert layer.output(gate=ops.Gate(own, activation), dtype=dtype) is own
        assert_same_bytes(own, expected)
        twin = gated_twin(layer, gate, activation)
        torch.testing.assert_close(own, twin.to(dtype), rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-3)


def gated_twin(layer: Layer, gate: torch.Tensor, activation: str) -> torch.Tensor:
    return torch.from_numpy(
        reference.gated_activation(gate.float().numpy(), layer.twin().numpy(), activation=activation)
    )


def test_reference_route_has_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of(5, 7, 8, rank=2)
    gate = torch.linspace(-3, 3, 35).view(5, 7)
    expected = gated_twin(layer, gate, "silu")
    monkeypatch.setenv("LORAHUB_EDGE_KERNELS", "reference")
    assert layer.output(gate=ops.Gate(gate, "silu")) is gate
    assert_same_bytes(gate, expected)


def test_refuses_gates_that_do_not_fit() -> None:
    layer = layer_of(5, 7, 8)
    with pytest.raises(ValueError, match=r"gate\.values of shape \(5, 7\), received \(5, 8\)"):
        layer.output(gate=ops.Gate(torch.zeros(5, 8), "silu"))
    with pytest.raises(TypeError, match=r"gate\.values of dtype bfloat16, received float32"):
        layer.output(gate=ops.Gate(torch.zeros(5, 7), "silu"), dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="activation 'silu' or 'gelu_tanh', received 'relu'"):
        layer.output(gate=ops.Gate(torch.zeros(5, 7), "relu"))  # type: ignore[arg-type]


@pytest.mark.parametrize("isa", _native.runnable_isas())
def test_each_instruction_set(isa: str) -> None:
    """Without fused multiply-add: equal to the bit."""
    script = """
from tests.kernels.test_int8_linear import *
shapes = ((1, 1, 1, 1, 1), (36, 33, 31, 1, 4), (15, 257, 130, 1, 3), (66, 128, 64, 1, 1), (100, 70, 192, 3, 4))
for dtype in DTYPES:
    for n_rows, out_features, in_features, n_blocks, n_groups in shapes:
        for rank in (None, 0, 1, 16, 33):
            for bias in (False, True):
                blocks = {"n_blocks": n_blocks, "n_groups": n_groups}
                layer = layer_of(n_rows, out_features, in_features, rank=rank, bias=bias, **blocks)
                y = layer.output(dtype=dtype)
                assert_output(y, layer)
                if ops.isa() == "baseline":
                    assert_same_bytes(y, layer.twin().to(dtype))
for activation in ("silu", "gelu_tanh"):
    test_a_gate_is_gated_activation_of_the_output(50, 130, 4, activation)
"""
    run_with_isa(isa, script)


def test_reference_route(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAHUB_EDGE_KERNELS", "reference")
    for layer in (layer_of(33, 31, 65), layer_of(32, 257, 64, n_blocks=4, rank=16, n_groups=4, bias=True)):
        for dtype in DTYPES:
            assert_output(layer.output(dtype=dtype), layer)
            assert_same_bytes(layer.output(dtype=dtype), layer.twin().to(dtype))


@pytest.mark.parametrize("n_rows", [1, 17])
def test_largest_sums_are_exact(n_rows: int) -> None:
    """int32 holds the products of 130,000 features, whether they are of a few rows or not."""
    x, w = torch.full((n_rows, 130_000), 127, dtype=torch.int8), torch.full((4, 130_000), 127, dtype=torch.int8)
    w[1] = -128
    y = ops.int8_linear(x, torch.ones(n_rows, 1), w, torch.ones(4))
    expected = torch.tensor([127 * 127, -127 * 128, 127 * 127, 127 * 127], dtype=torch.float64) * 130_000
    assert torch.equal(y, expected.float().expand(n_rows, 4))


def test_sums_that_int32_does_not_hold_are_refused() -> None:
    x = torch.full((1, 132_200), 127, dtype=torch.int8)
    with pytest.raises(ValueError, match="int8_linear: expected at most 132104 in_features, received 132200"):
        ops.int8_linear(x, torch.ones(1, 1), x, torch.ones(1))


def test_equals_product_and_epilogue() -> None:
    layer = layer_of(66, 1027, 96, rank=16, n_groups=6, bias=True)
    product = torch._int_mm(layer.x, layer.w.t())
    two_steps = ops.int8_epilogue(product, layer.x_scale[:, 0], layer.row_scale, bias=layer.bias, side=layer.side)
    assert_same_bytes(layer.output(), two_steps)


def test_result_does_not_depend_on_threads_nor_on_other_rows() -> None:
    for n_blocks in (1, 2):
        layer = layer_of(66, 1027, 128, n_blocks=n_blocks, rank=16, n_groups=6, bias=True)
        alone = layer.output(n_threads=1)
        for n_threads in (2, 3, 16):
            assert_same_bytes(layer.output(n_threads=n_threads), alone)
        for group in range(6):
            rows = slice(11 * group, 11 * group + 11)
            side = ops.SidePath(layer.side.inner[rows], layer.side.B[group : group + 1])
            part = Layer(layer.x[rows], layer.x_scale[rows], layer.w, layer.row_scale, layer.bias, side)
            assert_same_bytes(part.output(), alone[rows])


def test_a_scale_that_is_not_finite_shows() -> None:
    for n_blocks in (1, 2):
        layer = layer_of(3, 33, 8, n_blocks=n_blocks, rank=2)
        layer.x_scale[1, -1] = torch.nan
        assert torch.isnan(layer.output()).all(1).tolist() == [False, True, False]


def arguments() -> dict:
    codes = torch.zeros(4, 16, dtype=torch.int8)
    return {
        "x": codes,
        "x_scale": torch.ones(4, 1),
        "w": torch.zeros(8, 16, dtype=torch.int8),
        "row_scale": torch.ones(8),
    }


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": torch.zeros(4, 16)}, TypeError, "expected x of dtype int8, received float32"),
        ({"x": torch.zeros(16, 4, dtype=torch.int8).T}, ValueError, "expected a C-contiguous x"),
        (
            {"w": torch.zeros(8, 15, dtype=torch.int8)},
            ValueError,
            r"expected w of shape \(out_features, 16\), received",
        ),
        ({"x_scale": torch.ones(4)}, ValueError, r"expected x_scale of shape \(4, n_blocks\), received \(4,\)"),
        ({"x_scale": torch.ones(4, 3)}, ValueError, "blocks of a multiple of 4 of 16 features, received 3 blocks"),
        ({"x_scale": torch.ones(4, 8)}, ValueError, "blocks of a multiple of 4 of 16 features, received 8 blocks"),
        ({"x_scale": torch.ones(4, 0)}, ValueError, "blocks of a multiple of 4 of 16 features, received 0 blocks"),
        ({"row_scale": torch.ones(7)}, ValueError, r"expected row_scale of shape \(8\), received \(7,\)"),
        ({"bias": torch.ones(7)}, ValueError, r"expected bias of shape \(8\), received \(7,\)"),
        ({"side": ops.SidePath(torch.ones(4, 2), torch.ones(3, 8, 2))}, ValueError, "divides 4 rows, received 3"),
        ({"dtype": torch.float16}, TypeError, "expected dtype float32 or bfloat16, received torch.float16"),
        ({"n_threads": 0}, ValueError, "expected n_threads of at least 1, received 0"),
    ],
)
def test_refuses(changes: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"int8_linear: .*{message}"):
        ops.int8_linear(**{**arguments(), **changes})
