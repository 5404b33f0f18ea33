"""What LoRAHub published: the names of its modules, its split of BIG-Bench Hard. Not shipped, but fetched."""

from __future__ import annotations

import hashlib
import random
import urllib.request
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO

from lorahub_edge.catalogue import Catalogue
from lorahub_edge.catalogue.folders import is_module_folder
from lorahub_edge.errors import InvalidInput, OutputExists, first_line
from lorahub_edge.modules.hub import QUERY
from lorahub_edge.outputs import whole_folder
from lorahub_edge.sources import local_path, sha256_file

MODULES = "lorahub"
DATA_URL = "https://github.com/sail-sg/lorahub/releases/download/0.1/data_bbh.zip"
MAX_DATA_BYTES = 200 << 20  # fetched or unpacked; the release has a few megabytes
MAX_DATA_FILES = 1000
_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 60


def published_modules() -> list[str]:
    """Hub ids of the modules for google/flan-t5-large, in the order that LoRAHub's seeds draw by."""
    text = Path(__file__).with_name("lorahub_modules.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def module_specs(specs: Sequence[str], bases: Sequence[str] = ()) -> list[str]:
    """One spec per module, so that some can be drawn before any is loaded.

    Args:
        specs: "lorahub" (the published list); a folder of PEFT folders, taken in name order; a text file with one
            spec per line; "hub:QUERY"; or what `load_modules` takes for one module.
        bases: names by which the base goes; see `find_modules`.

    Raises:
        InvalidInput: a list file that is no text.
    """
    found: list[str] = []
    for spec in specs:
        path = local_path(spec)
        if spec == MODULES:
            found += published_modules()
        elif spec.startswith(QUERY):
            found += [entry.spec for entry in Catalogue().pool(spec.removeprefix(QUERY), bases)]
        elif path.is_dir() and not is_module_folder(path):
            found += [str(child) for child in sorted(path.iterdir()) if is_module_folder(child)]
        elif path.is_file():
            found += _lines(path)
        else:
            found.append(spec)
    return found


def draw_modules(specs: Sequence[str], n: int, seed: int) -> list[str]:
    """n of the specs as LoRAHub draws them: random.seed(seed), random.sample. All of them if there are no more.

    Raises:
        InvalidInput: n below 1, or no specs.
    """
    if n < 1 or not specs:
        raise InvalidInput(f"n_modules: expected at least 1 of at least 1 module, received {n} of {len(specs)}")
    return random.Random(seed).sample(list(specs), n) if n < len(specs) else list(specs)


def fetch_data(source: str, cache: Path) -> Path:
    """The folder with one folder per task, from a folder, a zip file, or an address that serves one.

    Args:
        source: e.g. DATA_URL. A folder is used as it is.
        cache: where an archive is unpacked, once, under its stem and the hash of the file or of the address; only whole
            folders are left there.

    Raises:
        InvalidInput: nothing there, or not such an archive.
    """
    is_address = source.startswith(("http://", "https://"))
    path = local_path(source)
    if not is_address and path.is_dir():
        return path
    folder = cache / f"{PurePosixPath(source).stem}-{_archive_key(source, is_address)}"
    if folder.is_dir():
        return folder
    with suppress(OutputExists), whole_folder(folder, drop_if_late=True) as content:  # late: another start was first
        _fill(content, source, is_address)
    return folder


def _fill(folder: Path, source: str, is_address: bool) -> None:
    try:
        with TemporaryDirectory() as aside:
            archive = _download(source, Path(aside, "data.zip")) if is_address else local_path(source)
            _unpack(archive, folder, source)
    except Exception as error:  # zipfile lets through whatever a packed file makes its unpackers raise
        raise InvalidInput(
            f"data '{source}': cannot be fetched or unpacked ({first_line(error)}); "
            "give a folder with one folder per task"
        ) from error


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"module list {path}: not readable as text ({error})") from error
    return [line for line in lines if line]


def _archive_key(source: str, is_address: bool) -> str:
    """What tells archives of one name apart: the bytes of a file; of an address, which may be gone, the address."""
    path = local_path(source)
    if is_address or not path.is_file():
        return hashlib.sha256(source.encode()).hexdigest()[:16]
    return sha256_file(path)[:16]


def _download(address: str, target: Path) -> Path:
    with urllib.request.urlopen(address, timeout=_TIMEOUT_S) as answer, target.open("wb") as file:
        _copy(answer, file, MAX_DATA_BYTES)
    return target


def _unpack(archive: Path, target: Path, source: str) -> None:
    """Files at the depth TASK/FILE.jsonl only, by their last two names: nothing can land outside."""
    room = MAX_DATA_BYTES
    with zipfile.ZipFile(archive) as content:
        members = [m for m in content.infolist() if m.filename.endswith(".jsonl") and "__MACOSX" not in m.filename]
        if not 0 < len(members) <= MAX_DATA_FILES:
            raise ValueError(f"expected 1 to {MAX_DATA_FILES} files TASK/*.jsonl in {source}, found {len(members)}")
        for member in members:
            task, name = PurePosixPath("/", member.filename).parts[-2:]
            if task in ("/", "..", ".") or name.startswith("."):
                continue
            (target / task).mkdir(exist_ok=True)
            # "x": two files of one place are not mixed
            with content.open(member) as packed, (target / task / name).open("xb") as file:
                room -= _copy(packed, file, room)


def _copy(source: IO[bytes], target: IO[bytes], limit: int) -> int:
    """Copy in chunks, whatever size the source claims to have; returns the bytes copied."""
    n_copied = 0
    while chunk := source.read(_CHUNK_BYTES):
        n_copied += len(chunk)
        if n_copied > limit:
            raise ValueError(f"it has more than {MAX_DATA_BYTES} bytes")
        target.write(chunk)
    return n_copied
