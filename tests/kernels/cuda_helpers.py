"""What the tests of the CUDA kernels share. Cases and bounds are those of the CPU's tests."""

from typing import TypeVar

import pytest
import torch

DEVICE = torch.device("cuda")
FLOATS = (torch.float32, torch.bfloat16)

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

Case = TypeVar("Case")


def moved(case: Case, device: torch.device | str) -> Case:
    """A dataclass of tensors, some of them perhaps in dataclasses again, on another device."""
    if isinstance(case, torch.Tensor):
        return case.to(device)
    fields = getattr(case, "__dataclass_fields__", None)
    return case if fields is None else type(case)(*(moved(getattr(case, name), device) for name in fields))


def on_gpu(case: Case) -> Case:
    return moved(case, DEVICE)


def shifted(tensor: torch.Tensor) -> torch.Tensor:
    """The same values at an address that fits no access wider than one value."""
    view = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)[1:].view(tensor.shape)
    return view.copy_(tensor)
