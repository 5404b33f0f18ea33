"""bench.ops: the kernels of an int8 base: quantising a layer's inputs, its product and outputs, gates and attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional
from transformers.activations import NewGELUActivation

from bench.ops_case import FEATURES, RANK, TOKENS, Case
from bench.ops_peers import torch_quantize, torch_side_path
from lorahub_edge.base.relative_bias import every_pair
from lorahub_edge.kernels import ops, reference


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


def gated_case() -> Case:
    """Between the matrices of T5-large's gated layer: 2816 features, 440 tokens."""
    n_rows, d_ff = 440, 2816
    gate, up = torch.randn(n_rows, d_ff), torch.randn(n_rows, d_ff)
    own, act = gate.clone(), NewGELUActivation()
    calls: dict[str, Callable[[], object]] = {
        "ours": lambda: ops.gated_activation(gate, up, activation="gelu_tanh"),
        "ours, in the gate's place": lambda: ops.gated_activation(own, up, activation="gelu_tanh", out=own),
        "torch.nn.functional.gelu, then times": lambda: functional.gelu(gate, approximate="tanh") * up,
        "transformers' formula, then times": lambda: act(gate) * up,
    }

    def check() -> None:
        expected = reference.gated_activation(gate.numpy(), up.numpy(), activation="gelu_tanh")
        got = ops.gated_activation(gate, up, activation="gelu_tanh")
        torch.testing.assert_close(got, torch.from_numpy(expected), rtol=1e-5, atol=1e-6)

    return Case("gated_activation", {"tokens": n_rows, "features": d_ff}, calls, check, n_repeats=51)


def attention_case(batch: int, n_tokens: int) -> Case:
    """Self-attention of a T5 encoder with 16 heads of 64 features, its position bias included."""
    n_heads, n_features = 16, 64
    query, key, value = (torch.randn(batch, n_tokens, n_heads, n_features) for _ in range(3))
    bias = torch.randn(n_heads, 2 * n_tokens - 1)
    pairs = every_pair(bias[None, :, None], n_tokens, n_tokens)
    heads = [t.transpose(1, 2) for t in (query, key, value)]
    square = torch.randn(1024, 1024)

    def as_products() -> torch.Tensor:
        scores = torch.matmul(heads[0], heads[1].mT).add_(pairs)
        return torch.matmul(scores.softmax(3), heads[2]).transpose(1, 2).contiguous()

    calls: dict[str, Callable[[], object]] = {
        "ours": lambda: ops.attention(query, key, value, scaling=1.0, bias=bias),
        "torch.nn.functional.scaled_dot_product_attention": lambda: (
            functional.scaled_dot_product_attention(*heads, attn_mask=pairs, scale=1.0).transpose(1, 2).contiguous()
        ),
        "products and softmax": as_products,
        "for scale: torch.mm 1024^3": lambda: torch.mm(square, square),
    }

    def check() -> None:
        few = [t[:1, :, :2].contiguous() for t in (query, key, value)]
        expected = reference.attention(*(t.numpy() for t in few), scaling=1.0, bias=bias[:2].numpy())
        got = ops.attention(*few, scaling=1.0, bias=bias[:2].contiguous())
        torch.testing.assert_close(got, torch.from_numpy(expected), rtol=1e-4, atol=1e-4)

    setup = {"examples": batch, "tokens": n_tokens, "heads": n_heads, "head_features": n_features}
    return Case("attention", setup, calls, check, n_repeats=51 if n_tokens < 512 else 9)
