"""Serving a model of FLAN-T5-large's shape: ours in int8 beside Optimum's export (fp32) and CTranslate2 (int8).

Each contender answers in a process of its own, taken in turns, from the same weights and the same random prompts.

python -m bench.serve --model FOLDER --ours FOLDER --optimum FOLDER --ctranslate2 FOLDER --peer-python PYTHON
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.records import RESULTS, append, make_record
from lorahub_edge.sources import sha256_file

BENCH = "serve-t5-large"
PEERS = ("optimum", "ctranslate2")


def main() -> None:
    """Measure whoever is at hand; a contender that is missing is named and left out."""
    parser = argparse.ArgumentParser(prog="python -m bench.serve", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="what all were made of (bench.t5_large)")
    parser.add_argument("--ours", type=Path, required=True, help="made by lorahub-edge export")
    parser.add_argument("--optimum", type=Path, help="made by optimum-cli export onnx")
    parser.add_argument("--ctranslate2", type=Path, help="made by ct2-transformers-converter --quantization int8")
    parser.add_argument("--peer-python", help="Python of the environment that has the peers")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens-in", type=int, default=81)
    parser.add_argument("--tokens-out", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--out", type=Path, default=RESULTS / f"{BENCH}.jsonl")
    options = parser.parse_args()
    found = {name: folder for name in ("ours", *PEERS) if (folder := getattr(options, name)) is not None}
    for name in PEERS:
        if name not in found or not options.peer_python:
            sys.stderr.write(f"{name}: left out, no folder or no --peer-python was given\n")
            found.pop(name, None)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in found}
    for _ in range(options.rounds):
        for name, folder in found.items():
            python = sys.executable if name == "ours" else options.peer_python
            runs[name].append(_measure(python, name, folder, options))
    sizes = {name: _bytes(folder) for name, folder in found.items()}
    shared = {
        key: getattr(options, key) for key in ("tokens_in", "tokens_out", "threads", "batch", "rounds", "repeats")
    }
    shared["model_config_sha256"] = sha256_file(options.model / "config.json")
    for name, record in _metrics(runs, sizes, options).items():
        append(options.out, make_record(BENCH, {"contender": name, **shared}, record))
        sys.stderr.write(f"{name}: {record['total_s']['median']:.3f} s\n")


def _measure(python: str, name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    worker = Path(__file__).with_name("serve_worker.py")
    command = [python, str(worker), name, str(folder)]
    for key in ("tokens_in", "tokens_out", "threads", "repeats", "batch"):
        command += [f"--{key.replace('_', '-')}", str(getattr(options, key))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"{name} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def _metrics(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], sizes: Mapping[str, int], options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    metrics = {}
    for name, rounds in runs.items():
        samples = [sample for run in rounds for sample in run["samples"]]
        later = [t for sample in samples for t in sample["token_s"][1:]]
        batch_s = [run["batch_s"] for run in rounds]
        metrics[name] = {
            "total_s": _spread([s["total_s"] for s in samples]),
            "first_token_s": _spread([s["token_s"][0] for s in samples]),
            "token_s": _spread(later),
            "batch_tokens_per_s": options.batch * options.tokens_out / min(batch_s),
            "load_s": min(run["load_s"] for run in rounds),
            "peak_memory_bytes": max(run["peak_memory_bytes"] for run in rounds),
            "folder_bytes": sizes[name],
            "samples": [{key: s[key] for key in ("total_s", "token_s")} for s in samples],
            "same_first_tokens_as": {
                other: _n_same(samples[0]["tokens"], runs[other][0]["samples"][0]["tokens"]) for other in runs
            },
        }
    return metrics


def _spread(values: Sequence[float]) -> dict[str, float]:
    p50, p95 = np.percentile(values, [50, 95])
    return {"min": min(values), "median": float(p50), "p95": float(p95)}


def _n_same(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two answers have in common before they part."""
    for number, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return number
    return min(len(first), len(second))


def _bytes(folder: Path) -> int:
    """What a user needs: of Optimum's files the encoder and the merged decoder."""
    unused = ("decoder_model.onnx", "decoder_with_past_model.onnx")
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.name.startswith(unused))


if __name__ == "__main__":
    main()
