"""Builds the emulated kernels and runs what tests them: `make emulate`.

    python -m tests.cuda_on_cpu [--seed N] [--cases N] [--planted N|all] [pytest arguments]
    python -m tests.cuda_on_cpu --only-fuzz --seed N --cases N      in a process that already has the emulator

Both kinds of build run beside each other. Everything random comes from the seed, which is printed.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.cuda_on_cpu import emulator, fuzz
from tests.cuda_on_cpu.build import KINDS, ROOT, BuildFailed, build, build_torch_device
from tests.cuda_on_cpu.planted import BUGS, findings

FOLDER = ROOT / "build" / "cuda_on_cpu"
TESTS = [f"tests/kernels/test_cuda{of}.py" for of in ("", "_inject", "_linear", "_twins")]
# What stands above the kernels launches them thousands of times; whether they race is known by then.
TESTS_ABOVE = {"sanitized": ["tests/adaptation/test_cuda_losses.py"], "races": []}
PLANTED_CASES = 300  # at most, for each planted bug


def main() -> int:
    arguments = _arguments()
    if arguments.only_fuzz:
        return _fuzz_here(arguments)
    if sys.platform != "linux":
        _say("skipped: the emulator needs Linux (its sanitizers are preloaded)")
        return 0
    _say(f"seed {arguments.seed}: `make emulate EMULATE_SEED={arguments.seed}` repeats this run")
    try:
        started = time.monotonic()
        libraries = build(FOLDER)
        device = build_torch_device(FOLDER)
        _say(f"built in {time.monotonic() - started:.0f} s")
        failed = _test(arguments, libraries, device)
        return failed or _plant(arguments, device)
    except BuildFailed as error:
        _say(f"expected sources that compile: {error}")
        return 1


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.cuda_on_cpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=None, help="of everything random; drawn if left out")
    parser.add_argument("--cases", type=int, default=120, help="fuzz cases of each kind of build")
    parser.add_argument("--share", type=float, default=1.0, help="of the tests, drawn from the seed; 0 to 1")
    parser.add_argument("--planted", default="1", help="how many planted bugs, or 'all'")
    parser.add_argument("--only-fuzz", action="store_true", help="fuzz in this process")
    parser.add_argument("--of", default="", help="names of fuzz cases, separated by commas; all if left out")
    parser.add_argument("--stop", action="store_true", help="stop the fuzz at the first case that fails")
    parser.add_argument("--tests", nargs="*", default=TESTS, help="test files; none: only the fuzz")
    arguments = parser.parse_args()
    if arguments.seed is None:
        arguments.seed = random.SystemRandom().randrange(1, 2**31)
    return arguments


def _environment(kind: str, library: Path, device: Path, seed: int) -> dict[str, str]:
    """Of a process with the emulator. Sanitizers have to be in it before Python is."""
    own = {emulator.MODULE: str(library), emulator.TORCH_DEVICE: str(device), emulator.SEED: str(seed)}
    if kind == "sanitized":
        compiler = os.environ.get("CXX", "g++")
        names = [f"-print-file-name=lib{name}.so" for name in ("asan", "ubsan")]
        paths = [subprocess.run([compiler, name], capture_output=True, text=True, check=True).stdout for name in names]
        own["LD_PRELOAD"] = " ".join(path.strip() for path in paths)
        own["ASAN_OPTIONS"] = "detect_leaks=0:detect_stack_use_after_return=0"
        own["UBSAN_OPTIONS"] = "print_stacktrace=1"
    return {**os.environ, **own}


def _run(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return done.returncode, done.stdout


def _test(arguments: argparse.Namespace, libraries: dict[str, Path], device: Path) -> int:
    """The tests and the fuzz in both kinds, side by side; 1 if anything failed."""
    pytest = ["pytest", "-q", "-p", "tests.cuda_on_cpu.plugin", "-p", "no:cacheprovider", "--capture=sys"]

    def of_kind(kind: str) -> tuple[int, str]:
        environment = _environment(kind, libraries[kind], device, arguments.seed)
        environment[emulator.SHARE] = str(arguments.share)
        tests = [*arguments.tests, *TESTS_ABOVE[kind]] if arguments.tests == TESTS else arguments.tests
        steps = [[*pytest, *tests]] if tests else []
        steps.append(_fuzz_command(arguments.seed, arguments.cases))
        outcomes = [_run(step, environment) for step in steps]
        return max(abs(status) for status, _ in outcomes), "".join(output for _, output in outcomes)

    with ThreadPoolExecutor(len(KINDS)) as pool:
        outcomes = dict(zip(KINDS, pool.map(of_kind, KINDS), strict=True))
    for kind, (status, output) in outcomes.items():
        _say(f"== {kind}: {'failed' if status else 'passed'}\n{output}")
    return int(any(status for status, _ in outcomes.values()))


def _fuzz_command(seed: int, cases: int, *more: str) -> list[str]:
    return ["tests.cuda_on_cpu", "--only-fuzz", "--seed", str(seed), "--cases", str(cases), *more]


def _fuzz_here(arguments: argparse.Namespace) -> int:
    here = emulator.load_from_environment()
    with here.installed():
        failed = fuzz.run(here, arguments.seed, arguments.cases, of=arguments.of, stop=arguments.stop)
    text = f"fuzz: {arguments.cases} cases from {arguments.seed} on, {len(failed)} failed; {here.counts()}"
    _say("\n".join([*failed, text]))
    return int(bool(failed) or here.counts().complaints > 0 or here.counts().launches == 0)


def _plant(arguments: argparse.Namespace, device: Path) -> int:
    """Bugs that are not found count as failures."""
    drawn = random.Random(arguments.seed)
    bugs = BUGS if arguments.planted == "all" else drawn.sample(BUGS, int(arguments.planted))

    def fuzzed(kind: str, library: Path, of: str) -> tuple[int, str]:
        command = _fuzz_command(arguments.seed, PLANTED_CASES, "--of", of, "--stop")
        return _run(command, _environment(kind, library, device, arguments.seed))

    missed = 0
    for bug in bugs:
        found = findings(bug, FOLDER, fuzzed)
        missed += not any(found.values())
        _say(f"planted | {bug.name} | {' | '.join(found[kind] or '-' for kind in KINDS)}")
    _say(f"{len(bugs)} bugs planted, {missed} missed")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
