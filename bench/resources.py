"""Registers, shared memory and occupancy of the CUDA kernels, from the compiler: known without a GPU.

    python -m bench.resources            # compile for each architecture and append to the results
    python -m bench.resources --check    # exit 1 if a kernel spills or runs fewer warps than recorded

Numbers depend on nvcc, so a check compares only with records of the same one, and says so where there are none.
Shared memory whose size is chosen at launch is not known to the compiler: `compose_factors` stages up to 32 KB of
coefficients so, and runs fewer warps then than stands here.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.records import RESULTS, ROOT, append, make_record, read, say

BENCH = "resources"
KERNELS = ROOT / "csrc" / "kernels" / "cuda"
OPS = ("compose_factors", "inject_delta", "inject_layers", "int8_epilogue", "int8_rows")
FLAGS = ("-std=c++17", "-O3", "-fmad=false", f"-I{ROOT / 'csrc'}")  # as in CMakeLists.txt

_WARP, _REGISTERS, _REGISTERS_AT_ONCE = 32, 65536, 256


@dataclass(frozen=True)
class Multiprocessor:
    """What the blocks on one multiprocessor share; CUDA's programming guide, table of technical specifications.

    Attributes:
        warps, blocks: at once.
        shared_bytes: of all blocks.
        reserved_bytes: of shared memory that each block gives to the system.
    """

    warps: int
    blocks: int
    shared_bytes: int
    reserved_bytes: int


ARCHITECTURES: Mapping[str, Multiprocessor] = {
    "75": Multiprocessor(32, 16, 64 << 10, 0),
    "86": Multiprocessor(48, 16, 100 << 10, 1 << 10),
    "89": Multiprocessor(48, 24, 100 << 10, 1 << 10),
    "90": Multiprocessor(64, 32, 228 << 10, 1 << 10),
}


@dataclass(frozen=True)
class Resources:
    """What one kernel needs.

    Attributes:
        registers: per thread.
        shared_bytes: per block, of arrays whose size the compiler knows.
        spilled_bytes: of registers stored to memory, per thread.
        occupancy: share of a multiprocessor's warps that can run at once.
    """

    registers: int
    shared_bytes: int
    spilled_bytes: int
    occupancy: float


def main() -> None:
    """Compile, then compare or record."""
    parser = argparse.ArgumentParser(prog="python -m bench.resources", description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="record nothing; exit 1 if occupancy has fallen")
    parser.add_argument("--out", type=Path, default=RESULTS / f"{BENCH}.jsonl")
    options = parser.parse_args()
    if shutil.which("nvcc") is None:
        sys.exit("bench.resources: expected nvcc on the PATH, found none; install NVIDIA's CUDA toolkit")
    found = {(op, arch, name): r for op in OPS for arch in ARCHITECTURES for name, r in compiled(op, arch).items()}
    if options.check:
        sys.exit(compare(found, compiler(), options.out))
    for (op, arch, kernel), resources in found.items():
        setup = {"op": op, "architecture": arch, "kernel": kernel, "compiler": compiler()}
        append(options.out, make_record(BENCH, setup, asdict(resources)))


def compiler() -> str:
    """nvcc's version."""
    said = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"release [\d.]+, V([\d.]+)", said)
    return f"nvcc {version[1] if version else said.strip()}"


def compiled(op: str, architecture: str) -> dict[str, Resources]:
    """By kernel, of one op's source."""
    source = KERNELS / f"{op}.cu"
    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", *FLAGS, f"-arch=sm_{architecture}", "--resource-usage", "-cubin"]
        done = subprocess.run(
            [*command, "-o", f"{folder}/{op}.cubin", str(source)], capture_output=True, text=True, check=False
        )
    if done.returncode:
        sys.exit(f"bench.resources: {source.name} for {architecture}:\n{done.stderr}")
    say(f"{op} for {architecture}")
    return resources_in(demangled(done.stderr), threads_of(source), ARCHITECTURES[architecture])


def threads_of(source: Path) -> int:
    """Threads of a block, as the source or a header beside it says."""
    text = source.read_text(encoding="utf-8")
    headers = [source.with_name(name) for name in re.findall(r'#include "(\w+\.cuh)"', text)]
    for part in (text, *(header.read_text(encoding="utf-8") for header in headers)):
        if found := re.search(r"constexpr int kThreads = (\d+);", part):
            return int(found[1])
    sys.exit(f"bench.resources: {source.name}: expected 'constexpr int kThreads = ...;', the threads of a block")


def demangled(text: str) -> str:
    """With names as they stand in the source."""
    return subprocess.run(["c++filt"], input=text, capture_output=True, text=True, check=True).stdout


def resources_in(said: str, n_threads: int, processor: Multiprocessor) -> dict[str, Resources]:
    """By kernel, what ptxas said of each.

    Args:
        said: lines of ptxas, names demangled.
        n_threads: of a block.
        processor: of the architecture.
    """
    found = {}
    for part in said.split("Compiling entry function ")[1:]:
        name = re.sub(
            r"lorahub_edge::|cuda::|\(anonymous namespace\)::|^'?void |\(.*", "", part.partition("' for '")[0]
        )
        registers = _number(r"Used (\d+) registers", part)
        shared, spilled = _number(r"(\d+) bytes smem", part), _number(r"(\d+) bytes spill stores", part)
        found[name.strip("'")] = Resources(
            registers, shared, spilled, occupancy(processor, n_threads, registers, shared)
        )
    return found


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else 0


def occupancy(processor: Multiprocessor, n_threads: int, registers: int, shared_bytes: int) -> float:
    """Share of the multiprocessor's warps that blocks of so many threads can fill."""
    warps = -(-n_threads // _WARP)
    of_warp = -(-registers * _WARP // _REGISTERS_AT_ONCE) * _REGISTERS_AT_ONCE
    by_registers = _REGISTERS // of_warp // warps
    of_block = shared_bytes + processor.reserved_bytes
    by_shared = processor.shared_bytes // of_block if of_block else processor.blocks
    return min(processor.blocks, processor.warps // warps, by_registers, by_shared) * warps / processor.warps


def compare(found: Mapping[tuple[str, str, str], Resources], compiler: str, path: Path) -> str | int:
    """Which kernels spill more or run fewer warps than recorded, as an error message; 0 if none does."""
    recorded = {
        (r["setup"]["op"], r["setup"]["architecture"], r["setup"]["kernel"]): Resources(**r["metrics"])
        for r in read(path)
        if r["setup"]["compiler"] == compiler
    }
    if not recorded:
        say(f"bench.resources: no records of {compiler}: nothing to compare with")
        return 0
    wrong = [*_worse(found, recorded), *(f"{' '.join(key)}: no longer there" for key in recorded.keys() - found.keys())]
    return "bench.resources: fewer warps or more spills than recorded\n" + "\n".join(wrong) if wrong else 0


def _worse(
    found: Mapping[tuple[str, str, str], Resources], recorded: Mapping[tuple[str, str, str], Resources]
) -> Iterable[str]:
    for key in found.keys() & recorded.keys():
        now, before = found[key], recorded[key]
        if now.occupancy < before.occupancy or now.spilled_bytes > before.spilled_bytes:
            yield f"{' '.join(key)}: {now}, recorded {before}"


if __name__ == "__main__":
    main()
