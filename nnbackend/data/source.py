"""A source: examples that are read in blocks of rows, for data larger than memory."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np

from nnbackend.checks import positive_integer
from nnbackend.data.typed import Table, TypedColumn
from nnbackend.errors import InputError

__all__ = [
    "BLOCK_BYTES",
    "BUFFER_BYTES",
    "BYTES_PER_VALUE",
    "Rows",
    "Source",
    "TableRows",
    "digest",
    "leave",
]


BUFFER_BYTES = 2**28


# What is read at once where the layout of a file does not say.
BLOCK_BYTES = 2**20


# Runs of rows, and rows of each, that stand for all of the data.
_DIGEST_RUNS = 8


# Of a value in a typed table: itself, a mask, and what is computed of it.
BYTES_PER_VALUE = 48


_Array = np.ndarray[Any, Any]


# The threads that training has left in ``read``, by the identity of the source, which they hold,
# and what is set when they are done.
_LEFT: dict[int, tuple[threading.Thread, threading.Event]] = {}


def leave(source: Source, thread: threading.Thread, done: threading.Event) -> None:
    """Note that a thread is still in the source's ``read``, whose rows nobody waits for."""
    _LEFT[id(source.origin)] = thread, done


class Rows(NamedTuple):
    """Some rows of a source, in the host's memory.

    Attributes
    ----------
    X : array (n_rows, n_features)
        Real numbers.
    y : array (n_rows,) or (n_rows, n_outputs), or None
        Targets; None where there are none.
    sample_weight : array (n_rows,) or None
        Weights >= 0.
    """

    X: _Array
    y: _Array | None = None
    sample_weight: _Array | None = None

    @property
    def nbytes(self) -> int:
        """The memory of the rows, in bytes."""
        return sum(column.nbytes for column in self if column is not None)


class TableRows(NamedTuple):
    """Some rows of a source whose columns are numbers, text or dates, and may have gaps.

    Attributes
    ----------
    X : Table
        The columns, as they are.
    y, sample_weight : arrays or None
        As of ``Rows``.
    """

    X: Table
    y: _Array | None = None
    sample_weight: _Array | None = None


