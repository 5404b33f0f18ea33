"""The numeric kernels as the rest of the package calls them.

Arguments are checked here, once, for every route. This is the only importer of the native extension, and the only
place that decides who computes:

    native-cpu    the C++ kernel, for tensors in CPU memory
    torch-cuda    plain torch on the device, for tensors on a GPU, until a CUDA kernel of our own exists
    reference     the NumPy twin, where the extension is missing or LORAHUB_EDGE_KERNELS=reference asks for it

`route` and `isa` tell which it is, and a run records them: nothing falls back in silence. Knows nothing of LoRA, models
or files.
"""

import functools
import importlib
import os
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from lorahub_edge.errors import InvalidInput, KernelUnavailable
from lorahub_edge.kernels import reference

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Coefficients: TypeAlias = "ArrayLike | torch.Tensor"

_STACK_DTYPES = (torch.float32, torch.bfloat16)
_FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_KERNEL_CHOICES = ("", "native", "reference")

# Values quantised at a time: temporaries the size of a weight would leave holes in the heap, several times the base.
_BLOCK_VALUES = 1 << 18


# -- Which kernels run ------------------------------------------------------------------------------------------------


@functools.cache
def _import_native() -> Any:
    """The extension module, or the ImportError that says why there is none."""
    try:
        return importlib.import_module("lorahub_edge._native")
    except ImportError as error:
        return error


def _native_or_none() -> Any:
    """The extension module, or None where the reference is to be used; see `route` for errors."""
    choice = os.environ.get("LORAHUB_EDGE_KERNELS", "")
    if choice not in _KERNEL_CHOICES:
        raise InvalidInput(f"LORAHUB_EDGE_KERNELS: expected 'native', 'reference' or nothing, received {choice!r}")
    if choice == "reference":
        return None
    native = _import_native()
    if not isinstance(native, ImportError):
        return native
    if choice == "native":
        raise KernelUnavailable(
            f"LORAHUB_EDGE_KERNELS=native: the extension lorahub_edge._native cannot be imported ({native}); "
            "install the package again with a C++17 compiler"
        ) from native
    return None


def route(device: torch.device | str) -> str:
    """Who computes for tensors on `device`: "native-cpu", "torch-cuda" or "reference".

    Raises:
        InvalidInput: LORAHUB_EDGE_KERNELS is neither empty, "native" nor "reference".
        KernelUnavailable: it is "native" and the extension cannot be imported.
    """
    if torch.device(device).type != "cpu":
        return f"torch-{torch.device(device).type}"
    return "reference" if _native_or_none() is None else "native-cpu"


def isa() -> str:
    """The instruction set of the CPU kernels: "baseline", "avx2", "avx512", or "numpy" on the reference route.

    The widest that the machine runs, or what the environment variable LORAHUB_EDGE_ISA names; fixed at the first call.

    Raises:
        InvalidInput: LORAHUB_EDGE_ISA names one that this build or machine does not have.
    """
    native = _native_or_none()
    if native is None:
        return "numpy"
    try:
        return str(native.active_isa())
    except ValueError as error:
        raise InvalidInput(str(error)) from error


# -- compose_factors --------------------------------------------------------------------------------------------------


def compose_factors(
    stack: torch.Tensor,
    coefficients: Coefficients,
    *,
    out: torch.Tensor | None = None,
    n_threads: int | None = None,
) -> torch.Tensor:
    """Weighted sums of the modules' stacked factors, for several candidates in one pass over the stack.

    Meaning, in float32, the sum taken from the first module to the last:

        out[c, j] = sum_k(coefficients[c, k] * stack[k, j])

    Args:
        stack: float32 or bfloat16 (n_modules, n_values), C-contiguous, finite. Not changed.
        coefficients: (n_candidates, n_modules), any real dtype and device; each is rounded once to float32.
        out: float32 (n_candidates, n_values), C-contiguous, on the stack's device, not overlapping the stack: written
            and returned. A new tensor if None.
        n_threads: CPU threads, at least 1; torch.get_num_threads() if None. The result does not depend on it.

    Returns:
        float32 (n_candidates, n_values) on the stack's device. All-zero coefficients give exact zeros. On the CPU equal
        inputs give equal bytes on one instruction set; see `isa`.

    Raises:
        ValueError: shape, layout, overlap or device is not as above, or a coefficient is not finite in float32.
        TypeError: a dtype is not as above.
        KernelUnavailable, InvalidInput: see `route` and `isa`.
    """
    _check_stack(stack)
    coefficients = _checked_coefficients(coefficients, stack)
    out = _checked_out(out, stack, n_candidates=coefficients.shape[0])
    if n_threads is None:
        n_threads = torch.get_num_threads()
    _expect(n_threads >= 1, "compose_factors", "n_threads of at least 1", n_threads)

    if stack.device.type != "cpu":
        return _compose_factors_by_torch(stack, coefficients, out)
    native = _native_or_none()
    if native is None:
        twin = reference.compose_factors(stack.detach().float().numpy(), coefficients.numpy())
        return out.copy_(torch.from_numpy(twin))
    isa()  # a wrong LORAHUB_EDGE_ISA is reported as the user's error
    native.compose_factors(stack.detach(), coefficients, out.detach(), n_threads)
    return out


