"""Who computes: the native extensions, plain torch, or the NumPy twins. The only importer of the extensions.

    native-cpu     the C++ kernels (lorahub_edge._native), for tensors in CPU memory
    native-cuda    the CUDA kernels: lorahub_edge._native_cuda, where the build had a CUDA compiler, or else
                   lorahub_edge_cuda._native_cuda, of the distribution lorahub-edge-cuda
    torch-<type>   plain torch on another device: on CUDA without our extension, on mps and so on
    reference      the NumPy twins, where the extension is missing or LORAHUB_EDGE_KERNELS=reference asks for them

`route` and `isa` tell which it is, and a run records them: nothing falls back in silence. Neither needs torch.
"""

from __future__ import annotations

import functools
import importlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorahub_edge.errors import InvalidInput, KernelUnavailable

if TYPE_CHECKING:
    import torch

_CHOICES = ("", "native", "reference")
# where each is looked for, in this order
_EXTENSIONS = {
    "cpu": ("lorahub_edge._native",),
    "cuda": ("lorahub_edge._native_cuda", "lorahub_edge_cuda._native_cuda"),
}
_REMEDIES = {
    "cpu": "install the package again with a C++17 compiler",
    "cuda": "install lorahub-edge-cuda of the same version as lorahub-edge, or lorahub-edge again from source with "
    "nvcc on the PATH, or with LORAHUB_EDGE_CUDA=ON to see why that fails",
}


@dataclass(frozen=True)
class Native:
    """A native extension, ready for one call.

    Attributes:
        module: the extension module.
        where: the trailing argument of each of its ops: CPU threads, or the raw CUDA stream.
    """

    module: Any
    where: int


@functools.cache
def import_extension(device_type: str) -> Any:
    """The extension module for "cpu" or "cuda", or the ImportError that says why there is none.

    One that is there and cannot be imported is not passed over: its error is the answer.
    """
    reason: ImportError
    for name in _EXTENSIONS[device_type]:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            reason = error
        except ImportError as error:
            return error
    return reason


def _choice() -> str:
    choice = os.environ.get("LORAHUB_EDGE_KERNELS", "")
    if choice not in _CHOICES:
        raise InvalidInput(f"LORAHUB_EDGE_KERNELS: expected 'native', 'reference' or nothing, received {choice!r}")
    return choice


def _extension_or_none(device_type: str) -> Any:
    choice = _choice()
    if choice == "reference" or device_type not in _EXTENSIONS:
        return None
    extension = import_extension(device_type)
    if not isinstance(extension, ImportError):
        return extension
    if choice == "native":
        raise KernelUnavailable(
            f"LORAHUB_EDGE_KERNELS=native: the extension {' or '.join(_EXTENSIONS[device_type])} cannot be imported "
            f"({extension}); {_REMEDIES[device_type]}"
        ) from extension
    return None


def native_for(device: torch.device, n_threads: int | None) -> Native | None:
    """The extension for tensors on `device`, or None where torch or the reference is to be used; see `route`.

    Args:
        device: of the tensors.
        n_threads: CPU threads; torch.get_num_threads() if None.
    """
    import torch  # here, since doctor asks for routes where there is none

    extension = _extension_or_none(device.type)
    if extension is None:
        return None
    if device.type == "cuda":
        if device.index not in (None, torch.cuda.current_device()):
            extension = _MadeCurrent(extension, device)
        return Native(extension, torch.cuda.current_stream(device).cuda_stream)
    isa()  # a wrong LORAHUB_EDGE_ISA is reported as the user's error
    return Native(extension, torch.get_num_threads() if n_threads is None else n_threads)


class _MadeCurrent:
    """An extension whose ops run while a device is the current one: torch exports no tensor of another by DLPack."""

    def __init__(self, extension: Any, device: torch.device) -> None:
        self._extension = extension
        self._device = device

    def __getattr__(self, name: str) -> Any:
        import torch

        op = getattr(self._extension, name)

        def call(*arguments: Any) -> Any:
            with torch.cuda.device(self._device):
                return op(*arguments)

        return call


def need_native(op: str, device: torch.device, n_threads: int | None) -> Native:
    """`native_for`, for an op that has no version in plain torch.

    Raises:
        KernelUnavailable: there is no extension for the device.
    """
    native = native_for(device, n_threads)
    if native is None:
        raise no_native(op, str(device))
    return native


def no_native(op: str, device: str) -> KernelUnavailable:
    """The error that says why there are no native kernels for tensors on a device such as "cuda:1", and the remedy."""
    device_type = device.partition(":")[0]
    reason = import_extension(device_type) if device_type in _EXTENSIONS else "no kernels for this kind of device"
    remedy = _REMEDIES.get(device_type, "move the tensors to the CPU")
    return KernelUnavailable(f"{op}: needs native kernels for tensors on {device} ({reason}); {remedy}")


def route(device: torch.device | str) -> str:
    """Who computes for tensors on `device`: "native-cpu", "native-cuda", "torch-<type>" or "reference".

    Raises:
        InvalidInput: LORAHUB_EDGE_KERNELS is neither empty, "native" nor "reference".
        KernelUnavailable: it is "native" and the extension cannot be imported.
    """
    device_type = str(device).partition(":")[0]
    if _extension_or_none(device_type) is not None:
        return f"native-{device_type}"
    return "reference" if device_type == "cpu" else f"torch-{device_type}"


def isa() -> str:
    """The instruction set of the CPU kernels: one of csrc/kernels/cpu/isa.h, or "numpy" on the reference route.

    The widest that the machine runs, or what the environment variable LORAHUB_EDGE_ISA names; fixed at the first call.
    "baseline" and "neon" are what every x86-64 and ARM64 processor runs.

    Raises:
        InvalidInput: LORAHUB_EDGE_ISA names one that this build or machine does not have.
    """
    native = _extension_or_none("cpu")
    if native is None:
        return "numpy"
    try:
        return str(native.active_isa())
    except ValueError as error:
        raise InvalidInput(str(error)) from error


def has_fast_int8() -> bool:
    """Whether the CPU kernels multiply int8 codes faster than torch does floats (docs/log.md has the times)."""
    return isa() in ("avx2", "avxvnni", "avx512", "dotprod", "i8mm")


def has_wide_floats() -> bool:
    """Whether the CPU kernels compute with vectors of eight floats or more, as torch's do."""
    return isa() in ("avx2", "avxvnni", "avx512")
