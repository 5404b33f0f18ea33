"""From what a user names (an embedded name, a local folder, a Hub id@revision) to a folder on disk, with its hashes.

Knows files and the Hub; knows nothing of models or modules.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lorahub_edge.errors import InvalidInput, UnsupportedFormat, first_line, refused_as

_HUB_ID = re.compile(
    r"^(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(:(?P<pick>[\w.-]+)|/(?P<file>[\w.-]+\.gguf))?(@(?P<revision>[\w./-]+))?$"
)
ChooseFiles = Callable[[Sequence[str], str | None], list[str]]
_HASH_CHUNK_BYTES = 1 << 22
_BUSY = (429, 500, 502, 503, 504)
_WAITS_S = (0.5, 1.0, 2.0)
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Source:
    """Where something was found.

    Attributes:
        spec: what the user wrote.
        folder: the folder with its files.
        revision: the Hub's commit hash, or None for a local folder.
        pick: which of several files of one kind is meant, or None.
    """

    spec: str
    folder: Path
    revision: str | None = None
    pick: str | None = None

    @property
    def names(self) -> tuple[str, str]:
        """By which others may know it: as it was asked for, and where it lies."""
        return self.spec, str(self.folder)


def resolve(spec: str, *, embedded: Mapping[str, Path], choose_files: ChooseFiles, kind: str) -> Source:
    """Find the folder that `spec` names, downloading it from the Hub if it is neither embedded nor local.

    Args:
        spec: embedded name, path of a folder, or Hub id: org/name, with an optional :PICK or /FILE.gguf and an
            optional @revision. In this order.
        embedded: name -> folder of what the package carries.
        choose_files: of the file names in a Hub repository, those to download; its second argument is the pick.
        kind: "base" or "module", for messages.

    Raises:
        InvalidInput: nothing of that name, or the Hub could not deliver it.
    """
    if spec in embedded:
        return Source(spec, embedded[spec])
    path = local_path(spec)
    if os.path.isdir(path):  # unlike Path's own, false for a name that no file can have
        return Source(spec, path.resolve())
    match = _HUB_ID.match(spec)
    if os.path.exists(path) or match is None or spec.startswith((".", "/", "~")):
        what = "is a file, not a folder" if os.path.exists(path) else "was not found"
        raise InvalidInput(
            f"{kind} '{spec}' {what}; expected an embedded name ({', '.join([*embedded][:3])}, ...), "
            "an existing folder, or a Hub id such as org/name or org/name@revision"
        )
    return _download(spec, match, choose_files, kind)


def _patiently(ask: Callable[[], _Answer]) -> _Answer:
    """Ask the Hub again where it says that it is busy; what it has sent by then is not fetched again."""
    for wait_s in _WAITS_S:
        try:
            return ask()
        except Exception as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            if status not in _BUSY:
                raise
            time.sleep(wait_s)
    return ask()


def moved_to(spec: str, commit: str) -> str | None:
    """The commit that a Hub id names today, if it is another one than `commit`.

    Raises:
        InvalidInput: the Hub did not answer, or has no such repository or revision any more.
    """
    from huggingface_hub import HfApi

    match = _HUB_ID.match(spec)
    try:
        now = match and _patiently(lambda: HfApi().model_info(match["repo"], revision=match["revision"]).sha)
    except Exception as error:  # see _download
        raise InvalidInput(f"'{spec}': the Hub did not say where it is ({first_line(error)})") from error
    return None if now == commit else now


def local_path(place: str | Path) -> Path:
    """A path with ~ as the user's home; ~NAME of nobody stays as it is."""
    return Path(os.path.expanduser(place))


def _download(spec: str, match: re.Match[str], choose_files: ChooseFiles, kind: str) -> Source:
    from huggingface_hub import HfApi, constants, snapshot_download  # slow to import, and most runs need no Hub

    repo, revision, pick = match["repo"], match["revision"], match["pick"] or match["file"]
    try:
        if constants.HF_HUB_OFFLINE:
            folder = snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=[])
        else:
            info = _patiently(lambda: HfApi().model_info(repo, revision=revision))
            wanted = choose_files([sibling.rfilename for sibling in info.siblings or []], pick)
            folder = _patiently(lambda: snapshot_download(repo, revision=revision, allow_patterns=wanted))
    except InvalidInput as error:
        raise InvalidInput(f"{kind} '{spec}': {error}") from error
    except Exception as error:  # the client also lets through the errors of its HTTP library, which changes
        reason = first_line(error)
        raise InvalidInput(
            f"{kind} '{spec}': no such folder here, and the Hub did not deliver it ({reason}); "
            "check the name, the revision and the connection, or give a local folder"
        ) from error
    # a snapshot's folder is named after its commit
    return Source(spec, Path(folder), Path(folder).name, pick)


def read_json(path: Path, *, max_bytes: int = 64 << 20, keys_once: bool = False) -> dict[str, Any]:
    """The JSON object in a stranger's file.

    Args:
        path: of the file.
        max_bytes: a larger one is refused.
        keys_once: refuse an object with a key twice; else the last one counts.

    Raises:
        UnsupportedFormat: no plain file (a pipe never ends), too large, or no JSON object.
    """
    if not path.is_file():
        raise UnsupportedFormat(f"{path} is not a file")
    with refused_as(f"{path}: not readable as JSON"):
        with open(path, "rb") as file:
            text = file.read(max_bytes + 1)
        if len(text) > max_bytes:
            raise UnsupportedFormat(f"{path}: expected at most {max_bytes} bytes of JSON")
        content = json.loads(text.decode("utf-8"), object_pairs_hook=_each_key_once if keys_once else None)
    if not isinstance(content, dict):
        raise UnsupportedFormat(f"{path}: expected a JSON object, received {type(content).__name__}")
    return content


def record_of(path: Path, format_: str) -> dict[str, Any] | None:
    """The record in a file of ours, or None if the file holds none of this format."""
    try:
        record = read_json(path)
    except UnsupportedFormat:
        return None
    return record if record.get("format") == format_ else None


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"it has the key {key[:80]!r} twice")
        content[key] = value
    return content


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_files(files: Sequence[Path]) -> dict[str, str]:
    """File name -> hex SHA-256, in name order."""
    return {path.name: sha256_file(path) for path in sorted(files)}
