"""The exported folder: its record, its files, its prompt. Knows JSON and tokenizers, nothing of graphs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from lorahub_edge.errors import InvalidInput, UnsupportedFormat, first_line
from lorahub_edge.integrity import check_files, check_record
from lorahub_edge.serve.adapter import Adapter, adapter_file, read_adapter

EXPORT_FORMAT = "lorahub-edge-export/1"
RECORD, REFERENCE, VERIFICATION = "lorahub_edge.json", "reference.npz", "verification.json"


@dataclass(frozen=True)
class Prompt:
    """How a text becomes the tokens that the model was adapted on.

    Attributes:
        before, after: text around the input.
        max_input_tokens: longer prompts are refused.
        strip_input: whether the input loses its outer blanks.
        opening_ids, closing_ids: marks around the prompt.
        add_special_tokens: whether the tokenizer adds its marks itself, as in older exports.
    """

    before: str
    after: str
    max_input_tokens: int
    strip_input: bool = False
    opening_ids: Sequence[int] = ()
    closing_ids: Sequence[int] = ()
    add_special_tokens: bool = False


@dataclass(frozen=True)
class ExportFolder:
    """An exported model's files and settings.

    Attributes:
        folder: where it is.
        record: lorahub_edge.json.
        graphs: "encoder" and "decoder", or "model" -> its .onnx file.
        tokenizer: of the `tokenizers` library.
        prompt: around every input.
        end_ids: tokens that end an answer.
        pad_id, start_id: the padding, and the decoder's first token (None for decoder-only models).
        max_new_tokens: where answers are cut unless a request says otherwise.
        adapter: what is fed beside the base's own weights, or None.
    """

    folder: Path
    record: Mapping[str, Any]
    graphs: Mapping[str, Path]
    tokenizer: Tokenizer
    prompt: Prompt
    end_ids: tuple[int, ...]
    pad_id: int
    start_id: int | None
    max_new_tokens: int
    adapter: Adapter | None = None

    @property
    def is_seq2seq(self) -> bool:
        """Whether there is an encoder."""
        return "encoder" in self.graphs

    def encode(self, text: str) -> list[int]:
        """Token ids of the prompt around a text; not cut."""
        prompt = self.prompt
        text = text.strip() if prompt.strip_input else text
        # of the tokenizer's methods only those for batches let other threads run meanwhile
        [encoding] = self.tokenizer.encode_batch(
            [f"{prompt.before}{text}{prompt.after}"], add_special_tokens=prompt.add_special_tokens
        )
        return [*prompt.opening_ids, *encoding.ids, *prompt.closing_ids]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of an answer's tokens, special ones left out."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def __repr__(self) -> str:
        adapter = "" if self.adapter is None else f", {self.adapter!r}"
        return f"ExportFolder({self.folder.name}, {self.record['family']}, {self.record['precision']}{adapter})"


def open_folder(folder: str | Path, *, adapter: str | Path | None = None, is_checked: bool = False) -> ExportFolder:
    """Read what `lorahub-edge export` wrote, after all its files but the reference were compared with their hashes.

    Args:
        folder: the exported folder.
        adapter: for one exported --with-adapter: a file, the name of one in the folder, "none" for the base alone, or
            None for the one it was exported with. The adapter brings its own prompt and length of answers.
        is_checked: the files were compared already.

    Raises:
        InvalidInput: no such folder or adapter, one that is not an export, or an adapter of another base.
        UnsupportedFormat: an export or adapter with missing or broken files, or that is not what was exported.

    Cost: every file is read once, about a second per GB.
    """
    folder = Path(folder).expanduser()
    record = read_record(folder)
    if not is_checked:
        check_files(folder, {n: value for n, value in record["files"].items() if n != REFERENCE}, "exported")
    path = adapter_file(folder, record, adapter)
    return _open(folder, record, None if path is None else read_adapter(path, record))


def read_record(folder: Path) -> dict[str, Any]:
    """lorahub_edge.json of an exported folder, compared with its own hash.

    Raises:
        InvalidInput: not an exported folder.
        UnsupportedFormat: of another format, incomplete, or not what was exported.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        is_export = record["format"] == EXPORT_FORMAT
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(
            f"{folder} is not an exported folder; expected one with a {RECORD} that lorahub-edge export wrote"
        ) from error
    if not is_export:
        raise UnsupportedFormat(
            f"{folder}: expected format {EXPORT_FORMAT}, received {record['format']!r}; export again"
        )
    check_record(record, folder / RECORD, "exported")
    if not isinstance(record.setdefault("files", {}), dict):
        raise UnsupportedFormat(f"{folder / RECORD}: incomplete (files {record['files']!r}); export again")
    takes = record.get("adapter")
    if takes is not None and not (isinstance(takes, dict) and {"default", "targets", "base_files"} <= set(takes)):
        raise UnsupportedFormat(f"{folder / RECORD}: incomplete (adapter {takes!r}); export again")
    return dict(record)


def _open(folder: Path, record: Mapping[str, Any], adapter: Adapter | None) -> ExportFolder:
    own: Mapping[str, Any] = {} if adapter is None else adapter.record
    try:
        graphs = {name: folder / str(path) for name, path in record["graphs"].items()}
        generation = record["generation"]
        prompt = Prompt(**own.get("prompt", record["prompt"]))
        values = {name: own.get(name, generation[name]) for name in ("pad_id", "start_id", "max_new_tokens")}
        end_ids = tuple(int(i) for i in own.get("end_ids", generation["end_ids"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnsupportedFormat(f"{folder / RECORD}: incomplete ({error!r}); export again") from error
    for path in graphs.values():
        if not path.is_file():
            raise UnsupportedFormat(f"{folder}: {path.relative_to(folder)} is missing; export again")
    return ExportFolder(folder, record, graphs, _tokenizer(folder), prompt, end_ids, adapter=adapter, **values)


def _tokenizer(folder: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises nothing more particular
        raise UnsupportedFormat(f"{folder}: its tokenizer.json cannot be read ({first_line(error)})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
