"""One evaluation on models of FLAN-T5's shapes, a whole `adapt` on the large one, and their memory, beside the peers.

Peers: the released package lorahub (float32, LoRA), transformers + bitsandbytes and CTranslate2 (int8, no LoRA); the
floor is the int8 products alone. Each contender runs in a process of its own, round after round in an order drawn anew,
with as many threads, on the same five examples.

python -m bench.adapt WORK [--peer-python PYTHON] [--parts evaluation whole memory-196 memory-xl] [--shapes small ...]
python -m bench.adapt WORK --isa avx2 --parts evaluation --shapes large --peer-python PYTHON --out FILE
python -m bench.adapt WORK --device cuda --parts evaluation --shapes large --out FILE [--contenders ours lorahub]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.records import RESULTS, append, make_record
from bench.serve_convert import SERVED, convert
from bench.t5_large import SHAPES
from bench.workers import Run, Workplace, command_line, in_turns

BENCH = "adapt-t5-large"
EVERY = ("ours", "ours-float", "lorahub", "bitsandbytes", "ctranslate2", "int-mm")
CONTENDERS = tuple(name for name in EVERY if name != "ours-float")
ON_AVX2 = ("ours", "ours-float", "lorahub", "ctranslate2")
ON_A_GPU = ("ours", "lorahub", "bitsandbytes")
PARTS = ("evaluation", "whole", "memory-196", "memory-xl")
N_MODULES = 20


def evaluation(place: Workplace, shape: str, rounds: int, contenders: Sequence[str]) -> dict[str, list[Run]]:
    """Seconds per candidate in a generation, and peak memory, of every contender."""
    base, modules = place.model(shape, N_MODULES)
    folders = dict.fromkeys(contenders, base)
    if "ctranslate2" in folders:
        if place.peer_python is None:
            del folders["ctranslate2"]
            sys.stderr.write("ctranslate2: left out, no --peer-python\n")
        else:
            folders["ctranslate2"] = _converted(place.folder, base, place.peer_python)
    task = place.task()
    if "ours" in folders:
        place.worker("ours", base, modules, task, n_candidates=1, n_repeats=1)  # fills the cache

    def measure(name: str) -> Run:
        n = {"ours": 12, "ours-float": 12, "lorahub": 2}.get(
            name, 4
        )  # where there is no generation, one is like the other
        n_repeats = 3 if place.device == "cpu" else 8  # ours is replayed from its fourth call on
        run = place.worker(name, folders[name], modules, task, n_candidates=n, n_repeats=n_repeats)
        return {**run, "seconds": run["per_candidate_s"]}

    return in_turns({name: lambda name=name: measure(name) for name in folders}, rounds)  # type: ignore[misc]


def whole(place: Workplace, rounds: int) -> dict[str, list[Run]]:
    """`adapt` with 40 evaluations from process start to exit, our cache warm, beside lorahub's own function."""
    base, modules = place.model("large", N_MODULES)
    task = place.task()
    _whole_ours(place, base, modules, task)  # fills the cache
    measures = {"ours": lambda: _whole_ours(place, base, modules, task)}
    measures["lorahub"] = lambda: _whole_lorahub(place, base, modules, task)
    return in_turns(measures, rounds)


def memory(place: Workplace, shape: str, n_modules: int) -> dict[str, list[Run]]:
    """Peak memory of two evaluations in a fresh process, cache warm, and what the plan said."""
    base, modules = place.model(shape, n_modules)
    task = place.task()
    place.worker("ours", base, modules, task, n_candidates=1, n_repeats=1)  # fills the cache
    run = place.worker("ours", base, modules, task, n_candidates=1, n_repeats=1)
    command = [command_line(), "plan", "--base", str(base), "--modules", str(modules), "--examples", str(task)]
    plans = json.loads(place.run([*command, "--json", "--stack-dtype", place.stack_dtype]).stdout)
    return {"ours": [{**run, "seconds": run["per_candidate_s"], "planned_bytes": plans[0]["peak_bytes"]}]}


def _converted(work: Path, base: Path, peer_python: Path) -> Path:
    """CTranslate2's folder of a base; bench.serve uses the one of the shape that it serves."""
    folder = work if base.name == SERVED else work / f"{base.name}-peers"
    folder.mkdir(exist_ok=True)
    convert("ctranslate2", base, folder, peer_python.parent)
    return folder / "ctranslate2"


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
        case = {**setup, "part": part, "contender": contender, "threads": options.threads}
        case["stack_dtype"] = options.stack_dtype  # ours; peers have it too, as their records always had
        case |= {"device": options.device} if options.device != "cpu" else {}
        case |= {"isa": options.isa} if options.isa else {}
        append(options.out, make_record(BENCH, case, metrics))
        sys.stderr.write(
            f"{part} {setup['shape']} {contender}: {metrics['median_s']:.3f} s, peak {peak / 1e9:.2f} GB\n"
        )


def main() -> None:
    """Measure the parts that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench.adapt", description=__doc__)
    parser.add_argument("work", type=Path, help="folder for models and caches; kept, so that a second run is faster")
    parser.add_argument("--peer-python", type=Path, help="of an environment with ctranslate2 (`make clients`)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["evaluation", "whole", "memory-196"])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["small", "base", "large"], help="of evaluation")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--stack-dtype", default="int8")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: of evaluation only")
    parser.add_argument("--isa", choices=("avx2",), help="of every contender; default: what the machine has")
    parser.add_argument("--contenders", nargs="+", choices=EVERY, help="of evaluation; default: all of the device")
    parser.add_argument("--out", type=Path, default=RESULTS / f"{BENCH}.jsonl")
    options = parser.parse_args()
    if options.device == "cuda" and options.parts != ["evaluation"]:
        parser.error("--device cuda: only --parts evaluation is measured there")
    settings = (options.threads, options.peer_python, options.stack_dtype, options.device, options.isa)
    place = Workplace(options.work, *settings)
    default = ON_A_GPU if options.device != "cpu" else ON_AVX2 if options.isa else CONTENDERS
    contenders = options.contenders or default
    large = {"shape": "large", "n_modules": N_MODULES}
    for shape in options.shapes if "evaluation" in options.parts else ():
        runs = evaluation(place, shape, options.rounds, contenders)
        _record(options, "evaluation", runs, shape=shape, n_modules=N_MODULES)
    if "whole" in options.parts:
        _record(options, "whole", whole(place, options.rounds), **large)
    for part, shape, n_modules in (("memory-196", "large", 196), ("memory-xl", "xl", N_MODULES)):
        if part in options.parts:
            _record(options, "memory", memory(place, shape, n_modules), shape=shape, n_modules=n_modules)


if __name__ == "__main__":
    main()
