"""Instruction counts of the CPU kernels: what repeats exactly, on a machine however busy.

    python -m bench.callgrind            # count and append to the results
    python -m bench.callgrind --check    # exit 1 if a kernel needs more than the recorded count

Counts depend on the compiler, so a check compares only with records of the same one, and says so where there are none.
valgrind knows no AVX-512, so that variant is not counted.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from bench.records import RESULTS, ROOT, append, make_record, read

BENCH = "callgrind"
BUILD = ROOT / "build" / BENCH
COUNTED = {
    "compose_1": "compose_factors",
    "compose_13": "compose_factors",
    "compose_13_bfloat16": "compose_factors",
    "compose_13_int8": "compose_factors",
    "inject": "inject_delta",
    "inject_stochastic": "inject_delta",
    "quantize": "quantize_rows",
    "epilogue": "int8_epilogue",
    "linear": "int8_linear",
    "linear_blocks": "int8_linear",
    "gated": "gated_activation",
    "attention": "attention",
}
ISAS = ("baseline", "avx2")
MOST_GROWTH = 1.01
LEAST_SHARE = 0.5  # of a recorded count; with less something else is counted


def main() -> None:
    """Build, count, then compare or record."""
    parser = argparse.ArgumentParser(prog="python -m bench.callgrind", description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="record nothing; exit 1 if a count has grown")
    parser.add_argument("--out", type=Path, default=RESULTS / f"{BENCH}.jsonl")
    options = parser.parse_args()
    if shutil.which("valgrind") is None:
        sys.exit("bench.callgrind: expected valgrind on the PATH, found none; install the system's package valgrind")
    compiler = build()
    counts = {(case, isa): count(case, isa) for case in COUNTED for isa in ISAS}
    if options.check:
        sys.exit(compare(counts, compiler, options.out))
    for (case, isa), instructions in counts.items():
        setup = {"case": case, "op": COUNTED[case], "isa": isa, "compiler": compiler}
        append(options.out, make_record(BENCH, setup, {"instructions": instructions}))
        sys.stderr.write(f"{instructions:>12,}  {case} {isa}\n")


def build() -> str:
    """Build the driver; the compiler's name and version."""
    ask = [sys.executable, "-m", "pybind11", "--cmakedir"]
    pybind = subprocess.run(ask, capture_output=True, text=True, check=True)
    definitions = [
        "-DCMAKE_BUILD_TYPE=Release",
        "-DLORAHUB_EDGE_CUDA=OFF",
        "-DLORAHUB_EDGE_BENCH=ON",
        f"-Dpybind11_DIR={pybind.stdout.strip()}",
        f"-DPython_EXECUTABLE={sys.executable}",
    ]
    for command in (
        ["cmake", "-S", ROOT, "-B", BUILD, *definitions],
        ["cmake", "--build", BUILD, "--target", "one_kernel"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"bench.callgrind: {' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    # one folder per version of CMake that has configured there
    found = max(BUILD.glob("CMakeFiles/*/CMakeCXXCompiler.cmake"), key=lambda path: path.stat().st_mtime)
    facts = dict(re.findall(r'set\((CMAKE_CXX_COMPILER_(?:ID|VERSION)) "(.*?)"\)', found.read_text()))
    return f"{facts['CMAKE_CXX_COMPILER_ID']} {facts['CMAKE_CXX_COMPILER_VERSION']}"


def count(case: str, isa: str) -> int:
    """Instructions inside the op, of one run."""
    command = [
        "valgrind",
        "--tool=callgrind",
        f"--callgrind-out-file={BUILD / 'callgrind.out'}",
        # to the end of the name: a function inside, such as a lambda, would switch the count off again
        f"--toggle-collect=lorahub_edge::cpu::{COUNTED[case]}(*Args const&, lorahub_edge::cpu::Where)",
        BUILD / "one_kernel",
        case,
    ]
    environment = {**os.environ, "LORAHUB_EDGE_ISA": isa}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    collected = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or collected is None or int(collected[1]) == 0:
        sys.exit(f"bench.callgrind: {case} {isa}: expected a count, received:\n{done.stderr}")
    return int(collected[1])


def compare(counts: dict[tuple[str, str], int], compiler: str, path: Path) -> str | int:
    """What has grown, or fallen so far that it is no longer the same, as an error message; 0 if nothing has."""
    recorded = {
        (r["setup"]["case"], r["setup"]["isa"]): r["metrics"]["instructions"]
        for r in read(path)
        if r["setup"]["compiler"] == compiler
    }
    if not recorded:
        sys.stderr.write(f"bench.callgrind: no records of {compiler}: nothing to compare with\n")
        return 0
    wrong = [
        f"{case} {isa}: {now:,} instructions, recorded {recorded[case, isa]:,}"
        for (case, isa), now in counts.items()
        if (case, isa) in recorded and not LEAST_SHARE <= now / recorded[case, isa] <= MOST_GROWTH
    ]
    return "bench.callgrind: more instructions than recorded, or far fewer\n" + "\n".join(wrong) if wrong else 0


if __name__ == "__main__":
    main()
