"""One evaluation, a whole `adapt`, and their memory, on a model of FLAN-T5-large's shape, beside the peers.

Peers: the released package lorahub (float32, LoRA), transformers + bitsandbytes and CTranslate2 (int8, no LoRA); the
floor is the int8 products alone. Each contender runs in a process of its own, round after round in an order drawn anew,
with as many threads, on the same five examples.

python -m bench.adapt WORK [--peer-python PYTHON] [--parts evaluation whole memory-196 memory-xl]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.records import RESULTS, ROOT, append, make_record
from bench.t5_large import SHAPES, write_random_model, write_random_modules

BENCH = "adapt-t5-large"
CONTENDERS = ("ours", "lorahub", "bitsandbytes", "ctranslate2", "int-mm")
PARTS = ("evaluation", "whole", "memory-196", "memory-xl")
N_MODULES = 20
N_WORDS, N_ANSWER_WORDS = 80, 6  # 81 and 7 tokens with the end mark


class Bench:
    """The models in a work folder, and what is measured on them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.work: Path = options.work
        self.work.mkdir(parents=True, exist_ok=True)
        self.task = self._write_task()

    def evaluation(self) -> None:
        """Seconds per candidate in a generation, and peak memory, of every contender."""
        base, modules = self._model("large", N_MODULES)
        folders = dict.fromkeys(CONTENDERS, base) | {"ctranslate2": self.work / "ctranslate2"}
        found = [name for name in CONTENDERS if folders[name].is_dir() and self._python(name) is not None]
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in found}
        order = random.Random(0)
        for _ in range(self.options.rounds):
            for name in order.sample(found, len(found)):
                n = 2 if name == "lorahub" else 6  # it takes seconds each, and one is like the other
                runs[name].append(self._worker(name, folders[name], modules, "--candidates", str(n)))
        for name, rounds in runs.items():
            samples = [s for run in rounds for s in run["per_candidate_s"]]
            self._record("evaluation", name, samples, rounds, n_modules=N_MODULES, shape="large")

    def whole(self) -> None:
        """`adapt` with 40 evaluations from process start to exit, our cache warm, beside lorahub's own function."""
        base, modules = self._model("large", N_MODULES)
        runs: dict[str, list[dict[str, Any]]] = {"ours": [], "lorahub": []}
        self._whole_ours(base, modules)  # fills the cache
        order = random.Random(0)
        for _ in range(self.options.rounds):
            for name in order.sample(list(runs), 2):
                run = self._whole_ours if name == "ours" else self._whole_lorahub
                runs[name].append(run(base, modules))
        for name, rounds in runs.items():
            self._record("whole", name, [r["seconds"] for r in rounds], rounds, n_modules=N_MODULES, shape="large")

    def memory(self, shape: str, n_modules: int) -> None:
        """Peak memory of a few evaluations in a fresh process, cache warm, and what the plan said."""
        base, modules = self._model(shape, n_modules)
        arguments = ("--candidates", "1", "--repeats", "1")
        self._worker("ours", base, modules, *arguments)  # fills the cache
        run = self._worker("ours", base, modules, *arguments)
        run["planned_bytes"] = self._plan(base, modules)
        self._record("memory", "ours", run["per_candidate_s"], [run], n_modules=n_modules, shape=shape)

    def _model(self, shape: str, n_modules: int) -> tuple[Path, Path]:
        base, config = self.work / shape, SHAPES[shape]()
        if not base.is_dir():
            # as on the Hub; the larger one in half, for the disk's sake
            write_random_model(base, config, dtype=torch.float32 if shape == "large" else torch.bfloat16)
        return base, write_random_modules(self.work / f"{shape}-{n_modules}-modules", config, n_modules)

    def _convert(self, base: Path, out: Path) -> None:
        converter = str(self.options.peer_python.with_name("ct2-transformers-converter"))
        self._run([converter, "--model", str(base), "--output_dir", str(out), "--quantization", "int8"])

    def _write_task(self) -> Path:
        rng, path = random.Random(0), self.work / "task.jsonl"
        words = lambda n: " ".join(f"w{rng.randint(3, 32000)}" for _ in range(n))  # noqa: E731
        rows = [{"input": words(N_WORDS), "target": words(N_ANSWER_WORDS)} for _ in range(5)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def _python(self, contender: str) -> Path | None:
        python: Path | None = self.options.peer_python
        return python if contender == "ctranslate2" else Path(sys.executable)

    def _worker(self, contender: str, base: Path, modules: Path, *arguments: str) -> dict[str, Any]:
        script = str(Path(__file__).with_name("adapt_worker.py"))
        command = [str(self._python(contender)), script, contender, str(base), str(modules), str(self.task)]
        done = self._run([*command, "--threads", str(self.options.threads), *self._dtype(), *arguments])
        result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return result

    def _plan(self, base: Path, modules: Path) -> int:
        command = [_command(), "plan", "--base", str(base), "--modules", str(modules), "--examples", str(self.task)]
        plans = json.loads(self._run([*command, "--json", *self._dtype()]).stdout)
        return int(plans[0]["peak_bytes"])

    def _dtype(self) -> list[str]:
        return ["--stack-dtype", self.options.stack_dtype]

    def _whole_ours(self, base: Path, modules: Path) -> dict[str, Any]:
        out = self.work / "run"
        command = [_command(), "adapt", "--base", str(base), "--modules", str(modules), "--examples", str(self.task)]
        command += ["--budget", "40", "--no-null-control", "--out", str(out), "--overwrite", *self._dtype()]
        started = time.perf_counter()
        self._run(command)
        seconds = time.perf_counter() - started
        manifest = json.loads((out / "manifest.json").read_text())
        planned = manifest["memory_plan"]["peak_bytes"]
        return {"seconds": seconds, **manifest["peak_memory"], "planned_bytes": planned, "timings": manifest["timings"]}

    def _whole_lorahub(self, base: Path, modules: Path) -> dict[str, Any]:
        script = str(Path(__file__).with_name("adapt_lorahub.py"))
        started = time.perf_counter()
        done = self._run([sys.executable, script, str(base), str(modules), str(self.task)])
        seconds = time.perf_counter() - started
        return {"seconds": seconds, **json.loads(done.stdout.strip().splitlines()[-1])}

    def _run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.options.threads), "HF_HUB_OFFLINE": "1"}
        environment["LORAHUB_EDGE_CACHE"] = str(self.work / "cache")
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command[:4])} failed:\n{done.stderr.strip()[-2000:]}")
        return done

    def _record(
        self, part: str, contender: str, samples: list[float], rounds: list[dict[str, Any]], **setup: Any
    ) -> None:
        peak = max(r["VmHWM_bytes"] for r in rounds)
        planned = [r["planned_bytes"] for r in rounds if "planned_bytes" in r]
        metrics = {
            "median_s": statistics.median(samples),
            "min_s": min(samples),
            "samples_s": samples,
            "peak_bytes": peak,
            **({"planned_bytes": planned[-1]} if planned else {}),
            "rounds": [{k: v for k, v in r.items() if k != "losses"} for r in rounds],
        }
        options = {"threads": self.options.threads, "stack_dtype": self.options.stack_dtype}
        setup = {"part": part, "contender": contender, **setup, **options}
        append(self.options.out, make_record(BENCH, setup, metrics))
        sys.stderr.write(f"{part} {contender}: {metrics['median_s']:.3f} s, peak {peak / 1e9:.2f} GB\n")


def _command() -> str:
    return str(Path(sys.executable).with_name("lorahub-edge"))


def main() -> None:
    """Measure the parts that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench.adapt", description=__doc__)
    parser.add_argument("work", type=Path, help="folder for models and caches; kept, so that a second run is faster")
    parser.add_argument(
        "--peer-python", type=Path, help="of an environment with ctranslate2; WORK/ctranslate2 is its model"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["evaluation", "whole", "memory-196"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--stack-dtype", default="bf16")
    parser.add_argument("--out", type=Path, default=RESULTS / f"{BENCH}.jsonl")
    bench = Bench(parser.parse_args())
    if "evaluation" in bench.options.parts:
        bench.evaluation()
    if "whole" in bench.options.parts:
        bench.whole()
    if "memory-196" in bench.options.parts:
        bench.memory("large", 196)
    if "memory-xl" in bench.options.parts:
        bench.memory("xl", N_MODULES)


if __name__ == "__main__":
    main()
