"""The library's own exceptions: what a program may want to catch.

A caller's slip in code (a wrong shape, a wrong type) is a plain ValueError or TypeError. Messages say where, what was
expected, what was received, and the remedy if there is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

_MAX_REASON, _MAX_MESSAGE = 300, 2000
# What changes how a terminal shows the text around it: control characters, line ends, directions, halves of a pair.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """A text on one line, without power over the terminal: control characters become visible, as in \\x1b.

    File names, module names and tasks come from strangers.
    """
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def first_line(error: BaseException) -> str:
    """What another library's exception says, cut to its first line that says it; its type if it says nothing."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    said = f"{lines[0]} {lines[1].strip()}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]
    return said if len(said) <= _MAX_REASON else f"{said[:_MAX_REASON]}..."


class LorahubEdgeError(Exception):
    """Base of all errors of this library: the command line catches it, prints one line and exits with 1."""

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) > _MAX_MESSAGE:  # a name in a stranger's file may be as long as the file
            text = f"{text[: _MAX_MESSAGE // 2]} ... {text[-_MAX_MESSAGE // 2 :]}"
        return printable(text)


class IncompatibleModules(LorahubEdgeError):
    """Modules do not fit each other or the base: caught by who picks modules from a hub and may leave one out."""


class UnsupportedFormat(LorahubEdgeError):
    """A file or folder is of a kind that is not read: caught by who tries several formats or loaders."""


class KernelUnavailable(LorahubEdgeError):
    """The kernels that were asked for are not in this build: caught by who can go on with the reference."""


class InvalidInput(LorahubEdgeError):
    """A user's file, setting or value is wrong (an example file's line): caught by who can ask the user again."""


class OutputExists(LorahubEdgeError):
    """The output place holds something that is not ours to replace: caught by who can choose another place."""


class NotInstalled(LorahubEdgeError, ImportError):
    """A package is missing that the plain install does without: caught by who can go on without what needs it."""


class LorahubEdgeWarning(UserWarning):
    """Parent of all warnings of this library: the command line shows each as one line."""


@contextmanager
def needed_by(what: str, *, extra: str = "adapt") -> Iterator[None]:
    """Say of a package that a with block fails to import what needs it, and which command installs it.

    Args:
        what: the command or the function, or a file of a kind that needs more than the plain install has.
        extra: of this package, which brings what is missing.

    Raises:
        NotInstalled: in place of a ModuleNotFoundError.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "lorahub_edge"):  # a fault of ours, or of a package that is there
            raise
        raise NotInstalled(
            f"{what} needs {package}, which is not installed; pip install 'lorahub-edge[{extra}]'"
        ) from error


@contextmanager
def refused_as(what: str, remedy: str = "") -> Iterator[None]:
    """Turn whatever a stranger's file makes a library raise into one line of ours.

    Args:
        what: the place and what is wrong with it; the reason follows in brackets.
        remedy: comes after the reason.

    Raises:
        UnsupportedFormat: anything was raised in the block, but for our own errors, which pass.
    """
    try:
        yield
    except (LorahubEdgeError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of the Rust in tokenizers is no Exception
        raise UnsupportedFormat(f"{what} ({first_line(error)})" + (f"; {remedy}" if remedy else "")) from error
