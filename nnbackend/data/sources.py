"""Data larger than memory: where the rows of a training are read from, a block at a time."""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np

from nnbackend.checks import positive_integer
from nnbackend.data.mapped_file import map_of, mapped_file
from nnbackend.data.stored_chunks import stored_chunks
from nnbackend.device import device_of
from nnbackend.errors import InputError

__all__ = [
    "BLOCK_BYTES",
    "BUFFER_BYTES",
    "Arrays",
    "Rows",
    "Source",
    "as_source",
    "digest",
    "leave",
]


BUFFER_BYTES = 2**28


# What is read at once where the layout of a file does not say.
BLOCK_BYTES = 2**20


# Runs of rows, and rows of each, that stand for all of the data.
_DIGEST_RUNS = 8


_Array = np.ndarray[Any, Any]


# The threads that training has left in ``read``, by the identity of the source, which they hold,
# and what is set when they are done.
_LEFT: dict[int, tuple[threading.Thread, threading.Event]] = {}


def leave(source: Source, thread: threading.Thread, done: threading.Event) -> None:
    """Note that a thread is still in the source's ``read``, whose rows nobody waits for."""
    _LEFT[id(source)] = thread, done


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
        """What they take, in bytes."""
        return sum(column.nbytes for column in self if column is not None)


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
        thread, done = _LEFT.get(id(self), (None, None))
        if done is not None and thread is not threading.current_thread():
            done.wait()
            _LEFT.pop(id(self), None)
        rows = self.read(start, stop)
        if not isinstance(rows, Rows) or not all(
            isinstance(column, np.ndarray | None) for column in rows
        ):
            parts = (
                ", ".join(type(part).__name__ for part in rows) if isinstance(rows, Rows) else ""
            )
            raise InputError(
                f"{type(self).__name__}.read: expected nb.sources.Rows of NumPy arrays, got "
                f"{type(rows).__name__}{parts and f' of {parts}'}"
            )
        for name, column in zip(Rows._fields, rows, strict=True):
            if column is not None and len(column) != stop - start:
                raise InputError(
                    f"{name}: expected {stop - start} rows of {type(self).__name__}.read({start}, "
                    f"{stop}), got {len(column)}"
                )
        return rows

    def blocks(
        self, working_bytes: int, batch_size: int | None = None
    ) -> Iterator[tuple[slice, Rows]]:
        """Yield all rows in order, in blocks that take no more than a buffer with what they need.

        Parameters
        ----------
        working_bytes : int
            What the caller needs for a row, beside the row itself.
        batch_size : int, optional
            Blocks have a multiple of so many rows, the last one at least as many if there are; by
            default a multiple of ``block_rows``, where there is room for that.

        Yields
        ------
        place : slice
            Of the block in the source.
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
                f"X: expected the columns that the network's feature_names say, got {got!r} in "
                f"place of {expected!r}; pass features=net.feature_names to the source"
            )


class Arrays(Source):
    """Rows of arrays in files: numpy.memmap, Zarr arrays, h5py data sets, and NumPy's.

    Parameters
    ----------
    X : array-like with shape (n_samples, n_features)
        Has ``shape`` and ``dtype``, and gives NumPy rows when it is sliced.
    y : the same, (n_samples,) or (n_samples, n_outputs), optional
        Targets: numbers, classes from 0.
    sample_weight : the same, (n_samples,), optional
        Weights >= 0.
    buffer_bytes : int, default 2**28
        As for ``Source``. Of a chunked array whole chunks are decoded, so one has to fit.
    allow_missing_chunks : bool, default False
        Take a chunk of a Zarr array that is not stored as its fill value, as Zarr does: by default
        Zarr does not store what holds nothing else, such as 0 throughout.

    Raises
    ------
    InputError
        If a shape or dtype is not as said, or a chunk is larger than a buffer; on reading, if a
        chunk of a Zarr array is missing, or the file of a memory map was cut off.

    Notes
    -----
    Leave the files as they are while they are in use. The rows of a memory map are read from its
    file, so that one which is cut off is an error; where the file has been deleted or replaced, or
    the map is one of mode "c", they come from the map, and a file that is cut off in that very
    moment ends the process, as it does with a map that is no source. HDF5 does not tell apart what
    was never written and what is 0.

    Examples
    --------
    >>> import numpy as np
    >>> from nnbackend.sources import Arrays
    >>> source = Arrays(np.zeros((1000, 3)), np.zeros(1000), buffer_bytes=2**16)
    >>> source.n_samples, source.n_features, source.read(998, 1000).X.shape
    (1000, 3, (2, 3))
    """

    def __init__(
        self,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        buffer_bytes: int = BUFFER_BYTES,
        allow_missing_chunks: bool = False,
    ) -> None:
        super().__init__(buffer_bytes=buffer_bytes)
        if not isinstance(allow_missing_chunks, bool):
            raise InputError(
                f"allow_missing_chunks: expected True or False, got {allow_missing_chunks!r}"
            )
        n_samples, self._n_features = _shape("X", X, (2,), "(n_samples, n_features)")
        if n_samples == 0 or self._n_features == 0:
            raise InputError(
                f"X: expected at least one example and one feature, got shape {tuple(X.shape)}"
            )
        self._n_samples = n_samples
        expected = f"({n_samples},) or ({n_samples}, n_outputs)"
        for name, x, ndims in (("y", y, (1, 2)), ("sample_weight", sample_weight, (1,))):
            if x is not None and _shape(name, x, ndims, expected)[0] != n_samples:
                raise InputError(
                    f"{name}: expected {n_samples} rows, one for each example in X, got shape "
                    f"{tuple(x.shape)}"
                )
        self._arrays = (X, y, sample_weight)
        self._files = tuple(map(mapped_file, Rows._fields, self._arrays))
        self._stored = tuple(
            None if allow_missing_chunks else stored_chunks(name, x)
            for name, x in zip(Rows._fields, self._arrays, strict=True)
        )
        for name, x in zip(Rows._fields, self._arrays, strict=True):
            chunks = getattr(x, "chunks", None) or (0,)
            size = math.prod(chunks) * np.dtype(getattr(x, "dtype", None)).itemsize
            if size > self.buffer_bytes:
                raise InputError(
                    f"{name}: expected chunks of at most buffer_bytes={self.buffer_bytes}, got "
                    f"chunks {tuple(chunks)} of {size} bytes, which are decoded whole; raise "
                    "buffer_bytes, or store the array in smaller chunks"
                )

    @property
    def n_samples(self) -> int:
        """The number of rows."""
        return self._n_samples

    @property
    def n_features(self) -> int:
        """The number of columns of X."""
        return self._n_features

    @property
    def block_rows(self) -> int:
        """The rows of a chunk of X; where it has none, as for ``Source``."""
        chunks = getattr(self._arrays[0], "chunks", None)
        return int(chunks[0]) if chunks else super().block_rows

    def read(self, start: int, stop: int) -> Rows:
        """Return copies of the rows ``start`` to ``stop - 1``."""
        X, y, weight = (
            None if x is None else _copied(x, start, stop) if file is None
            else file.read(start, stop)
            for x, file in zip(self._arrays, self._files, strict=True)
        )  # fmt: skip
        for stored, rows in zip(self._stored, (X, y, weight), strict=True):
            if stored is not None and rows is not None:
                stored.require(
                    start, rows, "pass nb.sources.Arrays(..., allow_missing_chunks=True)"
                )
        return Rows(X, y, weight)  # type: ignore[arg-type]


def _shape(name: str, x: Any, ndims: tuple[int, ...], expected: str) -> tuple[int, ...]:
    """Return the shape of something that can be sliced into NumPy rows of real numbers."""
    kind = f"{type(x).__module__.partition('.')[0]}.{type(x).__name__}"
    home = device_of(x)
    try:
        shape, dtype = tuple(map(int, x.shape)), np.dtype(x.dtype)
    except (AttributeError, TypeError) as error:
        raise InputError(
            f"{name}: expected an array with a shape and a dtype of NumPy's, such as numpy.memmap, "
            f"a Zarr array or an h5py data set, got {kind}; convert it, or pass it to train itself"
        ) from error
    if hasattr(x, "toarray") or (home is not None and home.kind != "cpu"):
        raise InputError(
            f"{name}: expected a dense array in the host's memory or in a file, got {kind}"
        )
    if len(shape) not in ndims:
        raise InputError(f"{name}: expected an array {expected}, got shape {shape}")
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise InputError(
            f"{name}: expected real numbers of at most 64 bits, got dtype {dtype}; number classes "
            "from 0, and encode text"
        )
    return shape


def _copied(x: Any, start: int, stop: int) -> _Array:
    rows = x[start:stop]
    return np.array(rows) if isinstance(x, np.ndarray) else np.asarray(rows)


def as_source(X: Any, y: Any = None, sample_weight: Any = None) -> Source | None:
    """Return what is to be read in blocks as a source; None for anything else.

    Parameters
    ----------
    X : anything
        A ``Source`` is returned as it is; numpy.memmap and its views, Zarr arrays and h5py data
        sets become ``Arrays`` if they are larger than a buffer (2**28 bytes).
    y, sample_weight : anything
        As for ``Arrays``; None with a source, which has its own.

    Returns
    -------
    Source or None

    Raises
    ------
    InputError
        If y or sample_weight is given with a source, or not as ``Arrays`` takes them.

    Examples
    --------
    >>> import numpy as np
    >>> from nnbackend.sources import as_source
    >>> as_source(np.zeros((10, 2)), np.zeros(10)) is None
    True
    """
    if isinstance(X, Source):
        for name, given in (("y", y), ("sample_weight", sample_weight)):
            if given is not None:
                raise InputError(
                    f"{name}: expected None with a source, which brings its own, got "
                    f"{type(given).__name__}; give it to the source, such as Arrays(X, y)"
                )
        return X
    if not _is_in_file(X) or math.prod(X.shape) * np.dtype(X.dtype).itemsize <= BUFFER_BYTES:
        return None
    y, sample_weight = (
        x if x is None or hasattr(x, "dtype") else np.asarray(x) for x in (y, sample_weight)
    )
    return Arrays(X, y, sample_weight, buffer_bytes=BUFFER_BYTES)


def _is_in_file(x: Any) -> bool:
    if not isinstance(x, np.ndarray):
        # By name: neither is imported for this.
        return type(x).__module__.partition(".")[0] in ("zarr", "h5py") and hasattr(x, "dtype")
    return map_of(x) is not None


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
    >>> from nnbackend.sources import Arrays, digest
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
