"""What the kernels are measured against: the same results by other people's code, or by plain torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from lorahub_edge.kernels import ops


def dict_loop(rows: torch.Tensor, n_targets: int, rank: int, features: int) -> Callable[[list[float]], object]:
    """The released LoRAHub's own composition, over one dict of tensors per module.

    Args:
        rows: float32 (n_modules, n_targets * 2 * rank * features).
    """
    from lorahub.algorithm import get_final_weights

    names = [f"module{k}" for k in range(len(rows))]
    cache = {}
    for name, row in zip(names, rows, strict=True):
        factors = row.view(n_targets, 2, rank, features)
        cache[name] = {f"{t}.{side}": factors[t, s] for t in range(n_targets) for s, side in enumerate("AB")}
    return lambda coefficients: get_final_weights(coefficients, names, cache)


def torch_inject(
    codes: torch.Tensor, row_scale: torch.Tensor, A: torch.Tensor, B: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """inject_delta in float32 copies of the whole layer, without a report."""
    value = torch.addmm(codes.float() * row_scale[:, None], B, A, alpha=scaling)
    new_scale = value.abs().amax(1) / 127
    return (value / new_scale[:, None]).round_().to(torch.int8), new_scale


def peft_merge(features: int, rank: int) -> Callable[[], object]:
    """PEFT's merge of one LoRA into a bitsandbytes int8 layer, on the CPU. Each call merges once more."""
    import bitsandbytes
    from peft import LoraConfig, get_peft_model

    layer = bitsandbytes.nn.Linear8bitLt(features, features, bias=False, has_fp16_weights=False)
    layer.weight = bitsandbytes.nn.Int8Params(torch.randn(features, features), requires_grad=False).to("cpu")
    layer.state.CB, layer.state.SCB = layer.weight.CB, layer.weight.SCB
    model = nn.Sequential(layer)
    model.is_loaded_in_8bit = True  # what transformers leaves on a model that it quantised; PEFT asks for it
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["0"], init_lora_weights=False)
    adapted = get_peft_model(model, config).base_model.model[0]

    def merge() -> None:
        adapted.merged_adapters.clear()
        adapted.merge()

    return merge


def torch_quantize(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """quantize_activations, without the care for rows of zeros."""
    row_scale = x.abs().amax(1) / 127
    return (x / row_scale[:, None]).round_().to(torch.int8), row_scale


def torch_side_path(
    product: torch.Tensor, x_scale: torch.Tensor, row_scale: torch.Tensor, side: ops.SidePath
) -> torch.Tensor:
    """int8_epilogue with a batched product for the side path."""
    n_groups, out_features, rank = side.B.shape
    y = product.float().mul_(x_scale[:, None]).mul_(row_scale).view(n_groups, -1, out_features)
    return torch.baddbmm(y, side.inner.view(n_groups, -1, rank), side.B.mT)
