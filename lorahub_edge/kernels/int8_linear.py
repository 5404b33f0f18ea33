"""int8_linear: arguments checked, then handed to the route that computes (see routes.py)."""

import torch

from lorahub_edge.kernels import reference
from lorahub_edge.kernels.checks import expect, expect_tensor, expect_threads
from lorahub_edge.kernels.gated_activation import Gate, expect_gate, gated_activation
from lorahub_edge.kernels.int8_epilogue import OUT_DTYPES, SidePath, expect_terms, int8_epilogue
from lorahub_edge.kernels.int8_product import int8_product, is_fused
from lorahub_edge.kernels.routes import Native, native_for, need_native

_OP = "int8_linear"
_MOST_FEATURES = (2**31 - 1) // (127 * 128)  # whose products an int32 can add up


def int8_linear(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    w: torch.Tensor,
    row_scale: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    side: SidePath | None = None,
    gate: Gate | None = None,
    dtype: torch.dtype = torch.float32,
    n_threads: int | None = None,
) -> torch.Tensor:
    """The output of an int8 layer from int8 inputs: product, scales, bias and side path in one pass.

    Meaning, for row m of group g and blocks b of in_features / n_blocks features, each dot product exact and what
    follows in float32, blocks, factors and terms in this order:

        y[m, o] = sum_b(x_scale[m, b] * dot(x[m, b], w[o, b])) * row_scale[o]
                  + bias[o] + sum_k(side.inner[m, k] * side.B[g, o, k])

    and with a gate the output is activation(gate[m, o]) * y[m, o], rounded once.

    Args:
        x: int8 (n_rows, in_features), C-contiguous, codes of the inputs, none of them -128; see `quantize_activations`.
        x_scale: float32 (n_rows, n_blocks). Blocks are of a multiple of 4 features. On other devices than the CPU
            there is one.
        w: int8 (out_features, in_features), codes of the weight.
        row_scale: float32 (out_features,), of the weight.
        gate: of `dtype`, (n_rows, out_features), on the device of x; its values are overwritten. Or None.
        bias, side, dtype, n_threads: see `int8_epilogue`.

    Returns:
        `dtype` (n_rows, out_features), on the device of x: the gate's values, or a new tensor. A row does not depend on
        others.

    Raises:
        ValueError: shape, layout or device is not as above.
        TypeError: a dtype is not as above.
        KernelUnavailable, InvalidInput: see `route` and `isa`.

    Cost: the kernel keeps no product in memory. On CUDA it is used if LORAHUB_EDGE_INT8_PRODUCT says so, see
    `int8_product`; otherwise there is an int32 product of the output's shape.
    """
    _check(x, x_scale, w, row_scale, bias, side)
    if dtype not in OUT_DTYPES:
        raise TypeError(f"{_OP}: expected dtype float32 or bfloat16, received {dtype}")
    if gate is not None:
        expect_gate(_OP, gate, (len(x), len(w)), dtype, x.device)
    expect_threads(_OP, n_threads)
    if x.device.type != "cpu":
        if is_fused(x, w):
            y = _by_kernel(need_native(_OP, x.device, None), x, x_scale, w, row_scale, bias, side, None, dtype)
        else:
            y = int8_epilogue(int8_product(x, w), x_scale[:, 0], row_scale, bias=bias, side=side, dtype=dtype)
        return y if gate is None else gated_activation(gate.values, y, activation=gate.activation, out=gate.values)
    native = native_for(x.device, n_threads)
    if native is not None:
        return _by_kernel(native, x, x_scale, w, row_scale, bias, side, gate, dtype)
    pair = None if side is None else (side.inner.detach().numpy(), side.B.detach().numpy())
    arrays = (x.numpy(), x_scale.numpy(), w.numpy(), row_scale.numpy(), None if bias is None else bias.numpy())
    of_gate = None if gate is None else (gate.values.float().numpy(), gate.activation)
    y = torch.from_numpy(reference.int8_linear(*arrays, pair, of_gate))
    return y.to(dtype) if gate is None else gate.values.copy_(y)


def _by_kernel(
    native: Native,
    x: torch.Tensor,
    x_scale: torch.Tensor,
    w: torch.Tensor,
    row_scale: torch.Tensor,
    bias: torch.Tensor | None,
    side: SidePath | None,
    gate: Gate | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    inner, B = (None, None) if side is None else (side.inner.detach(), side.B.detach())
    values, activation = (None, "") if gate is None else (gate.values.detach(), gate.activation)
    out = torch.empty(len(x), len(w), dtype=dtype, device=x.device) if gate is None else gate.values
    terms = (bias, inner, B, values, activation)
    native.module.int8_linear(x, x_scale, w, row_scale, *terms, out.detach(), native.where)
    return out


def _check(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    w: torch.Tensor,
    row_scale: torch.Tensor,
    bias: torch.Tensor | None,
    side: SidePath | None,
) -> None:
    expect_tensor(_OP, "x", x, dtypes=(torch.int8,), shape=("n_rows", "in_features"))
    (n_rows, in_features), device = x.shape, x.device
    expect_tensor(_OP, "x_scale", x_scale, dtypes=(torch.float32,), shape=(n_rows, "n_blocks"), device=device)
    expect_tensor(_OP, "w", w, dtypes=(torch.int8,), shape=("out_features", in_features), device=device)
    expect(in_features <= _MOST_FEATURES, _OP, f"at most {_MOST_FEATURES} in_features", in_features)
    n_blocks = x_scale.shape[1]
    if n_blocks != 1:
        fits = n_blocks > 0 and in_features % (4 * n_blocks) == 0
        expect(fits, _OP, f"x_scale with blocks of a multiple of 4 of {in_features} features", f"{n_blocks} blocks")
        expect(device.type == "cpu", _OP, f"x_scale with one block on {device}", n_blocks)
    expect_terms(_OP, n_rows, len(w), row_scale, bias, side, device)
