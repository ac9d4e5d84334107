"""Memory maps read from their files: where one was cut off, the system ends who reads the map."""

from __future__ import annotations

import mmap
import os
from io import FileIO
from typing import Any

import numpy as np

from nnbackend.errors import InputError

__all__ = ["MappedFile", "map_of", "mapped_file"]


_Array = np.ndarray[Any, Any]


# A range of a file is read whole where that costs no more than its parts one by one.
_BYTES_AT_ONCE = 2**16


def map_of(x: Any) -> tuple[np.memmap[Any, Any] | None, mmap.mmap] | None:
    """Return the map that an array's memory is, and the array that knows its file, if one does."""
    owner: Any = None
    base: Any = x
    while isinstance(base, np.ndarray | memoryview):
        below: Any = base.base if isinstance(base, np.ndarray) else base.obj
        if isinstance(base, np.memmap) and isinstance(below, mmap.mmap):
            owner = base
        base = below
    return (owner, base) if isinstance(base, mmap.mmap) else None


def mapped_file(name: str, x: Any) -> MappedFile | None:
    """Return what reads the rows of an array from its file; None where it is no memory map."""
    found = map_of(x)
    return None if found is None else MappedFile(name, x, *found)


class MappedFile:
    """The file behind an array.

    It is read by its name, as long as that is the name of the file that was there at first. Else,
    and where the map does not know its file or has changes of its own (mode "c"), the map is
    read, after a look at the size of its file: one that is cut off between the two still ends the
    process.

    Parameters
    ----------
    name : str
        The name of the argument, for messages.
    x : numpy.memmap, or a view of one
        Any part of it, in any order.
    owner, mapped
        The memory map that ``map_of`` found.
    """

    def __init__(
        self, name: str, x: _Array, owner: np.memmap[Any, Any] | None, mapped: mmap.mmap
    ) -> None:
        self._name, self._x, self._map = name, x, mapped
        self._path: str | None = None
        self._identity: tuple[int, int] | None = None
        # The address that the first byte of the file would have.
        self._start: int | None = None
        if owner is None:
            return
        self._start = owner.ctypes.data - owner.offset
        if owner.filename is None:
            return
        self._path = os.fspath(owner.filename)
        try:
            status = os.stat(self._path)
        except OSError:
            return
        if owner.mode != "c" and status.st_size == self._map.size():
            self._identity = status.st_dev, status.st_ino

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle, which stores the array's numbers, leaves the file behind."""
        return mapped_file, (self._name, self._x)

    def read(self, start: int, stop: int) -> _Array:
        """Return copies of the rows ``start`` to ``stop - 1``.

        Raises
        ------
        InputError
            If the file was cut off.
        """
        rows = self._x[start:stop]
        result = np.empty(rows.shape, rows.dtype)
        try:
            if self._identity is not None and self._fill_from_file(rows, result):
                return result
        except OSError as error:
            raise InputError(
                f"cannot read {self._path!r} ({error.strerror}); is it still there?",
                argument=self._name,
            ) from error
        _, end = _bounds(rows)
        expected = len(self._map) if self._start is None else end - self._start
        if self._map.size() < expected:
            raise self._cut_off(self._map.size())
        result[...] = rows
        return result

    def _fill_from_file(self, rows: _Array, result: _Array) -> bool:
        """Return whether the file has its name still; then the rows are read from it."""
        try:
            file = FileIO(self._path or "")
        except FileNotFoundError:
            return False
        with file:
            status = os.fstat(file.fileno())
            if (status.st_dev, status.st_ino) != self._identity:
                return False
            self._fill(file, rows, result)
        return True

    def _fill(self, file: FileIO, rows: _Array, result: _Array) -> None:
        """Read rows into an array of their shape, by ranges of the file with little else."""
        low, high = _bounds(rows)
        span = high - low
        if span > max(2 * rows.nbytes, _BYTES_AT_ONCE):
            reach = [(n - 1) * abs(step) for n, step in zip(rows.shape, rows.strides, strict=True)]
            axis = int(np.argmax(reach))
            middle = rows.shape[axis] // 2
            for part in (slice(None, middle), slice(middle, None)):
                index = (slice(None),) * axis + (part,)
                self._fill(file, rows[index], result[index])
            return
        is_same = rows.flags.c_contiguous and result.flags.c_contiguous
        buffer = result.reshape(-1).view(np.uint8) if is_same else np.empty(span, np.uint8)
        file.seek(low - (self._start or 0))
        n_read = 0
        while n_read < span:
            n_more = file.readinto(buffer[n_read:].data)
            if not n_more:
                raise self._cut_off(os.fstat(file.fileno()).st_size)
            n_read += n_more
        if not is_same:
            at = rows.ctypes.data - low
            result[...] = np.ndarray(rows.shape, rows.dtype, buffer.data, at, rows.strides)

    def _cut_off(self, size: int) -> InputError:
        file = "a memory map's file" if self._path is None else repr(self._path)
        return InputError(
            f"cannot read {file}: it was cut off since it was mapped, and has {size} "
            "bytes now; leave the files as they are while they are in use",
            argument=self._name,
        )


def _bounds(rows: _Array) -> tuple[int, int]:
    """Return the addresses of the first byte of an array, which has some, and behind the last."""
    low = high = rows.ctypes.data
    for n, step in zip(rows.shape, rows.strides, strict=True):
        reach = (n - 1) * step
        low, high = low + min(reach, 0), high + max(reach, 0)
    return low, high + rows.itemsize
