"""inject: add a delta to one target's weight and round once; the arithmetic of a merge, a few rows at a time.

Knows tensors only, nothing of models or files.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from lorahub_edge.base import Int8Weight
from lorahub_edge.kernels import ops
from lorahub_edge.modules import LoraFactors

# Values per block of rows: bounds the float temporaries to a few MB each.
_BLOCK_VALUES = 1 << 18


def inject_int8(weight: Int8Weight, factors: LoraFactors, *, rounding: ops.Rounding = ops.NEAREST) -> ops.Injected:
    """Fold a delta into an int8 weight: quantise(codes * row_scale + scaling * B @ A), with new row scales.

    Args:
        weight: the int8 weight; not changed.
        factors: of the delta.
        rounding: "nearest", or "stochastic": up or down at random such that the mean is exact.
    """
    A, B = factors.A.float().contiguous(), factors.B.float().contiguous()
    return ops.inject_delta(weight.codes, weight.row_scale, A, B, scaling=factors.scaling, rounding=rounding)


def inject_float(
    weight: torch.Tensor, factors: LoraFactors, *, dtype: torch.dtype
) -> tuple[torch.Tensor, ops.Injected]:
    """Add a delta to a float weight in float32, and see what the one rounding to `dtype` leaves of it.

    Args:
        weight: float (out_features, in_features); not changed.
        factors: of the delta.
        dtype: what the sum will be stored as: torch.int8 (rows with a scale each) or a float dtype.

    Returns:
        The exact sum, float32, and the same after rounding. The step of a float dtype is its spacing at the row's rms.
    """
    exact = torch.empty(weight.shape, dtype=torch.float32)
    values = torch.empty(weight.shape, dtype=dtype)
    row_scale = torch.empty(weight.shape[0], dtype=torch.float32)
    reports = []
    for rows in _blocks(*weight.shape):
        before, delta = weight[rows].float(), _delta(factors, rows)
        exact[rows] = before + delta
        n_clipped = torch.zeros(before.shape[0])
        if dtype == torch.int8:
            rounded = Int8Weight.from_float(exact[rows])
            values[rows], row_scale[rows] = rounded.codes, rounded.row_scale
            after = rounded.to_float()
        else:
            values[rows] = exact[rows].to(dtype)
            row_scale[rows] = (exact[rows].square().mean(1).sqrt() * torch.finfo(dtype).eps).clamp_min(1e-38)
            after = values[rows].float()
        reports.append(_report(before, delta, after, row_scale[rows], n_clipped))
    return exact, ops.Injected(values, row_scale, _join(reports))


def _blocks(n_rows: int, n_columns: int) -> Iterator[slice]:
    step = max(1, _BLOCK_VALUES // max(1, n_columns))
    for start in range(0, n_rows, step):
        yield slice(start, min(n_rows, start + step))


def _delta(factors: LoraFactors, rows: slice) -> torch.Tensor:
    return factors.scaling * (factors.B[rows] @ factors.A)


def _report(
    before: torch.Tensor, delta: torch.Tensor, after: torch.Tensor, step: torch.Tensor, n_clipped: torch.Tensor
) -> ops.InjectReport:
    delta, change = delta.double(), after.double() - before.double()
    square = delta.square().sum(1)
    some = square > 0
    safe = torch.where(some, square, torch.ones_like(square))
    survived = torch.where(some, (change * delta).sum(1) / safe, torch.ones_like(square))
    error = torch.where(some, ((change - delta).square().sum(1) / safe).sqrt(), torch.zeros_like(square))
    delta_rms = (square / max(1, delta.shape[1])).sqrt() / step.double()
    return ops.InjectReport(delta_rms.float(), error.float(), survived.float(), n_clipped)


def _join(reports: list[ops.InjectReport]) -> ops.InjectReport:
    fields = ("delta_rms", "error", "survived", "n_clipped")
    return ops.InjectReport(*(torch.cat([getattr(r, field) for r in reports]) for field in fields))