def _compose_factors_by_torch(stack: torch.Tensor, coefficients: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Route torch-cuda. The sum of a bfloat16 stack is float32 too, at the price of a float32 copy of the stack."""
    return torch.matmul(coefficients.to(stack.device), stack.detach().float(), out=out)


def _check_stack(stack: torch.Tensor) -> None:
    op = "compose_factors"
    if not isinstance(stack, torch.Tensor):
        raise TypeError(f"{op}: expected stack to be a torch.Tensor, received {type(stack).__name__}")
    if stack.dtype not in _STACK_DTYPES:
        raise TypeError(f"{op}: expected stack of dtype float32 or bfloat16, received {_name(stack.dtype)}")
    _expect(stack.ndim == 2, op, "stack of shape (n_modules, n_values)", tuple(stack.shape))
    _expect(stack.is_contiguous(), op, "a C-contiguous stack", f"strides {stack.stride()} for {tuple(stack.shape)}")


def _checked_coefficients(coefficients: Coefficients, stack: torch.Tensor) -> torch.Tensor:
    """The coefficients as a C-contiguous float32 CPU tensor."""
    op, n_modules = "compose_factors", stack.shape[0]
    if not isinstance(coefficients, torch.Tensor):
        array = np.asarray(coefficients)
        coefficients = torch.from_numpy(array if np.iscomplexobj(array) else array.astype(np.float64))
    if coefficients.is_complex():
        raise TypeError(f"{op}: expected real coefficients, received {_name(coefficients.dtype)}")
    rounded = coefficients.detach().to("cpu", torch.float32).contiguous()
    shape = tuple(rounded.shape)
    _expect(len(shape) == 2 and shape[1] == n_modules, op, f"coefficients of shape (n_candidates, {n_modules})", shape)
    if not bool(torch.isfinite(rounded).all()):
        c, k = torch.nonzero(~torch.isfinite(rounded))[0].tolist()
        raise ValueError(f"{op}: expected finite coefficients, received {float(coefficients[c, k])} at ({c}, {k})")
    return rounded


def _checked_out(out: torch.Tensor | None, stack: torch.Tensor, *, n_candidates: int) -> torch.Tensor:
    op, shape = "compose_factors", (n_candidates, stack.shape[1])
    if out is None:
        return torch.empty(shape, dtype=torch.float32, device=stack.device)
    if out.dtype != torch.float32:
        raise TypeError(f"{op}: expected out of dtype float32, received {_name(out.dtype)}")
    _expect(tuple(out.shape) == shape, op, f"out of shape {shape}", tuple(out.shape))
    _expect(out.device == stack.device, op, f"out on {stack.device}", out.device)
    _expect(out.is_contiguous(), op, "a C-contiguous out", f"strides {out.stride()} for {tuple(out.shape)}")
    _expect(not _overlap(out, stack), op, "out and stack in separate memory", "overlapping ones")
    return out


# -- int8 rows --------------------------------------------------------------------------------------------------------


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise each row to int8 with its own scale.

    Meaning, in float32, for each row i:

        row_scale[i] = max(abs(weight[i])) / 127        1 where that is 0
        codes[i, j]  = clip(round_half_even(weight[i, j] / row_scale[i]), -127, 127)

    so that codes[i, j] * row_scale[i] is weight[i, j] to within half a step. A row of zeros has codes 0. So has a row
    whose absmax is under 127 times the smallest float32 and whose scale would therefore be 0.

    Args:
        weight: float (out_features, in_features), any layout and device, finite; taken as float32. Not changed.

    Returns:
        codes int8 (out_features, in_features) and row_scale float32 (out_features,), on the weight's device.

    Raises:
        ValueError: not two dimensions, or a value that is not finite in float32; the message names the row.
        TypeError: not a float tensor.

    Source: the layout of bitsandbytes' int8 rows, which stores absmax = 127 * row_scale. Its own quantiser multiplies
    by 127/absmax, two roundings where one is made here, so a code at a tie may differ by 1.

    Cost: a few MB of temporaries, whatever the size of the weight.
    """
    if weight.dtype not in _FLOAT_DTYPES:
        raise TypeError(f"quantize_rows: expected a float weight, received {_name(weight.dtype)}")
    _expect(weight.ndim == 2, "quantize_rows", "weight of shape (out_features, in_features)", tuple(weight.shape))
    weight = weight.detach()
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    row_scale = torch.empty(weight.shape[0], dtype=torch.float32, device=weight.device)
    rows_at_a_time = max(1, _BLOCK_VALUES // max(1, weight.shape[1]))
    for start in range(0, weight.shape[0], rows_at_a_time):
        block = slice(start, start + rows_at_a_time)
        values = weight[block].float()
        absmax = _row_absmax(values)
        is_finite = torch.isfinite(absmax)
        if not bool(is_finite.all()):
            row = int(torch.nonzero(~is_finite)[0])
            raise ValueError(
                f"quantize_rows: expected finite values, received {float(absmax[row])} in row {start + row}"
            )
        codes[block], row_scale[block] = _codes_and_scale(values, absmax)
    return codes, row_scale


def quantize_activations(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`quantize_rows` for the inputs of a layer: the same numbers, without a look at the values that would stop a GPU.

    Args:
        x: float (rows, in_features).

    Returns:
        codes int8 (rows, in_features) and row_scale float32 (rows,). A row with NaN or an infinity gets that as its
        scale, so it shows in whatever is computed from it.
    """
    values = x.float()
    return _codes_and_scale(values, _row_absmax(values))


def _codes_and_scale(values: torch.Tensor, absmax: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    row_scale = absmax / reference.MAX_CODE
    row_scale = row_scale.masked_fill(row_scale == 0, 1.0)
    steps = torch.div(values, row_scale[:, None])
    return steps.round_().clamp_(-reference.MAX_CODE, reference.MAX_CODE).to(torch.int8), row_scale


def dequantize_rows(
    codes: torch.Tensor, row_scale: torch.Tensor, *, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Values of int8 rows: codes[i, j] * row_scale[i], in float32, then rounded to `dtype`.

    Args:
        codes: int8 (out_features, in_features).
        row_scale: float32 (out_features,), on the same device.
        dtype: a float dtype.

    Returns:
        A new tensor of `dtype`, (out_features, in_features).

    Raises:
        ValueError: the shapes do not fit.
        TypeError: a dtype is not as above.
    """
    op = "dequantize_rows"
    if codes.dtype != torch.int8 or row_scale.dtype != torch.float32 or dtype not in _FLOAT_DTYPES:
        received = f"{_name(codes.dtype)}, {_name(row_scale.dtype)}, {_name(dtype)}"
        raise TypeError(f"{op}: expected codes int8, row_scale float32, dtype float, received {received}")
    fits = codes.ndim == 2 and tuple(row_scale.shape) == (codes.shape[0],)
    _expect(fits, op, "codes (out, in) and row_scale (out,)", f"{tuple(codes.shape)} and {tuple(row_scale.shape)}")
    return (codes.float() * row_scale[:, None]).to(dtype)


def _row_absmax(values: torch.Tensor) -> torch.Tensor:
    """max(abs(row)) for each row, 0 where it is empty, without a copy of the matrix; NaN and inf come through."""
    if values.shape[1] == 0:
        return values.new_zeros(values.shape[0])
    return torch.maximum(values.amax(dim=1), -values.amin(dim=1))


# -- Checks -----------------------------------------------------------------------------------------------------------


def _expect(condition: bool, op: str, expected: str, received: object) -> None:
    if not condition:
        raise ValueError(f"{op}: expected {expected}, received {received}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two contiguous tensors share memory."""
    a_begin, b_begin = a.data_ptr(), b.data_ptr()
    return a_begin < b_begin + b.nbytes and b_begin < a_begin + a.nbytes and a.nbytes > 0 and b.nbytes > 0
