"""compose_factors: arguments checked, then handed to the route that computes (see routes.py)."""

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

from lorahub_edge.kernels import reference
from lorahub_edge.kernels.checks import dtype_name, expect, expect_apart, expect_tensor, expect_threads
from lorahub_edge.kernels.routes import native_for

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Coefficients: TypeAlias = "ArrayLike | torch.Tensor"

STACK_DTYPES = (torch.float32, torch.bfloat16, torch.int8)

_OP = "compose_factors"


def compose_factors(
    stack: torch.Tensor,
    coefficients: Coefficients,
    *,
    scales: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    n_threads: int | None = None,
) -> torch.Tensor:
    """Weighted sums of the modules' stacked factors, for several candidates in one pass over the stack.

    Meaning, in float32, the sum taken from the first module to the last, of a float and of an int8 stack:

        out[c, b * block + j] = sum_k(coefficients[c, k] * stack[b, k, j])
        out[c, b * block + j] = sum_k((coefficients[c, k] * scales[b, k]) * stack[b, k, j])

    Args:
        stack: float32, bfloat16 or int8 (n_blocks, n_modules, block), C-contiguous, finite. Not changed. Interleaved:
            each block of values of all modules lies together, so that one pass reads memory as one sequential stream.
            Blocks of 128 values are fastest.
        coefficients: (n_candidates, n_modules), any real dtype and device; each is rounded once to float32.
        scales: float32 (n_blocks, n_modules), C-contiguous, finite, on the stack's device: what the codes of an int8
            stack are multiplied by. None for the others. Not changed. `quantize_rows` of the stack's rows, as
            (n_blocks * n_modules, block), makes codes and scales.
        out: float32 (n_candidates, n_blocks * block), C-contiguous, on the stack's device, not overlapping stack or
            scales: written and returned. A new tensor if None.
        n_threads: CPU threads, at least 1; torch.get_num_threads() if None. The result does not depend on it.

    Returns:
        float32 (n_candidates, n_blocks * block) on the stack's device. All-zero coefficients give exact zeros. Equal
        inputs give equal bytes on one device and instruction set; see `isa`.

    Raises:
        ValueError: shape, layout, overlap or device is not as above, an int8 stack has no scales or another has some,
            or a coefficient is not finite in float32.
        TypeError: a dtype is not as above.
        KernelUnavailable, InvalidInput: see `route` and `isa`.
    """
    expect_tensor(_OP, "stack", stack, dtypes=STACK_DTYPES, shape=("n_blocks", "n_modules", "block"))
    expect_scales(_OP, "scales", scales, stack)
    rounded = checked_coefficients(_OP, coefficients, n_modules=stack.shape[1])
    n_blocks, _, block = stack.shape
    out = _checked_out(out, stack, scales, (len(rounded), n_blocks * block))
    expect_threads(_OP, n_threads)
    stack, scales = stack.detach(), None if scales is None else scales.detach()
    native = native_for(stack.device, n_threads)
    if native is not None:
        there = rounded.to(stack.device, non_blocking=True)
        native.module.compose_factors(stack, there, scales, out.detach(), native.where)
        return out
    if stack.device.type == "cpu":
        return out.copy_(compose_by_reference(stack, rounded, scales))
    return out.copy_(_by_torch(stack, rounded.to(stack.device), scales))


def compose_by_reference(stack: torch.Tensor, coefficients: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
    """The NumPy twin, for CPU tensors."""
    factors = None if scales is None else scales.numpy()
    return torch.from_numpy(reference.compose_factors(stack.float().numpy(), coefficients.numpy(), scales=factors))


def _by_torch(stack: torch.Tensor, coefficients: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
    """The sum of a narrower stack is float32 too, at the price of a float32 copy of the stack."""
    of_blocks = coefficients if scales is None else coefficients * scales[:, None]
    return torch.matmul(of_blocks, stack.float()).transpose(0, 1).flatten(1)


def expect_scales(op: str, name: str, scales: torch.Tensor | None, stack: torch.Tensor) -> None:
    """Raise unless an int8 stack, already checked, has its scales, and another none."""
    if stack.dtype != torch.int8:
        received = f"some with a {dtype_name(stack.dtype)} one; leave them out"
        expect(scales is None, op, f"{name} with an int8 stack only", received)
    elif scales is None:
        raise ValueError(
            f"{op}: expected {name} with an int8 stack, received None; quantize_rows makes codes and scales"
        )
    else:
        shape = (stack.shape[0], stack.shape[1])
        expect_tensor(op, name, scales, dtypes=(torch.float32,), shape=shape, device=stack.device)


def checked_coefficients(op: str, coefficients: Coefficients, *, n_modules: int) -> torch.Tensor:
    """The coefficients as a C-contiguous float32 CPU tensor."""
    if not isinstance(coefficients, torch.Tensor):
        array = np.asarray(coefficients)
        coefficients = torch.from_numpy(array if np.iscomplexobj(array) else array.astype(np.float64))
    if coefficients.is_complex():
        raise TypeError(f"{op}: expected real coefficients, received {dtype_name(coefficients.dtype)}")
    rounded = coefficients.detach().to("cpu", torch.float32).contiguous()
    shape = tuple(rounded.shape)
    expect(len(shape) == 2 and shape[1] == n_modules, op, f"coefficients of shape (n_candidates, {n_modules})", shape)
    if not bool(torch.isfinite(rounded).all()):
        c, k = torch.nonzero(~torch.isfinite(rounded))[0].tolist()
        raise ValueError(f"{op}: expected finite coefficients, received {float(coefficients[c, k])} at ({c}, {k})")
    return rounded


def _checked_out(
    out: torch.Tensor | None, stack: torch.Tensor, scales: torch.Tensor | None, shape: tuple[int, int]
) -> torch.Tensor:
    if out is None:
        return torch.empty(shape, dtype=torch.float32, device=stack.device)
    expect_tensor(_OP, "out", out, dtypes=(torch.float32,), shape=shape, device=stack.device)
    expect_apart(_OP, out, stack=stack, scales=scales)
    return out
