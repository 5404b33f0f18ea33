"""The CUDA extension as a whole: how it is built, what it says without a GPU, streams and repetition on one."""

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lorahub_edge.errors import KernelUnavailable
from lorahub_edge.kernels import ops, routes
from tests.kernels import test_compose_factors as compose
from tests.kernels import test_int8_epilogue as epilogue
from tests.kernels.cuda_helpers import needs_gpu, on_gpu
from tests.kernels.helpers import Stack, assert_same_bytes
from tests.kernels.test_inject_delta import STOCHASTIC, layer_of

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc/kernels/cuda").glob("*.cu"))

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="shows what happens without a CUDA GPU")


@pytest.fixture
def extension() -> Any:
    """The CUDA extension module, GPU or not."""
    module = routes.import_extension("cuda")
    if isinstance(module, ImportError):
        pytest.skip("this build has no CUDA kernels")
    return module


# -- The build --------------------------------------------------------------------------------------------------------


def test_every_source_is_built() -> None:
    recipe = (ROOT / "CMakeLists.txt").read_text()
    assert SOURCES
    assert [source for source in SOURCES if source not in recipe] == []


def test_a_build_with_a_cuda_compiler_has_the_extension() -> None:
    """A compiler that fails must not look like none."""
    if shutil.which("nvcc") is None or os.environ.get("LORAHUB_EDGE_CUDA") == "OFF":
        pytest.skip("needs a CUDA compiler")
    assert not isinstance(routes.import_extension("cuda"), ImportError)


def test_extension_has_machine_code_for_each_architecture_and_ptx_for_the_last(extension: Any) -> None:
    tool = shutil.which("cuobjdump")
    if tool is None:
        pytest.skip("needs cuobjdump")
    done = {
        kind: subprocess.run([tool, f"--list-{kind}", extension.__file__], capture_output=True, text=True, check=True)
        for kind in ("elf", "ptx")
    }
    listed = {kind: set(re.findall(r"sm_(\d+)", of_kind.stdout)) for kind, of_kind in done.items()}
    architectures = extension.architectures.split()
    assert listed["elf"] == {name.removesuffix("-real") for name in architectures}
    assert listed["ptx"] == {name for name in architectures if not name.endswith("-real")}


# -- Without the extension, without a GPU -----------------------------------------------------------------------------


@pytest.fixture
def no_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "import_extension", lambda _: ImportError("no module named _native_cuda"))
    monkeypatch.delenv("LORAHUB_EDGE_KERNELS", raising=False)


@pytest.mark.usefixtures("no_extension")
def test_without_the_extension_ops_say_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    message = r"inject_delta: needs native kernels for tensors on cuda:1 \(no module named _native_cuda\); .*nvcc"
    with pytest.raises(KernelUnavailable, match=message):
        routes.need_native("inject_delta", torch.device("cuda", 1), None)
    monkeypatch.setenv("LORAHUB_EDGE_KERNELS", "native")
    with pytest.raises(KernelUnavailable, match=r"LORAHUB_EDGE_KERNELS=native: .*_native_cuda.*nvcc on the PATH"):
        routes.route("cuda")


def test_extension_refuses_cpu_memory(extension: Any) -> None:
    stack, coefficients, out = torch.ones(1, 2, 4), torch.ones(1, 2), torch.empty(1, 4)
    with pytest.raises(ValueError, match="stack: expected an array in CUDA memory, received DLPack device type 1"):
        extension.compose_factors(stack, coefficients, None, out, 0)


