"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import stat
from typing import Any

from nnbackend.errors import InputError

__all__ = [
    "checked_path",
    "make_folders",
    "remove_leftovers",
    "require_writable",
    "write_atomically",
]


_LOGGER = logging.getLogger("nnbackend")


_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part.

    A link is followed, and its target made if it is missing. A file that is replaced passes on its
    mode and, where that is permitted, its owner and group; its other names (hard links) keep the
    old content. A pipe, a device, and what this process prints to get the content as it comes.

    Raises
    ------
    InputError
        If the folder is missing or not writable, the file is read-only, the disk is full, or a
        folder is in the file's place; no partial file is left.
    """
    target = checked_path(path)
    try:
        _write(target, content)
    except OSError as error:
        raise InputError(
            f"cannot write {target!r} ({error.strerror or error}); choose another path",
            argument="path",
        ) from error


def checked_path(path: Any, name: str = "path") -> str:
    """Return a path as a string; a number would be taken for an open file's descriptor."""
    try:
        text = os.fsdecode(path)
    except TypeError:
        text = ""
    if not text or "\0" in text:
        kind = "file" if name == "path" else "folder"
        raise InputError(f"expected the path of a {kind}, got {path!r}", argument=name)
    return text


def make_folders(path: str) -> None:
    """Make a folder, and those that it lies in, durably; it may be there."""
    missing = []
    where = os.path.abspath(path)
    while not os.path.isdir(where) and os.path.dirname(where) != where:
        missing.append(where)
        where = os.path.dirname(where)
    os.makedirs(path, exist_ok=True)
    for made in missing:
        _sync_folder(os.path.dirname(made))


def require_writable(folder: str) -> None:
    """Find out that a folder cannot be written before the work whose outcome goes there.

    Raises
    ------
    InputError
        As ``write_atomically``.
    OSError
        If nothing can be deleted there.
    """
    probe = os.path.join(folder, ".writable")
    write_atomically(probe, b"")
    os.unlink(probe)


def remove_leftovers(folder: str) -> None:
    """Delete what a process that was killed while it wrote has left behind.

    To be called by the one process that writes there.
    """
    with contextlib.suppress(OSError):
        for name in filter(_TEMPORARY.fullmatch, os.listdir(folder)):
            os.unlink(os.path.join(folder, name))


def _write(target: str, content: bytes) -> None:
    try:
        found = os.stat(target)
    except FileNotFoundError:  # or a link to nothing
        found = None
    if os.path.basename(target) == "" or (found is not None and stat.S_ISDIR(found.st_mode)):
        raise InputError(
            f"expected the path of a file, got {target!r}, which is a folder", argument="path"
        )
    name = os.path.realpath(target) if os.path.islink(target) else target
    if found is not None:
        is_regular = stat.S_ISREG(found.st_mode)
        descriptor = _own_output(found)
        if descriptor is None and not (is_regular and _is(name, found)):
            descriptor = _opened(target, found)
        if descriptor is not None:
            with open(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                _sync(file.fileno())
            return
        # What open() would refuse, such as a read-only file, is refused.
        os.close(os.open(name, os.O_WRONLY))
    try:
        _replace(name, content, found)
    except PermissionError as error:
        if found is None:
            raise
        raise InputError(
            f"cannot write {target!r} whole, since its folder does not let it be replaced "
            f"({error.strerror}); choose another path",
            argument="path",
        ) from error


def _replace(name: str, content: bytes, found: os.stat_result | None) -> None:
    """Write a file beside another, or where there is none, and put it in its place."""
    folder = os.path.dirname(name)
    temporary = os.path.join(folder, f".{os.urandom(8).hex()}.tmp")
    # Whom the content is for is settled before there is any.
    mode = 0o666 if found is None else 0o600
    try:
        with open(temporary, "xb", opener=lambda path, flags: os.open(path, flags, mode)) as file:
            if found is not None:
                _pass_on(found, file.fileno())
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, name)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(folder or os.curdir)


def _pass_on(found: os.stat_result, descriptor: int) -> None:
    """Give a file the mode, owner and group of another, as far as that is permitted."""
    if not hasattr(os, "fchown"):  # Windows, where a file has none of them
        return
    mode = stat.S_IMODE(found.st_mode) & 0o777
    try:
        os.fchown(descriptor, found.st_uid, found.st_gid)
    except OSError:
        try:
            os.fchown(descriptor, -1, found.st_gid)
        except OSError:
            # What one group may do is not for another: it may do what all may.
            mode = mode & 0o707 | (mode & 0o007) << 3
    with contextlib.suppress(OSError):  # file systems that have no modes
        os.fchmod(descriptor, mode)


def _own_output(found: os.stat_result) -> int | None:
    """Return a descriptor of this process's output if that is the file: /dev/stdout, or its name.

    To replace that would lose what was printed, and what is yet to be.
    """
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):  # it may be closed
            if os.path.samestat(os.fstat(descriptor), found):
                return os.dup(descriptor)
    return None


def _is(name: str, found: os.stat_result) -> bool:
    """Whether a name leads to a file; one that was deleted while it was open has no name."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.stat(name), found)
    return False


def _opened(target: str, found: os.stat_result) -> int:
    """Return a descriptor to write to a file that is there, and that no other can replace."""
    if not stat.S_ISFIFO(found.st_mode):
        return os.open(target, os.O_WRONLY | (os.O_TRUNC if stat.S_ISREG(found.st_mode) else 0))
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        _LOGGER.warning("nnbackend: waiting for a program to read from the pipe %r", target)
        return os.open(target, os.O_WRONLY)
    os.set_blocking(descriptor, True)
    return descriptor


def _sync_folder(folder: str) -> None:
    """Make a rename durable where the system can; the file itself is written by now."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # systems on which a folder is no file
        return
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    """Make durable what can be: folders of some file systems, pipes and terminals cannot."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        # A fault of the disk is told.
        if error.errno == errno.EIO:
            raise
