"""read_run: what a merge takes from a run folder; load_run_base: the base it was made on, and no other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorahub_edge.adaptation.run_folder import ADAPTER, EXAMPLES, read_manifest
from lorahub_edge.base import Base, load_base
from lorahub_edge.base.filler import Adjust
from lorahub_edge.errors import InvalidInput
from lorahub_edge.modules import LoraModule, read_module
from lorahub_edge.sources import sha256_files
from lorahub_edge.tasks import Example, load_examples


@dataclass(frozen=True)
class RunSource:
    """A finished run, as the stages after it need it.

    Attributes:
        folder: the run folder.
        base_spec: where the base is, with its revision.
        base_files: file name -> SHA-256 of the base's weights as the run saw them.
        module: the composed module.
        prompt: record of the prompt, as `PromptFormat.of_record` takes it.
        max_new_tokens: where answers are cut.
        examples: what the search saw; none if the run was written before runs kept them.
    """

    folder: Path
    base_spec: str
    base_files: Mapping[str, str]
    module: LoraModule
    prompt: Mapping[str, Any]
    max_new_tokens: int
    examples: tuple[Example, ...]

    def __repr__(self) -> str:
        return f"RunSource({self.folder.name}, base {self.base_spec}, {self.module!r})"


def read_run(folder: str | Path) -> RunSource:
    """Read a run folder's manifest, composed module and examples.

    Raises:
        InvalidInput: not a run folder, or an incomplete one.
        UnsupportedFormat: its adapter is broken.
    """
    folder = Path(folder).expanduser()
    manifest = read_manifest(folder)
    try:
        record = manifest["base"]
        spec, revision, files = str(record["spec"]), record["revision"], dict(record["files"])
        prompt, max_new_tokens = dict(manifest["prompt"]), int(manifest["max_new_tokens"])
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"run {folder}: its manifest.json is incomplete ({error!r})") from error
    if revision:
        spec = f"{spec.partition('@')[0]}@{revision}"
    path = folder / EXAMPLES
    examples = tuple(load_examples(path)) if path.is_file() else ()
    return RunSource(folder, spec, files, read_module(folder / ADAPTER), prompt, max_new_tokens, examples)


def load_run_base(source: RunSource, precision: str, *, adjust: Adjust | None = None) -> Base:
    """The base of a run, on the CPU.

    Args:
        source: the run.
        precision, adjust: see `load_base`.

    Raises:
        InvalidInput: the base is gone, or its weights are not those that the run saw.
    """
    try:
        base = load_base(source.base_spec, precision=precision, device="cpu", adjust=adjust)
    except InvalidInput as error:
        raise InvalidInput(f"run {source.folder}: its base cannot be loaded: {error}") from error
    if sha256_files(base.weight_files) != source.base_files:
        raise InvalidInput(
            f"run {source.folder}: base '{source.base_spec}' has changed since the run; adapt again or restore the base"
        )
    return base


def examples_text(examples: tuple[Example, ...]) -> str:
    """Examples as JSONL, the form in which they travel from folder to folder."""
    return "".join(json.dumps({"input": e.input, "target": e.target}) + "\n" for e in examples)
