"""Random models, modules and tasks in a work folder, and the processes that benches measure on them."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.records import ROOT
from bench.t5_large import SHAPES, write_random_model, write_random_modules

N_EXAMPLES = 5

# What holds every contender to an instruction set: our kernels, torch's, those of MKL and oneDNN in torch and in
# CTranslate2, and CTranslate2's own. CTranslate2's setting alone leaves its products to MKL as it finds the machine.
HELD_TO_ISA = {
    "avx2": {
        "LORAHUB_EDGE_ISA": "avx2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "CT2_FORCE_CPU_ISA": "AVX2",
    }
}

# What one process of one contender measured.
Run = dict[str, Any]


@dataclass(frozen=True)
class Workplace:
    """A folder of models, kept between runs, with a cache of its own.

    Attributes:
        folder: made when first needed.
        threads: of every process.
        peer_python: of an environment with the peers that cannot share ours, or None.
        stack_dtype: of our stack.
        device: of the workers, "cpu" or "cuda".
        isa: an instruction set of HELD_TO_ISA, or None for what the machine has.
    """

    folder: Path
    threads: int = 2
    peer_python: Path | None = None
    stack_dtype: str = "fp32"
    device: str = "cpu"
    isa: str | None = None

    def model(self, shape: str, n_modules: int, *, rank: int = 16) -> tuple[Path, Path]:
        """Folders of a base and of its modules, written if they are not there."""
        base, config = self.folder / shape, SHAPES[shape]()
        if not base.is_dir():
            # float32 as on the Hub; the largest in half, for the disk's sake
            write_random_model(base, config, dtype=torch.bfloat16 if shape == "xl" else torch.float32)
        modules = self.folder / f"{shape}-{n_modules}-modules-rank-{rank}"
        return base, write_random_modules(modules, config, n_modules, rank=rank)

    def task(self, *, n_words: int = 80, n_answer_words: int = 6) -> Path:
        """A file of five examples of random words; an input has one token more than words, its end mark."""
        rng = random.Random(0)
        path = self.folder / f"task-{n_words}-{n_answer_words}.jsonl"
        rows = [{"input": _words(rng, n_words), "target": _words(rng, n_answer_words)} for _ in range(N_EXAMPLES)]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def worker(
        self, contender: str, base: Path, modules: Path, task: Path, *, n_candidates: int, n_repeats: int = 3
    ) -> dict[str, Any]:
        """What adapt_worker.py prints: seconds per candidate, losses and memory of a fresh process."""
        python = self.peer_python if contender == "ctranslate2" else Path(sys.executable)
        script = str(Path(__file__).with_name("adapt_worker.py"))
        command = [str(python), script, contender, str(base), str(modules), str(task)]
        command += ["--threads", str(self.threads), "--candidates", str(n_candidates), "--repeats", str(n_repeats)]
        done = self.run([*command, "--stack-dtype", self.stack_dtype, "--device", self.device])
        result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return result

    def measured(self, command: Sequence[str]) -> Run:
        """Seconds and peak memory of a command from start to exit, and what its last line says if that is JSON."""
        done = self.run([sys.executable, "-S", str(Path(__file__).with_name("peak.py")), *command])
        *before, report = done.stdout.strip().splitlines()
        said = json.loads(before[-1]) if before and before[-1].startswith("{") else {}
        return {**said, **json.loads(report)}

    def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """A command with this place's threads and cache; ends the bench if it fails."""
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "HF_HUB_OFFLINE": "1"}
        environment |= HELD_TO_ISA[self.isa] if self.isa else {}
        environment["LORAHUB_EDGE_CACHE"] = str((self.folder / "cache").absolute())
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command[:4])} failed:\n{done.stderr.strip()[-2000:]}")
        return done


def in_turns(measures: Mapping[str, Callable[[], Run]], rounds: int) -> dict[str, list[Run]]:
    """What each contender measured in each round, in an order drawn anew every time."""
    runs: dict[str, list[Run]] = {name: [] for name in measures}
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample(list(measures), len(measures)):
            runs[name].append(measures[name]())
    return runs


def _words(rng: random.Random, n: int) -> str:
    return " ".join(f"w{rng.randint(3, 32000)}" for _ in range(n))


def command_line() -> str:
    """Our own command, of this environment."""
    return str(Path(sys.executable).with_name("lorahub-edge"))
