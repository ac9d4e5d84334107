"""Arrays in files as a source: numpy.memmap, Zarr arrays and h5py data sets."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from nnbackend.data.door import to_array
from nnbackend.data.mapped_file import map_of, mapped_file
from nnbackend.data.source import BUFFER_BYTES, Rows, Source
from nnbackend.data.stored_chunks import stored_chunks
from nnbackend.device import device_of
from nnbackend.errors import InputError

__all__ = ["Arrays", "as_source"]


_Array = np.ndarray[Any, Any]


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
                f"expected True or False, got {allow_missing_chunks!r}",
                argument="allow_missing_chunks",
            )
        n_samples, self._n_features = _shape("X", X, (2,), "(n_samples, n_features)")
        if n_samples == 0 or self._n_features == 0:
            raise InputError(
                f"expected at least one example and one feature, got shape {tuple(X.shape)}",
                argument="X",
            )
        self._n_samples = n_samples
        expected = f"({n_samples},) or ({n_samples}, n_outputs)"
        for name, x, ndims in (("y", y, (1, 2)), ("sample_weight", sample_weight, (1,))):
            if x is not None and _shape(name, x, ndims, expected)[0] != n_samples:
                raise InputError(
                    f"expected {n_samples} rows, one for each example in X, got shape "
                    f"{tuple(x.shape)}",
                    argument=name,
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
                    f"expected chunks of at most buffer_bytes={self.buffer_bytes}, got "
                    f"chunks {tuple(chunks)} of {size} bytes, which are decoded whole; raise "
                    "buffer_bytes, or store the array in smaller chunks",
                    argument=name,
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
            f"expected an array with a shape and a dtype of NumPy's, such as numpy.memmap, "
            f"a Zarr array or an h5py data set, got {kind}; convert it, or pass it to train itself",
            argument=name,
        ) from error
    if hasattr(x, "toarray") or (home is not None and home.kind != "cpu"):
        raise InputError(
            f"expected a dense array in the host's memory or in a file, got {kind}", argument=name
        )
    if len(shape) not in ndims:
        raise InputError(f"expected an array {expected}, got shape {shape}", argument=name)
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise InputError(
            f"expected real numbers of at most 64 bits, got dtype {dtype}; number classes "
            "from 0, and encode text",
            argument=name,
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
        As for ``Arrays``, or what ``train`` takes, such as a list or a column of a data frame; None
        with a source, which has its own.

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
                    f"expected None with a source, which brings its own, got "
                    f"{type(given).__name__}; give it to the source, such as Arrays(X, y)",
                    argument=name,
                )
        return X
    if not _is_in_file(X) or math.prod(X.shape) * np.dtype(X.dtype).itemsize <= BUFFER_BYTES:
        return None
    y, sample_weight = (
        x if x is None or isinstance(x, np.ndarray) or _is_in_file(x) else to_array(name, x)
        for name, x in (("y", y), ("sample_weight", sample_weight))
    )
    return Arrays(X, y, sample_weight, buffer_bytes=BUFFER_BYTES)


def _is_in_file(x: Any) -> bool:
    if not isinstance(x, np.ndarray):
        # By name: neither is imported for this.
        return type(x).__module__.partition(".")[0] in ("zarr", "h5py") and hasattr(x, "dtype")
    return map_of(x) is not None
