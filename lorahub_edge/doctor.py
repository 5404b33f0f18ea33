"""What this installation computes with, and why a faster way is closed: versions, machine, kernels, GPUs.

It reports and never fails: a setting that would stop a run is one of its notes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from lorahub_edge.errors import LorahubEdgeError, needed_by
from lorahub_edge.kernels import routes
from lorahub_edge.measure import machine, torch_or_none, versions


@dataclass(frozen=True)
class CudaDevice:
    """A GPU as our CUDA kernels see it.

    Attributes:
        index: among those that this process may use.
        compute_capability: as "9.0".
        problem: why our kernels do not run there; empty if they do.
    """

    index: int
    name: str
    compute_capability: str
    memory_bytes: int
    problem: str


@dataclass(frozen=True)
class CudaBuild:
    """The CUDA extension in this installation.

    Attributes:
        module: its name: in lorahub_edge if it was built with the package, in lorahub_edge_cuda if it comes from the
            distribution lorahub-edge-cuda.
        architectures: compute capabilities that it has machine code for, as CMake writes them; one without "-real" is
            there as PTX too, which drivers translate for later GPUs.
        runtime_version: of CUDA in the extension.
        driver_version: the newest CUDA that the driver supports; "0.0" without a driver.
    """

    module: str
    architectures: tuple[str, ...]
    runtime_version: str
    driver_version: str


@dataclass(frozen=True)
class Diagnosis:
    """What `doctor` found.

    Attributes:
        versions: of Python and the packages.
        machine: system, CPU, threads, GPU if any.
        cpu_route, isa: who computes on the CPU, and with which instruction set; None if a setting is wrong.
        runnable_isas: the instruction sets that the build has and the machine runs, narrowest first.
        cuda_route: who computes on CUDA; None if a setting is wrong.
        cuda_build: None without the extension.
        has_torch: false in a plain install, which answers from exported folders only.
        torch_cuda: the CUDA version that torch was built for, None for a CPU-only torch.
        torch_sees_cuda: whether torch finds a GPU.
        devices: GPUs, as the extension sees them.
        notes: one line each: what is missing or wrong, and the remedy.
    """

    versions: dict[str, str]
    machine: dict[str, Any]
    cpu_route: str | None
    isa: str | None
    runnable_isas: tuple[str, ...]
    cuda_route: str | None
    cuda_build: CudaBuild | None
    has_torch: bool
    torch_cuda: str | None
    torch_sees_cuda: bool
    devices: tuple[CudaDevice, ...]
    notes: tuple[str, ...]

    def report(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)

    def lines(self) -> Iterator[tuple[str, str]]:
        """Name and text of each line that a person reads; notes come last."""
        yield "versions", ", ".join(f"{name} {version}" for name, version in self.versions.items())
        yield "machine", f"{self.machine['cpu']}, {self.machine['cpus']} CPUs, {self.machine['system']}"
        found = f", of {', '.join(self.runnable_isas)}" if self.runnable_isas else ""
        yield "CPU kernels", f"{self.cpu_route or 'none'}, instruction set {self.isa or 'none'}{found}"
        if self.cuda_build is None:
            yield "CUDA kernels", f"none; {self.cuda_route or 'none'} instead"
        else:
            build = self.cuda_build
            capabilities = ", ".join(build.architectures)
            yield "CUDA kernels", f"{build.module}, CUDA {build.runtime_version}, compute capabilities {capabilities}"
        built_for = f"built for CUDA {self.torch_cuda}" if self.torch_cuda else "built without CUDA"
        seen = f"{built_for}, {'sees' if self.torch_sees_cuda else 'sees no'} GPU"
        yield "torch", seen if self.has_torch else "not installed"
        for device in self.devices:
            memory = f"{device.memory_bytes / 2**30:.0f} GiB"
            state = device.problem or "kernels run"
            yield f"GPU {device.index}", f"{device.name}, {device.compute_capability}, {memory}: {state}"
        for note in self.notes:
            yield "note", note


def doctor() -> Diagnosis:
    """Look at the installation and the machine.

    Returns:
        What was found, with notes on what was not.

    Cost: with the CUDA extension, a context on each GPU: some hundred MB of its memory until the process ends.
    """
    notes: list[str] = []
    cpu = _extension("cpu", notes)
    cuda_build, devices = _cuda(notes)
    torch = torch_or_none()
    _answer(_need_torch, notes)
    return Diagnosis(
        versions=versions("onnxruntime", "tokenizers"),
        machine=machine(),
        cpu_route=_answer(lambda: routes.route("cpu"), notes),
        isa=_answer(routes.isa, notes),
        runnable_isas=() if cpu is None else tuple(cpu.runnable_isas()),
        cuda_route=_answer(lambda: routes.route("cuda"), notes),
        cuda_build=cuda_build,
        has_torch=torch is not None,
        torch_cuda=None if torch is None else torch.version.cuda,
        torch_sees_cuda=torch is not None and torch.cuda.is_available(),
        devices=devices,
        notes=tuple(dict.fromkeys(notes)),
    )


def _need_torch() -> str:
    with needed_by("all but answering from an exported folder"):
        import torch
    return torch.__version__


def _answer(ask: Callable[[], str], notes: list[str]) -> str | None:
    """What is asked for; None and a note if a setting forbids an answer."""
    try:
        return ask()
    except LorahubEdgeError as error:
        notes.append(str(error))
        return None


def _extension(device_type: str, notes: list[str]) -> Any:
    """The extension module; None and a note, with the reason and the remedy, if there is none."""
    extension = routes.import_extension(device_type)
    if not isinstance(extension, ImportError):
        return extension
    name = {"cpu": "CPU kernels", "cuda": "CUDA kernels"}[device_type]
    notes.append(str(routes.no_native(name, device_type)))
    return None


def _cuda(notes: list[str]) -> tuple[CudaBuild | None, tuple[CudaDevice, ...]]:
    """The extension and its GPUs."""
    extension = _extension("cuda", notes)
    if extension is None:
        return None, ()
    runtime, driver = extension.runtime_version(), extension.driver_version()
    build = CudaBuild(extension.__name__, tuple(extension.architectures.split()), runtime, driver)
    try:
        devices = tuple(CudaDevice(**facts) for facts in extension.devices())
    except RuntimeError as error:
        reason = "no CUDA driver on this machine" if driver == "0.0" else error
        notes.append(f"no GPU for the CUDA kernels ({reason}); they need one with a driver for CUDA {runtime} or later")
        return build, ()
    torch = torch_or_none()
    if devices and torch is not None and torch.version.cuda is None:
        notes.append(f"torch {torch.__version__} is built without CUDA; install one with CUDA to use the GPU")
    notes += [f"GPU {d.index}: kernels do not run there ({d.problem}); build for it" for d in devices if d.problem]
    return build, devices
