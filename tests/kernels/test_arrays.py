"""The native boundary: what the extension takes as an array, and that it gives each one back exactly once.

These tests call the extension directly; everything else goes through `ops`, which checks most of this before.
"""

import ctypes
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from lorahub_edge import _native


class Producer:
    """An exporter with nothing but the protocol of before DLPack 1.0: its capsules have the legacy form."""

    def __init__(self, capsule: Any) -> None:
        self.capsule = capsule

    def __dlpack__(self) -> Any:
        return self.capsule


def compose(stack: Any, out: Any) -> None:
    _native.compose_factors(stack, np.array([[2.0, 3.0]], np.float32), None, out, 1)


def stack_and_out() -> tuple[np.ndarray, np.ndarray]:
    return np.array([[[1, 2, 3], [10, 20, 30]]], np.float32), np.full((1, 3), np.nan, np.float32)


EXPECTED = [[32, 64, 96]]


def test_takes_numpy_and_torch_alike() -> None:
    stack, out = stack_and_out()
    compose(stack, out)
    np.testing.assert_array_equal(out, EXPECTED)
    torch_out = torch.full((1, 3), torch.nan)
    compose(torch.from_numpy(stack).bfloat16(), torch_out)
    np.testing.assert_array_equal(torch_out, EXPECTED)


def test_takes_legacy_capsules() -> None:
    stack, out = stack_and_out()
    compose(Producer(stack.__dlpack__()), Producer(out.__dlpack__()))
    np.testing.assert_array_equal(out, EXPECTED)


def test_takes_read_only_inputs() -> None:
    stack, out = stack_and_out()
    stack.flags.writeable = False
    compose(stack, out)
    np.testing.assert_array_equal(out, EXPECTED)


def test_gives_arrays_back_once() -> None:
    """Also when the call is refused. A leak would add a reference for each call, a double release take one."""
    stack, out = stack_and_out()
    before = sys.getrefcount(stack), sys.getrefcount(out)
    for _ in range(10):
        compose(stack, out)
        compose(Producer(stack.__dlpack__()), Producer(out.__dlpack__()))
        with pytest.raises(ValueError, match="out: expected shape"):
            compose(stack, out[:, :2].copy())
        with pytest.raises(ValueError, match="out: expected a C-contiguous array"):
            compose(stack, out[:, ::-1])
        with pytest.raises(ValueError, match=r"stack: expected .*float32.*, received"):
            compose(stack.astype(np.float64), out)
    assert (sys.getrefcount(stack), sys.getrefcount(out)) == before


def test_refuses_a_used_capsule() -> None:
    stack, out = stack_and_out()
    producer = Producer(stack.__dlpack__())
    compose(producer, out)
    with pytest.raises(
        ValueError, match="stack: expected a DLPack capsule that nobody has used, received one named 'used"
    ):
        compose(producer, out)


def test_refuses_what_is_no_array() -> None:
    with pytest.raises(ValueError, match=r"stack: expected an array that speaks DLPack, received <class 'list'>"):
        compose([[1.0], [2.0]], np.zeros((1, 1), np.float32))


def test_refuses_other_devices() -> None:
    """By what the capsule says: a legacy one, with the device type (offset 8 of the structure) set to CUDA's."""
    stack, out = stack_and_out()
    capsule = stack.__dlpack__()
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    ctypes.c_int32.from_address(pointer_of(capsule, b"dltensor") + 8).value = 2
    with pytest.raises(ValueError, match="stack: expected an array in CPU memory, received DLPack device type 2"):
        compose(Producer(capsule), out)


def test_refuses_read_only_output() -> None:
    stack, out = stack_and_out()
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out: expected a writable array, received a read-only one"):
        compose(stack, out)
    assert np.isnan(out).all()


def test_refuses_misaligned_memory() -> None:
    _, out = stack_and_out()
    misaligned = np.frombuffer(bytearray(25), np.uint8)[1:].view(np.float32).reshape(1, 2, 3)
    assert not misaligned.flags.aligned
    with pytest.raises(
        ValueError, match="stack: expected an address that is a multiple of 4, received a misaligned one"
    ):
        compose(misaligned, out)


