"""Module folders as far as they are known without torch: which files they have, and what they say of themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lorahub_edge import pocket
from lorahub_edge.errors import InvalidInput, UnsupportedFormat, first_line, refused_as
from lorahub_edge.sources import Source, resolve
from lorahub_edge.tasks import load_examples

CONFIG_FILE = "adapter_config.json"
MAX_CONFIG_BYTES = 1 << 20
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
# Beside a module's own files, for people and for choosing among many modules: a model card, and a few training rows.
CARD, TRAINING_ROWS = "README.md", "training_rows.jsonl"

# PEFT writes a card with some forty of these beside every module; one that keeps so many was never filled in.
_BLANK, _MANY_BLANKS = "[More Information Needed]", 10

# Of what a module says, so much is read: cards of strangers may be of any length.
_MAX_CHARACTERS = 1 << 16


def embedded_modules() -> dict[str, Path]:
    """Embedded name -> folder."""
    return {f"pocket/{name}": pocket.modules_folder() / name for name in pocket.module_names()}


def is_module_folder(folder: Path) -> bool:
    """Whether a folder looks like one PEFT adapter."""
    return (folder / CONFIG_FILE).is_file()


def weights_of(folder: Path) -> Path:
    """The file with a module's weights.

    Raises:
        UnsupportedFormat: there is none.
    """
    weights = next((folder / n for n in WEIGHT_FILES if (folder / n).is_file()), None)
    if weights is None:
        raise UnsupportedFormat(f"module {folder}: expected {' or '.join(WEIGHT_FILES)}, found neither")
    return weights


def folders_of(spec: str) -> list[tuple[str, Source]]:
    """Names and folders of the modules that one spec names; downloads those on the Hub.

    Args:
        spec: "pocket" (all embedded modules) or "pocket/NAME"; a PEFT folder; a folder of PEFT folders, taken in name
            order; a Hub id such as org/name or org/name@revision.

    Raises:
        InvalidInput: nothing of that name, or a folder without modules.
    """
    if spec == "pocket":
        return [(name.partition("/")[2], Source(name, folder)) for name, folder in embedded_modules().items()]
    source = resolve(spec, embedded=embedded_modules(), choose_files=_choose_files, kind="module")
    if is_module_folder(source.folder):
        name = source.folder.name if source.revision is None else spec
        return [(name, source)]
    try:
        children = sorted(p for p in source.folder.iterdir() if p.is_dir() and is_module_folder(p))
    except OSError as error:
        raise InvalidInput(f"module folder {source.folder}: cannot be listed ({first_line(error)})") from error
    if not children:
        raise InvalidInput(f"module folder {source.folder} has no {CONFIG_FILE}, and neither has any folder in it")
    return [(p.name, Source(str(p), p, source.revision)) for p in children]


def card_of(folder: Path) -> str:
    """The beginning of a module's card as it stands; empty if it has none.

    Raises:
        UnsupportedFormat: it cannot be read; names it.
    """
    path = folder / CARD
    if not path.is_file():
        return ""
    with refused_as(f"{path} cannot be read"), open(path, "rb") as file:
        return file.read(_MAX_CHARACTERS).decode("utf-8", "replace")


def own_words(folder: Path) -> str:
    """A module's card, unless it is PEFT's blank one, and the training rows beside it; empty if it has neither.

    Raises:
        InvalidInput, UnsupportedFormat: one of the files cannot be read; names it.
    """
    card = card_of(folder)
    texts = [card] if card.count(_BLANK) < _MANY_BLANKS else []
    if (folder / TRAINING_ROWS).is_file():
        texts += [f"{row.input}\n{row.target}" for row in load_examples(folder / TRAINING_ROWS)]
    return "\n".join(texts).strip()[:_MAX_CHARACTERS]


def _choose_files(names: Sequence[str], pick: str | None) -> list[str]:
    if pick is not None:
        raise InvalidInput(f"'{pick}' picks a file of a base; a module has one")
    weights = next((n for n in WEIGHT_FILES if n in names), None)
    return [CONFIG_FILE, *filter(None, [weights]), *(name for name in (CARD, TRAINING_ROWS) if name in names)]
