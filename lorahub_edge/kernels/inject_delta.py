"""inject_delta and its form on a module stack: arguments checked, then handed to the route that computes."""

import torch

from lorahub_edge.kernels import reference
from lorahub_edge.kernels.checks import expect, expect_apart, expect_tensor, expect_threads
from lorahub_edge.kernels.compose_factors import (
    STACK_DTYPES,
    Coefficients,
    checked_coefficients,
    compose_by_reference,
    expect_scales,
)
from lorahub_edge.kernels.injected import (
    NEAREST,
    Injected,
    Rounding,
    check_layer,
    checked_result,
    empty_result,
    report_rows,
    result_for,
)
from lorahub_edge.kernels.routes import Native, native_for, need_native

_OP = "inject_delta"


def inject_delta(
    codes: torch.Tensor,
    row_scale: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    *,
    scaling: float = 1.0,
    dtype: torch.dtype = torch.int8,
    rounding: Rounding = NEAREST,
    out: torch.Tensor | None = None,
    n_threads: int | None = None,
) -> Injected:
    """Add one layer's delta to its int8 base and round once, row by row, without a float copy of the layer.

    Meaning, in float32, for each row i:

        delta[i]     = sum_k((scaling * B[i, k]) * A[k])
        value[i]     = codes[i] * row_scale[i] + delta[i]
        new_scale[i] = max(abs(value[i])) / 127                      1 where that is 0
        new_codes[i] = clip(round(value[i] / new_scale[i]), -127, 127)

    A row whose delta is zero everywhere keeps the base's codes and scale bit for bit.

    Args:
        codes: int8 (out_features, in_features), C-contiguous. Not changed.
        row_scale: float32 (out_features,), finite. Not changed.
        A: float32 (rank, in_features), finite.
        B: float32 (out_features, rank), finite.
        scaling: of the delta: alpha / rank, or alpha / sqrt(rank).
        dtype: int8, or float32 or bfloat16 for `value` itself.
        rounding: of int8 values.
        out: of `dtype` (out_features, in_features), C-contiguous, apart from the inputs: written and returned as
            `values`. A new tensor if None. After an error its contents are undefined.
        n_threads: CPU threads, at least 1; torch.get_num_threads() if None. The result does not depend on it.

    Returns:
        The new values with scales and report, on the codes' device.

    Raises:
        ValueError: shape, layout, device or overlap is not as above; on the CPU also a value that is not finite, by
            row. On CUDA such a row gets that as its scale, so that it shows in whatever is computed from it.
        TypeError: a dtype is not as above.
        KernelUnavailable: the tensors are on a device without native kernels; see `route`.

    Cost: four float32 rows of temporary memory per thread.
    """
    injected = result_for(_OP, codes, row_scale, A, B, dtype, out)
    expect_threads(_OP, n_threads)
    inject_into(injected, codes, row_scale, A, B, scaling, rounding, n_threads)
    return checked_result(injected)


