"""What is looked for in the catalogue: plain words and a few filters."""

from __future__ import annotations

from dataclasses import dataclass

from lorahub_edge.catalogue.bases import is_base
from lorahub_edge.catalogue.entry import Entry
from lorahub_edge.errors import InvalidInput

_ALL = "all"
_FILTERS = ("base", "rank", "licence", "tag")


@dataclass(frozen=True)
class Query:
    """Modules that hold every word and pass every filter.

    Attributes:
        words: beginnings of words in a module's name, base, tags, card or training rows; without regard to case.
        base: by any of its names; see `is_base`.
        rank: the config's.
        licence, tag: as the card writes them, without regard to case.
    """

    words: tuple[str, ...] = ()
    base: str | None = None
    rank: float | None = None
    licence: str | None = None
    tag: str | None = None

    @classmethod
    def parse(cls, text: str) -> Query:
        """From "sentiment reviews rank:16 licence:mit", or "all".

        Raises:
            InvalidInput: nothing is asked for, or a filter that there is not.
        """
        words, filters = [], {}
        for part in text.split():
            key, colon, value = part.partition(":")
            if not colon:
                words.append(part)
            elif key in _FILTERS and value and key not in filters:
                filters[key] = value
            else:
                raise InvalidInput(
                    f"query '{text}': '{part}' is no filter; expected words and, once each, "
                    f"{', '.join(f'{name}:...' for name in _FILTERS)}, or 'all'"
                )
        if not words and not filters:
            raise InvalidInput(f"query '{text}': it asks for nothing; expected words, filters, or 'all'")
        rank = filters.pop("rank", None)
        return cls(() if words == [_ALL] else tuple(words), rank=None if rank is None else _rank(rank), **filters)

    def admits(self, entry: Entry) -> bool:
        """Whether an entry that holds the words passes the filters too. One without a base passes no base."""
        licence, tags = (entry.licence or "").casefold(), [tag.casefold() for tag in entry.tags]
        return (
            (self.base is None or (entry.base is not None and is_base(entry.base, [self.base])))
            and self.rank in (None, entry.rank)
            and (self.licence is None or self.licence.casefold() == licence)
            and (self.tag is None or self.tag.casefold() in tags)
        )


def _rank(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InvalidInput(f"query: rank is '{text}'; expected a number") from error
