"""A campaign: cases for so many seconds, and what went wrong."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Fault:
    """A case that ended in something else than a value or one of our errors.

    Attributes:
        seed, kind: which case.
        folder: its files.
        text: a traceback, or what became of the process.
    """

    seed: int
    kind: str
    folder: Path
    text: str

    def __str__(self) -> str:
        corpus = self.folder.parent.parent / "corpus"
        return (
            f"{self.kind}, seed {self.seed}: {self.text.strip()}\n"
            f"again: {sys.executable} -m tests.fuzz {self.folder} --corpus {corpus}\n"
        )


def campaign(corpus: Path, kept: Path, seconds: float, first_seed: int = 0) -> tuple[int, list[Fault]]:
    """Read mutated samples, in a process that is started again where one ends it.

    Args:
        corpus: see `make_corpus`.
        kept: files of cases that went wrong stay here.
        seconds: how long.
        first_seed: of the first case; the next one has the next seed.

    Returns:
        The number of cases, and the faults: the first of each kind.
    """
    kept.mkdir(parents=True, exist_ok=True)
    faults: dict[str, Fault] = {}
    seed, left = first_seed, seconds
    while left > 0:
        with open(kept / "stderr.txt", "w+b") as errors:
            last, found, left = _worker(corpus, kept, seed, left, errors)
            errors.seek(0)
            text = errors.read().decode(errors="replace")[-4000:]
        if not last:
            raise RuntimeError(f"the worker did not start: {text}")
        if left > 0:  # killed, crashed or hung
            found.append(Fault(last["seed"], last["kind"], kept / str(last["seed"]), f"the process ended\n{text}"))
        for fault in found:
            faults.setdefault(_place(fault), fault)
        seed = last["seed"] + 1
    return seed - first_seed, list(faults.values())


def _worker(
    corpus: Path, kept: Path, first_seed: int, seconds: float, errors: object
) -> tuple[dict[str, Any], list[Fault], float]:
    """The last case that a worker began, the faults that it told of, and the time that it left over."""
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "LORAHUB_EDGE_CACHE": "off",
        "OMP_NUM_THREADS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    command = [sys.executable, "-m", "tests.fuzz.worker", str(corpus), str(kept), str(first_seed)]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": errors}
    last: dict[str, Any] = {}
    found = []
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, **quiet}, text=True, **streams) as worker:
        timer = threading.Timer(seconds, worker.kill)
        deadline = math.inf
        for line in worker.stdout:
            record = json.loads(line) if line.startswith("{") and line.endswith("}\n") else {}
            if not last and record:  # the imports took their time
                timer.start()
                deadline = time.monotonic() + seconds
            if "fault" in record:
                found.append(Fault(record["seed"], record["kind"], kept / str(record["seed"]), record["fault"]))
            last = record or last
        timer.cancel()
    return last, found, deadline - time.monotonic()


def _place(fault: Fault) -> str:
    """Where it happened: one fault found a hundred times is one."""
    lines = [line.strip() for line in fault.text.splitlines() if line.strip()]
    return f"{[line for line in lines if line.startswith('File ')][-1:]}{lines[-1].partition(':')[0]}"
