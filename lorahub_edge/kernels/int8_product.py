"""Who multiplies int8 codes on a GPU: bitsandbytes or torch, both by cuBLASLt, or the kernel of int8_linear itself.

The first two write an int32 product, which `int8_epilogue` reads again. The environment variable
LORAHUB_EDGE_INT8_PRODUCT names one of them, or "fused" for ours, which keeps its sums in registers.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from lorahub_edge.errors import InvalidInput


def int8_product(x: torch.Tensor, w: torch.Tensor, *, by: str | None = None) -> torch.Tensor:
    """x @ w.T in exact integers.

    cuBLASLt takes multiples of 4 or 8 features only; zeros are added elsewhere. Of w only the few rows behind the last
    multiple are copied, all of it where in_features is no multiple.

    Args:
        x: int8 (n_rows, in_features).
        w: int8 (out_features, in_features), C-contiguous.
        by: "bitsandbytes" or "torch"; if None what the environment variable names, or bitsandbytes.

    Returns:
        int32 (n_rows, out_features), C-contiguous.

    Raises:
        InvalidInput: the variable names something else.
    """
    product = PRODUCTS[by or _chosen().replace(FUSED, "bitsandbytes")]
    n_rows, n_out = len(x), len(w)
    missing = -x.shape[1] % product.multiple
    x, w = _padded(x, max(0, product.least_rows - n_rows), missing), _padded(w, 0, missing)
    n_behind = n_out % product.multiple
    last = n_out - n_behind
    parts = [product.multiply(x, w[:last])[:n_rows]] if last else []
    if n_behind:
        parts.append(product.multiply(x, _padded(w[last:], product.multiple - n_behind, 0))[:n_rows, :n_behind])
    return parts[0] if last == n_out else torch.cat(parts, dim=1)


def is_fused(x: torch.Tensor, w: torch.Tensor) -> bool:
    """Whether the kernel of int8_linear is to make these outputs: where it was asked for and can.

    It needs compute capability 8.0, and rows that begin at multiples of 16 bytes.

    Raises:
        InvalidInput: see `int8_product`.
    """
    if _chosen() != FUSED or x.device.type != "cuda":
        return False
    starts = (x.shape[1], x.data_ptr(), w.data_ptr())
    return torch.cuda.get_device_capability(x.device) >= (8, 0) and all(start % 16 == 0 for start in starts)


def _padded(codes: torch.Tensor, n_rows: int, n_columns: int) -> torch.Tensor:
    return pad(codes, (0, n_columns, 0, n_rows)) if n_rows or n_columns else codes


@dataclass(frozen=True)
class _Product:
    """A product (n, i), (o, i) -> (n, o), and what it takes: n of at least `least_rows`, o and i multiples."""

    multiply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    least_rows: int
    multiple: int


def _by_bitsandbytes(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    import bitsandbytes  # noqa: F401  registers the operator; slow to import, so only where it is used

    product: torch.Tensor = torch.ops.bitsandbytes.int8_linear_matmul(x, w)
    return product


def _by_torch(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch._int_mm(x, w.t())


PRODUCTS = {"bitsandbytes": _Product(_by_bitsandbytes, 1, 4), "torch": _Product(_by_torch, 17, 8)}


FUSED = "fused"


def _chosen() -> str:
    name, names = os.environ.get("LORAHUB_EDGE_INT8_PRODUCT") or "bitsandbytes", (*PRODUCTS, FUSED)
    if name not in names:
        raise InvalidInput(f"LORAHUB_EDGE_INT8_PRODUCT: expected one of {', '.join(names)}, received {name!r}")
    return name
