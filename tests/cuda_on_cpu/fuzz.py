"""Random shapes, layouts and values: the emulated kernels give the CPU kernels' bits.

Both sum in one order with one rounding each, so there is no tolerance but for the report's sums. Inputs end where their
allocation ends, so that the address sanitizer sees the first byte too many; outputs lie between bytes that must stay.

    case(rng) raises AssertionError where the two differ. `run` draws cases by number: a failure names its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from tests.cuda_on_cpu.device import CudaTensor
from tests.cuda_on_cpu.emulator import Emulator, cpu_extension

Rng = np.random.Generator

cpu = cpu_extension()

SIZES = (0, 1, 2, 3, 4, 5, 7, 8, 31, 32, 33, 64, 127, 128, 129, 255, 256, 257, 512, 1000, 1023, 1024, 1028)
_BESIDE = 40  # bytes behind an output that must stay as they are
_FILL = 0xA5


def _one_of(rng: Rng, *options: Any) -> Any:
    return options[rng.integers(len(options))]


def _values(rng: Rng, *shape: int, kind: str | None = None) -> torch.Tensor:
    """float32: plain, over forty orders of magnitude, subnormal, or mostly zeros."""
    values = rng.standard_normal(shape)
    kind = kind or _one_of(rng, "plain", "plain", "wide", "tiny", "zeros")
    if kind == "wide":
        values = values * 10.0 ** rng.uniform(-20, 15, shape)
    elif kind == "tiny":
        values = values * 1e-39
    elif kind == "zeros":
        values = values * (rng.random(shape) < 0.1)
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def _codes(rng: Rng, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.integers(-128, 128, shape).astype(np.int8))


_SHIFTS = (0, 0, 0, 1, 2, 4, 16)


def _placed(rng: Rng, tensor: torch.Tensor | None, shifts: tuple[int, ...] = _SHIFTS) -> torch.Tensor | None:
    """A copy that ends where its allocation does, at an address that fits accesses of one value or of several."""
    if tensor is None:
        return None
    shift = int(_one_of(rng, *shifts))
    view = torch.empty(tensor.numel() + shift, dtype=tensor.dtype)[shift:].view(tensor.shape)
    return view.copy_(tensor)


@dataclass
class _Outputs:
    """Arrays that a kernel writes, one for each of the two sides."""

    rng: Rng
    rooms: list[tuple[str, torch.Tensor, int, int]] = field(default_factory=list)
    pairs: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def make(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        shift, n = int(_one_of(self.rng, 0, 0, 1, 2, 4, 16)), math.prod(shape)
        room = torch.empty(shift + n + _BESIDE, dtype=dtype)
        room.view(torch.uint8).fill_(_FILL)
        self.rooms.append((name, room, shift, n))
        self.pairs[name] = (room[shift : shift + n].view(shape), torch.zeros(shape, dtype=dtype))

    def on(self, side: int) -> list[torch.Tensor]:
        return [pair[side] for pair in self.pairs.values()]

    def assert_nothing_beside(self) -> None:
        for name, room, shift, n in self.rooms:
            beside = torch.cat([room[:shift], room[shift + n :]]).view(torch.uint8)
            assert bool((beside == _FILL).all()), f"{name}: written beside the output"

    def assert_same(self, name: str, rows: torch.Tensor | None = None) -> None:
        """To the bit, but for the sign of zeros and the bits of NaN, in all rows or these."""
        a, b = (t.float() if rows is None else t[rows].float() for t in self.pairs[name])
        wrong = (a != b) & ~(a.isnan() & b.isnan())
        assert not bool(wrong.any()), f"{name}: {int(wrong.sum())} differ, the first at {wrong.nonzero()[0].tolist()}"


def _called(
    emulator: Emulator,
    op: str,
    inputs: list[torch.Tensor | None],
    outputs: _Outputs,
    options: tuple[Any, ...] = (),
    *,
    workspace: int | None = None,
) -> None:
    """The op by both extensions, with inputs placed at random; a workspace has so many values on the GPU."""
    placed = [_placed(outputs.rng, value) for value in inputs]
    rooms: list[list[torch.Tensor]] = [[], []]
    if workspace is not None:
        rooms = [[torch.full((workspace,), torch.nan)], [torch.empty(0)]]
    there = [None if value is None else CudaTensor(value) for value in [*placed, *rooms[0], *outputs.on(0)]]
    getattr(emulator.module, op)(*there, *options, 0)
    getattr(cpu, op)(*placed, *rooms[1], *outputs.on(1), *options, 1)
    outputs.assert_nothing_beside()


def _stack(rng: Rng, n_blocks: int, n_modules: int, block: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    dtype = _one_of(rng, torch.float32, torch.bfloat16, torch.int8)
    if dtype == torch.int8:
        return _codes(rng, n_blocks, n_modules, block), 1e-3 * _values(rng, n_blocks, n_modules, kind="plain").abs()
    return _values(rng, n_blocks, n_modules, block).to(dtype), None


def compose(emulator: Emulator, rng: Rng) -> None:
    n_blocks, block = int(rng.integers(0, 6)), int(_one_of(rng, *SIZES[:17], 128, 128))
    n_modules = int(_one_of(rng, 0, 1, 3, 20, 20, 31, 33, 255, 256, 257))
    n_candidates = int(_one_of(rng, *range(18), 31, 32, 33, 65))
    stack, scales = _stack(rng, n_blocks, n_modules, block)
    outputs = _Outputs(rng)
    outputs.make("out", (n_candidates, n_blocks * block), torch.float32)
    coefficients = _values(rng, n_candidates, n_modules, kind=_one_of(rng, "plain", "zeros"))
    _called(emulator, "compose_factors", [stack, coefficients, scales], outputs)
    outputs.assert_same("out")


def _injected(rng: Rng, out_features: int, in_features: int) -> _Outputs:
    outputs = _Outputs(rng)
    dtype = _one_of(rng, torch.int8, torch.int8, torch.bfloat16, torch.float32)
    outputs.make("values", (out_features, in_features), dtype)
    outputs.make("scale", (out_features,), torch.float32)
    outputs.make("report", (4, out_features), torch.float32)
    return outputs


def _assert_injected(outputs: _Outputs) -> None:
    """Rows whose sums overflow have a scale that is not finite, on both sides, and nothing more is said of them."""
    ours, theirs = outputs.pairs["scale"]
    finite = torch.isfinite(theirs)
    assert torch.equal(torch.isfinite(ours), finite), "scale: another row is not finite"
    outputs.assert_same("scale", finite)
    outputs.assert_same("values", finite)
    a, b = (pair[:, finite].double() for pair in outputs.pairs["report"])
    same = (a == b) | (a.isnan() & b.isnan())
    moderate = (a.abs() < 1e15) & (b.abs() < 1e15)  # beyond, one order of a sum may overflow where another does not
    assert bool((same | ~moderate | ((a - b).abs() <= 2e-3 * b.abs() + 2e-3)).all()), "report"


def inject(emulator: Emulator, rng: Rng) -> None:
    out_features, in_features = int(_one_of(rng, 0, 1, 2, 3, 4, 5, 8, 9, 33)), int(_one_of(rng, *SIZES))
    rank = int(_one_of(rng, 0, 1, 3, 4, 16, 31, 33, 64, 257))
    codes, scale = _codes(rng, out_features, in_features), 0.01 * _values(rng, out_features).abs()
    A, B = _values(rng, rank, in_features, kind="plain"), _values(rng, out_features, rank)
    if out_features > 2:
        B[rng.integers(out_features)] = 0
        codes[rng.integers(out_features)] = 0
    outputs = _injected(rng, out_features, in_features)
    scaling, rounding = float(_one_of(rng, 1.0, 2.0, 0.3, 0.0, -1.5)), _one_of(rng, "nearest", "stochastic")
    options = (scaling, rounding, int(rng.integers(0, 2**63)))
    _called(emulator, "inject_delta", [codes, scale, A, B], outputs, options)
    _assert_injected(outputs)


def inject_from_stack(emulator: Emulator, rng: Rng) -> None:
    out_features, in_features = int(_one_of(rng, 1, 3, 33)), int(_one_of(rng, 1, 31, 256, 257))
    rank, n_modules, block = int(_one_of(rng, 0, 1, 5, 16)), int(_one_of(rng, 1, 20, 300)), 128
    n_A, n_B = -(-rank * in_features // block), -(-rank * out_features // block)
    stack, scales = _stack(rng, n_A + n_B, n_modules, block)
    A_scales, B_scales = (None, None) if scales is None else (scales[:n_A], scales[n_A:])
    codes, scale = _codes(rng, out_features, in_features), 0.01 * _values(rng, out_features, kind="plain").abs() + 1e-4
    coefficients = _values(rng, n_modules, kind="plain")
    outputs = _injected(rng, out_features, in_features)
    inputs = [codes, scale, stack[:n_A], stack[n_A:], coefficients, A_scales, B_scales]
    options = (rank, 2.0, "nearest", 0)
    _called(emulator, "inject_delta_from_stack", inputs, outputs, options, workspace=(n_A + n_B) * block)
    _assert_injected(outputs)


def inject_layers(emulator: Emulator, rng: Rng) -> None:
    """A table of layers, twice: its arrays have other values the second time."""
    rounding, seed = _one_of(rng, "nearest", "stochastic"), int(rng.integers(0, 2**63))
    layers = []
    last = (int(_one_of(rng, 0, 33)), 128)
    for shape in [(int(_one_of(rng, 0, 1, 31, 65)), int(_one_of(rng, 64, 256, 260, 257)))] * 2 + [last]:
        out_features, in_features = shape
        rank = int(_one_of(rng, 0, 1, 16, 20))
        inputs = [_codes(rng, *shape), 0.01 * _values(rng, out_features).abs()]
        inputs += [_values(rng, rank, in_features, kind="plain"), _values(rng, out_features, rank)]
        outputs = _Outputs(rng)
        outputs.make("values", shape, torch.int8)
        outputs.make("scale", (out_features,), torch.float32)
        outputs.make("report", (4, out_features), torch.float32)
        layers.append(([_placed(rng, tensor) for tensor in inputs], outputs))
    there = [(*map(CudaTensor, inputs), *map(CudaTensor, outputs.on(0)), 2.0) for inputs, outputs in layers]
    table = emulator.module.InjectTable(there, rounding, seed)
    place = CudaTensor(torch.frombuffer(bytearray(table.bytes), dtype=torch.int8))
    for _ in range(2):
        emulator.module.inject_layers(table, place, 0)
        for inputs, outputs in layers:
            cpu.inject_delta(*inputs, *outputs.on(1), 2.0, rounding, seed, 1)
            outputs.assert_nothing_beside()
            _assert_injected(outputs)
            inputs[2].mul_(-0.5)


def linear(emulator: Emulator, rng: Rng) -> None:
    n_groups = int(_one_of(rng, 1, 2, 3, 13, 60))
    n_rows, out_features = n_groups * int(_one_of(rng, 1, 2, 5, 33)), int(_one_of(rng, 1, 2, 7, 63, 64, 65, 130, 200))
    in_features, rank = 16 * int(_one_of(rng, 1, 3, 4, 5, 8, 13)), int(_one_of(rng, 1, 3, 16, 17, 33))
    codes = [_placed(rng, _codes(rng, n, in_features).clamp_(min=-127), (0, 16)) for n in (n_rows, out_features)]
    scales = [_placed(rng, _values(rng, *shape, kind="plain").abs()) for shape in ((n_rows, 1), (out_features,))]
    bias = _placed(rng, _values(rng, out_features, kind="plain")) if rng.random() < 0.5 else None
    side: list[torch.Tensor | None] = [None, None]
    if rng.random() < 0.8:
        side = [_placed(rng, _values(rng, *s, kind="plain")) for s in ((n_rows, rank), (n_groups, out_features, rank))]
    outputs = _Outputs(rng)
    outputs.make("out", (n_rows, out_features), _one_of(rng, torch.float32, torch.bfloat16))
    inputs = [codes[0], scales[0], codes[1], scales[1], bias, *side]
    there = [None if value is None else CudaTensor(value) for value in inputs]
    emulator.module.int8_linear(*there, None, "", CudaTensor(outputs.on(0)[0]), 0)
    cpu.int8_linear(*inputs, None, "", outputs.on(1)[0], 1)
    outputs.assert_nothing_beside()
    outputs.assert_same("out")


def rows(emulator: Emulator, rng: Rng) -> None:
    n_rows, n_columns = int(_one_of(rng, 0, 1, 3, 33)), int(_one_of(rng, *SIZES))
    dtype = _one_of(rng, torch.float32, torch.bfloat16)
    values = _values(rng, n_rows, n_columns).to(dtype)
    if values.numel() and rng.random() < 0.3:
        values[rng.integers(n_rows), rng.integers(n_columns)] = float(_one_of(rng, np.nan, np.inf, -np.inf))
    outputs = _Outputs(rng)
    outputs.make("codes", (n_rows, n_columns), torch.int8)
    outputs.make("scale", (n_rows,), torch.float32)
    _called(emulator, "quantize_rows", [values], outputs)
    finite = torch.isfinite(outputs.pairs["scale"][1])
    outputs.assert_same("scale", finite)
    outputs.assert_same("codes", finite)
    back = _Outputs(rng)
    back.make("values", (n_rows, n_columns), dtype)
    _called(emulator, "dequantize_rows", outputs.on(1), back)
    back.assert_same("values")


def epilogue(emulator: Emulator, rng: Rng) -> None:
    n_groups = int(_one_of(rng, 1, 2, 3, 6, 13))
    n_rows, out_features = n_groups * int(_one_of(rng, 1, 2, 5, 11, 31, 32, 33, 40)), int(_one_of(rng, *SIZES[:19]))
    rank = int(_one_of(rng, 0, 1, 3, 16, 31, 32, 33, 64, 65))
    product = torch.from_numpy(rng.integers(-(2**31), 2**31, (n_rows, out_features)).astype(np.int32))
    scales = [_values(rng, n, kind="plain").abs() for n in (n_rows, out_features)]
    bias = _values(rng, out_features, kind="plain") if rng.random() < 0.5 else None
    side: list[torch.Tensor | None] = [None, None]
    if rng.random() < 0.7:
        side = [_values(rng, n_rows, rank, kind="plain"), _values(rng, n_groups, out_features, rank, kind="plain")]
    outputs = _Outputs(rng)
    outputs.make("out", (n_rows, out_features), _one_of(rng, torch.float32, torch.bfloat16))
    _called(emulator, "int8_epilogue", [product, *scales, bias, *side], outputs)
    outputs.assert_same("out")


CASES: tuple[Callable[[Emulator, Rng], None], ...] = (
    compose, inject, rows, epilogue, inject_layers, linear, inject, inject_from_stack,
)  # fmt: skip


def run(emulator: Emulator, first: int, n: int, *, of: str = "", stop: bool = False) -> list[str]:
    """Cases first to first + n - 1, each with a seed of its own for the emulator too.

    Args:
        emulator: installed.
        first, n: numbers of the cases.
        of: names of cases, separated by commas; others are left out. All if empty.
        stop: at the first that fails.

    Returns:
        What failed, a line each.
    """
    failed: list[str] = []
    for number in range(first, first + n):
        case = CASES[number % len(CASES)]
        if of and case.__name__ not in of.split(","):
            continue
        emulator.seed(number)
        before = emulator.counts().complaints
        try:
            case(emulator, np.random.default_rng(number))
            complaints = emulator.counts().complaints - before
            assert complaints == 0, f"{complaints} complaints of the emulator"
        except AssertionError as error:
            failed.append(f"case {number}, {case.__name__}: {str(error).splitlines()[0]}")
        if failed and stop:
            break
    return failed
