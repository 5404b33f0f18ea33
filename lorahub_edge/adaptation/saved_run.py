"""open_run: a run folder, as every later stage reads it; SavedRun.load_base: the base it was made on, and no other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lorahub_edge.adaptation.run_folder import ADAPTER, EXAMPLES, read_manifest
from lorahub_edge.base import Base, OpenBase, load_base, open_base
from lorahub_edge.base.filler import Adjust
from lorahub_edge.cache import Cache, content_hashes
from lorahub_edge.errors import InvalidInput
from lorahub_edge.integrity import check_files
from lorahub_edge.modules import LoraModule, read_module
from lorahub_edge.sources import local_path
from lorahub_edge.tasks import Example, load_examples

AnyBase = TypeVar("AnyBase", Base, OpenBase)


@dataclass(frozen=True)
class SavedRun:
    """A finished run.

    Attributes:
        folder: the run folder.
        base_spec: where the base is, with its revision.
        base_files: file name -> SHA-256 of the base's weights as the run saw them.
        precision: of the base that the run searched on.
        module: the composed module.
        prompt: record of the prompt, as `PromptFormat.of_record` takes it.
        max_new_tokens: where answers are cut.
        examples: what the search saw; none if the run was written before runs kept them.
    """

    folder: Path
    base_spec: str
    base_files: Mapping[str, str]
    precision: str
    module: LoraModule
    prompt: Mapping[str, Any]
    max_new_tokens: int
    examples: tuple[Example, ...]

    def load_base(
        self,
        precision: str | None = None,
        *,
        device: str = "cpu",
        adjust: Adjust | None = None,
        cache: Cache | None = None,
    ) -> Base:
        """The base of the run.

        Args:
            precision: None for that of the search.
            device, adjust, cache: see `load_base`.

        Raises:
            InvalidInput: the base is gone, or its weights are not those that the run saw.
        """
        precision = precision or self.precision
        return self._unchanged(
            lambda: load_base(self.base_spec, precision=precision, device=device, adjust=adjust, cache=cache), cache
        )

    def open_base(self) -> OpenBase:
        """The base of the run, all but its weights.

        Raises:
            InvalidInput: see `load_base`.
        """
        return self._unchanged(lambda: open_base(self.base_spec, precision=self.precision, device="cpu"), None)

    def _unchanged(self, find: Callable[[], AnyBase], cache: Cache | None) -> AnyBase:
        try:
            base = find()
        except InvalidInput as error:
            raise InvalidInput(f"run {self.folder}: its base cannot be loaded: {error}") from error
        if content_hashes(base.weight_files, cache) != self.base_files:
            raise InvalidInput(
                f"run {self.folder}: base '{self.base_spec}' has changed since the run; adapt again or restore the base"
            )
        return base

    def __repr__(self) -> str:
        return f"SavedRun({self.folder.name}, base {self.base_spec}, {self.module!r})"


def open_run(folder: str | Path) -> SavedRun:
    """Read a run folder's manifest, composed module and examples.

    Raises:
        InvalidInput: not a run folder, or an incomplete one.
        UnsupportedFormat: its adapter is broken, or not the one that was found.
    """
    folder = local_path(folder)
    manifest = read_manifest(folder)
    try:
        record = manifest["base"]
        spec, revision, precision = str(record["spec"]), record["revision"], str(record["precision"])
        files, prompt = dict(record["files"]), dict(manifest["prompt"])
        max_new_tokens = int(manifest["max_new_tokens"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(f"run {folder}: its manifest.json is incomplete ({error!r})") from error
    if revision:
        spec = f"{spec.partition('@')[0]}@{revision}"
    check_files(folder, manifest.get("files", {}), "adapted")
    path = folder / EXAMPLES
    examples = tuple(load_examples(path)) if path.is_file() else ()
    module = read_module(folder / ADAPTER)
    return SavedRun(folder, spec, files, precision, module, prompt, max_new_tokens, examples)
