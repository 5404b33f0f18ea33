"""Serving a model of FLAN-T5-large's shape: ours in int8 beside Optimum's export (fp32) and CTranslate2 (int8).

All come from one model folder (bench.serve_convert, which stamps them with its hash). Each contender answers in a
process of its own, round after round in an order drawn anew, with as many threads, on the same random prompts. The two
that run on onnxruntime are measured with its threads asleep between operators and with them spinning, its own default.

python -m bench.serve WORK --peer-python PYTHON
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.records import RESULTS, append, make_record
from bench.serve_convert import stamp_of

BENCH = "serve-t5-large"
CONTENDERS = ("ours", "ours-spinning", "optimum", "optimum-spinning", "ctranslate2")


def main() -> None:
    """Measure whoever is at hand; a contender that is missing is named and left out."""
    options = _options()
    found = _at_hand(options)
    if not found:
        raise SystemExit("nobody to measure; run bench.serve_convert first")
    model = _one_model(found)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in found}
    rng = random.Random(options.seed)
    for _ in range(options.rounds):
        for name in rng.sample(list(found), len(found)):
            runs[name].append(_measure(name, found[name], options))
    names = ("tokens_in", "tokens_out", "threads", "batch", "rounds", "repeats", "seed")
    shared = {name: getattr(options, name) for name in names} | {"model_sha256": model}
    for name, record in _metrics(runs, found, options).items():
        append(options.out, make_record(BENCH, {"contender": name, **shared}, record))
        sys.stderr.write(f"{name}: {record['total_s']['median']:.3f} s\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.serve", description=__doc__)
    parser.add_argument("work", type=Path, help="folder that bench.serve_convert filled")
    parser.add_argument("--peer-python", type=Path, help="of an environment with optimum-onnx and ctranslate2")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    defaults = {"rounds": 3, "repeats": 3, "tokens-in": 81, "tokens-out": 32, "threads": 2, "batch": 8, "seed": 0}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, default=RESULTS / f"{BENCH}.jsonl")
    return parser.parse_args()


def _at_hand(options: argparse.Namespace) -> dict[str, Path]:
    found = {}
    for name in options.contenders:
        folder = options.work / name.partition("-")[0]
        if not folder.is_dir() or (folder.name != "ours" and options.peer_python is None):
            sys.stderr.write(f"{name}: left out, no {folder} or no --peer-python\n")
        else:
            found[name] = folder
    return found


def _one_model(found: Mapping[str, Path]) -> str:
    """The hash of the model that all were made from."""
    stamps = {name: stamp_of(folder) for name, folder in found.items()}
    model, *others = set(stamps.values())
    if others or model is None:
        raise SystemExit(f"expected contenders of one model, received {stamps}; run bench.serve_convert again")
    return model


def _measure(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    contender, _, spinning = name.partition("-")
    python = sys.executable if contender == "ours" else options.peer_python
    command = [str(python), str(Path(__file__).with_name("serve_worker.py")), contender, str(folder)]
    for key in ("tokens_in", "tokens_out", "threads", "repeats", "batch"):
        command += [f"--{key.replace('_', '-')}", str(getattr(options, key))]
    if spinning:
        command.append("--spinning")
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"{name} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def _metrics(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], folders: Mapping[str, Path], options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    metrics = {}
    for name, rounds in runs.items():
        samples = [sample for run in rounds for sample in run["samples"]]
        later = [t for sample in samples for t in sample["token_s"][1:]]
        batch_s = [seconds for run in rounds for seconds in run["batch_s"]]
        metrics[name] = {
            "total_s": spread([s["total_s"] for s in samples]),
            "first_token_s": spread([s["token_s"][0] for s in samples]),
            "token_s": spread(later),
            "batch_tokens_per_s": options.batch * options.tokens_out / float(np.median(batch_s)),
            "load_s": spread([run["load_s"] for run in rounds]),
            "peak_memory_bytes": max(run["peak_memory_bytes"] for run in rounds),
            "folder_bytes": folder_bytes(folders[name]),
            "samples": [{key: s[key] for key in ("total_s", "token_s")} for s in samples],
            "batch_samples_s": batch_s,
            "same_first_tokens_as": {
                other: _n_same(samples[0]["tokens"], runs[other][0]["samples"][0]["tokens"]) for other in runs
            },
        }
    return metrics


def spread(values: Sequence[float]) -> dict[str, float]:
    """Minimum, median and 95th percentile."""
    p50, p95 = np.percentile(values, [50, 95])
    return {"min": min(values), "median": float(p50), "p95": float(p95)}


def _n_same(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two answers have in common before they part."""
    for number, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return number
    return min(len(first), len(second))


def folder_bytes(folder: Path) -> int:
    """What a user needs: of an Optimum export with a merged decoder not the two that it was merged from."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    has_merged = any(path.name.startswith("decoder_model_merged") for path in files)
    parts = ("decoder_model.onnx", "decoder_with_past_model.onnx")
    return sum(path.stat().st_size for path in files if not (has_merged and path.name.startswith(parts)))


if __name__ == "__main__":
    main()
