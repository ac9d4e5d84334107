"""Rows from Parquet files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from nnbackend.checks import nearest
from nnbackend.data.classify import Place
from nnbackend.data.library_columns import typed_arrow
from nnbackend.data.source import BLOCK_BYTES, BUFFER_BYTES, Rows, Source, TableRows
from nnbackend.data.typed import Table
from nnbackend.errors import InputError, MissingDependencyError

__all__ = ["INDEX_COLUMN", "Parquet"]

_Array = np.ndarray[Any, Any]

# What pandas stores a frame's index as: no feature.
INDEX_COLUMN = re.compile(r"__index_level_\d+__")


class Parquet(Source):
    """Rows of a Parquet file, or of all those in a folder, row group after row group.

    Parameters
    ----------
    path : str or path-like
        A file, or a folder: its files ``*.parquet`` in the order of their names, with equal
        schemas.
    target : str, sequence of str, or None
        The column of y; several make y a matrix (n_samples, n_outputs).
    features : sequence of str, optional
        The columns of X, in this order; by default all others. ``read`` takes numbers without
        gaps, ``read_table`` text, dates and gaps too.
    sample_weight : str, optional
        The column of weights.
    buffer_bytes : int, default 2**28
        As for ``Source``. pyarrow takes some more: for each column a page (mostly of 1 MiB) as it
        is stored and decoded. A row group larger than a buffer is decoded from its beginning for
        each of its parts: write smaller ones.

    Raises
    ------
    InputError
        If a file or column is missing or differs from the first file's, or targets or weights are
        not numeric; on reading, if features are not numeric, or a value is missing. The message
        names file and column.
    MissingDependencyError
        If pyarrow is not installed.

    Notes
    -----
    Nothing but the files' footers is read at first, and no file stays open.

    Examples
    --------
    >>> import tempfile
    >>> import pyarrow as pa
    >>> import pyarrow.parquet as pq
    >>> from nnbackend.sources import Parquet
    >>> table = pa.table({"width": [1.0, 2.0], "kind": [0, 1], "length": [3.0, 4.0]})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pq.write_table(table, f"{folder}/1.parquet")
    ...     source = Parquet(folder, target="kind")
    ...     rows = source.read(0, 2)
    >>> source.feature_names, rows.y
    (('width', 'length'), array([0, 1]))
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        target: str | Sequence[str] | None,
        *,
        features: Sequence[str] | None = None,
        sample_weight: str | None = None,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        super().__init__(buffer_bytes=buffer_bytes)
        self._groups: list[tuple[str, int]] = []
        n_rows: list[int] = []
        types: dict[str, Any] = {}
        for file in _parquet_files(path):
            with _opened(file) as content:
                found = {
                    name: kind
                    for name, kind in _types(file, content.schema_arrow).items()
                    if not INDEX_COLUMN.fullmatch(name)
                }
                if types and found != types:
                    different = sorted(name for name, _ in found.items() ^ types.items())
                    raise InputError(
                        f"expected files with the columns of {self._groups[0][0]!r}, got "
                        f"other names or types in {file!r}: {different[0]!r}",
                        argument="path",
                    )
                # The order of the columns is that of the first file.
                types = types or found
                for i in range(content.num_row_groups):
                    self._groups.append((file, i))
                    n_rows.append(content.metadata.row_group(i).num_rows)
        self._starts = np.cumsum([0, *n_rows])
        if self.n_samples == 0:
            raise InputError(
                f"expected at least one row, got none in {os.fspath(path)!r}", argument="path"
            )
        self._n_targets = None if target is None or isinstance(target, str) else len(target)
        targets = () if target is None else (target,) if isinstance(target, str) else tuple(target)
        weights = () if sample_weight is None else (sample_weight,)
        if features is None:
            features = [name for name in types if name not in {*targets, *weights}]
        if isinstance(features, str) or not features:
            raise InputError(
                f"expected names of at least one column, got {features!r}", argument="features"
            )
        self.feature_names = tuple(features)
        used = [*targets, *weights, *features]
        if len(set(used)) < len(used):
            twice = next(name for name in used if used.count(name) > 1)
            raise InputError(
                f"expected distinct columns, got {twice!r} twice",
                argument="features, target, sample_weight",
            )
        names_of = {"target": targets, "sample_weight": weights, "features": self.feature_names}
        for argument, names in names_of.items():
            _require_columns(argument, names, types, self._groups[0][0])
        self._types = {name: types[name] for name in used}
        self._path = os.fspath(path)
        self._targets, self._weights = list(targets), list(weights)
        self._dtype("target", self._targets)
        self._dtype("sample_weight", self._weights)

    @property
    def n_samples(self) -> int:
        """The number of rows."""
        return int(self._starts[-1])

    @property
    def n_features(self) -> int:
        """The number of columns of X."""
        return len(self.feature_names or ())

    @property
    def block_rows(self) -> int:
        """The rows of a row group, on average."""
        return -(-self.n_samples // len(self._groups))

    def read(self, start: int, stop: int) -> Rows:
        """Return the rows ``start`` to ``stop - 1``."""
        parts = {
            "features": list(self.feature_names or ()),
            "target": self._targets,
            "sample_weight": self._weights,
        }
        arrays = {
            argument: np.empty((stop - start, len(names)), self._dtype(argument, names))
            for argument, names in parts.items()
        }
        for file, place, batch in self._batches(start, stop, list(self._types)):
            for argument, names in parts.items():
                for j, name in enumerate(names):
                    arrays[argument][place, j] = _complete(file, name, batch.column(name))
        return Rows(arrays["features"], *self._ends(arrays))

    def read_table(self, start: int, stop: int, names: Sequence[str] | None = None) -> TableRows:
        """Return the rows ``start`` to ``stop - 1`` with features as they are stored."""
        import pyarrow as pa

        own = self.feature_names or ()
        chosen = [name for name in own if names is None or name in names]
        ends = {"target": self._targets, "sample_weight": self._weights}
        arrays = {
            argument: np.empty((stop - start, len(columns)), self._dtype(argument, columns))
            for argument, columns in ends.items()
        }
        chunks: dict[str, list[Any]] = {name: [] for name in chosen}
        needed = [*chosen, *self._targets, *self._weights]
        texts = [name for name in chosen if _is_text(self._types[name])]
        for file, place, batch in self._batches(start, stop, needed, texts):
            for name in chosen:
                chunks[name].append(batch.column(name))
            for argument, columns in ends.items():
                for j, name in enumerate(columns):
                    arrays[argument][place, j] = _complete(file, name, batch.column(name))
        table = Table(
            {
                name: typed_arrow(
                    Place(self._path, name), pa.chunked_array(parts), finds_dates=False
                )
                for name, parts in chunks.items()
            },
            stop - start,
            self._path,
        )
        return TableRows(table if names is None else table.only(names), *self._ends(arrays))

    def _ends(self, arrays: dict[str, _Array]) -> tuple[_Array | None, _Array | None]:
        """Return targets and weights as ``Rows`` has them."""
        y, weights = arrays["target"], arrays["sample_weight"]
        return (
            None if not self._targets else y[:, 0] if self._n_targets is None else y,
            weights[:, 0] if self._weights else None,
        )

    def _dtype(self, argument: str, names: Sequence[str]) -> np.dtype[Any]:
        """Return the NumPy dtype of columns of numbers."""
        import pyarrow.types as pt

        for name in names:
            kind = self._types[name]
            if not (pt.is_integer(kind) or pt.is_floating(kind) or pt.is_boolean(kind)):
                hint = "encode it with nb.TableEncoder, or leave it out"
                raise InputError(
                    f"expected numbers, got {kind} in column {name!r} of {self._groups[0][0]!r}; "
                    f"{hint if argument == 'features' else 'number classes from 0'}",
                    argument=argument,
                )
        dtypes = [np.dtype(self._types[name].to_pandas_dtype()) for name in names]
        return np.result_type(*dtypes) if dtypes else np.dtype(np.float64)

    def _batches(
        self, start: int, stop: int, columns: list[str], as_dictionary: Sequence[str] = ()
    ) -> Iterator[tuple[str, slice, Any]]:
        """Yield the file of a batch of rows, where they are from ``start`` on, and the batch.

        The columns ``as_dictionary`` are read as codes of their words.
        """
        first_group, last_group = np.searchsorted(self._starts, [start, stop - 1], "right") - 1
        # A table of no columns has rows all the same.
        columns = columns or list(self._types)[:1]
        batch_rows = max(1, BLOCK_BYTES // (8 * len(columns)))
        for group in range(first_group, last_group + 1):
            file, index = self._groups[group]
            row, last = int(self._starts[group]), int(self._starts[group + 1])
            begin, end = max(start, row), min(stop, last)
            with _opened(file, as_dictionary) as content:
                self._require_unchanged(file, index, last - row, content, as_dictionary)
                for batch in content.iter_batches(batch_rows, [index], columns):
                    low, high = max(begin, row), min(end, row + len(batch))
                    if low < high:
                        part = batch.slice(low - row, high - low)
                        yield file, slice(low - start, high - start), part
                    row += len(batch)
                    if row >= end:
                        break

    def _require_unchanged(
        self, file: str, index: int, n_rows: int, content: Any, as_dictionary: Sequence[str]
    ) -> None:
        """Raise an InputError if a row group is not what it was when the source was made."""
        advice = "leave the files as they are while they are in use"
        types = _types(file, content.schema_arrow)
        for name in as_dictionary:
            words = getattr(types.get(name), "value_type", types.get(name))
            # Those of a dictionary are no large ones, whatever the file says.
            types[name] = self._types[name] if _is_text(words) else words
        for name, kind in self._types.items():
            if types.get(name) != kind:
                raise InputError(
                    f"expected column {name!r} of {file!r} to be {kind}, as at first, got "
                    f"{types.get(name) or 'none'}; {advice}",
                    argument="path",
                )
        has_group = index < content.num_row_groups
        found = content.metadata.row_group(index).num_rows if has_group else 0
        if found != n_rows:
            raise InputError(
                f"expected {n_rows} rows in row group {index} of {file!r}, as there were at "
                f"first, got {found}; {advice}",
                argument="path",
            )


def _parquet_files(path: str | os.PathLike[str]) -> list[str]:
    name = os.fspath(path)
    if not os.path.isdir(name):
        return [name]
    files = sorted(entry for entry in os.listdir(name) if entry.endswith(".parquet"))
    if not files:
        raise InputError(
            f"expected files named *.parquet in the folder {name!r}, got none", argument="path"
        )
    return [os.path.join(name, file) for file in files]


@contextmanager
def _opened(file: str, as_dictionary: Sequence[str] = ()) -> Iterator[Any]:
    """Open a Parquet file for a moment; what pyarrow has against it is said with its name."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingDependencyError(
            "nb.sources.Parquet needs pyarrow, which is not installed; install it with: pip "
            "install pyarrow"
        ) from error
    try:
        # A buffer per column, in place of whole columns as they are stored.
        with pq.ParquetFile(
            file, buffer_size=2**14, read_dictionary=list(as_dictionary)
        ) as content:
            yield content
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"cannot read {file!r} ({reason}); is it there, and whole?", argument="path"
        ) from (error)


def _types(file: str, schema: Any) -> dict[str, Any]:
    """Return the type of each column."""
    types = {field.name: field.type for field in schema}
    if len(types) < len(schema):
        twice = next(name for name in types if schema.names.count(name) > 1)
        raise InputError(
            f"expected distinct column names, got {twice!r} twice in {file!r}", argument="path"
        )
    return types


def _require_columns(argument: str, names: Sequence[str], types: dict[str, Any], file: str) -> None:
    for name in names:
        if name not in types:
            raise InputError(
                f"no column {name!r} in {file!r}{nearest(str(name), types)}", argument=argument
            )


def _is_text(kind: Any) -> bool:
    """Whether pyarrow reads a column of a type as a dictionary."""
    return str(kind) in ("string", "large_string", "binary", "large_binary")


def _complete(file: str, name: str, values: Any) -> _Array:
    if values.null_count:
        raise InputError(
            f"expected no missing values, got {values.null_count} in column {name!r} of "
            f"{file!r}, in {len(values)} rows that were read; remove or impute "
            "them, or encode the table with nb.TableEncoder",
            argument="path",
        )
    column: _Array = values.to_numpy(zero_copy_only=False)
    return column
