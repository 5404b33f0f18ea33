"""int8_epilogue: arguments checked, then handed to the route that computes (see routes.py)."""

from dataclasses import dataclass

import torch

from lorahub_edge.kernels import reference
from lorahub_edge.kernels.checks import expect, expect_tensor, expect_threads
from lorahub_edge.kernels.routes import native_for

_OP = "int8_epilogue"
OUT_DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class SidePath:
    """The low-rank path that each group of rows adds to a layer's output.

    Attributes:
        inner: float32 (n_rows, rank): scaling * x @ A.T, with the A of the row's group.
        B: float32 (n_groups, out_features, rank); the rows are n_groups equal runs, in order.
    """

    inner: torch.Tensor
    B: torch.Tensor


def int8_epilogue(
    product: torch.Tensor,
    x_scale: torch.Tensor,
    row_scale: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    side: SidePath | None = None,
    dtype: torch.dtype = torch.float32,
    n_threads: int | None = None,
) -> torch.Tensor:
    """The output of an int8 layer from the int32 product of its codes: scales, bias and side path in one pass.

    Meaning, in float32, factors and terms in this order, for row m of group g:

        y[m, o] = product[m, o] * x_scale[m] * row_scale[o] + bias[o] + sum_k(side.inner[m, k] * side.B[g, o, k])

    Args:
        product: int32 (n_rows, out_features), C-contiguous: codes of the inputs times codes of the weight.
        x_scale: float32 (n_rows,), of the inputs; see `quantize_activations`.
        row_scale: float32 (out_features,), of the weight.
        bias: float32 (out_features,), or None.
        side: or None.
        dtype: float32 or bfloat16; the sum is rounded to it once.
        n_threads: CPU threads, at least 1; torch.get_num_threads() if None. The result does not depend on it.

    Returns:
        A new tensor of `dtype`, (n_rows, out_features), on the product's device. A row does not depend on others.

    Raises:
        ValueError: shape, layout or device is not as above.
        TypeError: a dtype is not as above.
        KernelUnavailable, InvalidInput: see `route` and `isa`.
    """
    _check(product, x_scale, row_scale, bias, side)
    if dtype not in OUT_DTYPES:
        raise TypeError(f"{_OP}: expected dtype float32 or bfloat16, received {dtype}")
    expect_threads(_OP, n_threads)
    native = native_for(product.device, n_threads)
    if native is None:
        return _without_native(product, x_scale, row_scale, bias, side).to(dtype)
    out = torch.empty(product.shape, dtype=dtype, device=product.device)
    inner, B = (None, None) if side is None else (side.inner.detach(), side.B.detach())
    native.module.int8_epilogue(product, x_scale, row_scale, bias, inner, B, out, native.where)
    return out


def _check(
    product: torch.Tensor,
    x_scale: torch.Tensor,
    row_scale: torch.Tensor,
    bias: torch.Tensor | None,
    side: SidePath | None,
) -> None:
    device = product.device
    expect_tensor(_OP, "product", product, dtypes=(torch.int32,), shape=("n_rows", "out_features"))
    n_rows, out_features = product.shape
    expect_tensor(_OP, "x_scale", x_scale, dtypes=(torch.float32,), shape=(n_rows,), device=device)
    expect_terms(_OP, n_rows, out_features, row_scale, bias, side, device)


def expect_terms(
    op: str,
    n_rows: int,
    out_features: int,
    row_scale: torch.Tensor,
    bias: torch.Tensor | None,
    side: SidePath | None,
    device: torch.device,
) -> None:
    """Raise unless what makes outputs of products is as `int8_epilogue` says."""
    floats = (torch.float32,)
    expect_tensor(op, "row_scale", row_scale, dtypes=floats, shape=(out_features,), device=device)
    if bias is not None:
        expect_tensor(op, "bias", bias, dtypes=floats, shape=(out_features,), device=device)
    if side is not None:
        expect_tensor(op, "side.inner", side.inner, dtypes=floats, shape=(n_rows, "rank"), device=device)
        shape = ("n_groups", out_features, side.inner.shape[1])
        expect_tensor(op, "side.B", side.B, dtypes=floats, shape=shape, device=device)
        n_groups = len(side.B)
        divides = n_groups > 0 and n_rows % n_groups == 0
        expect(divides, op, f"side.B with a number of groups that divides {n_rows} rows", n_groups)


def _without_native(
    product: torch.Tensor,
    x_scale: torch.Tensor,
    row_scale: torch.Tensor,
    bias: torch.Tensor | None,
    side: SidePath | None,
) -> torch.Tensor:
    if product.device.type == "cpu":
        pair = None if side is None else (side.inner.detach().numpy(), side.B.detach().numpy())
        terms = (None if bias is None else bias.detach().numpy(), pair)
        return torch.from_numpy(reference.int8_epilogue(product.numpy(), x_scale.numpy(), row_scale.numpy(), *terms))
    y = product.float() * x_scale[:, None] * row_scale
    if bias is not None:
        y += bias
    if side is not None:
        n_groups = len(side.B)
        y.view(n_groups, -1, y.shape[1]).baddbmm_(side.inner.view(n_groups, -1, side.inner.shape[1]), side.B.mT)
    return y
