"""One evaluation, a whole `adapt`, and their memory, on a model of FLAN-T5-large's shape, beside the peers.

Peers: the released package lorahub (float32, LoRA), transformers + bitsandbytes and CTranslate2 (int8, no LoRA); the
floor is the int8 products alone. Each contender runs in a process of its own, round after round in an order drawn anew,
with as many threads, on the same five examples.

python -m bench.adapt WORK [--peer-python PYTHON] [--parts evaluation whole memory-196 memory-xl]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.records import RESULTS, append, make_record
from bench.workers import Workplace, command_line

BENCH = "adapt-t5-large"
CONTENDERS = ("ours", "lorahub", "bitsandbytes", "ctranslate2", "int-mm")
PARTS = ("evaluation", "whole", "memory-196", "memory-xl")
N_MODULES = 20

Run = dict[str, Any]


def evaluation(place: Workplace, rounds: int) -> dict[str, list[Run]]:
    """Seconds per candidate in a generation, and peak memory, of every contender."""
    base, modules = place.model("large", N_MODULES)
    folders = dict.fromkeys(CONTENDERS, base)
    if place.peer_python is None:
        del folders["ctranslate2"]
        sys.stderr.write("ctranslate2: left out, no --peer-python\n")
    else:
        folders["ctranslate2"] = _converted(place, base)
    task = place.task()

    def measure(name: str) -> Run:
        n = 2 if name == "lorahub" else 12  # it takes seconds each, and one is like the other
        run = place.worker(name, folders[name], modules, task, n_candidates=n)
        return {**run, "seconds": run["per_candidate_s"]}

    return _in_turns({name: lambda name=name: measure(name) for name in folders}, rounds)  # type: ignore[misc]


def whole(place: Workplace, rounds: int) -> dict[str, list[Run]]:
    """`adapt` with 40 evaluations from process start to exit, our cache warm, beside lorahub's own function."""
    base, modules = place.model("large", N_MODULES)
    task = place.task()
    _whole_ours(place, base, modules, task)  # fills the cache
    measures = {"ours": lambda: _whole_ours(place, base, modules, task)}
    measures["lorahub"] = lambda: _whole_lorahub(place, base, modules, task)
    return _in_turns(measures, rounds)


def memory(place: Workplace, shape: str, n_modules: int) -> dict[str, list[Run]]:
    """Peak memory of two evaluations in a fresh process, cache warm, and what the plan said."""
    base, modules = place.model(shape, n_modules)
    task = place.task()
    place.worker("ours", base, modules, task, n_candidates=1, n_repeats=1)  # fills the cache
    run = place.worker("ours", base, modules, task, n_candidates=1, n_repeats=1)
    command = [command_line(), "plan", "--base", str(base), "--modules", str(modules), "--examples", str(task)]
    plans = json.loads(place.run([*command, "--json", "--stack-dtype", place.stack_dtype]).stdout)
    return {"ours": [{**run, "seconds": run["per_candidate_s"], "planned_bytes": plans[0]["peak_bytes"]}]}


def _in_turns(measures: dict[str, Callable[[], Run]], rounds: int) -> dict[str, list[Run]]:
    runs: dict[str, list[Run]] = {name: [] for name in measures}
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample(list(measures), len(measures)):
            runs[name].append(measures[name]())
    return runs


def _converted(place: Workplace, base: Path) -> Path:
    out = place.folder / "ctranslate2"
    if not out.is_dir():
        assert place.peer_python is not None
        converter = str(place.peer_python.with_name("ct2-transformers-converter"))
        place.run([converter, "--model", str(base), "--output_dir", str(out), "--quantization", "int8"])
    return out


def _whole_ours(place: Workplace, base: Path, modules: Path, task: Path) -> Run:
    out = place.folder / "run"
    command = [command_line(), "adapt", "--base", str(base), "--modules", str(modules), "--examples", str(task)]
    command += ["--budget", "40", "--no-null-control", "--out", str(out), "--overwrite"]
    started = time.perf_counter()
    place.run([*command, "--stack-dtype", place.stack_dtype])
    seconds = time.perf_counter() - started
    manifest = json.loads((out / "manifest.json").read_text())
    planned = manifest["memory_plan"]["peak_bytes"]
    return {"seconds": [seconds], **manifest["peak_memory"], "planned_bytes": planned, "timings": manifest["timings"]}


def _whole_lorahub(place: Workplace, base: Path, modules: Path, task: Path) -> Run:
    script = str(Path(__file__).with_name("adapt_lorahub.py"))
    started = time.perf_counter()
    done = place.run([sys.executable, script, str(base), str(modules), str(task)])
    seconds = time.perf_counter() - started
    return {"seconds": [seconds], **json.loads(done.stdout.strip().splitlines()[-1])}


def _record(options: argparse.Namespace, part: str, runs: dict[str, list[Run]], **setup: Any) -> None:
    for contender, rounds in runs.items():
        samples = [s for run in rounds for s in run["seconds"]]
        peak = max(run["VmHWM_bytes"] for run in rounds)
        planned = [run["planned_bytes"] for run in rounds if "planned_bytes" in run]
        metrics = {"median_s": statistics.median(samples), "peak_bytes": peak, "samples_s": samples}
        metrics |= {"planned_bytes": planned[-1]} if planned else {}
        metrics["rounds"] = [{name: run[name] for name in run if name != "losses"} for run in rounds]
        setup |= {"part": part, "contender": contender, "threads": options.threads}
        setup |= {"stack_dtype": options.stack_dtype} if contender == "ours" else {}
        append(options.out, make_record(BENCH, setup, metrics))
        sys.stderr.write(f"{part} {contender}: {metrics['median_s']:.3f} s, peak {peak / 1e9:.2f} GB\n")


def main() -> None:
    """Measure the parts that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench.adapt", description=__doc__)
    parser.add_argument("work", type=Path, help="folder for models and caches; kept, so that a second run is faster")
    parser.add_argument("--peer-python", type=Path, help="of an environment with ctranslate2 (`make clients`)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["evaluation", "whole", "memory-196"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--stack-dtype", default="int8")
    parser.add_argument("--out", type=Path, default=RESULTS / f"{BENCH}.jsonl")
    options = parser.parse_args()
    place = Workplace(options.work, options.threads, options.peer_python, options.stack_dtype)
    large = {"shape": "large", "n_modules": N_MODULES}
    if "evaluation" in options.parts:
        _record(options, "evaluation", evaluation(place, options.rounds), **large)
    if "whole" in options.parts:
        _record(options, "whole", whole(place, options.rounds), **large)
    for part, shape, n_modules in (("memory-196", "large", 196), ("memory-xl", "xl", N_MODULES)):
        if part in options.parts:
            _record(options, "memory", memory(place, shape, n_modules), shape=shape, n_modules=n_modules)


if __name__ == "__main__":
    main()
