"""The CPU kernels, each beside its peers in the same run, with the floor that bytes or multiply-adds set.

    python -m bench.ops                 # one thread
    python -m bench.ops --threads 2

Every contender is checked against the NumPy twin before anything is timed. Shapes are FLAN-T5-large's: 144 targets of
1024 x 1024 and rank 16, so a module has 4.72 million values.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from bench.ops_peers import dict_loop, peft_merge, torch_inject, torch_quantize, torch_side_path
from bench.records import RESULTS, append, make_record
from bench.timing import in_turns, summary
from lorahub_edge.kernels import memory, ops, reference

BENCH = "ops"
N_MODULES, N_TARGETS, FEATURES, RANK, BLOCK = 20, 144, 1024, 16, 128
N_VALUES = N_TARGETS * 2 * RANK * FEATURES
TOKENS = 640


@dataclass(frozen=True)
class Case:
    """One table of contenders.

    Attributes:
        op: name of the kernel.
        setup: what distinguishes the case.
        calls: contender -> call; ours first.
        check: raises unless ours is right.
        floors: name of a limit -> contenders that measure it in the same turns, and by what to multiply their time.
        n_repeats: turns.
    """

    op: str
    setup: dict[str, object]
    calls: dict[str, Callable[[], object]]
    check: Callable[[], None]
    floors: dict[str, tuple[str, float]] = field(default_factory=dict)
    n_repeats: int = 15

    def floors_ms(self, timings: dict[str, dict[str, object]]) -> dict[str, float]:
        """Each floor in milliseconds, from what its probe took in the same turns."""
        return {
            name: round(timings[probe]["median_ms"] * factor, 4)  # type: ignore[operator]
            for name, (probe, factor) in self.floors.items()
        }


def main() -> None:
    """Parse, measure each case, append a record."""
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    for case in cases(options.ops):
        case.check()
        timings = summary(in_turns(case.calls, n_repeats=case.n_repeats))
        floors = case.floors_ms(timings)
        setup = {"op": case.op, **case.setup, "threads": options.threads, "isa": ops.isa()}
        append(options.out, make_record(BENCH, setup, {"timings": timings, "floors_ms": floors}))
        _say(case, timings, floors)


def cases(names: list[str]) -> Iterator[Case]:
    """The cases of the named ops, made one after the other: a stack is large."""
    if "compose_factors" in names:
        yield from compose_cases()
    if "inject_delta" in names:
        yield inject_case()
    if "quantize_activations" in names:
        yield quantize_case()
    if "int8_epilogue" in names:
        yield epilogue_case()
    if "int8_linear" in names:
        yield linear_case()


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


def quantize_case() -> Case:
    """The inputs of one layer: 640 tokens of 1024."""
    from bitsandbytes.functional import int8_vectorwise_quant

    x = torch.randn(TOKENS, FEATURES)
    half = x.half()
    calls: dict[str, Callable[[], object]] = {
        "ours": lambda: ops.quantize_activations(x),
        "plain torch": lambda: torch_quantize(x),
        "bitsandbytes (from float16)": lambda: int8_vectorwise_quant(half),
    }

    def check() -> None:
        expected = reference.quantize_rows(x.numpy())
        for got, twin in zip(ops.quantize_activations(x), expected, strict=True):
            torch.testing.assert_close(got, torch.from_numpy(twin), rtol=0, atol=0)

    return Case("quantize_activations", {"tokens": TOKENS, "features": FEATURES}, calls, check, n_repeats=51)


def epilogue_case() -> Case:
    """The output of one layer: 640 tokens in 8 groups, with a rank-16 side path and without."""
    from bitsandbytes.functional import int8_mm_dequant

    product = torch.randint(-(10**6), 10**6, (TOKENS, FEATURES), dtype=torch.int32)
    x_scale, row_scale = torch.rand(TOKENS), torch.rand(FEATURES)
    side = ops.SidePath(torch.randn(TOKENS, RANK), torch.randn(8, FEATURES, RANK))
    x = torch.randint(-127, 128, (TOKENS, FEATURES), dtype=torch.int8)
    weight = torch.randint(-127, 128, (FEATURES, FEATURES), dtype=torch.int8)
    calls: dict[str, Callable[[], object]] = {
        "ours": lambda: ops.int8_epilogue(product, x_scale, row_scale),
        "ours, with side path": lambda: ops.int8_epilogue(product, x_scale, row_scale, side=side),
        "plain torch": lambda: product.float().mul_(x_scale[:, None]).mul_(row_scale),
        "plain torch, with side path": lambda: torch_side_path(product, x_scale, row_scale, side),
        "bitsandbytes (to float16)": lambda: int8_mm_dequant(product, x_scale, row_scale),
        "for scale: the int8 product": lambda: torch._int_mm(x, weight.t()),
    }

    def check() -> None:
        arrays = (t.numpy() for t in (product, x_scale, row_scale))
        expected = reference.int8_epilogue(*arrays, None, (side.inner.numpy(), side.B.numpy()))
        got = ops.int8_epilogue(product, x_scale, row_scale, side=side)
        torch.testing.assert_close(got, torch.from_numpy(expected), rtol=1e-5, atol=1e-1)

    setup = {"tokens": TOKENS, "features": FEATURES, "rank": RANK, "groups": 8}
    return Case("int8_epilogue", setup, calls, check, n_repeats=51)


def linear_case() -> Case:
    """One layer as T5-large's gates: 1024 features to 2816, for 440 tokens, five examples of one candidate."""
    n_rows, out_features, n_blocks = 440, 2816, FEATURES // 64
    x = torch.randint(-127, 128, (n_rows, FEATURES), dtype=torch.int8)
    w = torch.randint(-127, 128, (out_features, FEATURES), dtype=torch.int8)
    x_scale, row_scale = torch.rand(n_rows, 1), torch.rand(out_features)
    block_scales = torch.rand(n_rows, n_blocks)
    side = ops.SidePath(torch.randn(n_rows, RANK), torch.randn(1, out_features, RANK))
    floats, weight = torch.randn(n_rows, FEATURES), torch.randn(out_features, FEATURES)
    two_steps = (x_scale[:, 0], row_scale)
    calls: dict[str, Callable[[], object]] = {
        "ours": lambda: ops.int8_linear(x, x_scale, w, row_scale),
        "ours, with side path": lambda: ops.int8_linear(x, x_scale, w, row_scale, side=side),
        "ours, 16 blocks": lambda: ops.int8_linear(x, block_scales, w, row_scale),
        "torch._int_mm, then int8_epilogue": lambda: ops.int8_epilogue(torch._int_mm(x, w.t()), *two_steps),
        "with side path": lambda: ops.int8_epilogue(torch._int_mm(x, w.t()), *two_steps, side=side),
        "torch._int_mm alone": lambda: torch._int_mm(x, w.t()),
        "float32 product": lambda: floats @ weight.t(),
    }

    def check() -> None:
        arrays = [t.numpy() for t in (x, block_scales, w, row_scale)]
        expected = reference.int8_linear(*arrays, None, (side.inner.numpy(), side.B.numpy()))
        got = ops.int8_linear(x, block_scales, w, row_scale, side=side)
        torch.testing.assert_close(got, torch.from_numpy(expected), rtol=1e-4, atol=1.0)

    setup = {"tokens": n_rows, "in_features": FEATURES, "out_features": out_features, "rank": RANK}
    return Case("int8_linear", setup, calls, check, n_repeats=51)


def _say(case: Case, timings: dict[str, dict[str, object]], floors: dict[str, float]) -> None:
    lines = [f"{case.op} {case.setup}"]
    lines += [f"  {times['median_ms']:>10} ms  {name}" for name, times in timings.items()]
    lines += [f"  {milliseconds:>10} ms  floor by {name}" for name, milliseconds in floors.items()]
    sys.stderr.write("\n".join(lines) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.ops", description=__doc__.partition("\n")[0])
    all_ops = ["compose_factors", "inject_delta", "quantize_activations", "int8_epilogue", "int8_linear"]
    parser.add_argument("--ops", nargs="+", choices=all_ops, default=all_ops)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / f"{BENCH}.jsonl")
    return parser


if __name__ == "__main__":
    main()