@pytest.mark.parametrize(
    ("stack", "received"),
    [
        (np.zeros((1, 3, 2), np.float32).transpose(0, 2, 1), r"strides \(6, 1, 2\) for shape \(1, 2, 3\)"),
        (np.zeros((1, 2, 6), np.float32)[..., ::2], r"strides \(12, 6, 2\)"),
        (np.zeros((1, 2, 3), np.float32)[..., ::-1], r"strides \(6, 3, -1\)"),
        (np.broadcast_to(np.zeros(3, np.float32), (1, 2, 3)), r"strides \(0, 0, 1\)"),
    ],
)
def test_refuses_strides(stack: np.ndarray, received: str) -> None:
    with pytest.raises(ValueError, match=f"compose_factors: stack: expected a C-contiguous array, received {received}"):
        compose(stack, np.zeros((1, 3), np.float32))


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, np.uint32, np.complex64])
def test_refuses_dtypes_and_never_converts(dtype: type) -> None:
    stack, out = stack_and_out()
    with pytest.raises(ValueError, match=r"stack: expected .*float32.*, received"):
        compose(stack.astype(dtype), out)
    with pytest.raises(ValueError, match="out: expected float32"):
        compose(stack, np.zeros_like(out, dtype))


@pytest.mark.parametrize(
    ("stack_shape", "coefficients_shape", "out_shape"),
    [
        ((1, 2, 3), (1, 3), (1, 3)),
        ((1, 2, 3), (1, 2), (2, 3)),
        ((1, 2, 3), (1, 2), (1, 4)),
        ((2, 2, 3), (1, 2), (1, 3)),
        ((2, 3), (1, 2), (1, 3)),
        ((1, 2, 3), (2,), (1, 3)),
    ],
)
def test_refuses_shapes(stack_shape: tuple, coefficients_shape: tuple, out_shape: tuple) -> None:
    stack, coefficients, out = (np.zeros(s, np.float32) for s in (stack_shape, coefficients_shape, out_shape))
    with pytest.raises(ValueError, match=r"compose_factors: \w+: expected .*received shape"):
        _native.compose_factors(stack, coefficients, None, out, 1)


@pytest.mark.parametrize(
    ("dtype", "scales", "message"),
    [
        (np.int8, None, "expected an array with an int8 stack, None with another"),
        (np.float32, np.ones((1, 2), np.float32), "expected an array with an int8 stack, None with another"),
        (np.int8, np.ones((1, 1), np.float32), r"expected shape \(1, 2\), received shape \(1, 1\)"),
        (np.int8, np.ones((2,), np.float32), r"expected shape \(1, 2\), received shape \(2,\)"),
        (np.int8, np.ones((1, 2)), "expected float32, received float64"),
    ],
)
def test_refuses_scales(dtype: type, scales: np.ndarray | None, message: str) -> None:
    """Without them the kernel would read what is not there."""
    stack, out = stack_and_out()
    with pytest.raises(ValueError, match=f"compose_factors: scales: {message}"):
        _native.compose_factors(stack.astype(dtype), np.ones((1, 2), np.float32), scales, out, 1)


def test_number_of_threads_is_an_integer() -> None:
    stack, out = stack_and_out()
    with pytest.raises(TypeError, match="incompatible function arguments"):
        _native.compose_factors(stack, np.ones((1, 2), np.float32), None, out, 1.0)


def test_works_in_a_forked_child() -> None:
    """Threads of an earlier call must not be missed after a fork. In its own process: pytest's may have others."""
    script = """
import os
import numpy as np
from lorahub_edge import _native
stack = np.ones((8_000, 20, 125), np.float32)
def compose():
    out = np.zeros((1, 1_000_000), np.float32)
    _native.compose_factors(stack, np.ones((1, 20), np.float32), None, out, 4)
    return bool((out == 20).all())
assert compose()
child = os.fork()
if child == 0:
    os._exit(0 if compose() else 1)
assert os.waitpid(child, 0)[1] == 0
assert compose()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
