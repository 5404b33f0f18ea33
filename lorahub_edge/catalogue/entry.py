"""One module as the catalogue knows it, read from its folder: JSON, headers and texts, never a tensor."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from lorahub_edge import pocket
from lorahub_edge.catalogue.card import card_head
from lorahub_edge.catalogue.folders import (
    CARD,
    CONFIG_FILE,
    MAX_CONFIG_BYTES,
    TRAINING_ROWS,
    card_of,
    own_words,
    weights_of,
)
from lorahub_edge.errors import UnsupportedFormat, first_line, printable, refused_as
from lorahub_edge.sources import Source, read_json, sha256_file

_TARGET = re.compile(r"(?:.*\.)?([^.]+)\.lora_[AB](?:\.[^.]+)?\.weight")
_MAX_TARGETS = 100


@dataclass(frozen=True)
class FileRecord:
    """A file as it was when it was added.

    Attributes:
        sha256: hex.
        n_bytes, mtime_ns: by which an unchanged file is known without reading it.
    """

    sha256: str
    n_bytes: int
    mtime_ns: int

    def is_like(self, path: Path) -> bool:
        """Whether a file has this size and time of change.

        Raises:
            FileNotFoundError: there is none.
        """
        status = path.stat()
        return (status.st_size, status.st_mtime_ns) == (self.n_bytes, self.mtime_ns)


@dataclass(frozen=True)
class Entry:
    """A module of the catalogue.

    Attributes:
        name: unique in the catalogue.
        asked: the folder, embedded name or Hub id that was added; unique too.
        spec: what finds exactly this module again: as `asked`, but a Hub id has its commit.
        folder: where its files are, or were.
        revision: the Hub's commit, if it came from there.
        files: file name -> what it was.
        base: the one its config names.
        rank, alpha: its config's, of targets that no pattern matches.
        targets: names of the layers that it changes, such as "q" and "v"; the config's where the weights are a pickle.
        weights: types of its tensors, such as "F32"; "bin" for a pickle, which is not looked into.
        licence, tags: of its card's head.
        card: the beginning of its card; empty in what a search gives.
        words: what it says it was trained on, see `own_words`; empty in what a search gives.
        added: time of entry, ISO 8601 in UTC.
    """

    name: str
    asked: str
    spec: str
    folder: Path
    revision: str | None
    files: Mapping[str, FileRecord]
    base: str | None
    rank: float
    alpha: float
    targets: tuple[str, ...]
    weights: str
    licence: str | None
    tags: tuple[str, ...]
    card: str
    words: str
    added: str

    @property
    def n_bytes(self) -> int:
        """Of all its files."""
        return sum(record.n_bytes for record in self.files.values())

    def is_unchanged(self, source: Source) -> bool:
        """Whether all files of a folder have the sizes and times of this entry's; reads none of them."""
        try:
            names = {path.name for path in _files_of(source.folder)}
            return (
                (self.folder, self.revision) == (source.folder, source.revision)
                and names == set(self.files)
                and all(record.is_like(source.folder / name) for name, record in self.files.items())
            )
        except (OSError, UnsupportedFormat):
            return False

    def differences(self, *, read_all: bool) -> Iterator[tuple[str, str]]:
        """File name -> "missing", "changed" or "cannot be read (...)", of each that is not what was added.

        Args:
            read_all: compare every hash; else only those of files with another size or time.
        """
        for name, record in self.files.items():
            path = self.folder / name
            try:
                if not path.is_file():
                    yield name, "missing"
                elif path.stat().st_size != record.n_bytes or (
                    (read_all or not record.is_like(path)) and sha256_file(path) != record.sha256
                ):
                    yield name, "changed"
            except OSError as error:
                yield name, f"cannot be read ({first_line(error)})"

    def as_record(self) -> dict[str, Any]:
        """For JSON, without the texts."""
        files = {name: record.sha256 for name, record in self.files.items()}
        texts = ("card", "words", "folder", "files")
        record = {name: value for name, value in vars(self).items() if name not in texts}
        return {**record, "folder": str(self.folder), "files": files, "bytes": self.n_bytes}

    def __repr__(self) -> str:
        return f"Entry({self.name}, rank {self.rank:g}, base {self.base}, {self.n_bytes} bytes)"


