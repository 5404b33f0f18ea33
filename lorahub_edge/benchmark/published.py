"""What LoRAHub published: the names of its modules, its split of BIG-Bench Hard. Not shipped, but fetched."""

from __future__ import annotations

import random
import shutil
import urllib.request
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from lorahub_edge.errors import InvalidInput
from lorahub_edge.modules.files import is_module_folder

MODULES = "lorahub"
DATA_URL = "https://github.com/sail-sg/lorahub/releases/download/0.1/data_bbh.zip"
MAX_DATA_BYTES = 200 << 20  # unpacked; the release has a few megabytes
_TIMEOUT_S = 60


def published_modules() -> list[str]:
    """Hub ids of the modules for google/flan-t5-large, in the order that LoRAHub's seeds draw by."""
    text = Path(__file__).with_name("lorahub_modules.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def module_specs(specs: Sequence[str]) -> list[str]:
    """One spec per module, so that some can be drawn before any is loaded.

    Args:
        specs: "lorahub" (the published list); a folder of PEFT folders, taken in name order; a text file with one
            spec per line; or what `load_modules` takes for one module.

    Raises:
        InvalidInput: a list file that is no text.
    """
    found: list[str] = []
    for spec in specs:
        path = Path(spec).expanduser()
        if spec == MODULES:
            found += published_modules()
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
        cache: where an archive is unpacked, once; only whole folders are left there.

    Raises:
        InvalidInput: nothing there, or not such an archive.
    """
    is_address = source.startswith(("http://", "https://"))
    path = Path(source).expanduser()
    if not is_address and path.is_dir():
        return path
    folder = cache / PurePosixPath(source).stem
    if folder.is_dir():
        return folder
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        archive = _download(source, partial / "data.zip") if is_address else path
        _unpack(archive, partial / "tasks", source)
        (partial / "tasks").rename(folder)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InvalidInput(
            f"data '{source}': cannot be fetched or unpacked ({error}); give a folder with one folder per task"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"module list {path}: not readable as text ({error})") from error
    return [line for line in lines if line]


def _download(address: str, target: Path) -> Path:
    with urllib.request.urlopen(address, timeout=_TIMEOUT_S) as answer, target.open("wb") as file:
        shutil.copyfileobj(answer, file)
    return target


def _unpack(archive: Path, target: Path, source: str) -> None:
    """Files at the depth TASK/FILE.jsonl only, by their last two names: nothing can land outside."""
    target.mkdir()
    with zipfile.ZipFile(archive) as content:
        members = [m for m in content.infolist() if m.filename.endswith(".jsonl") and "__MACOSX" not in m.filename]
        if not members or sum(m.file_size for m in members) > MAX_DATA_BYTES:
            raise ValueError(f"expected TASK/*.jsonl of at most {MAX_DATA_BYTES} bytes in {source}")
        for member in members:
            task, name = PurePosixPath("/", member.filename).parts[-2:]
            if task in ("/", "..", ".") or name.startswith("."):
                continue
            (target / task).mkdir(exist_ok=True)
            (target / task / name).write_bytes(content.read(member))
