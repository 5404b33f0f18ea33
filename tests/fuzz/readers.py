"""What reads each kind of sample, as far as a user's command would go with it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import lorahub_edge
from lorahub_edge.adaptation.run_folder import read_manifest
from lorahub_edge.base import Base, load_base
from lorahub_edge.errors import LorahubEdgeError
from lorahub_edge.modules import ModuleStack, StackLayout, find_modules, load_modules, other_bases
from lorahub_edge.serve import open_folder
from lorahub_edge.tasks import PromptFormat, load_examples
from tests import tiny

Reader = Callable[[Path, Path], object]


@functools.cache
def _good_base(corpus: Path, kind: str) -> Base:
    return load_base(str(corpus / f"base-{kind}"), device="cpu")


def _module(folder: Path, corpus: Path) -> None:
    base = _good_base(corpus, "llama" if folder.name == "module-llama" else "t5")
    found = find_modules(str(folder))
    other_bases(found, base.source)
    StackLayout.of([m.outline() for m in found], base.linear_shapes(), "base")
    ModuleStack.build(load_modules(str(folder)), base)


def _base(folder: Path, corpus: Path) -> None:
    base = load_base(str(folder), device="cpu")
    prompt = PromptFormat.for_base(base)
    prompt.encode_all(load_examples(corpus / "examples" / "rows.jsonl"))


def _examples(folder: Path, corpus: Path) -> None:
    failures = []
    for path in sorted(folder.iterdir()):
        try:
            load_examples(path)
        except LorahubEdgeError as error:
            failures.append(error)
    if failures:
        raise failures[0]


def _export(folder: Path, corpus: Path) -> None:
    for adapter in (None, "none"):
        opened = open_folder(folder, adapter=adapter)
        opened.decode(opened.encode(tiny.ROWS[0][0]))


def _verify(folder: Path, corpus: Path) -> None:
    lorahub_edge.verify(folder)


def _run(folder: Path, corpus: Path) -> None:
    read_manifest(folder)
    lorahub_edge.load_adapted(folder, device="cpu").predict([tiny.ROWS[0][0]])


# kind of sample -> its reader, the files that are mutated, how often it is drawn
READERS: dict[str, tuple[str, Reader, str, int]] = {
    "module": ("module-t5", _module, "*", 5),
    "module-bin": ("module-bin", _module, "*", 5),
    "module-causal": ("module-llama", _module, "*", 2),
    "base": ("base-t5", _base, "*", 3),
    "base-bin": ("base-bin", _base, "*", 2),
    "base-causal": ("base-llama", _base, "*", 2),
    "gguf": ("gguf-llama", _base, "*", 2),
    "gguf-t5": ("gguf-t5", _base, "*", 1),
    "examples": ("examples", _examples, "*", 4),
    "export": ("export", _export, "**/*", 4),
    "verify": ("export", _verify, "**/*", 1),
    "run": ("run", _run, "**/*", 3),
}
