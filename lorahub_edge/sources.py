"""From what a user names (an embedded name, a local folder, a Hub id@revision) to a folder on disk, with its hashes.

Knows files and the Hub; knows nothing of models or modules.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorahub_edge.errors import InvalidInput, first_line

_HUB_ID = re.compile(r"^(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?$")
_HASH_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class Source:
    """Where something was found.

    Attributes:
        spec: what the user wrote.
        folder: the folder with its files.
        revision: the Hub's commit hash, or None for a local folder.
    """

    spec: str
    folder: Path
    revision: str | None = None


def resolve(
    spec: str, *, embedded: Mapping[str, Path], choose_files: Callable[[Sequence[str]], list[str]], kind: str
) -> Source:
    """Find the folder that `spec` names, downloading it from the Hub if it is neither embedded nor local.

    Args:
        spec: embedded name, path of a folder, or Hub id with an optional @revision. In this order.
        embedded: name -> folder of what the package carries.
        choose_files: of the file names in a Hub repository, those to download.
        kind: "base" or "module", for messages.

    Raises:
        InvalidInput: nothing of that name, or the Hub could not deliver it.
    """
    if spec in embedded:
        return Source(spec, embedded[spec])
    path = Path(spec).expanduser()
    if path.is_dir():
        return Source(spec, path.resolve())
    match = _HUB_ID.match(spec)
    if path.exists() or match is None or spec.startswith((".", "/", "~")):
        what = "is a file, not a folder" if path.exists() else "was not found"
        raise InvalidInput(
            f"{kind} '{spec}' {what}; expected an embedded name ({', '.join([*embedded][:3])}, ...), "
            "an existing folder, or a Hub id such as org/name or org/name@revision"
        )
    return _download(spec, match["repo"], match["revision"], choose_files, kind)


def _download(
    spec: str, repo: str, revision: str | None, choose_files: Callable[[Sequence[str]], list[str]], kind: str
) -> Source:
    from huggingface_hub import HfApi, constants, snapshot_download  # slow to import, and most runs need no Hub

    try:
        if constants.HF_HUB_OFFLINE:
            folder = _cached_snapshot(repo, revision)
        else:
            info = HfApi().model_info(repo, revision=revision)
            wanted = choose_files([sibling.rfilename for sibling in info.siblings or []])
            folder = snapshot_download(repo, revision=revision, allow_patterns=wanted)
    except Exception as error:  # the client also lets through the errors of its HTTP library, which changes
        reason = first_line(error)
        raise InvalidInput(
            f"{kind} '{spec}': no such folder here, and the Hub did not deliver it ({reason}); "
            "check the name, the revision and the connection, or give a local folder"
        ) from error
    # a snapshot's folder is named after its commit
    return Source(spec, Path(folder), Path(folder).name)


def _cached_snapshot(repo: str, revision: str | None) -> str:
    from huggingface_hub import try_to_load_from_cache

    for name in ("adapter_config.json", "config.json"):
        if isinstance(path := try_to_load_from_cache(repo, name, revision=revision), str):
            return str(Path(path).parent)
    raise FileNotFoundError("HF_HUB_OFFLINE is set and it was never downloaded")


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
