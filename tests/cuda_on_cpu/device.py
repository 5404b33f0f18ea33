"""A device "cuda:0" for torch, in CPU memory: tensors say that they are there, and compute here.

A tensor of the device wraps one of the CPU's; torch hands each of its operations to us before it looks for a GPU. What
mixes devices fails as it would on a GPU. The native kernels get the memory by DLPack, marked as CUDA's, so the code
under test needs no change: `routes`, `ops`, the bindings and all that stands above them run as they would there.

Streams and graphs do nothing of their own: everything happens at once, in order.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda", 0)
_CPU = torch.device("cpu")

_DLPACK_CUDA = 2
# Where a capsule's struct has its device type: see csrc/bindings/dlpack.h.
_DEVICE_TYPE_AT = {b"dltensor": 8, b"dltensor_versioned": 40}

aten = torch.ops.aten
# What moves values between devices, or indexes by a tensor of the CPU.
_MAY_MIX = (aten.copy_, aten._to_copy, aten.index, aten.index_put_, aten.index_put)


class CudaTensor(torch.Tensor):
    """A tensor on the device. `held` has its values, shape and strides."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> CudaTensor:
        with torch.inference_mode(False):  # or views of tensors from outside inference mode would not be possible in it
            tensor: CudaTensor = torch.Tensor._make_wrapper_subclass(
                cls,
                held.shape,
                strides=held.stride(),
                storage_offset=held.storage_offset(),
                dtype=held.dtype,
                device=DEVICE,
                requires_grad=held.requires_grad,
            )
        tensor.held = held
        return tensor

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _computed(function, args, kwargs or {})

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def tolist(self) -> Any:
        return self.held.tolist()

    def __repr__(self, *_: Any, **__: Any) -> str:  # type: ignore[override]
        return f"cuda:0 {self.held!r}"

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __dlpack__(self, *, stream: int | None = None, max_version: tuple[int, int] | None = None, **_: Any) -> Any:
        """The memory, marked as CUDA's."""
        capsule = self.held.__dlpack__(max_version=max_version)
        name_of, at = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
        name_of.restype, name_of.argtypes = ctypes.c_char_p, (ctypes.py_object,)
        at.restype, at.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
        name = name_of(capsule)
        ctypes.c_int32.from_address(at(capsule, name) + _DEVICE_TYPE_AT[name]).value = _DLPACK_CUDA
        return capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return _DLPACK_CUDA, 0


def _computed(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One operation of torch's, on the CPU; its results are on the device that they belong to."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    here = any(isinstance(tensor, CudaTensor) for tensor in tensors)
    _refuse_mixed(function, tensors, here)
    device = kwargs.get("device")
    if device is not None:
        kwargs = {**kwargs, "device": _CPU}
        here = torch.device(device).type == "cuda"
    result = function(*tree_map(_held, args), **tree_map(_held, kwargs))
    if not here:
        return result
    # what was written in place stays the tensor that it was
    known = {id(tensor.held): tensor for tensor in tensors if isinstance(tensor, CudaTensor)}

    def on_device(leaf: Any) -> Any:
        return (
            leaf if not isinstance(leaf, torch.Tensor) else known[id(leaf)] if id(leaf) in known else CudaTensor(leaf)
        )

    return tree_map(on_device, result)


def _held(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, CudaTensor) else leaf


def _refuse_mixed(function: Any, tensors: list[torch.Tensor], here: bool) -> None:
    if not here or function.overloadpacket in _MAY_MIX:
        return
    strangers = [t for t in tensors if not isinstance(t, CudaTensor) and t.ndim > 0]
    if strangers:
        raise RuntimeError(f"{function}: expected all tensors on cuda:0, received one of the CPU {strangers[0].shape}")


class _Operations(TorchDispatchMode):
    """Catches what makes tensors of the device from nothing, or from tensors of the CPU."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _computed(function, args, kwargs or {})


class _FromPython(TorchFunctionMode):
    """Makes tensors of Python's numbers on the CPU first: torch hides what it does for them from dispatch."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return function(*args, **kwargs).to(device)
        if function in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            args = (args[0], tree_map(_index, args[1], is_leaf=lambda value: isinstance(value, list)), *args[2:])
        return function(*args, **kwargs)


def _index(value: Any) -> Any:
    return torch.tensor(value) if isinstance(value, list) else value


class _Stream:
    cuda_stream = 0

    def synchronize(self) -> None: ...


_CUDA: dict[str, Callable[..., Any]] = {
    "is_available": lambda: True,
    "get_device_capability": lambda *_: (9, 0),
    "_lazy_init": lambda: None,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "current_stream": lambda *_: _Stream(),
    "synchronize": lambda *_: None,
    "get_device_name": lambda *_: "emulated",
    "get_device_properties": lambda *_: SimpleNamespace(name="emulated", total_memory=2**30),
    "mem_get_info": lambda *_: (2**30, 2**30),
    "max_memory_allocated": lambda *_: 0,
    "max_memory_reserved": lambda *_: 0,
    "reset_peak_memory_stats": lambda *_: None,
    "empty_cache": lambda: None,
}


@contextmanager
def pretended() -> Iterator[None]:
    """While this lasts, torch has the device; in this thread."""
    with ExitStack() as stack:
        for name, function in _CUDA.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, function))
        # a module's parameters are replaced: their memory cannot become another device's
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, False)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.enter_context(_Operations())
        stack.enter_context(_FromPython())
        yield
