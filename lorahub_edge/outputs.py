"""Outputs: files and folders that get their name only once they are whole.

Both are written into a folder of their own beside the final place and renamed. That folder is locked for as long as its
process lives, so that the next start can tell what a dead process left behind, and removes it. Knows files only.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from lorahub_edge.errors import LorahubEdgeError, OutputExists, first_line

_PARTIAL = ".lorahub-edge-partial-"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Write a file aside, then give it its name; a file of that name stays until then.

    Args:
        path: the final name; its folder must exist.

    Yields:
        Where to write it.

    Raises:
        LorahubEdgeError: it cannot be written; what was there before stays, nothing else is left.
    """
    with write_errors(path), _partial_of(path) as partial:
        yield partial / path.name
        _open_to_readers(partial)
        os.replace(partial / path.name, path)


@contextmanager
def whole_folder(folder: Path, *, drop_if_late: bool = False) -> Iterator[Path]:
    """Write a folder aside, then give it its name.

    Args:
        folder: the final name; nothing may be there.
        drop_if_late: if something appears there meanwhile, drop the new folder instead of keeping it elsewhere.

    Yields:
        The folder to write into.

    Raises:
        OutputExists: something is there already. If it appeared while the folder was written, it stays, and the
            message tells where the new folder is.
        LorahubEdgeError: it cannot be written; nothing is left.
    """
    check_free(folder)
    with write_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _partial_of(folder) as partial:
            content = partial / folder.name
            content.mkdir()
            yield content
            publish(content, folder, drop_if_late=drop_if_late)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file; see `whole_file`."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def is_vacant(folder: Path) -> bool:
    """Whether nothing is there but perhaps an empty folder."""
    if folder.is_symlink() or not folder.is_dir():
        return not os.path.lexists(folder)
    return not any(folder.iterdir())


def check_free(folder: Path) -> None:
    """Refuse a place that holds something.

    Raises:
        OutputExists: anything is there.
    """
    if os.path.lexists(folder):
        raise OutputExists(f"output {folder} exists; name a new one")


def publish(content: Path, folder: Path, *, replaces: object = None, drop_if_late: bool = False) -> None:
    """Give a whole folder its final name, and its files the mode that the user's other files have.

    Args:
        content: the whole folder, on the same file system.
        folder: the final name.
        replaces: the `fingerprint` of what may be deleted there; None for nothing.
        drop_if_late: see `whole_folder`.

    Raises:
        OutputExists: something else has appeared there; it stays, and the message tells where `content` is now.
    """
    _open_to_readers(content)
    if replaces is not None and fingerprint(folder) == replaces:
        with _partial_of(folder) as trash:
            os.rename(folder, trash / folder.name)
            try:
                os.rename(content, folder)
            except BaseException:
                os.rename(trash / folder.name, folder)
                raise
        return
    try:
        os.rename(content, folder)  # replaces an empty folder only
    except OSError as error:
        if not os.path.lexists(folder):
            raise
        message = f"output {folder} was made by another program meanwhile and is left as it is"
        if not drop_if_late:
            kept = _free_name(folder)
            os.rename(content, kept)
            message += f"; the new folder is {kept}"
        raise OutputExists(message) from error


def fingerprint(folder: Path) -> object:
    """What a folder holds, such that any change to it shows; None if there is no such folder."""
    if not folder.is_dir() or folder.is_symlink():
        return None
    seen = [(path, path.lstat()) for path in sorted([folder, *folder.rglob("*")])]
    return [(str(path), status.st_ino, status.st_size, status.st_mtime_ns) for path, status in seen]


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold a folder's lock inside a with block; it ends with the process, however that ends.

    Yields:
        False where the file system knows no locks.

    Raises:
        BlockingIOError: another process, or another block of this one, holds it.
        FileNotFoundError: there is no such folder.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_locked = True
        except BlockingIOError:
            raise
        except OSError:
            is_locked = False
        if not folder.exists():  # removed by another start between the two steps
            raise FileNotFoundError(folder)
        yield is_locked
    finally:
        os.close(descriptor)


@contextmanager
def claimed(folder: Path, place: Path) -> Iterator[None]:
    """Hold a folder's lock inside a with block, as the one who writes the output `place`.

    Raises:
        OutputExists: another process holds it.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder))
        except BlockingIOError as error:
            raise OutputExists(
                f"output folder {place} is being written by another process; wait for it, or name a new one"
            ) from error
        yield


def remove(folder: Path) -> None:
    """Take a folder out of sight at once, then delete it: nobody finds half of it."""
    with _partial_of(folder) as trash:
        os.rename(folder, trash / folder.name)


def remove_dead_partials(parent: Path) -> None:
    """Remove what processes that are gone left unfinished in a folder."""
    with suppress(OSError):
        for partial in parent.glob(f".*{_PARTIAL}*"):
            with suppress(OSError), locked(partial) as is_locked:
                if is_locked:
                    shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def write_errors(place: Path) -> Iterator[None]:
    """Report a failure to write as one error that names the place.

    Raises:
        LorahubEdgeError: in place of an OSError, and of what safetensors raises on a full disk.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        raise LorahubEdgeError(f"output {place}: cannot be written ({reason})") from error


@contextmanager
def _partial_of(path: Path) -> Iterator[Path]:
    """A locked folder beside `path`, gone after the block."""
    remove_dead_partials(path.parent)
    with ExitStack() as stack:
        partial = _locked_partial(path, stack)
        stack.callback(shutil.rmtree, partial, ignore_errors=True)
        yield partial


def _locked_partial(path: Path, stack: ExitStack) -> Path:
    while True:
        partial = path.with_name(f".{path.name}{_PARTIAL}{secrets.token_hex(4)}")
        partial.mkdir()
        # another start may take it for a dead one before it is locked
        with suppress(BlockingIOError, FileNotFoundError):
            stack.enter_context(locked(partial))
            return partial


def _open_to_readers(folder: Path) -> None:
    """Some libraries write files that only their owner may read: all get the mode that the umask leaves."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


def _free_name(folder: Path) -> Path:
    number = 2
    while os.path.lexists(found := folder.with_name(f"{folder.name}-{number}")):
        number += 1
    return found
