"""The CUDA kernels, each beside its peers in the same run, with the floor that the measured copy bandwidth sets.

    python -m bench.ops_gpu

Times are the GPU's own, between two events on the stream. Before each sample a buffer larger than the L2 cache is
written, and the GPU sleeps while the host queues the calls, so that neither warm caches nor Python are in the figures;
what a user waits for, Python included, is measured apart and called wall time. Every contender of ours is checked
against exact sums before anything is timed. Shapes are FLAN-T5-large's, as in bench.ops.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from bench.ops_case import FEATURES, RANK, GpuCase
from bench.ops_factors import BLOCK, N_MODULES, N_TARGETS, N_VALUES
from bench.ops_gpu_int8 import epilogue_case, linear_case, product_cases, quantize_case
from bench.ops_peers import torch_inject
from bench.records import RESULTS, append, make_record
from bench.timing import in_turns, summary
from bench.timing_gpu import (
    COPY,
    GPU,
    bytes_floor,
    copy_probe,
    device_facts,
    device_in_turns,
    graph_of,
    native,
    waiting,
)
from lorahub_edge.kernels import ops

BENCH = "ops-gpu"


def main() -> None:
    """Parse, measure each case, append a record."""
    options = _parser().parse_args()
    device = device_facts()
    torch.manual_seed(0)
    for case in cases(options.ops):
        case.check()
        timings = summary(device_in_turns(case.calls, n_repeats=case.n_repeats, n_launches=case.n_launches))
        wall = summary(in_turns({name: waiting(call) for name, call in case.wall_calls.items()}, n_repeats=9))
        floors = case.floors_ms(timings)
        setup = {"op": case.op, **case.setup, "gpu": torch.cuda.get_device_name()}
        metrics = {"timings": timings, "wall_timings": wall, "floors_ms": floors, "device": device}
        append(options.out, make_record(BENCH, setup, metrics))
        _say(case, timings, wall, floors)


def cases(names: list[str]) -> Iterator[GpuCase]:
    """The cases of the named ops, made one after the other: a stack is large."""
    if "compose_factors" in names:
        yield from compose_cases()
    if "inject_delta" in names:
        yield inject_case()
    if "quantize_activations" in names:
        yield quantize_case()
    if "int8_epilogue" in names:
        yield epilogue_case()
    if "int8_product" in names:
        yield from product_cases()
    if "int8_linear" in names:
        yield linear_case()


# -- compose_factors --------------------------------------------------------------------------------------------------


def compose_cases() -> Iterator[GpuCase]:
    """1 to 32 candidates of 20 modules."""
    rows = torch.randn(N_MODULES, N_VALUES, device=GPU)
    stack = rows.view(N_MODULES, -1, BLOCK).transpose(0, 1).contiguous()
    for n_candidates in (1, 8, 13, 32):
        yield _compose_case(rows, stack, torch.randn(n_candidates, N_MODULES))


def _compose_case(rows: torch.Tensor, stack: torch.Tensor, coefficients: torch.Tensor) -> GpuCase:
    half, half_rows, there = stack.bfloat16(), rows.bfloat16(), coefficients.to(GPU)
    out, module, where = torch.empty(len(there), N_VALUES, device=GPU), *native()
    plain, half_plain = torch.empty_like(out), torch.empty_like(out, dtype=torch.bfloat16)
    half_there = there.bfloat16()
    calls: dict[str, Callable[[], object]] = {
        "ours, float32 stack": lambda: module.compose_factors(stack, there, None, out, where),
        "ours, bfloat16 stack": lambda: module.compose_factors(half, there, None, out, where),
        "torch.mm float32": lambda: torch.mm(there, rows, out=plain),
        "torch.mm bfloat16, output too": lambda: torch.mm(half_there, half_rows, out=half_plain),
        COPY: copy_probe(),
    }
    if len(there) == 1:
        calls["released dict loop"] = dict_loop(rows, coefficients[0].tolist())
    floors = {"bytes, float32 stack": bytes_floor(stack, out), "bytes, bfloat16 stack": bytes_floor(half, out)}

    def check() -> None:
        """Against sums in float64, with the bound of a float32 sum of so many terms."""
        for values in (stack, half):
            module.compose_factors(values, there, None, out.fill_(torch.nan), where)
            double = values.transpose(0, 1).flatten(1).double()
            exact, magnitude = there.double() @ double, there.abs().double() @ double.abs()
            if not bool(((out - exact).abs() <= (N_MODULES + 1) * 2.0**-24 * magnitude).all()):
                raise AssertionError(f"compose_factors: a sum of the {values.dtype} stack is wrong")

    setup: dict[str, object] = {"n_candidates": len(there), "n_modules": N_MODULES, "n_values": N_VALUES}
    wall = {"ours through ops, bfloat16 stack": lambda: ops.compose_factors(half, coefficients, out=out)}
    return GpuCase("compose_factors", setup, calls, check, floors, n_repeats=21, n_launches=10, wall_calls=wall)


def dict_loop(rows: torch.Tensor, coefficients: list[float]) -> Callable[[], object]:
    """What the released LoRAHub does for one candidate (lorahub.algorithm.get_final_weights), written out here because
    that package needs others which a machine with a GPU may lack."""
    factors = rows.view(N_MODULES, N_TARGETS, 2, RANK, FEATURES)
    cache = [{(t, side): module[t, side] for t in range(N_TARGETS) for side in range(2)} for module in factors]

    def loop() -> dict[tuple[int, int], torch.Tensor]:
        final: dict[tuple[int, int], torch.Tensor] = {}
        for coefficient, state in zip(coefficients, cache, strict=True):
            for key in cache[0]:
                scaled = coefficient * state[key]
                final[key] = final[key] + scaled if key in final else scaled
        return final

    return loop


# -- inject_delta -----------------------------------------------------------------------------------------------------


def inject_case() -> GpuCase:
    """All 144 layers of 1024 x 1024, rank 16."""
    codes = torch.randint(-127, 128, (N_TARGETS, FEATURES, FEATURES), dtype=torch.int8, device=GPU)
    row_scale = 0.001 + torch.rand(N_TARGETS, FEATURES, device=GPU) / 100
    A = 0.01 * torch.randn(N_TARGETS, RANK, FEATURES, device=GPU)
    B = 0.1 * torch.randn(N_TARGETS, FEATURES, RANK, device=GPU)
    layers = list(zip(codes, row_scale, A, B, torch.empty_like(codes), strict=True))
    rows = torch.empty(N_TARGETS, 5, FEATURES, device=GPU)
    module, where = native()
    from_stack, stack_ops = stack_calls(layers)
    together = ops.InjectLayers([ops.LayerToInject(*layer[:4], 2.0, layer[4]) for layer in layers])

    def kernels() -> None:
        for (layer, scale, a, b, values), row in zip(layers, rows, strict=True):
            module.inject_delta(layer, scale, a, b, values, row[4], row[:4], 2.0, "nearest", 0, where)

    def through_ops() -> None:
        for layer, scale, a, b, values in layers:
            ops.inject_delta(layer, scale, a, b, scaling=2.0, out=values)

    def by_torch() -> None:
        for layer, scale, a, b, _ in layers:
            torch_inject(layer, scale, a, b, 2.0)

    calls: dict[str, Callable[[], object]] = {
        "ours": kernels,
        "ours, all layers in one launch": together.inject,
        "ours, as a CUDA graph": graph_of(through_ops).replay,
        "ours, from a stack of 20": from_stack,
        "plain torch": by_torch,
        COPY: copy_probe(),
    }

    def check() -> None:
        """Each new value is within half a step of the exact one; a step of a scale that is right to 1e-5."""
        kernels()
        check_layers(rows[:, 4])
        check_layers(torch.stack([injected.row_scale for injected in together.inject()]))

    def check_layers(steps: torch.Tensor) -> None:
        for at in (0, N_TARGETS - 1):
            layer, scale, a, b, values = layers[at]
            exact = layer.double() * scale[:, None].double() + 2.0 * b.double() @ a.double()
            step = steps[at].double()
            torch.testing.assert_close(step, exact.abs().amax(1) / 127, rtol=1e-5, atol=0)
            if not bool(((values * step[:, None] - exact).abs() <= 0.501 * step[:, None]).all()):
                raise AssertionError(f"inject_delta: a code of layer {at} is wrong")

    wall = {
        "ours through ops": through_ops,
        "ours through ops, in one launch": together.inject,
        "ours through ops, from a stack of 20": stack_ops,
        "plain torch": by_torch,
    }
    floors = {"bytes": bytes_floor(codes, codes, A, B, row_scale, rows)}
    setup: dict[str, object] = {"n_layers": N_TARGETS, "features": FEATURES, "rank": RANK}
    return GpuCase("inject_delta", setup, calls, check, floors, n_repeats=21, n_launches=7 * N_TARGETS, wall_calls=wall)


def stack_calls(layers: list[tuple[torch.Tensor, ...]]) -> tuple[Callable[[], None], Callable[[], None]]:
    """All layers from a module stack, composed and injected, by the kernels and through `ops`."""
    n_blocks = RANK * FEATURES // BLOCK
    stack = torch.randn(N_TARGETS, 2 * n_blocks, N_MODULES, BLOCK, device=GPU).bfloat16()
    coefficients = torch.randn(N_MODULES)
    there, workspace = coefficients.to(GPU), torch.empty(2 * n_blocks * BLOCK, device=GPU)
    rows = torch.empty(5, FEATURES, device=GPU)
    module, where = native()

    def kernels() -> None:
        for (layer, scale, _, _, values), blocks in zip(layers, stack, strict=True):
            factors = (blocks[:n_blocks], blocks[n_blocks:], there, None, None, workspace)
            outputs = (values, rows[4], rows[:4])
            module.inject_delta_from_stack(layer, scale, *factors, *outputs, RANK, 2.0, "nearest", 0, where)

    def through_ops() -> None:
        for (layer, scale, _, _, values), blocks in zip(layers, stack, strict=True):
            factors = (blocks[:n_blocks], blocks[n_blocks:], coefficients)
            ops.inject_delta_from_stack(layer, scale, *factors, rank=RANK, scaling=2.0, out=values)

    return kernels, through_ops


def _say(
    case: GpuCase, timings: dict[str, dict[str, object]], wall: dict[str, dict[str, object]], floors: dict[str, float]
) -> None:
    lines = [f"{case.op} {case.setup}"]
    lines += [f"  {times['median_ms']:>10} ms  {name}" for name, times in timings.items()]
    lines += [f"  {times['median_ms']:>10} ms  {name}, wall time" for name, times in wall.items()]
    lines += [f"  {milliseconds:>10} ms  floor by {name}" for name, milliseconds in floors.items()]
    sys.stderr.write("\n".join(lines) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.ops_gpu", description=__doc__.partition("\n")[0])
    all_ops = [
        "compose_factors",
        "inject_delta",
        "quantize_activations",
        "int8_epilogue",
        "int8_product",
        "int8_linear",
    ]
    parser.add_argument("--ops", nargs="+", choices=all_ops, default=all_ops)
    parser.add_argument("--out", type=Path, default=RESULTS / f"{BENCH}.jsonl")
    return parser


if __name__ == "__main__":
    main()
