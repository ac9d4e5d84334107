"""Folders that belong to one process at a time."""

from __future__ import annotations

import contextlib
import logging
import os

__all__ = ["LOCK_FILE", "FolderLock"]


LOCK_FILE = ".lock"


_LOGGER = logging.getLogger("nnbackend")


# The locks that this process holds.
_HELD: set[FolderLock] = set()


class FolderLock:
    """A lock on a folder, held until it is released or the process ends.

    Other processes are refused if the system can lock files. On every system, the locked file shows
    whether the folder is still the same one.

    Parameters
    ----------
    folder : str
        An existing folder; the lock is a file in it.

    Raises
    ------
    BlockingIOError
        If another process holds the lock.
    OSError
        If the folder is missing or cannot be written.
    """

    def __init__(self, folder: str) -> None:
        self._path = os.path.join(folder, LOCK_FILE)
        self._descriptor = _locked(self._path)
        _HELD.add(self)

    @property
    def holds(self) -> bool:
        """Whether the folder is still there, and has not been replaced by another."""
        return self._descriptor is None or _is_at(self._path, self._descriptor)

    def release(self) -> None:
        """Release the lock."""
        if self._descriptor is None:
            return
        import fcntl

        with contextlib.suppress(OSError):
            # Another process may have put its own file there.
            if self.holds:
                os.unlink(self._path)
        # A forked process shares the lock, so closing the file alone would not release it.
        with contextlib.suppress(OSError):
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        self.forget()

    def forget(self) -> None:
        """Close the file without releasing the lock of the process that shares it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None
        _HELD.discard(self)


def _is_at(path: str, descriptor: int) -> bool:
    """Whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return False


def _locked(path: str) -> int | None:
    """Return the descriptor of a locked file; None on systems without such locks."""
    try:
        import fcntl
    except ImportError:
        return None
    # Open for writing: network file systems lock only such files.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError as error:
        _LOGGER.warning(
            "nnbackend: the file system of %s has no locks (%s): see to it that no other training "
            "uses the folder",
            path,
            error,
        )
    if not _is_at(path, descriptor):
        # The last owner deleted the file after it was opened here.
        os.close(descriptor)
        return _locked(path)
    return descriptor


def _forget_locks() -> None:
    """Close the copies in a forked child: a lock ends with the process that took it."""
    for lock in list(_HELD):
        lock.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)