def inject_delta_from_stack(
    codes: torch.Tensor,
    row_scale: torch.Tensor,
    A_stack: torch.Tensor,
    B_stack: torch.Tensor,
    coefficients: Coefficients,
    *,
    rank: int,
    A_scales: torch.Tensor | None = None,
    B_scales: torch.Tensor | None = None,
    scaling: float = 1.0,
    dtype: torch.dtype = torch.int8,
    rounding: Rounding = NEAREST,
    out: torch.Tensor | None = None,
    n_threads: int | None = None,
) -> Injected:
    """`inject_delta` with A and B composed from the module stack on the way: no composed copy of a module is kept.

    Meaning: inject_delta with A = sum_k(coefficients[k] * A_k) and B = sum_k(coefficients[k] * B_k), composed as
    `compose_factors` does; the result is the same to the bit.

    Args:
        A_stack, B_stack: float32, bfloat16 or int8 (n_blocks, n_modules, block), C-contiguous: the blocks of the stack
            that hold this layer's A (rank * in_features values, then padding) and B (out_features * rank values).
        coefficients: (n_modules,), as for `compose_factors`.
        rank: of the factors.
        A_scales, B_scales: float32 (n_blocks, n_modules) each of int8 stacks, as for `compose_factors`; else None.
        codes, row_scale, scaling, dtype, rounding, out, n_threads: see `inject_delta`.

    Returns, Raises: see `inject_delta`.

    Cost: on the CPU, A of this one layer and, per thread, four float32 rows and a tile of B; on CUDA, A and B of this
    one layer.
    """
    out_features, in_features = check_layer(codes, row_scale)
    c = checked_coefficients(_OP, torch.as_tensor(coefficients)[None], n_modules=A_stack.shape[1])[0]
    _check_stacks(A_stack, B_stack, rank * in_features, rank * out_features, codes.device)
    expect_scales(_OP, "A_scales", A_scales, A_stack)
    expect_scales(_OP, "B_scales", B_scales, B_stack)
    injected = empty_result(codes, dtype, out)
    stacks = {"A_stack": A_stack, "B_stack": B_stack, "A_scales": A_scales, "B_scales": B_scales}
    expect_apart(_OP, injected.values, codes=codes, **stacks)
    expect_threads(_OP, n_threads)
    native = _native(codes.device, n_threads)
    if native is None:
        A = compose_by_reference(A_stack, c[None], A_scales)[0]
        B = compose_by_reference(B_stack, c[None], B_scales)[0]
        A, B = A[: rank * in_features].view(rank, in_features), B[: rank * out_features].view(out_features, rank)
        _by_reference(injected, codes, row_scale, A, B, scaling, rounding)
    else:
        n_workspace = A_stack[:, 0].numel() + B_stack[:, 0].numel() if codes.is_cuda else 0
        native.module.inject_delta_from_stack(
            codes,
            row_scale,
            A_stack,
            B_stack,
            c.to(codes.device, non_blocking=True),
            A_scales,
            B_scales,
            torch.empty(n_workspace, dtype=torch.float32, device=codes.device),
            injected.values,
            injected.row_scale,
            report_rows(injected),
            rank,
            scaling,
            rounding.kind,
            rounding.seed,
            native.where,
        )
    return checked_result(injected)


def inject_into(
    injected: Injected,
    codes: torch.Tensor,
    row_scale: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    scaling: float,
    rounding: Rounding,
    n_threads: int | None,
) -> None:
    """`inject_delta` of checked arguments into a result that is there."""
    native = _native(codes.device, n_threads)
    if native is None:
        _by_reference(injected, codes, row_scale, A, B, scaling, rounding)
        return
    native.module.inject_delta(
        codes,
        row_scale,
        A.detach(),
        B.detach(),
        injected.values,
        injected.row_scale,
        report_rows(injected),
        scaling,
        rounding.kind,
        rounding.seed,
        native.where,
    )


def _native(device: torch.device, n_threads: int | None) -> Native | None:
    """None stands for the reference, which computes on the CPU only."""
    return native_for(device, n_threads) if device.type == "cpu" else need_native(_OP, device, n_threads)


def _check_stacks(A_stack: torch.Tensor, B_stack: torch.Tensor, n_A: int, n_B: int, device: torch.device) -> None:
    free = ("n_blocks", "n_modules", "block")
    expect_tensor(_OP, "A_stack", A_stack, dtypes=STACK_DTYPES, shape=free, device=device)
    same = ("n_blocks", A_stack.shape[1], A_stack.shape[2])
    expect_tensor(_OP, "B_stack", B_stack, dtypes=(A_stack.dtype,), shape=same, device=device)
    for name, stack, n_values in (("A_stack", A_stack, n_A), ("B_stack", B_stack, n_B)):
        room = stack.shape[0] * stack.shape[2]
        expect(room >= n_values, _OP, f"{name} with room for {n_values} values of each module", room)


def _by_reference(
    injected: Injected,
    codes: torch.Tensor,
    row_scale: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    scaling: float,
    rounding: Rounding,
) -> None:
    arrays = [tensor.detach().numpy() for tensor in (codes, row_scale, A, B)]
    kind = "float32" if injected.values.dtype == torch.float32 else "bfloat16"
    kind = "int8" if injected.values.dtype == torch.int8 else kind
    seed = rounding.seed if rounding.kind == "stochastic" else None
    values, new_scale, report = reference.inject_delta(*arrays, scaling=scaling, dtype=kind, seed=seed)
    injected.values.copy_(torch.from_numpy(values))
    injected.row_scale.copy_(torch.from_numpy(new_scale))
    report_rows(injected).copy_(torch.from_numpy(report))