def read_entry(name: str, source: Source, asked: str) -> Entry:
    """Read a module folder, all but its tensors, and hash its files.

    Args:
        name: to be known by.
        source: where it was found.
        asked: what it was added as.

    Raises:
        UnsupportedFormat, InvalidInput: a file is missing or broken, or it is no LoRA; names it.
    """
    folder = source.folder
    for text in (name, str(folder)):
        if printable(text) != text:
            raise UnsupportedFormat(f"module folder {folder}: its name or path has control characters; rename it")
    config = read_json(folder / CONFIG_FILE, max_bytes=MAX_CONFIG_BYTES, keys_once=True)
    if config.get("peft_type") != "LORA":
        raise UnsupportedFormat(f"{folder / CONFIG_FILE}: peft_type is not 'LORA'; only LoRA modules can be added")
    with refused_as(f"module {folder} cannot be read"):
        files = {path.name: _record_of(path) for path in _files_of(folder)}
    targets, weights = _outline(weights_of(folder), config)
    base = config.get("base_model_name_or_path")
    card = card_of(folder)
    head = card_head(card)
    return Entry(
        name=name,
        asked=asked,
        spec=_spec(source, asked),
        folder=folder,
        revision=source.revision,
        files=files,
        base=base if isinstance(base, str) and base.strip() else None,
        rank=_number(config, "r", folder),
        alpha=_number(config, "lora_alpha", folder),
        targets=targets,
        weights=weights,
        licence=head.licence,
        tags=head.tags,
        card=card,
        words=own_words(folder),
        added=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


def asked_for(spec: str, source: Source) -> str:
    """What a module is known as to a second `add`: an absolute folder, an embedded name, or the Hub id as given."""
    is_embedded = source.folder == pocket.modules_folder() / source.spec.removeprefix("pocket/")
    if is_embedded or (source.revision is not None and source.spec == spec):
        return source.spec
    return str(source.folder)


def _spec(source: Source, asked: str) -> str:
    from_hub = source.revision is not None and asked == source.spec
    return f"{asked.partition('@')[0]}@{source.revision}" if from_hub else asked


def _files_of(folder: Path) -> list[Path]:
    """Config, weights and, where they are, card and rows."""
    texts = [path for path in (folder / CARD, folder / TRAINING_ROWS) if path.is_file()]
    return [folder / CONFIG_FILE, weights_of(folder), *texts]


def _record_of(path: Path) -> FileRecord:
    status = path.stat()  # before it is read: what changes meanwhile shows at the next look
    return FileRecord(sha256_file(path), status.st_size, status.st_mtime_ns)


def _outline(path: Path, config: Mapping[str, Any]) -> tuple[tuple[str, ...], str]:
    """Targets and kind of weights; of a pickle only what the config says."""
    if path.suffix == ".bin":
        named = config.get("target_modules")
        listed = [named] if isinstance(named, str) else named if isinstance(named, list) else []
        return tuple(sorted({str(target)[:_MAX_TARGETS] for target in listed})[:_MAX_TARGETS]), "bin"
    with (
        refused_as(f"{path}: not a whole safetensors file", "copy it again"),
        safe_open(path, framework="numpy") as handle,
    ):
        names = list(handle.keys())
        kinds = {str(handle.get_slice(name).get_dtype()) for name in names}
    targets = {match[1] for match in map(_TARGET.fullmatch, names) if match}
    if not targets:
        raise UnsupportedFormat(f"{path}: holds no LoRA factors")
    return tuple(sorted(targets)[:_MAX_TARGETS]), "+".join(sorted(kinds))


def _number(config: Mapping[str, Any], key: str, folder: Path) -> float:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= 1e9:
        raise UnsupportedFormat(f"{folder / CONFIG_FILE}: {key} is no number; expected a LoRA's")
    return float(value)
