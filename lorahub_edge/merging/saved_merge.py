"""open_merged: a merged folder, as every later stage reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorahub_edge.errors import UnsupportedFormat
from lorahub_edge.integrity import check_files, check_record
from lorahub_edge.sources import record_of
from lorahub_edge.tasks import Example, load_examples

MERGE_FORMAT = "lorahub-edge-merge/1"
MERGE_RECORD, SURVIVAL, EXAMPLES = "merge.json", "survival.json", "examples.jsonl"


@dataclass(frozen=True)
class SavedMerge:
    """A merged folder.

    Attributes:
        folder: a transformers checkpoint.
        record: merge.json.
        prompt: record of the run's prompt, as `PromptFormat.of_record` takes it.
        max_new_tokens: where answers are cut.
        examples: the run's; none if the run had none.
    """

    folder: Path
    record: Mapping[str, Any]
    prompt: Mapping[str, Any]
    max_new_tokens: int
    examples: tuple[Example, ...]


def is_merged_folder(folder: Path) -> bool:
    """Whether `merge` wrote this folder."""
    return record_of(folder / MERGE_RECORD, MERGE_FORMAT) is not None


def open_merged(folder: Path) -> SavedMerge:
    """Read a merged folder's record and examples, after its files were compared with their hashes.

    Raises:
        UnsupportedFormat: no merged folder, an incomplete one, or one that is not what was merged.

    Cost: every file is read once, about a second per GB.
    """
    record = record_of(folder / MERGE_RECORD, MERGE_FORMAT)
    if record is None:
        raise UnsupportedFormat(f"{folder}: expected a merged folder, with a {MERGE_RECORD} of format {MERGE_FORMAT}")
    check_record(record, folder / MERGE_RECORD, "merged")
    check_files(folder, record.get("files", {}), "merged")
    try:
        prompt, max_new_tokens = dict(record["prompt"]), int(record["max_new_tokens"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UnsupportedFormat(f"{folder / MERGE_RECORD}: incomplete ({error!r}); merge again") from error
    path = folder / EXAMPLES
    examples = tuple(load_examples(path)) if path.is_file() else ()
    return SavedMerge(folder, record, prompt, max_new_tokens, examples)
