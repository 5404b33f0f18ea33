"""The head of a model card: licence and tags. Strangers write it, so it is read line by line and never as YAML."""

from __future__ import annotations

from dataclasses import dataclass

_FENCE = "---"
_MAX_LINES, _MAX_TAGS, _MAX_CHARACTERS = 2000, 100, 100


@dataclass(frozen=True)
class CardHead:
    """What a card's head says.

    Attributes:
        licence: as the Hub writes it, for instance "mit"; None if it says none.
        tags: in order.
    """

    licence: str | None = None
    tags: tuple[str, ...] = ()


def card_head(card: str) -> CardHead:
    """Licence and tags from the lines between the first two "---".

    Only `license: NAME`, `tags: [A, B]` and `tags:` with lines of `- A` are understood; everything else is passed over,
    anchors and types of YAML too. Texts are cut to 100 characters, tags to 100.
    """
    lines = card.lstrip("\ufeff").splitlines()[:_MAX_LINES]
    if not lines or lines[0].strip() != _FENCE:
        return CardHead()
    licence, tags, key = None, [], ""
    for line in lines[1:]:
        if line.strip() == _FENCE:
            break
        item = line.strip()
        if item.startswith("- ") and key == "tags":
            tags.append(_plain(item[2:]))
        elif not line.startswith((" ", "\t", "-", "#")):
            key, _, value = (part.strip() for part in line.partition(":"))
            if key == "license":
                licence = _plain(value) or None
            elif key == "tags":
                tags += [_plain(tag) for tag in value.strip("[]").split(",")]
    return CardHead(licence, tuple(filter(None, tags))[:_MAX_TAGS])


def _plain(value: str) -> str:
    return value.strip().strip("'\"")[:_MAX_CHARACTERS]
