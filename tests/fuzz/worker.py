"""One long-lived process that reads mutated samples: a case takes milliseconds, importing torch takes seconds.

    python -m tests.fuzz.worker CORPUS KEPT FIRST_SEED

Cases without end, each announced on stdout by a JSON line. What is wrong with one follows in another, and its files
stay in KEPT. A case that never returns ends the process, with a traceback of where it is on stderr.
"""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import json
import random
import resource
import shutil
import sys
import traceback
import warnings
from pathlib import Path

from lorahub_edge.errors import LorahubEdgeError
from tests.fuzz.mutations import mutate
from tests.fuzz.readers import READERS

MAX_SECONDS = 30
MAX_GROWTH_BYTES = 2 << 30


def main(corpus: Path, kept: Path, first_seed: int) -> None:
    """Run cases from a seed on until the process is ended."""
    limit_memory()
    for seed in itertools.count(first_seed):
        rng = random.Random(seed)
        kind = rng.choice([kind for kind, (*_, weight) in READERS.items() for _ in range(weight)])
        _say(seed=seed, kind=kind)
        folder = make_case(corpus, kept / str(seed), kind, rng)
        if fault := read_case(corpus, folder, kind):
            _say(seed=seed, kind=kind, fault=fault)
        else:
            shutil.rmtree(kept / str(seed))


def make_case(corpus: Path, place: Path, kind: str, rng: random.Random) -> Path:
    """A copy of a sample with a change or two."""
    name, _, pattern, _ = READERS[kind]
    shutil.rmtree(place, ignore_errors=True)
    folder = Path(shutil.copytree(corpus / name, place / name))
    done = []
    for _ in range(rng.choice([1, 1, 1, 2])):
        files = sorted(p for p in folder.glob(pattern) if p.is_file())
        with contextlib.suppress(Exception):  # what one change broke, the next one may not understand
            done.append(mutate(rng.choice(files), rng))
    (place / "changes.txt").write_text("".join(f"{line}\n" for line in (kind, *done)))
    return folder


def read_case(corpus: Path, folder: Path, kind: str) -> str | None:
    """What is wrong about reading a case, or None."""
    reader = READERS[kind][1]
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak counts from here
    before = _status("VmHWM")
    faulthandler.dump_traceback_later(MAX_SECONDS, exit=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader(folder, corpus)
    except LorahubEdgeError:
        pass
    except BaseException:  # a panic in a library's Rust is no Exception
        return traceback.format_exc()
    finally:
        faulthandler.cancel_dump_traceback_later()
    growth = _status("VmHWM") - before
    return f"memory grew by {growth / 1e9:.1f} GB" if growth > MAX_GROWTH_BYTES else None


def _say(**record: object) -> None:
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()


def limit_memory() -> None:
    """Make an allocation of terabytes fail instead of taking the machine with it."""
    limit = _status("VmSize") + 3 * MAX_GROWTH_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _status(name: str) -> int:
    """A number of bytes from /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
