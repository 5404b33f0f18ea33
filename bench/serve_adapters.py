"""Many adapters on one base: what they take of memory, and what rows with adapters of their own cost in a step.

A step's rows may have different adapters in three ways, which are timed in turns, in an order drawn anew each time:

    stack     what the service does: A and B of all adapters one below the other, and a scale per row and rank
    gather    each row's own A and B, copied from a table of all, and a product per row; the side path alone is timed
              as a graph of its own, and stands beside the stack's side path timed so too
    groups    one call for the rows of each adapter

python -m bench.serve_adapters FOLDER ADAPTER    # an exported folder made with --with-adapter, and its adapter's file
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from bench.records import RESULTS, append, make_record, say
from bench.serve_load import ask, service
from bench.timing import in_turns
from lorahub_edge.serve import OnnxModel, open_folder
from lorahub_edge.serve.adapter import Adapter, Mix, input_names, read_adapter

BENCH = "serve-adapters"
_REPEATS = 13
_N_POSITIONS = 128
Timed = Callable[[], object]


def main() -> None:
    """Memory for each number of adapters, then steps for each number of rows, all adapters different."""
    parser = argparse.ArgumentParser(prog="python -m bench.serve_adapters", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--adapters", type=int, nargs="+", default=[0, 1, 10, 100])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8, 32])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / f"{BENCH}.jsonl")
    options = parser.parse_args()
    for n in options.adapters:
        _keep(options, {"part": "memory", "adapters": n}, memory(options, n))
    model = OnnxModel(open_folder(options.folder, adapter="none"), n_threads=options.threads)
    adapter = read_adapter(options.adapter, model.files.record)
    for n in options.rows:
        _keep(
            options, {"part": "step", "rows": n, "positions": _N_POSITIONS}, steps(model, adapter, n, options.threads)
        )


def _keep(options: argparse.Namespace, setup: dict[str, Any], metrics: dict[str, Any]) -> None:
    append(options.out, make_record(BENCH, {**setup, "threads": options.threads}, metrics))
    say(f"{setup}: {metrics}")


def memory(options: argparse.Namespace, n: int) -> dict[str, Any]:
    """Resident bytes of the service with so many files of adapters, when it is ready and when each has answered."""
    with tempfile.TemporaryDirectory() as folder:
        for k in range(n):
            shutil.copy(options.adapter, Path(folder) / f"adapter{k}.safetensors")
        given = ["--threads", str(options.threads), *(["--adapter", folder] if n else [])]
        started = time.perf_counter()
        with service(options.folder, *given) as (port, process):
            seconds = time.perf_counter() - started
            ready = _resident(process.pid)
            for k in range(n):
                ask(port, "a question", 2, model=f"adapter{k}")
            return {"start_s": seconds, "ready": ready, "used": _resident(process.pid)}


def _resident(pid: int) -> dict[str, int]:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {f"{name}_bytes": int(fields[name].split()[0]) << 10 for name in ("VmHWM", "RssAnon", "RssFile")}


def steps(model: OnnxModel, adapter: Adapter, n: int, n_threads: int) -> dict[str, Any]:
    """Median milliseconds of a step of n rows: without adapters, with one, and with n in each of the ways."""
    own = [Adapter(f"adapter{k}", adapter.tensors, adapter.record) for k in range(n)]
    mixes: dict[str, Sequence[Mix]] = {
        "none": [()] * n,
        "one": [((own[0], 1.0),)] * n,
        "stack": [((a, 1.0),) for a in own],
    }
    timed = {name: _step_of(model, mix) for name, mix in mixes.items()}
    rows = [_step_of(model, [mix]) for mix in mixes["stack"]]
    timed["groups"] = lambda: [step() for step in rows]
    timed |= side_paths(adapter, n, n_threads)
    samples = in_turns(timed, n_repeats=_REPEATS)
    return {f"{name}_ms": 1e3 * statistics.median(seconds) for name, seconds in samples.items()}


def _step_of(model: OnnxModel, mixes: Sequence[Mix]) -> Timed:
    rng = np.random.default_rng(0)
    ids = rng.integers(10, 4000, (len(mixes), _N_POSITIONS)).tolist()
    state, _ = model.begin(ids, mixes=mixes)
    return lambda: model.step(state, rng.integers(10, 4000, (len(mixes), 1)))


def side_paths(adapter: Adapter, n: int, n_threads: int) -> dict[str, Timed]:
    """The side paths of all layers alone, stacked and gathered, for n rows with n adapters."""
    names = [name for name in adapter.tensors if name.endswith(input_names("")[0])]
    targets = [name.removesuffix(input_names("")[0]) for name in names]
    pairs = [tuple(adapter.tensors[name] for name in input_names(target)) for target in targets]
    return {
        "side stack": _run_of(*_stacked(pairs, n), n_threads),
        "side gather": _run_of(*_gathered(pairs, n), n_threads),
    }


Graph = tuple[list[Any], dict[str, NDArray[Any]], list[str]]


def _stacked(pairs: list[Any], n: int) -> Graph:
    nodes, outputs = [], []
    rank = n * max(len(A) for A, _ in pairs)
    feeds: dict[str, NDArray[Any]] = {"scale": np.repeat(np.eye(n, dtype=np.float32), rank // n, axis=1)[:, None]}
    for k, (A, B) in enumerate(pairs):
        feeds |= {f"x{k}": np.ones((n, 1, A.shape[1]), np.float32), f"a{k}": np.tile(A, (n, 1)), f"b{k}": np.tile(B, n)}
        for op, inputs, output in (
            ("Transpose", [f"a{k}"], f"at{k}"), ("MatMul", [f"x{k}", f"at{k}"], f"m{k}"),
            ("Mul", [f"m{k}", "scale"], f"s{k}"), ("Transpose", [f"b{k}"], f"bt{k}"),
            ("MatMul", [f"s{k}", f"bt{k}"], f"y{k}"),
        ):  # fmt: skip
            nodes.append(helper.make_node(op, inputs, [output]))
        outputs.append(f"y{k}")
    return nodes, feeds, outputs


def _gathered(pairs: list[Any], n: int) -> Graph:
    """From tables laid out as the products want them, which a stack does not have."""
    nodes, outputs = [], []
    feeds: dict[str, NDArray[Any]] = {"row": np.arange(n)}
    for k, (A, B) in enumerate(pairs):
        tables = {f"a{k}": np.stack([A.T] * n), f"b{k}": np.stack([B.T] * n)}
        feeds |= {f"x{k}": np.ones((n, 1, A.shape[1]), np.float32), **tables}
        for op, inputs, output in (
            ("Gather", [f"a{k}", "row"], f"ga{k}"), ("MatMul", [f"x{k}", f"ga{k}"], f"m{k}"),
            ("Gather", [f"b{k}", "row"], f"gb{k}"), ("MatMul", [f"m{k}", f"gb{k}"], f"y{k}"),
        ):  # fmt: skip
            nodes.append(helper.make_node(op, inputs, [output]))
        outputs.append(f"y{k}")
    return nodes, feeds, outputs


def _run_of(nodes: list[Any], feeds: Mapping[str, NDArray[Any]], outputs: list[str], n_threads: int) -> Timed:
    kinds = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int64): TensorProto.INT64}
    inputs = [helper.make_tensor_value_info(k, kinds[v.dtype], v.shape) for k, v in feeds.items()]
    shown = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(nodes, "side", inputs, shown)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = n_threads
    session = onnxruntime.InferenceSession(proto.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(v)) for name, v in feeds.items()}
    return lambda: session.run_with_ort_values(outputs, values)


if __name__ == "__main__":
    main()