class Source(ABC):
    """Examples that are read in blocks of rows; a class of your own defines the abstract ones.

    Parameters
    ----------
    buffer_bytes : int, default 2**28
        How much memory the rows of one buffer may take, in bytes: as they are read and as the
        network takes them. Training holds two at most: one in use, the next one being read.

    Raises
    ------
    InputError
        If ``buffer_bytes`` is no positive integer.

    Examples
    --------
    >>> import numpy as np
    >>> from nnbackend.sources import Rows, Source
    >>> class Parity(Source):
    ...     n_samples, n_features = 10**9, 1
    ...     def read(self, start, stop):
    ...         numbers = np.arange(start, stop)
    ...         return Rows(numbers[:, None], numbers % 2)
    >>> Parity().read(3, 5)
    Rows(X=array([[3], [4]]), y=array([1, 0]), sample_weight=None)
    """

    #: How much memory the rows of one buffer may take, in bytes.
    buffer_bytes: int = BUFFER_BYTES

    #: Names of the columns of X, where they have such.
    feature_names: tuple[str, ...] | None = None

    def __init__(self, *, buffer_bytes: int = BUFFER_BYTES) -> None:
        self.buffer_bytes = positive_integer("buffer_bytes", buffer_bytes)

    @property
    @abstractmethod
    def n_samples(self) -> int:
        """The number of rows."""

    @property
    @abstractmethod
    def n_features(self) -> int:
        """The number of columns of X."""

    @abstractmethod
    def read(self, start: int, stop: int) -> Rows:
        """Return the rows ``start`` to ``stop - 1``, where 0 <= start < stop <= n_samples.

        It is called in a thread of its own, never twice at a time; one that takes long is left
        alone where training ends meanwhile. A block has the dtypes and the numbers of columns of
        every other. Its arrays are used, or copied, before the next call, which may return the
        same arrays with other rows.
        """

    @property
    def block_rows(self) -> int:
        """How many rows are best read at once, as they are stored together.

        By default 1 MiB of them, or a 64th of a buffer if that is less.
        """
        n_bytes = min(BLOCK_BYTES, self.buffer_bytes // 64)
        return max(1, n_bytes // self.checked(0, 1).nbytes)

    def checked(self, start: int, stop: int) -> Rows:
        """Return ``read(start, stop)``, or raise an InputError where it is not what was asked."""
        origin = id(self.origin)
        thread, done = _LEFT.get(origin, (None, None))
        if done is not None and thread is not threading.current_thread():
            done.wait()
            _LEFT.pop(origin, None)
        rows = self.read(start, stop)
        if not isinstance(rows, Rows) or not all(
            isinstance(column, np.ndarray | None) for column in rows
        ):
            parts = (
                ", ".join(type(part).__name__ for part in rows) if isinstance(rows, Rows) else ""
            )
            raise InputError(
                f"expected nb.sources.Rows of NumPy arrays, got "
                f"{type(rows).__name__}{parts and f' of {parts}'}",
                argument=f"{type(self).__name__}.read",
            )
        for name, column in zip(Rows._fields, rows, strict=True):
            if column is not None and len(column) != stop - start:
                raise InputError(
                    f"expected {stop - start} rows of {type(self).__name__}.read({start}, "
                    f"{stop}), got {len(column)}",
                    argument=name,
                )
        return rows

    def blocks(
        self, working_bytes: int, batch_size: int | None = None
    ) -> Iterator[tuple[slice, Rows]]:
        """Yield all rows in order, in blocks that take no more than a buffer with what they need.

        Parameters
        ----------
        working_bytes : int
            Memory that the caller needs for a row, besides the row itself.
        batch_size : int, optional
            Blocks have a multiple of so many rows, the last one at least as many if there are; by
            default a multiple of ``block_rows``, where there is room for that.

        Yields
        ------
        place : slice
            The rows of the block in the source.
        rows : Rows
        """
        # The block before, which the caller may still hold, this one, and that in its file's form.
        row_bytes = 3 * self.checked(0, 1).nbytes + working_bytes
        size = max(1, self.buffer_bytes // row_bytes)
        multiple = batch_size or min(size, self.block_rows)
        size = max(multiple, size - size % multiple)
        stop = 0
        while stop < self.n_samples:
            start, stop = stop, stop + size
            if self.n_samples - stop < (batch_size or 1):
                stop = self.n_samples
            yield slice(start, stop), self.checked(start, stop)

    @property
    def origin(self) -> Source:
        """The source that reads: another one, where this one only changes its rows."""
        return self

    def tables(
        self, start: int = 0, stop: int | None = None, names: Collection[str] | None = None
    ) -> Iterator[TableRows]:
        """Yield rows as typed tables, in order, in blocks that take a quarter of a buffer.

        By default they are made of the numbers of ``read``. A source whose columns are text or
        dates, or have gaps, overrides it: a column is of one kind in all blocks but those where it
        has nothing but gaps.

        Parameters
        ----------
        start, stop : int
            The rows ``start`` to ``stop - 1``, by default all.
        names : collection of str, optional
            The columns that are needed, all of them known; by default all.
        """
        known = self.feature_names or tuple(f"x{i}" for i in range(self.n_features))
        stop = self.n_samples if stop is None else stop
        size = max(1, self.buffer_bytes // 4 // (BYTES_PER_VALUE * len(known)))
        size = max(1, size - size % min(size, self.block_rows))
        for first in range(start, stop, size):
            X, y, weight = self.checked(first, min(first + size, stop))
            columns = {
                name: TypedColumn("number", X[:, i].astype(np.float64))
                for i, name in enumerate(known)
                if names is None or name in names
            }
            yield TableRows(Table(columns, len(X), "X", first), y, weight)

    def require_names(self, feature_names: tuple[str, ...] | None) -> None:
        """Raise an InputError if the columns of X are not those, or in another order."""
        own = self.feature_names
        if own is not None and feature_names is not None and own != tuple(feature_names):
            i = next(
                (i for i, pair in enumerate(zip(own, feature_names, strict=False))
                 if pair[0] != pair[1]),
                min(len(own), len(feature_names)),
            )  # fmt: skip
            got, expected = ((*names, None)[i] for names in (own, tuple(feature_names)))
            raise InputError(
                f"expected the columns that the network's feature_names say, got {got!r} in "
                f"place of {expected!r}; pass features=net.feature_names to the source",
                argument="X",
            )


def digest(source: Source) -> str:
    """Return a fingerprint of a source: its size, its dtypes and up to 64 rows of it, 8 runs of 8.

    Returns
    -------
    str
        SHA-256, in hexadecimal digits. Equal for equal data; data that differ elsewhere are not
        told apart.

    Examples
    --------
    >>> import numpy as np
    >>> from nnbackend.data.source import digest
    >>> from nnbackend.sources import Arrays
    >>> digest(Arrays(np.zeros((5, 2))))[:16]
    'de7d65eb46c8000c'
    """
    n_samples = source.n_samples
    result = sha256(f"{n_samples} {source.n_features}".encode())
    length = n_samples if n_samples <= _DIGEST_RUNS**2 else _DIGEST_RUNS
    starts = {i * (n_samples - length) // (_DIGEST_RUNS - 1) for i in range(_DIGEST_RUNS)}
    for start in sorted(starts):
        for column in source.checked(start, start + length):
            if column is None:
                result.update(b"none")
                continue
            result.update(f"{column.dtype.name} {column.shape[1:]}".encode())
            little = column.astype(column.dtype.newbyteorder("<"))
            result.update(little.tobytes())
    return result.hexdigest()
