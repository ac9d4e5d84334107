"""Rows from Parquet files."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from nnbackend.checks import nearest
from nnbackend.data.arrow_types import is_plain, is_text
from nnbackend.data.classify import Place
from nnbackend.data.library_columns import typed_arrow
from nnbackend.data.source import (
    BLOCK_BYTES,
    BUFFER_BYTES,
    BYTES_PER_VALUE,
    Rows,
    Source,
    TableRows,
)
from nnbackend.data.typed import Table
from nnbackend.errors import InputError, MissingDependencyError

__all__ = ["INDEX_COLUMN", "Parquet"]

_Array = np.ndarray[Any, Any]

# What pandas stores a frame's index as: no feature.
INDEX_COLUMN = re.compile(r"__index_level_\d+__")


# A short word as Python has it, and in two dictionaries.
_BYTES_PER_WORD = 240


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
        The columns of X, in this order; by default all others. Those of text and dates, and those
        with gaps, are for ``TableEncoder``, whose ``transform`` makes a source of numbers of them.
    sample_weight : str, optional
        The column of weights.
    buffer_bytes : int, default 2**28
        As for ``Source``. pyarrow takes some more: for each column a page (mostly of 1 MiB) as it
        is stored and decoded. A row group larger than a buffer is decoded from its beginning for
        each of its parts: write smaller ones.

    Raises
    ------
    InputError
        If a file or column is missing, differs from the first file's, or holds lists or the like,
        or if targets or weights are no numbers; on reading, if features are no numbers or a value
        is missing. The message names file and column.
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
            _require_plain(argument, names, types, self._groups[0][0])
        self._types = {name: types[name] for name in used}
        self._names = {argument: list(names) for argument, names in names_of.items()}
        for argument in ("target", "sample_weight"):
            self._empty(argument, 0)

    @property
    def n_samples(self) -> int:
        """The number of rows."""
        return int(self._starts[-1])

    @property
    def n_features(self) -> int:
        """The number of columns of X."""
        return len(self._names["features"])

    @property
    def block_rows(self) -> int:
        """The rows of a row group, on average."""
        return -(-self.n_samples // len(self._groups))

    def read(self, start: int, stop: int) -> Rows:
        """Return the rows ``start`` to ``stop - 1``."""
        arrays = {argument: self._empty(argument, stop - start) for argument in self._names}
        for rows, file, batch in self._batches(start, stop, list(self._types)):
            self._fill(arrays, rows, file, batch)
        return Rows(arrays["features"], *self._labels(arrays))  # type: ignore[arg-type]

    def tables(
        self, start: int = 0, stop: int | None = None, names: Collection[str] | None = None
    ) -> Iterator[TableRows]:
        """Yield rows as typed tables, in order, in blocks that take a quarter of a buffer.

        Each row group is decoded once.
        """
        used = [name for name in self._names["features"] if names is None or name in names]
        labels = self._names["target"] + self._names["sample_weight"]
        stop = self.n_samples if stop is None else stop
        words = [name for name in used if is_text(self._types[name])]
        parts: list[tuple[str, Any]] = []
        room = most = self.buffer_bytes // 4
        # As if no word were twice in a batch, so that one of them has room.
        most_rows = most // (BYTES_PER_VALUE * len(used) + _BYTES_PER_WORD * len(words))
        for _, file, batch in self._batches(start, stop, used + labels, words, most_rows):
            n_bytes = sum(_typed_bytes(batch.column(name)) for name in used)
            if parts and n_bytes > room:
                rows = self._typed(start, used, parts)
                yield rows
                start += rows.X.n_rows
                parts, room = [], most
            parts.append((file, batch))
            room -= n_bytes
        yield self._typed(start, used, parts)

    def _typed(self, start: int, used: list[str], parts: list[tuple[str, Any]]) -> TableRows:
        """Return batches of files, which begin with the row ``start``, as a table and labels."""
        import pyarrow as pa

        n_rows = sum(len(batch) for _, batch in parts)
        arrays = {name: self._empty(name, n_rows) for name in ("target", "sample_weight")}
        stop = 0
        for file, batch in parts:
            first, stop = stop, stop + len(batch)
            self._fill(arrays, slice(first, stop), file, batch)
        columns = {}
        for name in used:
            column = pa.chunked_array([batch.column(name) for _, batch in parts])
            columns[name] = typed_arrow(Place("X", name), column)
        return TableRows(Table(columns, n_rows, "X", start), *self._labels(arrays))

    def _empty(self, argument: str, n_rows: int) -> _Array | None:
        """Return a matrix for the columns that an argument names; None if it names none."""
        names, file = self._names[argument], self._groups[0][0]
        if not names:
            return None
        dtypes = [_dtype(argument, name, self._types[name], file) for name in names]
        return np.empty((n_rows, len(names)), np.result_type(*dtypes))

    def _fill(
        self, arrays: Mapping[str, _Array | None], rows: slice, file: str, batch: Any
    ) -> None:
        """Write a batch into rows of the matrices."""
        for argument, array in arrays.items():
            for j, name in enumerate(self._names[argument]):
                values = _complete(argument, file, name, batch.column(name))
                array[rows, j] = values  # type: ignore[index]

    def _labels(self, arrays: Mapping[str, _Array | None]) -> tuple[_Array | None, _Array | None]:
        """Return y and weights of the matrices."""
        y, weight = arrays["target"], arrays["sample_weight"]
        if y is not None and self._n_targets is None:
            y = y[:, 0]
        return y, None if weight is None else weight[:, 0]

    def _batches(
        self,
        start: int,
        stop: int,
        columns: list[str],
        words: Sequence[str] = (),
        most_rows: int | None = None,
    ) -> Iterator[tuple[slice, str, Any]]:
        """Yield the rows ``start`` to ``stop - 1``: their place among these, their file, a batch.

        The columns ``words``, which are text, come as dictionaries. A batch has ``most_rows``
        at most.
        """
        batch_rows = BLOCK_BYTES // (8 * len(columns))
        batch_rows = max(1, batch_rows if most_rows is None else min(batch_rows, most_rows))
        first, last = np.searchsorted(self._starts, [start, stop - 1], "right") - 1
        for group in range(first, last + 1):
            file, index = self._groups[group]
            row, end = int(self._starts[group]), int(self._starts[group + 1])
            with _opened(file, words) as content:
                self._require_unchanged(file, index, end - row, content)
                for batch in content.iter_batches(batch_rows, [index], columns):
                    low, high = max(start, row), min(stop, row + len(batch))
                    if low < high:
                        yield (
                            slice(low - start, high - start),
                            file,
                            batch.slice(low - row, high - low),
                        )
                    row += len(batch)
                    if row >= stop:
                        return

    def _require_unchanged(self, file: str, index: int, n_rows: int, content: Any) -> None:
        """Raise an InputError if a row group is not what it was when the source was made."""
        advice = "leave the files as they are while they are in use"
        types = _types(file, content.schema_arrow)
        for name, kind in self._types.items():
            if name not in types or not _are_alike(types[name], kind):
                raise InputError(
                    f"expected column {name!r} of {file!r} to be {kind}, as at first, got "
                    f"{types.get(name, 'none')}; {advice}",
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
def _opened(file: str, words: Sequence[str] = ()) -> Iterator[Any]:
    """Open a Parquet file for a moment; what pyarrow has against it is said with its name.

    The columns ``words``, which are text, come as dictionaries.
    """
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
        with pq.ParquetFile(file, buffer_size=2**14, read_dictionary=list(words)) as content:
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


def _require_plain(
    argument: str, names: Sequence[str], types: Mapping[str, Any], file: str
) -> None:
    """Raise an InputError if a column is missing, or of lists or the like."""
    for name in names:
        if name not in types:
            raise InputError(
                f"no column {name!r} in {file!r}{nearest(str(name), types)}", argument=argument
            )
        if not is_plain(types[name]):
            raise _no_numbers(argument, name, types[name], file)


def _typed_bytes(column: Any) -> int:
    """Return the memory that an array takes as a typed column, and what is computed of it."""
    n_bytes = BYTES_PER_VALUE * len(column)
    if hasattr(column, "dictionary") and is_text(column.type):
        n_words = max(1, len(column.dictionary))
        word_bytes = 2 * column.dictionary.nbytes // n_words + _BYTES_PER_WORD
        n_bytes += min(len(column), n_words) * word_bytes
    return n_bytes


def _are_alike(kind: Any, other: Any) -> bool:
    """Whether two types are of the same values, which may be held as a dictionary."""
    return kind == other or (is_text(kind) and is_text(other))


def _dtype(argument: str, name: str, kind: Any, file: str) -> np.dtype[Any]:
    """Return the NumPy dtype of a column of numbers."""
    import pyarrow.types as pt

    if not (pt.is_integer(kind) or pt.is_floating(kind) or pt.is_boolean(kind)):
        raise _no_numbers(argument, name, kind, file)
    dtype: np.dtype[Any] = np.dtype(kind.to_pandas_dtype())
    return dtype


def _no_numbers(argument: str, name: str, kind: Any, file: str) -> InputError:
    hint = "encode it, or leave it out"
    if argument == "target":
        hint = "number classes from 0"
    elif argument == "features" and is_plain(kind):
        hint = "encode the source with nb.TableEncoder, or leave the column out"
    return InputError(
        f"expected numbers, got {kind} in column {name!r} of {file!r}; {hint}", argument=argument
    )


def _complete(argument: str, file: str, name: str, values: Any) -> _Array:
    if values.null_count:
        advice = "remove or impute them"
        if argument == "features":
            advice += ", or encode the source with nb.TableEncoder"
        raise InputError(
            f"expected no missing values, got {values.null_count} in column {name!r} of "
            f"{file!r}, in {len(values)} rows that were read; {advice}",
            argument="path",
        )
    column: _Array = values.to_numpy(zero_copy_only=False)
    return column
