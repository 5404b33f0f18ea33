"""The exported folder: its record, its files, its prompt. Knows JSON and tokenizers, nothing of graphs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from lorahub_edge.errors import InvalidInput, UnsupportedFormat, refused_as
from lorahub_edge.integrity import check_files, check_record
from lorahub_edge.serve.adapter import Adapter, adapter_file, read_adapter
from lorahub_edge.sources import local_path, read_json

EXPORT_FORMAT = "lorahub-edge-export/1"
BASE_NEW_TOKENS = 256  # where a base's answers are cut, unless the folder's own length is larger
GRAPH_NAMES = ("encoder", "decoder", "model")
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
    folder = local_path(folder)
    record = read_record(folder)
    if not is_checked:
        check_files(folder, {n: value for n, value in record["files"].items() if n != REFERENCE}, "exported")
    path = adapter_file(folder, record, adapter)
    return _open(folder, record, None if path is None else read_adapter(path, record), _tokenizer(folder))


def with_adapter(files: ExportFolder, adapter: Adapter) -> ExportFolder:
    """The same folder with an adapter that `read_adapter` read for it, and with the adapter's prompt.

    Raises:
        UnsupportedFormat: the adapter's prompt or length of answers is none.
    """
    return _open(files.folder, files.record, adapter, files.tokenizer)


def without_prompt(files: ExportFolder) -> ExportFolder:
    """The same folder as a base that nothing was adapted to.

    Only the tokenizer's own marks are put around a text, and the length of answers is no task's.
    """
    room = files.record["generation"].get("max_positions") or files.prompt.max_input_tokens
    prompt = dataclasses.replace(files.prompt, before="", after="", strip_input=False, max_input_tokens=room)
    n_tokens = max(files.max_new_tokens, BASE_NEW_TOKENS)
    return dataclasses.replace(files, prompt=prompt, max_new_tokens=n_tokens, adapter=None)


def read_record(folder: Path) -> dict[str, Any]:
    """lorahub_edge.json of an exported folder, compared with its own hash.

    Raises:
        InvalidInput: not an exported folder.
        UnsupportedFormat: of another format, incomplete, or not what was exported.
    """
    try:
        record = read_json(folder / RECORD)
        is_export = record["format"] == EXPORT_FORMAT
    except (UnsupportedFormat, KeyError) as error:
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
    if takes is not None and not _takes_adapters(takes):
        raise UnsupportedFormat(f"{folder / RECORD}: incomplete (adapter {takes!r}); export again")
    return dict(record)


def _open(folder: Path, record: Mapping[str, Any], adapter: Adapter | None, tokenizer: Tokenizer) -> ExportFolder:
    own: Mapping[str, Any] = {} if adapter is None else adapter.record
    with refused_as(f"{folder / RECORD}: incomplete", "export again"):
        graphs = {name: folder / record["graphs"][name] for name in _graph_names(record)}
        generation = {**record["generation"], **{name: own[name] for name in _GENERATION if name in own}}
        prompt = Prompt(**_checked("prompt", own.get("prompt", record["prompt"]), _PROMPT))
        values = _checked("generation", {name: generation[name] for name in _GENERATION}, _GENERATION)
        _checked("record", {name: record[name] for name in _NAMES}, _NAMES)
        _checked("generation", {"max_positions": record["generation"].get("max_positions")}, _POSITIONS)
        missing = [path.name for path in graphs.values() if not path.is_file()]
    n_tokens = tokenizer.get_vocab_size()
    if beyond := [mark for mark in (*prompt.opening_ids, *prompt.closing_ids) if mark >= n_tokens]:
        whose = folder / RECORD if adapter is None else f"adapter {adapter.name}"
        raise UnsupportedFormat(f"{whose}: its prompt has the token {beyond[0]} of {n_tokens}; export again")
    if missing:
        raise UnsupportedFormat(f"{folder}: {missing[0]} is missing; export again")
    values["end_ids"] = tuple(values["end_ids"])
    return ExportFolder(folder, record, graphs, tokenizer, prompt, adapter=adapter, **values)


def _takes_adapters(takes: Any) -> bool:
    if not isinstance(takes, dict) or not {"default", "targets", "base_files"} <= set(takes):
        return False
    targets = takes["targets"]
    return isinstance(targets, dict) and all(_are_ids(shape) and len(shape) == 2 for shape in targets.values())


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**31


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_id, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


# Name of a setting -> what it may be.
_NAMES: Mapping[str, Callable[[Any], bool]] = {"family": _is_text, "precision": _is_text}
_PROMPT: Mapping[str, Callable[[Any], bool]] = {
    "before": _is_text,
    "after": _is_text,
    "max_input_tokens": _is_count,
    "strip_input": lambda value: isinstance(value, bool),
    "opening_ids": _are_ids,
    "closing_ids": _are_ids,
    "add_special_tokens": lambda value: isinstance(value, bool),
}
_GENERATION: Mapping[str, Callable[[Any], bool]] = {
    "pad_id": _is_id,
    "start_id": lambda value: value is None or _is_id(value),
    "end_ids": _are_ids,
    "max_new_tokens": _is_count,
}
_POSITIONS: Mapping[str, Callable[[Any], bool]] = {"max_positions": lambda value: value is None or _is_count(value)}


def _checked(part: str, values: Mapping[str, Any], allowed: Mapping[str, Callable[[Any], bool]]) -> dict[str, Any]:
    for name, value in values.items():
        if name not in allowed or not allowed[name](value):
            raise ValueError(f"{part}: '{name}' is {value!r}")
    return dict(values)


def _graph_names(record: Mapping[str, Any]) -> Sequence[str]:
    return ("encoder", "decoder") if "encoder" in record["graphs"] else ("model",)


def _tokenizer(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():  # also a link to a device, which never ends
        raise UnsupportedFormat(f"{folder}: tokenizer.json is missing; export again")
    with refused_as(f"{folder}: its tokenizer.json cannot be read"):
        tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
