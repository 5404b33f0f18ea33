"""Which kernels run, and that it never changes in silence."""

import contextlib
import os
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lorahub_edge.errors import InvalidInput, KernelUnavailable
from lorahub_edge.kernels import ops, routes


@pytest.fixture
def no_native(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the extension had not been installed."""
    monkeypatch.setattr(routes, "import_extension", lambda _: ImportError("no module named _native"))


@pytest.fixture(autouse=True)
def default_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LORAHUB_EDGE_KERNELS", raising=False)


def test_native_is_the_default() -> None:
    assert ops.route("cpu") == "native-cpu"
    assert ops.isa() == (os.environ.get("LORAHUB_EDGE_ISA") or routes.import_extension("cpu").runnable_isas()[-1])


def test_other_devices_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ops.route("mps") == "torch-mps"
    monkeypatch.setattr(routes, "import_extension", lambda device_type: f"an extension for {device_type}")
    assert ops.route(torch.device("cuda", 1)) == "native-cuda"
    monkeypatch.setattr(routes, "import_extension", lambda _: ImportError("no module named _native_cuda"))
    assert ops.route("cuda") == "torch-cuda"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_reference_can_be_asked_for(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    stack, out = torch.arange(6.0).reshape(1, 2, 3).to(dtype), torch.full((1, 3), torch.nan)
    monkeypatch.setenv("LORAHUB_EDGE_KERNELS", "reference")
    monkeypatch.setattr(routes, "import_extension", lambda _: pytest.fail("the extension was asked for"))
    assert ops.route("cpu") == "reference"
    assert ops.isa() == "numpy"
    scales = torch.ones(1, 2) if dtype == torch.int8 else None
    assert ops.compose_factors(stack, [[2.0, 10.0]], scales=scales, out=out) is out
    np.testing.assert_array_equal(out, [[30, 42, 54]])


@pytest.mark.usefixtures("no_native")
def test_missing_extension_is_visible() -> None:
    assert ops.route("cpu") == "reference"
    np.testing.assert_array_equal(ops.compose_factors(torch.ones(1, 2, 1), [[2.0, 10.0]]), [[12]])


@pytest.mark.usefixtures("no_native")
def test_missing_extension_is_an_error_where_it_is_demanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAHUB_EDGE_KERNELS", "native")
    for call in (lambda: ops.route("cpu"), ops.isa, lambda: ops.compose_factors(torch.ones(1, 2, 1), [[2.0, 10.0]])):
        with pytest.raises(
            KernelUnavailable, match=r"cannot be imported \(no module named _native\); install the package"
        ):
            call()


def test_unknown_choice_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAHUB_EDGE_KERNELS", "fast")
    with pytest.raises(
        InvalidInput, match="LORAHUB_EDGE_KERNELS: expected 'native', 'reference' or nothing, received 'fast'"
    ):
        ops.route("cpu")


class OnTheSecondGpu:
    """Exports itself as torch's tensors do: only while its device is the current one."""

    def __dlpack__(self) -> str:
        if torch.cuda.current_device() != 1:
            raise BufferError("Can't export tensors on a different CUDA device index")
        return "exported"


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """torch as on a machine with two GPUs, the first of them current; the list's only value is the current one."""
    current = [0]

    @contextlib.contextmanager
    def made_current(device: torch.device) -> Iterator[None]:
        before, current[0] = current[0], device.index
        try:
            yield
        finally:
            current[0] = before

    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "device", made_current)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=40 + device.index))
    return current


def test_an_op_on_the_second_gpu_makes_it_current(monkeypatch: pytest.MonkeyPatch, two_gpus: list[int]) -> None:
    extension = SimpleNamespace(op=lambda tensor, stream: (tensor.__dlpack__(), stream))
    monkeypatch.setattr(routes, "import_extension", lambda _: extension)
    first, second = (routes.need_native("op", torch.device("cuda", index), None) for index in (0, 1))
    assert first.module is extension
    assert second.module.op(OnTheSecondGpu(), second.where) == ("exported", 41)
    with pytest.raises(BufferError):
        first.module.op(OnTheSecondGpu(), first.where)
    assert two_gpus == [0]
