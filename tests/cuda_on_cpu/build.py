"""Builds the emulated _native_cuda: the project's sources, the emulator, and a sanitizer or the race detector.

Objects have names made of what they depend on, so what has not changed is not compiled again.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from tests.cuda_on_cpu.rewrite import NATIVE, copy_rewritten

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TORCH_DEVICE = NATIVE / "torch_device.cpp"

_SANITIZERS = "-fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all -fno-omit-frame-pointer"

# kind -> flags of the kernels, of the emulator, of the link
KINDS = {
    "sanitized": (_SANITIZERS, "-DCUDA_ON_CPU_ASAN", "-fsanitize=address,undefined"),
    "races": ("-fsanitize=thread", "-DCUDA_ON_CPU_RACES", ""),
}

_COMMON = "-std=c++17 -g -fPIC -fvisibility=hidden -ffp-contract=off -fno-strict-aliasing"
_KERNELS = f"{_COMMON} -O1 -w -I{NATIVE}"  # it is nvcc that warns of what it knows better
_EMULATOR = f"{_COMMON} -O2 -Wall -Wextra -Werror -U_FORTIFY_SOURCE -I{NATIVE}"
_BINDINGS = f'{_COMMON} -O0 -DLORAHUB_EDGE_BINDINGS_CUDA -DLORAHUB_EDGE_CUDA_ARCHITECTURES="\\"emulated\\""'


class BuildFailed(Exception):
    """A source does not compile; the compiler has said why."""


def build(folder: Path, kinds: Sequence[str] = tuple(KINDS), *, csrc: Path = ROOT / "csrc") -> dict[str, Path]:
    """Compile and link, two compilers at a time.

    Args:
        folder: for objects and libraries; kept from one build to the next.
        kinds: of `KINDS`.
        csrc: the sources.

    Returns:
        kind -> the extension module.

    Raises:
        BuildFailed: see there.
        ValueError: a source has CUDA that rewrite.py does not know.
    """
    sources = folder / "sources"
    copy_rewritten(csrc, sources)
    bindings = _binding_jobs(sources)
    jobs = {kind: [*bindings, *_kernel_jobs(kind, sources), *_emulator_jobs(kind)] for kind in kinds}
    every = list(dict.fromkeys(job for of_kind in jobs.values() for job in of_kind))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = dict(zip(every, pool.map(lambda job: _compiled(*job, folder), every), strict=True))
    return {kind: _linked(kind, [objects[job] for job in jobs[kind]], folder) for kind in kinds}


_Job = tuple[Path, str, str]  # a source, its flags, and the digest of what it may include


def build_torch_device(folder: Path) -> Path:
    """Compile and link what lets torch have a device "cuda:0"; see device.py.

    Raises:
        BuildFailed: see there.
    """
    torch_folder = Path(torch.__file__).parent
    key = hashlib.sha256(f"{torch.__version__} {TORCH_DEVICE.read_text()}".encode()).hexdigest()[:16]
    target = folder / f"torch-device-{key}.so"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        lib = torch_folder / "lib"
        link = f"-shared -L{lib} -Wl,--no-as-needed -lc10 -Wl,-rpath,{lib}"
        _run(f"-std=c++17 -O1 -fPIC -isystem {torch_folder / 'include'}", TORCH_DEVICE, target, link)
    return target


def _kernel_jobs(kind: str, sources: Path) -> list[_Job]:
    flags = f"{_KERNELS} {KINDS[kind][0]}"
    digest = _digest([*sources.rglob("*.h"), *sources.rglob("*.cuh"), *NATIVE.glob("*.h")])
    return [(path, flags, digest) for path in sorted(sources.glob("kernels/cuda/*.cu.cpp"))]


def _emulator_jobs(kind: str) -> list[_Job]:
    paths = sorted(path for path in NATIVE.glob("*.cpp") if path != TORCH_DEVICE)
    digest = _digest(NATIVE.glob("*.h"))
    return [(path, f"{_EMULATOR} {KINDS[kind][1]}", digest) for path in paths]


def _binding_jobs(sources: Path) -> list[_Job]:
    """One source that includes all bindings: pybind11's headers take far longer than they do."""
    cpu_only = ("module", "attention", "gated_activation")
    names = [path.stem for path in sorted(sources.glob("bindings/*.cpp")) if path.stem not in cpu_only]
    together = sources / "bindings/together.cpp"
    # each has a kOp of its own
    lines = (f'#define kOp kOp_{name}\n#include "{name}.cpp"\n#undef kOp\n' for name in names)
    together.write_text("".join(lines))
    digest = _digest([*sources.rglob("*.h"), *(path for path in sources.glob("bindings/*.cpp") if path != together)])
    python = [sys.executable, "-m", "pybind11", "--includes"]
    includes = subprocess.run(python, capture_output=True, text=True, check=True).stdout.strip()
    return [(together, f"{_BINDINGS} {includes}", digest)]


def _digest(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _compiled(source: Path, flags: str, digest: str, folder: Path) -> Path:
    key = hashlib.sha256("\0".join([flags, digest, source.read_text()]).encode()).hexdigest()[:16]
    target = folder / "objects" / f"{source.name.split('.')[0]}-{key}.o"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_suffix(".unfinished")
        _run(f"{flags} -c", source, unfinished)
        unfinished.rename(target)
    return target


def _linked(kind: str, objects: list[Path], folder: Path) -> Path:
    key = hashlib.sha256(" ".join(path.name for path in objects).encode()).hexdigest()[:16]
    target = folder / f"{kind}-{key}" / "_native_cuda.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        inputs = " ".join(shlex.quote(str(path)) for path in objects)
        _run(f"-shared {KINDS[kind][2]} {inputs} -ldl", None, target)
    return target


def _run(flags: str, source: Path | None, target: Path, link: str = "") -> None:
    command = [os.environ.get("CXX", "g++"), *shlex.split(flags), *([] if source is None else [str(source)])]
    done = subprocess.run([*command, *shlex.split(link), "-o", str(target)], capture_output=True, text=True)
    if done.returncode:
        raise BuildFailed(f"{'link' if source is None else source.name}:\n{done.stderr[-4000:]}")
