"""Merging and exporting models of FLAN-T5's shapes, from start to exit, beside the peers: time, peak memory, folder.

Merge: ours from a run folder, in each precision, beside PEFT, which also adds up the run's modules. Every merged folder
is compared with the formula before its time counts. Export: ours in int8, which verifies what it wrote, beside
Optimum's export in float32 and CTranslate2's conversion to int8, all of the base alone. Contenders take turns, each in
a process of its own. What a contender wrote is removed, but for the exports that bench.serve wants.

python -m bench.merge_export WORK [--peer-python PYTHON] [--shapes small base large] [--quick]
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.merge_check import check_merged, made_run
from bench.records import RESULTS, append, make_record
from bench.serve import folder_bytes
from bench.serve_convert import FOLDERS, SERVED, command_for, model_hash, write_stamp
from bench.t5_large import SHAPES
from bench.workers import Run, Workplace, command_line, in_turns
from lorahub_edge.adaptation.run_folder import COEFFICIENTS

BENCH = "merge-export-t5"
N_MODULES = 20
# Contender -> precision of what it writes.
MERGES = {"ours-fp32": "fp32", "ours-bf16": "bf16", "ours-int8": "int8", "ours-int8-in-place": "int8", "peft": "fp32"}


def merges(place: Workplace, shape: str, *, peers: bool) -> dict[str, Callable[[], Run]]:
    """Every contender's way from a run, or its modules and coefficients, to a transformers folder."""
    base, modules = place.model(shape, N_MODULES)
    run = made_run(place.folder / f"{shape}-run", base, modules)
    script = str(Path(__file__).with_name("merge_peft.py"))
    measures = {}
    for name, precision in MERGES.items():
        out = place.folder / f"{shape}-merged-{name}"
        in_place = name == "ours-int8-in-place"
        command = [command_line(), "merge", str(run), "--precision", precision, "--out", str(out)]
        command += ["--min-survival", "0"]  # random modules change little, and what survives is not the question here
        command += ["--in-place-int8"] if in_place else []
        if name == "peft":
            command = [sys.executable, script, str(base), str(modules), str(run / COEFFICIENTS), str(out)]
        check = partial(check_merged, out, base, run, precision, in_place=in_place)
        if peers or name != "peft":
            measures[name] = partial(_measure, place, command, out, check, shutil.rmtree)
    return measures


def exports(place: Workplace, shape: str, *, peers: bool) -> dict[str, Callable[[], Run]]:
    """Every contender's way from a base to what its server reads; each checks its own output, if it does."""
    base, _ = place.model(shape, N_MODULES)
    stamp = model_hash(base)
    measures = {}
    for name in FOLDERS if peers else ("ours",):
        python = sys.executable if name == "ours" else place.peer_python
        if python is None:
            sys.stderr.write(f"{name}: left out, no --peer-python\n")
            continue
        out = place.folder / (name if shape == SERVED else f"{shape}-{name}")
        command = command_for(name, base, out, Path(python).parent)
        finish = partial(write_stamp, model_sha256=stamp) if shape == SERVED else shutil.rmtree
        measures[name] = partial(_measure, place, command, out, lambda: None, finish)
    return measures


def _measure(
    place: Workplace, command: list[str], out: Path, check: Callable[[], None], finish: Callable[[Path], None]
) -> Run:
    shutil.rmtree(out, ignore_errors=True)
    os.sync()  # nobody waits for what the one before wrote
    run = place.measured(command)
    check()
    run["folder_bytes"] = folder_bytes(out)
    finish(out)
    return run


PARTS = {"merge": merges, "export": exports}


def _record(options: argparse.Namespace, part: str, shape: str, runs: dict[str, list[Run]]) -> None:
    for contender, rounds in runs.items():
        samples = [s for run in rounds for s in run["seconds"]]
        metrics = {
            "median_s": statistics.median(samples),
            "peak_bytes": max(run["peak_bytes"] for run in rounds),
            "folder_bytes": rounds[-1]["folder_bytes"],
            "samples_s": samples,
            "rounds": rounds,
        }
        setup = {"part": part, "contender": contender, "shape": shape, "n_modules": N_MODULES}
        append(options.out, make_record(BENCH, {**setup, "threads": options.threads}, metrics))
        sys.stderr.write(
            f"{part} {shape} {contender}: {metrics['median_s']:.1f} s, peak {metrics['peak_bytes'] / 1e9:.2f} GB, "
            f"{metrics['folder_bytes'] / 1e6:.0f} MB\n"
        )


def main() -> None:
    """Measure the parts and shapes that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench.merge_export", description=__doc__)
    parser.add_argument("work", type=Path, help="folder for models and what is made of them; kept")
    parser.add_argument("--peer-python", type=Path, help="of an environment with optimum-onnx and ctranslate2")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["small", "base", "large"])
    parser.add_argument("--quick", action="store_true", help="the small shape, ours only")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / f"{BENCH}.jsonl")
    options = parser.parse_args()
    place = Workplace(options.work, options.threads, options.peer_python)
    for shape in ["small"] if options.quick else options.shapes:
        for part in options.parts:
            measures = PARTS[part](place, shape, peers=not options.quick)
            _record(options, part, shape, in_turns(measures, options.rounds))


if __name__ == "__main__":
    main()
