"""What inject_delta and inject_layers give, and the checks of their arguments that both need."""

from dataclasses import dataclass

import torch

from lorahub_edge.kernels.checks import expect, expect_apart, expect_tensor

_OP = "inject_delta"
_VALUES_DTYPES = (torch.int8, torch.bfloat16, torch.float32)
_ROUNDINGS = ("nearest", "stochastic")
_MAX_SEED = 2**64 - 1


@dataclass(frozen=True)
class InjectReport:
    """What became of the delta, per row: float32 (out_features,) each.

    Attributes:
        delta_rms: root mean square of the delta, in steps of the row's new scale.
        error: norm(new values - old values - delta) / norm(delta); 0 where the delta is zero.
        survived: share of the delta found in the new values, 1 + dot(error, delta) / norm(delta)^2: 1 is all of it, 0
            none (values that round back to what they were); 1 where the delta is zero.
        n_clipped: codes that were cut to +-127.
    """

    delta_rms: torch.Tensor
    error: torch.Tensor
    survived: torch.Tensor
    n_clipped: torch.Tensor


@dataclass(frozen=True)
class Injected:
    """A layer with its delta added.

    Attributes:
        values: int8 codes, or bfloat16 or float32 values, (out_features, in_features).
        row_scale: float32 (out_features,): multiply a code by it to get the value. For float values it is only the
            step in which the report counts.
        report: what became of the delta.
    """

    values: torch.Tensor
    row_scale: torch.Tensor
    report: InjectReport


@dataclass(frozen=True)
class Rounding:
    """How int8 values are rounded.

    Attributes:
        kind: "nearest", half to even; or "stochastic": up with a probability equal to the fraction, so that deltas
            far below a step survive on average, for more noise.
        seed: 0 to 2^64 - 1, of stochastic rounding. Equal seeds give equal results: the random number of an element is
            a hash of seed, row and column.
    """

    kind: str = "nearest"
    seed: int = 0

    def __post_init__(self) -> None:
        expect(self.kind in _ROUNDINGS, _OP, "rounding 'nearest' or 'stochastic'", repr(self.kind))
        expect(0 <= self.seed <= _MAX_SEED, _OP, "a seed from 0 to 2^64 - 1", self.seed)


NEAREST = Rounding()


def check_layer(codes: torch.Tensor, row_scale: torch.Tensor) -> tuple[int, int]:
    """Its out_features and in_features; raises as `inject_delta` does."""
    expect_tensor(_OP, "codes", codes, dtypes=(torch.int8,), shape=("out_features", "in_features"))
    expect_tensor(_OP, "row_scale", row_scale, dtypes=(torch.float32,), shape=(codes.shape[0],), device=codes.device)
    return codes.shape[0], codes.shape[1]


def result_for(
    op: str,
    codes: torch.Tensor,
    row_scale: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    dtype: torch.dtype,
    out: torch.Tensor | None,
) -> Injected:
    """What a layer's kernel writes, for arguments that fit; raises as `inject_delta` does, in the name of `op`."""
    out_features, in_features = check_layer(codes, row_scale)
    floats = (torch.float32,)
    expect_tensor(op, "A", A, dtypes=floats, shape=("rank", in_features), device=codes.device)
    expect_tensor(op, "B", B, dtypes=floats, shape=(out_features, A.shape[0]), device=codes.device)
    injected = empty_result(codes, dtype, out)
    expect_apart(op, injected.values, codes=codes, A=A, B=B)
    return injected


def empty_result(codes: torch.Tensor, dtype: torch.dtype, out: torch.Tensor | None) -> Injected:
    """What a layer's kernel writes; raises as `inject_delta` does."""
    if dtype not in _VALUES_DTYPES:
        raise TypeError(f"{_OP}: expected dtype int8, bfloat16 or float32, received {dtype}")
    if out is None:
        out = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    expect_tensor(_OP, "out", out, dtypes=(dtype,), shape=tuple(codes.shape), device=codes.device)
    rows = torch.empty(5, codes.shape[0], dtype=torch.float32, device=codes.device)
    return Injected(out, rows[4], InjectReport(*rows[:4]))


def report_rows(injected: Injected) -> torch.Tensor:
    """The four rows of the report as the one array that the kernel writes."""
    first = injected.report.delta_rms
    return first.as_strided((4, len(first)), (len(first), 1))


def checked_result(injected: Injected) -> Injected:
    """The same, with finite scales on the CPU; raises as `inject_delta` does."""
    if injected.values.device.type == "cpu" and not bool(torch.isfinite(injected.row_scale).all()):
        row = int(torch.nonzero(~torch.isfinite(injected.row_scale))[0])
        raise ValueError(f"{_OP}: expected finite values, received {float(injected.row_scale[row])} in row {row}")
    return injected