class Tensor(ctypes.Structure):
    """A legacy DLManagedTensor, with what the extension reads of it: see csrc/bindings/dlpack.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("n_dims", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


class Pretended:
    """Says that its float32 numbers are in CUDA memory."""

    def __init__(self, *shape: int) -> None:
        self.memory = (ctypes.c_float * 64)()
        self.shape = (ctypes.c_int64 * len(shape))(*shape)
        address, sizes = ctypes.addressof(self.memory), ctypes.addressof(self.shape)
        self.tensor = Tensor(address, 2, 0, len(shape), 2, 32, 1, sizes, None, 0, None, None)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, **_: Any) -> Any:
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return new(ctypes.addressof(self.tensor), b"dltensor", None)


@needs_no_gpu
def test_cuda_errors_are_raised(extension: Any) -> None:
    message = r"compose_factors: expected CUDA to run it, received error \d+ \(.*\); `lorahub-edge doctor` says"
    with pytest.raises(RuntimeError, match=message):
        extension.compose_factors(Pretended(1, 2, 4), Pretended(1, 2), None, Pretended(1, 4), 0)


@needs_no_gpu
def test_nothing_is_launched_for_empty_arrays(extension: Any) -> None:
    for n_blocks, n_candidates, block in ((0, 1, 4), (1, 0, 4), (1, 1, 0)):
        out = Pretended(n_candidates, n_blocks * block)
        extension.compose_factors(Pretended(n_blocks, 2, block), Pretended(n_candidates, 2), None, out, 0)


# -- On a GPU ---------------------------------------------------------------------------------------------------------


Tensors = tuple[torch.Tensor, ...]


def compose_case() -> Tensors:
    return (compose.stack_of(20, 128, torch.bfloat16, n_blocks=999).values,)


def compose_int8_case() -> Tensors:
    stack = compose.stack_of(20, 128, torch.int8, n_blocks=999)
    return stack.values, stack.scales


def compose_call(*stack: torch.Tensor) -> Tensors:
    return (Stack(*stack).compose(compose.coefficients_of(13, 20)),)


def inject_case() -> Tensors:
    layer = layer_of(257, 1028, 16)
    return layer.codes, layer.row_scale, layer.A, layer.B


def inject_call(*layer: torch.Tensor) -> Tensors:
    injected = ops.inject_delta(*layer, rounding=STOCHASTIC)
    report = injected.report
    return injected.values, injected.row_scale, report.delta_rms, report.error, report.survived, report.n_clipped


def quantize_case() -> Tensors:
    return (torch.randn(257, 1028, generator=torch.Generator().manual_seed(0)),)


def dequantize_case() -> Tensors:
    return ops.quantize_rows(*quantize_case())


def epilogue_case() -> Tensors:
    layer = epilogue.layer_of(258, 1028, rank=16, n_groups=3, bias=True)
    return layer.product, layer.x_scale, layer.row_scale, layer.bias, layer.side.inner, layer.side.B


def epilogue_call(*layer: torch.Tensor) -> Tensors:
    return (epilogue.Layer(*layer[:4], ops.SidePath(*layer[4:])).output(),)


OPS: dict[str, tuple[Callable[[], Tensors], Callable[..., Tensors]]] = {
    "compose_factors": (compose_case, compose_call),
    "compose_factors, int8": (compose_int8_case, compose_call),
    "inject_delta": (inject_case, inject_call),
    "quantize_rows": (quantize_case, ops.quantize_activations),
    "dequantize_rows": (dequantize_case, lambda *rows: (ops.dequantize_rows(*rows),)),
    "int8_epilogue": (epilogue_case, epilogue_call),
}


def assert_same(received: Tensors, expected: Tensors) -> None:
    for a, b in zip(received, expected, strict=True):
        assert_same_bytes(a, b)


@needs_gpu
def test_equal_calls_give_equal_bytes_whatever_came_between() -> None:
    inputs = {op: tuple(map(on_gpu, case())) for op, (case, _) in OPS.items()}
    expected = {op: call(*inputs[op]) for op, (_, call) in OPS.items()}
    for op in [*OPS, *reversed(OPS)]:
        assert_same(OPS[op][1](*inputs[op]), expected[op])


@needs_gpu
@pytest.mark.parametrize("op", OPS)
def test_runs_on_the_callers_stream(op: str) -> None:
    """The inputs get their values when the stream has slept: a launch on another stream would see zeros."""
    case, call = OPS[op]
    inputs = tuple(map(on_gpu, case()))
    expected, late = call(*inputs), tuple(map(torch.zeros_like, inputs))
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        for to, values in zip(late, inputs, strict=True):
            to.copy_(values)
        received = call(*late)
    stream.synchronize()
    assert_same(received, expected)


@needs_gpu
def test_launches_are_captured_into_a_graph() -> None:
    """Nothing waits for the GPU, and nothing is launched beside the caller's stream."""
    inputs = tuple(map(on_gpu, inject_case()))
    expected = inject_call(*inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = inject_call(*inputs)
    for tensor in captured:
        tensor.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert_same(captured, expected)


@needs_gpu
def test_arrays_on_another_device_than_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA GPUs")
    for case, call in OPS.values():
        expected = call(*(tensor.to("cuda:0") for tensor in case()))
        received = call(*(tensor.to("cuda:1") for tensor in case()))
        assert torch.cuda.current_device() == 0
        assert_same(tuple(tensor.to("cuda:0") for tensor in received), expected)
