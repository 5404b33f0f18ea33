"""Checks of arguments, shared by the ops: messages say where, what was expected and what came."""

import torch

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def expect(condition: bool, op: str, expected: str, received: object) -> None:
    """Raise ValueError unless the condition holds."""
    if not condition:
        raise ValueError(f"{op}: expected {expected}, received {received}")


def dtype_name(dtype: torch.dtype) -> str:
    """The dtype as messages write it: "float32"."""
    return str(dtype).removeprefix("torch.")


def expect_tensor(
    op: str,
    name: str,
    tensor: torch.Tensor,
    *,
    dtypes: tuple[torch.dtype, ...],
    shape: tuple[int | str, ...],
    device: torch.device | None = None,
) -> None:
    """Raise unless `tensor` is a C-contiguous tensor as described.

    Args:
        dtypes: those allowed.
        shape: an int is a size that is demanded, a string names a free one.
        device: that is demanded, if any.

    Raises:
        TypeError: no tensor, or of another dtype.
        ValueError: another shape, layout or device.
    """
    if isinstance(tensor, torch.Tensor) and _is_as_described(tensor, dtypes, shape, device):
        return  # before any message is made: ops are called hundreds of times per forward
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{op}: expected {name} to be a torch.Tensor, received {type(tensor).__name__}")
    if tensor.dtype not in dtypes:
        wanted = " or ".join(dtype_name(dtype) for dtype in dtypes)
        raise TypeError(f"{op}: expected {name} of dtype {wanted}, received {dtype_name(tensor.dtype)}")
    expect(_fits(tensor, shape), op, f"{name} of shape ({', '.join(map(str, shape))})", tuple(tensor.shape))
    layout = f"strides {tensor.stride()} for {tuple(tensor.shape)}"
    expect(tensor.is_contiguous(), op, f"a C-contiguous {name}", layout)
    expect(device is None or tensor.device == device, op, f"{name} on {device}", tensor.device)


def _is_as_described(
    tensor: torch.Tensor,
    dtypes: tuple[torch.dtype, ...],
    shape: tuple[int | str, ...],
    device: torch.device | None,
) -> bool:
    fits = tensor.dtype in dtypes and _fits(tensor, shape)
    return fits and tensor.is_contiguous() and (device is None or tensor.device == device)


def _fits(tensor: torch.Tensor, shape: tuple[int | str, ...]) -> bool:
    sizes = tensor.shape
    return len(sizes) == len(shape) and all(n == s or isinstance(s, str) for s, n in zip(shape, sizes, strict=True))


def expect_threads(op: str, n_threads: int | None) -> None:
    """Raise ValueError unless it is None or at least 1."""
    expect(n_threads is None or n_threads >= 1, op, "n_threads of at least 1", n_threads)


def expect_apart(op: str, out: torch.Tensor, **inputs: torch.Tensor | None) -> None:
    """Raise ValueError if `out` shares memory with an input; None stands for one that is left out."""
    for name, tensor in inputs.items():
        apart = tensor is None or not _overlap(out, tensor)
        expect(apart, op, f"out and {name} in separate memory", "overlapping ones")


def _overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two contiguous tensors share memory."""
    a_begin, b_begin = a.data_ptr(), b.data_ptr()
    return a_begin < b_begin + b.nbytes and b_begin < a_begin + a.nbytes and a.nbytes > 0 and b.nbytes > 0
