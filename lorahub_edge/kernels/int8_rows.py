"""quantize_rows, quantize_activations, dequantize_rows: arguments checked, then handed to the route that computes."""

import torch

from lorahub_edge.kernels import reference
from lorahub_edge.kernels.checks import FLOAT_DTYPES, dtype_name, expect, expect_threads
from lorahub_edge.kernels.routes import Native, native_for

# What the native kernels read; other float tensors are converted, some rows at a time.
_NATIVE_DTYPES = (torch.float32, torch.bfloat16)

# Values converted at a time. On a CPU temporaries the size of a weight would leave holes in the heap, several times the
# base; elsewhere each block costs a dozen launches.
_CPU_BLOCK_VALUES = 1 << 18
_BLOCK_VALUES = 1 << 24

_Int8Rows = tuple[torch.Tensor, torch.Tensor]


def quantize_rows(weight: torch.Tensor, *, n_threads: int | None = None) -> _Int8Rows:
    """Quantise each row to int8 with its own scale.

    Meaning, in float32, for each row i:

        row_scale[i] = max(abs(weight[i])) / 127        1 where that is 0
        codes[i, j]  = clip(round_half_even(weight[i, j] / row_scale[i]), -127, 127)

    so that codes[i, j] * row_scale[i] is weight[i, j] to within half a step. A row of zeros has codes 0. So has a row
    whose absmax is under 127 times the smallest float32 and whose scale would therefore be 0.

    Args:
        weight: float (out_features, in_features), any layout and device, finite; taken as float32. Not changed.
        n_threads: CPU threads, at least 1; torch.get_num_threads() if None. The result does not depend on it.

    Returns:
        codes int8 (out_features, in_features) and row_scale float32 (out_features,), on the weight's device.

    Raises:
        ValueError: not two dimensions, or a value that is not finite in float32; the message names the row.
        TypeError: not a float tensor.
        KernelUnavailable, InvalidInput: see `route` and `isa`.

    Source: the layout of bitsandbytes' int8 rows, which stores absmax = 127 * row_scale. Its own quantiser multiplies
    by 127/absmax, two roundings where one is made here, so a code at a tie may differ by 1.

    Cost: at most a few MB of temporaries on a CPU, 200 MB elsewhere, whatever the size of the weight.
    """
    codes, row_scale = _quantize("quantize_rows", weight, n_threads)
    is_finite = torch.isfinite(row_scale)
    if not bool(is_finite.all()):
        row = int(torch.nonzero(~is_finite)[0])
        raise ValueError(f"quantize_rows: expected finite values, received {float(row_scale[row])} in row {row}")
    return codes, row_scale


def quantize_activations(x: torch.Tensor, *, n_threads: int | None = None) -> _Int8Rows:
    """`quantize_rows` for the inputs of a layer: the same numbers, without a look at the values that would stop a GPU.

    Args:
        x: float (rows, in_features).
        n_threads: see `quantize_rows`.

    Returns:
        codes int8 (rows, in_features) and row_scale float32 (rows,). A row with NaN or an infinity gets that as its
        scale, so it shows in whatever is computed from it.
    """
    return _quantize("quantize_activations", x, n_threads)


def _quantize(op: str, values: torch.Tensor, n_threads: int | None) -> _Int8Rows:
    if values.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{op}: expected a float tensor, received {dtype_name(values.dtype)}")
    expect(values.ndim == 2, op, "a tensor of shape (rows, columns)", tuple(values.shape))
    expect_threads(op, n_threads)
    values = values.detach()
    codes = torch.empty(values.shape, dtype=torch.int8, device=values.device)
    row_scale = torch.empty(values.shape[0], dtype=torch.float32, device=values.device)
    native = native_for(values.device, n_threads)
    ready = native is not None and values.dtype in _NATIVE_DTYPES and values.is_contiguous()
    block_values = _CPU_BLOCK_VALUES if values.device.type == "cpu" else _BLOCK_VALUES
    rows_at_a_time = max(1, len(values) if ready else block_values // max(1, values.shape[1]))
    for start in range(0, len(values), rows_at_a_time):
        block = slice(start, start + rows_at_a_time)
        part = values[block] if ready else values[block].float().contiguous()
        _quantize_block(native, part, codes[block], row_scale[block])
    return codes, row_scale


def _quantize_block(native: Native | None, values: torch.Tensor, codes: torch.Tensor, row_scale: torch.Tensor) -> None:
    if native is not None:
        native.module.quantize_rows(values, codes, row_scale, native.where)
    elif values.device.type == "cpu":
        twin_codes, twin_scale = reference.quantize_rows(values.numpy())
        codes.copy_(torch.from_numpy(twin_codes))
        row_scale.copy_(torch.from_numpy(twin_scale))
    else:
        _quantize_by_torch(values, codes, row_scale)


def _quantize_by_torch(values: torch.Tensor, codes: torch.Tensor, row_scale: torch.Tensor) -> None:
    absmax = values.abs().amax(dim=1) if values.shape[1] else values.new_zeros(len(values))
    torch.div(absmax, reference.MAX_CODE, out=row_scale)
    row_scale.masked_fill_(row_scale == 0, 1.0)
    steps = torch.div(values, row_scale[:, None])
    codes.copy_(steps.round_().clamp_(-reference.MAX_CODE, reference.MAX_CODE))


def dequantize_rows(
    codes: torch.Tensor,
    row_scale: torch.Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    n_threads: int | None = None,
) -> torch.Tensor:
    """Values of int8 rows: codes[i, j] * row_scale[i], in float32, then rounded to `dtype`.

    Args:
        codes: int8 (out_features, in_features).
        row_scale: float32 (out_features,), on the same device.
        dtype: a float dtype.
        n_threads: see `quantize_rows`.

    Returns:
        A new tensor of `dtype`, (out_features, in_features).

    Raises:
        ValueError: the shapes do not fit.
        TypeError: a dtype is not as above.
        KernelUnavailable, InvalidInput: see `route` and `isa`.
    """
    op = "dequantize_rows"
    if codes.dtype != torch.int8 or row_scale.dtype != torch.float32 or dtype not in FLOAT_DTYPES:
        received = f"{dtype_name(codes.dtype)}, {dtype_name(row_scale.dtype)}, {dtype_name(dtype)}"
        raise TypeError(f"{op}: expected codes int8, row_scale float32, dtype float, received {received}")
    fits = codes.ndim == 2 and tuple(row_scale.shape) == (codes.shape[0],)
    expect(fits, op, "codes (out, in) and row_scale (out,)", f"{tuple(codes.shape)} and {tuple(row_scale.shape)}")
    expect_threads(op, n_threads)
    native = native_for(codes.device, n_threads) if dtype in _NATIVE_DTYPES else None
    if native is None:
        return (codes.float() * row_scale[:, None]).to(dtype)
    values = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    native.module.dequantize_rows(codes.contiguous(), row_scale.contiguous(), values, native.where)
    return values
