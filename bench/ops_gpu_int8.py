"""The cases of bench.ops_gpu around an int8 product: its inputs quantised, the product itself, what is made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from bench.ops_case import FEATURES, RANK, GpuCase
from bench.ops_peers import torch_quantize, torch_side_path
from bench.timing_gpu import COPY, GPU, bytes_floor, copy_probe, native
from lorahub_edge.kernels import ops
from lorahub_edge.kernels.int8_product import PRODUCTS, int8_product

TOKENS, N_GROUPS = 4160, 13
HEAD_TOKENS, HEAD = 104, 32_001  # 13 candidates' answers; no multiple of 4, so the last rows are padded


def quantize_case() -> GpuCase:
    """The inputs of one layer: 13 candidates of 320 tokens."""
    x = torch.randn(TOKENS, FEATURES, device=GPU).bfloat16()
    codes, row_scale = torch.empty_like(x, dtype=torch.int8), torch.empty(TOKENS, device=GPU)
    module, where = native()
    calls: dict[str, Callable[[], object]] = {
        "ours": lambda: module.quantize_rows(x, codes, row_scale, where),
        "plain torch": lambda: torch_quantize(x),
        COPY: copy_probe(),
    }

    def check() -> None:
        module.quantize_rows(x, codes, row_scale, where)
        exact = x.double() / row_scale.double()[:, None]
        torch.testing.assert_close(row_scale.double(), x.double().abs().amax(1) / 127, rtol=2.0**-24, atol=0)
        torch.testing.assert_close(codes.double(), exact, rtol=0, atol=0.5001)

    setup: dict[str, object] = {"tokens": TOKENS, "features": FEATURES, "dtype": "bfloat16"}
    floors = {"bytes": bytes_floor(x, codes, row_scale)}
    wall = {"ours through ops": lambda: ops.quantize_activations(x)}
    return GpuCase("quantize_activations", setup, calls, check, floors, n_repeats=51, n_launches=10, wall_calls=wall)


def epilogue_case() -> GpuCase:
    """The output of one layer: 13 candidates of 320 tokens, with a rank-16 side path and without."""
    product = torch.randint(-(10**6), 10**6, (TOKENS, FEATURES), dtype=torch.int32, device=GPU)
    x_scale, row_scale = torch.rand(TOKENS, device=GPU), torch.rand(FEATURES, device=GPU)
    inner, B = torch.randn(TOKENS, RANK, device=GPU), torch.randn(N_GROUPS, FEATURES, RANK, device=GPU)
    side, out = ops.SidePath(inner, B), torch.empty(TOKENS, FEATURES, device=GPU)
    module, where = native()
    calls: dict[str, Callable[[], object]] = {
        "ours": lambda: module.int8_epilogue(product, x_scale, row_scale, None, None, None, out, where),
        "ours, with side path": lambda: module.int8_epilogue(product, x_scale, row_scale, None, inner, B, out, where),
        "plain torch, with side path": lambda: torch_side_path(product, x_scale, row_scale, side),
        COPY: copy_probe(),
    }

    def check() -> None:
        module.int8_epilogue(product, x_scale, row_scale, None, inner, B, out, where)
        main = product.double() * x_scale.double()[:, None] * row_scale.double()
        terms = inner.double().view(N_GROUPS, -1, RANK) @ B.double().mT
        bound = (RANK + 5) * 2.0**-24 * (main.abs() + inner.abs().sum(1, keepdim=True) * B.abs().max())
        if not bool(((out - main - terms.reshape(TOKENS, FEATURES)).abs() <= bound).all()):
            raise AssertionError("int8_epilogue: an output is wrong")

    setup: dict[str, object] = {"tokens": TOKENS, "features": FEATURES, "rank": RANK, "groups": N_GROUPS}
    floors = {"bytes": bytes_floor(product, out, inner, B)}
    wall = {"ours through ops": lambda: ops.int8_epilogue(product, x_scale, row_scale, side=side)}
    return GpuCase("int8_epilogue", setup, calls, check, floors, n_repeats=51, n_launches=10, wall_calls=wall)


def product_cases() -> Iterator[GpuCase]:
    """A layer's product and a head's, by bitsandbytes and by torch."""
    yield _product_case(TOKENS, FEATURES)
    yield _product_case(HEAD_TOKENS, HEAD)


def _product_case(n_rows: int, out_features: int) -> GpuCase:
    x, w = (torch.randint(-127, 128, (n, FEATURES), dtype=torch.int8, device=GPU) for n in (n_rows, out_features))
    half_x, half_w = x.bfloat16(), w.bfloat16()
    calls: dict[str, Callable[[], object]] = {name: lambda by=name: int8_product(x, w, by=by) for name in PRODUCTS}  # type: ignore[misc]
    calls |= {"torch.mm bfloat16": lambda: half_x @ half_w.T, COPY: copy_probe()}

    def check() -> None:
        exact = x.double() @ w.double().T
        for name in PRODUCTS:
            if not torch.equal(int8_product(x, w, by=name).double(), exact):
                raise AssertionError(f"int8_product: {name} is wrong")

    setup: dict[str, object] = {"tokens": n_rows, "in_features": FEATURES, "out_features": out_features}
    floors = {"bytes": bytes_floor(x, w, torch.empty(n_rows, out_features, dtype=torch.int32, device="meta"))}
    return GpuCase("int8_product", setup, calls, check, floors, n_repeats=51, n_launches=10)


def linear_case() -> GpuCase:
    """A whole layer with its side path: our kernel, and a product in memory with our epilogue behind it."""
    x, w = (torch.randint(-127, 128, (n, FEATURES), dtype=torch.int8, device=GPU) for n in (TOKENS, FEATURES))
    x_scale, row_scale = torch.rand(TOKENS, 1, device=GPU), torch.rand(FEATURES, device=GPU)
    inner, B = torch.randn(TOKENS, RANK, device=GPU), torch.randn(N_GROUPS, FEATURES, RANK, device=GPU)
    side, out = ops.SidePath(inner, B), torch.empty(TOKENS, FEATURES, dtype=torch.bfloat16, device=GPU)
    module, where = native()

    def fused() -> None:
        module.int8_linear(x, x_scale, w, row_scale, None, inner, B, None, "", out, where)

    def in_two(by: str) -> torch.Tensor:
        return ops.int8_epilogue(int8_product(x, w, by=by), x_scale[:, 0], row_scale, side=side, dtype=torch.bfloat16)

    calls: dict[str, Callable[[], object]] = {"ours": fused}
    calls |= {f"{name}, then ours": lambda by=name: in_two(by) for name in PRODUCTS}  # type: ignore[misc]
    calls[COPY] = copy_probe()

    def check() -> None:
        fused()
        if not torch.equal(out, in_two("bitsandbytes")):
            raise AssertionError("int8_linear: an output is not what the product and int8_epilogue make")

    setup: dict[str, object] = {"tokens": TOKENS, "features": FEATURES, "rank": RANK, "groups": N_GROUPS}
    floors = {"bytes": bytes_floor(x, w, out, inner, B)}
    return GpuCase("int8_linear", setup, calls, check, floors, n_repeats=51, n_launches=10)
