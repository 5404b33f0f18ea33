"""What a text is, for every function that takes texts from a caller or a file."""

from __future__ import annotations

from collections.abc import Iterable


def has_lone_surrogate(text: str) -> bool:
    """Whether half of a surrogate pair is in it, which no encoding can write and no tokenizer reads."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def checked_texts(texts: Iterable[str], name: str) -> list[str]:
    """The texts as a list.

    Args:
        texts: several; one text alone would be read letter by letter.
        name: of the parameter, for messages.

    Raises:
        TypeError: one text instead of several, or something in the list that is none.
        ValueError: a text with a lone surrogate.
    """
    if isinstance(texts, (str, bytes)):
        raise TypeError(f"{name}: expected a list of texts, received one; put it in a list: [text]")
    listed = list(texts)
    for number, text in enumerate(listed):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{number}]: expected text, received {type(text).__name__}")
        if has_lone_surrogate(text):
            raise ValueError(f"{name}[{number}]: has half of a surrogate pair, which is no text")
    return listed
