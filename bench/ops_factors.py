"""bench.ops: the kernels that work on factors of modules, compose_factors and inject_delta."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from bench.ops_case import FEATURES, RANK, Case
from bench.ops_peers import dict_loop, peft_merge, torch_inject
from lorahub_edge.kernels import memory, ops, reference

N_MODULES, N_TARGETS, BLOCK = 20, 144, 128
N_VALUES = N_TARGETS * 2 * RANK * FEATURES


@dataclass(frozen=True)
class Stack:
    """A module stack: floats, or codes with their scales."""

    values: torch.Tensor
    scales: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def compose(self, coefficients: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return ops.compose_factors(self.values, coefficients, scales=self.scales, out=out)

    def check(self, coefficients: torch.Tensor, out: torch.Tensor) -> None:
        """Raise unless the first blocks are the twin's."""
        values = self.values[:40] if self.scales is not None else self.values[:40].float()
        scales = None if self.scales is None else self.scales[:40].numpy()
        expected = torch.from_numpy(reference.compose_factors(values.numpy(), coefficients.numpy(), scales=scales))
        composed = self.compose(coefficients, out)[:, : expected.shape[1]]
        torch.testing.assert_close(composed, expected, rtol=1e-5, atol=1e-5, msg=str(self.values.dtype))


def stacks_of(rows: torch.Tensor) -> dict[str, Stack]:
    """The modules' rows as a stack of each dtype, all on huge pages."""
    shape = (N_VALUES // BLOCK, N_MODULES, BLOCK)
    full, half, codes = (memory.zeros(shape, dtype) for dtype in (torch.float32, torch.bfloat16, torch.int8))
    full.copy_(rows.view(N_MODULES, -1, BLOCK).transpose(0, 1))
    half.copy_(full)
    quantized, scales = ops.quantize_rows(full.view(-1, BLOCK))
    codes.copy_(quantized.view(shape))
    return {"float32": Stack(full), "bfloat16": Stack(half), "int8": Stack(codes, scales.view(shape[:2]))}


def compose_cases() -> Iterator[Case]:
    """1 to 32 candidates of 20 modules."""
    rows = torch.randn(N_MODULES, N_VALUES)
    stacks = stacks_of(rows)
    loop = dict_loop(rows, N_TARGETS, RANK, FEATURES)
    for n_candidates in (1, 2, 4, 8, 13, 32):
        coefficients = torch.randn(n_candidates, N_MODULES)
        out = memory.zeros((n_candidates, N_VALUES), torch.float32)
        yield _compose_case(rows, stacks, coefficients, out, loop)


def _compose_case(
    rows: torch.Tensor,
    stacks: dict[str, Stack],
    coefficients: torch.Tensor,
    out: torch.Tensor,
    loop: Callable[[list[float]], object],
) -> Case:
    n_candidates = len(coefficients)
    plain = torch.empty_like(out)
    full = stacks["float32"].values
    calls: dict[str, Callable[[], object]] = {
        f"ours, {dtype} stack": partial(stack.compose, coefficients, out) for dtype, stack in stacks.items()
    }
    if n_candidates == 1:
        calls["torch.mv"] = lambda: torch.mv(rows.T, coefficients[0])
        calls["lorahub dict loop"] = lambda: loop(coefficients[0].tolist())
    else:
        calls["torch.mm"] = lambda: torch.mm(coefficients, rows)
        calls["torch.mm, out given"] = lambda: torch.mm(coefficients, rows, out=plain)
    square = torch.randn(1024, 1024)
    calls["probe: read the stack once (sum)"] = lambda: full.view(-1).sum()
    calls["probe: torch.mm 1024^3"] = lambda: torch.mm(square, square)
    floors = {
        f"bytes, {dtype} stack": ("probe: read the stack once (sum)", (stack.nbytes + out.nbytes) / full.nbytes)
        for dtype, stack in stacks.items()
    }
    floors["multiply-adds"] = ("probe: torch.mm 1024^3", n_candidates * N_MODULES * N_VALUES / 1024**3)

    def check() -> None:
        for stack in stacks.values():
            stack.check(coefficients, out)

    setup = {"n_candidates": n_candidates, "n_modules": N_MODULES, "n_values": N_VALUES}
    return Case("compose_factors", setup, calls, check, floors, n_repeats=9 if n_candidates < 13 else 7)


def inject_case() -> Case:
    """One layer of 1024 x 1024, rank 16."""
    codes, row_scale = ops.quantize_rows(torch.randn(FEATURES, FEATURES))
    A, B = 0.01 * torch.randn(RANK, FEATURES), 0.1 * torch.randn(FEATURES, RANK)
    out = torch.empty_like(codes)
    n_blocks = RANK * FEATURES // BLOCK
    stacks = [torch.randn(n_blocks, N_MODULES, BLOCK).bfloat16() for _ in range(2)]
    coefficients = torch.randn(N_MODULES)
    square = torch.randn(1024, 1024)
    merge = peft_merge(FEATURES, RANK)
    stochastic = ops.Rounding("stochastic", 1)
    calls: dict[str, Callable[[], object]] = {
        "ours": lambda: ops.inject_delta(codes, row_scale, A, B, scaling=2.0, out=out),
        "ours, stochastic": lambda: ops.inject_delta(codes, row_scale, A, B, scaling=2.0, out=out, rounding=stochastic),
        "ours, from a stack of 20": lambda: ops.inject_delta_from_stack(
            codes, row_scale, *stacks, coefficients, rank=RANK, scaling=2.0, out=out
        ),
        "plain torch": lambda: torch_inject(codes, row_scale, A, B, 2.0),
        "PEFT merge into bitsandbytes int8": merge,
        "probe: torch.mm 1024^3": lambda: torch.mm(square, square),
    }

    def check() -> None:
        got = ops.inject_delta(codes, row_scale, A, B, scaling=2.0)
        arrays = (t.numpy() for t in (codes, row_scale, A, B))
        expected, _, _ = reference.inject_delta(*arrays, scaling=2.0)
        differ = (got.values.numpy() != expected).mean()
        if differ > 1e-4:  # codes at a tie may fall to either side
            raise AssertionError(f"inject_delta: {differ:.2%} of the codes differ from the twin's")

    floors = {"multiply-adds": ("probe: torch.mm 1024^3", RANK / 1024)}
    return Case("inject_delta", {"features": FEATURES, "rank": RANK}, calls, check, floors, n_repeats=51)
