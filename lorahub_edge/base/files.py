"""Which files make a base, in a folder or a Hub repository: one choice for what is fetched and what is read."""

from __future__ import annotations

import re
from collections.abc import Iterable

from lorahub_edge.errors import InvalidInput

CONFIG = "config.json"
VOCABULARY_FILES = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.json")
SIDE_FILES = (
    *VOCABULARY_FILES,
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
)
_FORMATS = (("model", "safetensors"), ("pytorch_model", "bin"))
PART_OF_SEVERAL = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_IMAGE_ENCODER = "mmproj"


def choose_base_files(names: Iterable[str], pick: str | None = None) -> list[str]:
    """Of a Hub repository's files, those that a base is read from.

    Args, Raises: see `choose_weights`.
    """
    top = [n for n in names if "/" not in n]
    return choose_weights(top, pick) + [n for n in top if n in (CONFIG, *SIDE_FILES)]


def choose_weights(names: Iterable[str], pick: str | None = None) -> list[str]:
    """Of a folder's files, those that hold the weights: one whole file, or an index and its parts.

    safetensors come before .bin, .bin before GGUF, and a whole file before its parts, as in transformers.

    Args:
        names: of the folder's files.
        pick: a GGUF file's name, or the end of it, such as Q8_0; None if there is nothing to choose.

    Returns:
        Names, an index first; none if there are no weights.

    Raises:
        InvalidInput: there are several GGUF files, or none that was meant, so the choice is the user's.
    """
    found = sorted(names)
    for stem, suffix in _FORMATS if pick is None else ():
        whole, index = f"{stem}.{suffix}", f"{stem}.{suffix}.index.json"
        if whole in found:
            return [whole]
        if index in found:
            return [index, *(n for n in found if re.fullmatch(rf"{stem}-\d+-of-\d+\.{suffix}", n))]
    return _choose_gguf([n for n in found if n.endswith(".gguf") and not n.startswith(_IMAGE_ENCODER)], pick)


def _choose_gguf(files: list[str], pick: str | None) -> list[str]:
    whole = [n for n in files if not PART_OF_SEVERAL.search(n)]
    meant = [n for n in whole if pick is None or _is_meant(n, pick)]
    if len(meant) == 1 or not (files or pick):
        return meant
    what = f"none of its whole GGUF files is '{pick}'" if pick else f"{len(files)} GGUF files"
    raise InvalidInput(
        f"{what} ({', '.join(files) or 'there are none'}); name one whole file: FOLDER/FILE.gguf, "
        "or on the Hub org/name:Q8_0 or org/name/FILE.gguf"
    )


def _is_meant(name: str, pick: str) -> bool:
    return name == pick or bool(re.search(rf"(^|[-._]){re.escape(pick)}\.gguf$", name, re.IGNORECASE))
