"""Reading a user's file - CSV, Parquet, Feather, Excel, NPY, NPZ - into named, typed columns."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nnbackend.checks import listed, nearest
from nnbackend.data.arrow_types import is_plain, is_text
from nnbackend.data.classify import Place, typed_array
from nnbackend.data.excel import read_excel
from nnbackend.data.library_columns import typed_arrow
from nnbackend.data.numpy_files import read_npy, read_npz
from nnbackend.data.parquet import INDEX_COLUMN
from nnbackend.data.text_columns import (
    GAPS,
    as_kind,
    has_commas_in,
    has_decimal_commas,
    text_as,
    typed_text,
    typed_words,
    words_of,
)
from nnbackend.data.text_files import read_text, require_distinct
from nnbackend.data.typed import Table, TypedColumn
from nnbackend.errors import InputError, MissingDependencyError

__all__ = ["FORMATS", "FileTable", "file_suffix", "read_table"]

_Array = np.ndarray[Any, Any]

FORMATS = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz", ".parquet", ".feather",
           ".arrow", ".xlsx", ".npy", ".npz")  # fmt: skip


# Parquet and Feather write a run of equal values in a few bytes; in tables of nothing but
# constants, as pyarrow and others write them, some 2 000 to 64 000 bytes of memory come of one in
# the file.
COLUMNAR_RATIO = 2**16


@dataclass(frozen=True)
class FileTable(Table):
    """The columns of one file, in the file's order; its name is the file's path.

    Attributes
    ----------
    has_names : bool
        Whether the names are the file's own; those of NPY and NPZ columns are their indices.
    target : str or None
        The column that an NPZ file itself marks as the target, by holding it as ``y``.
    detected : tuple of str
        How the file is written, a fact each: separator, quotes, decimal comma, encoding, sheet.
    unreadable : mapping of str to str
        Columns that are left out, and of which type they are: lists, for example.
    spelled : mapping of str to object
        The column ``keep``, as text of Arrow, if the file is one of text.
    """

    has_names: bool = True
    target: str | None = None
    detected: tuple[str, ...] = ()
    unreadable: Mapping[str, str] = field(default_factory=dict)
    spelled: Mapping[str, Any] = field(default_factory=dict)

    def column(self, argument: str, name: str) -> str:
        """Return the name of the column that ``name`` means, a negative index included."""
        if name in self.columns:
            return name
        if not self.has_names and re.fullmatch("-?[0-9]{1,18}", name):
            names = list(self.columns)
            index = int(name)
            if -len(names) <= index < len(names):
                return names[index]
        if name in self.unreadable:
            raise InputError(
                f"expected a column of plain values, got {name!r} of type "
                f"{self.unreadable[name]} in {self.name}; choose another",
                argument=argument,
            )
        raise InputError(
            f"no column {name!r} in {self.name}{nearest(name, self.columns)}", argument=argument
        )

    def spelling(self, name: str) -> TypedColumn | None:
        """Return a column as the words that a file of text has in its place, if it was kept."""
        return words_of(self.spelled[name]) if name in self.spelled else None

    def require_complete(self, names: Sequence[str], argument: str = "DATA") -> None:
        """Raise an InputError that lists every one of the named columns with gaps."""
        counts = {name: int(self.columns[name].is_missing.sum()) for name in names}
        with_gaps = [name for name in names if counts[name]]
        if with_gaps:
            shown = ", ".join(f"{name!r} ({counts[name]})" for name in with_gaps[:8])
            more = f" and {len(with_gaps) - 8} more columns" if len(with_gaps) > 8 else ""
            row = int(np.argmax(self.columns[with_gaps[0]].is_missing)) + 1
            raise InputError(
                f"expected no missing values, got some in {shown}{more}, the first in data "
                f"row {row} of {self.name}; remove or impute them",
                argument=argument,
            )

    def require_finite(self, names: Sequence[str]) -> None:
        """Raise an InputError if a number of the named columns is infinite."""
        for name in names:
            column = self.columns[name]
            if column.kind != "number" or not np.isinf(column.values).any():
                continue
            bad = np.isinf(column.values)
            row, count = int(np.argmax(bad)), int(bad.sum())
            more = f" ({count} such values in all)" if count > 1 else ""
            raise InputError(
                f"expected finite numbers, got {column.values[row]} in row {row} of column "
                f"{name!r} of {self.name}{more}; remove or impute them",
                argument="DATA",
            )

    def numbers(self, names: Sequence[str]) -> _Array:
        """Return the named columns as a matrix (n_rows, len(names)) of finite float64."""
        self.require_complete(names)
        text = [name for name in names if self.columns[name].kind not in ("number", "boolean")]
        if text:
            raise InputError(
                f"expected numbers, got text or dates in {listed(text)} of {self.name}, which "
                "the model has no encoding for; correct them, or train a model on the table as "
                "it is",
                argument="DATA",
            )
        self.require_finite(names)
        columns = [self.columns[name].values for name in names]
        return np.stack(columns, axis=1) if columns else np.empty((self.n_rows, 0))


def file_suffix(path: str) -> str | None:
    """Return which of ``FORMATS`` a file is named as, if any."""
    longest = sorted(FORMATS, key=len, reverse=True)
    return next((suffix for suffix in longest if path.lower().endswith(suffix)), None)


def read_table(
    path: str,
    kinds: Mapping[str, str] | None = None,
    na: Sequence[str] | None = None,
    keep: str | None = None,
) -> FileTable:
    """Read a file; nothing in it is ever executed.

    Parameters
    ----------
    path : str
        ``.csv``, ``.tsv`` or ``.txt`` (also ``.gz``) with a header line, ``.parquet``,
        ``.feather`` or ``.arrow``, the first sheet of an ``.xlsx``, ``.npy`` with a matrix, or
        ``.npz`` with a matrix and, optionally, a vector of targets.
    kinds : mapping of str to str, optional
        Kinds of columns, by name, in place of what they would be taken for.
    na : sequence of str, optional
        What stands for a gap in a file of text, where it is not quoted, and in Excel's; by default
        nothing and the usual markers, such as NA.
    keep : str, optional
        The column whose spelling is kept.

    Raises
    ------
    InputError
        If the file is missing, unreadable, truncated, empty or of another format, or if a column
        cannot be read as its kind.
    """
    suffix = file_suffix(path)
    if suffix is None:
        raise InputError(
            f"expected a file ending in {', '.join(FORMATS)}, got {path!r}", argument="DATA"
        )
    if not os.path.isfile(path):
        raise InputError(f"no such file {path!r}", argument="DATA")
    missing = GAPS if na is None else ("", *na)
    with _readable(path):
        if suffix.startswith(".np"):
            table = _numpy(path, suffix, kinds or {})
        elif suffix == ".xlsx":
            columns, n_rows, detected = read_excel(path, kinds or {}, missing)
            table = FileTable(columns, n_rows, path, detected=detected)
        elif suffix in (".parquet", ".feather", ".arrow"):
            table = _columnar(path, suffix, kinds or {})
        else:
            table = _text(path, suffix, kinds or {}, missing, keep)
    if table.n_rows == 0:
        raise InputError(f"expected at least one row, got none in {path!r}", argument="DATA")
    if not table.columns:
        raise InputError(f"expected at least one column, got none in {path!r}", argument="DATA")
    return table


@contextmanager
def _readable(path: str) -> Iterator[None]:
    """Turn what may go wrong in reading a file into an InputError."""
    try:
        yield
    except (InputError, MissingDependencyError):
        raise
    # Damage surfaces as an error of the Arrow, zip, deflate or text reader: of no common type.
    except Exception as error:
        # Arrow's own, too, comes of a size that a damaged file claims.
        if type(error) is MemoryError:
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"cannot read {path!r}: {reason}; is it whole, and named as it should?", argument="DATA"
        ) from error


def _require_arrow(suffix: str) -> None:
    try:
        import pyarrow as pa
    except ImportError as error:
        raise MissingDependencyError(
            f"reading {suffix} files needs pyarrow; install it with: pip install pyarrow"
        ) from error
    del pa


def _text(
    path: str, suffix: str, kinds: Mapping[str, str], na: Sequence[str], keep: str | None
) -> FileTable:
    _require_arrow(suffix)
    content, dialect = read_text(path, suffix, na)
    columns = {}
    spelled = {}
    n_rows, n_decimal, n_grouped = content.num_rows, 0, 0
    for name in content.column_names:
        strings = content.column(name)
        has_commas = dialect.separator != "," and has_decimal_commas(strings)
        n_decimal += has_commas
        if name in kinds:
            columns[name] = text_as(name, path, strings, kinds[name], has_commas=has_commas)
        else:
            columns[name] = typed_text(strings, has_commas=has_commas)
        is_number = columns[name].kind == "number"
        n_grouped += is_number and not has_commas and has_commas_in(strings)
        if name == keep:
            spelled[name] = strings
    detected = dialect.lines()
    for what, count in (("decimal comma", n_decimal), ("commas between thousands", n_grouped)):
        if count:
            detected = (*detected, f"{what} in {count} column{'s' * (count > 1)}")
    return FileTable(columns, n_rows, path, detected=detected, spelled=spelled)


def _columnar(path: str, suffix: str, kinds: Mapping[str, str]) -> FileTable:
    _require_arrow(suffix)
    content, unreadable = _parquet(path) if suffix == ".parquet" else _feather(path)
    columns = {}
    for name, column in zip(content.column_names, content.itercolumns(), strict=True):
        if not INDEX_COLUMN.fullmatch(name):
            found = typed_arrow(Place("DATA", name), _plain(column))
            columns[name] = _of_kind(name, path, found, kinds.get(name))
    return FileTable(columns, content.num_rows, path, unreadable=unreadable)


def _parquet(path: str) -> tuple[Any, dict[str, str]]:
    """Return a Parquet file's plain columns, and the types of the others."""
    import pyarrow as pa
    import pyarrow.parquet

    file = pa.OSFile(os.fsencode(path))
    reader = pyarrow.parquet.ParquetFile(file)
    schema, metadata = reader.schema_arrow, reader.metadata
    require_distinct(schema.names)
    _require_size(path, metadata.num_rows, len(schema), file.size())
    unreadable = _unreadable(schema)
    # As a dictionary, a long text is held once, however many rows have it.
    texts = [entry.name for entry in schema if entry.type in (pa.string(), pa.large_string())]
    plain = [name for name in schema.names if name not in unreadable]
    reader = pyarrow.parquet.ParquetFile(file, read_dictionary=texts)
    return reader.read(columns=plain), unreadable


def _feather(path: str) -> tuple[Any, dict[str, str]]:
    """Return the plain columns of a file of Arrow's own formats, and the types of the others."""
    import pyarrow as pa
    import pyarrow.feather

    with open(path, "rb") as file:
        magic = file.read(6)
    if magic[:4] == b"FEA1":
        content = pyarrow.feather.read_table(path, memory_map=False)
    else:
        file = pa.OSFile(os.fsencode(path))
        opened = pa.ipc.open_file if magic == b"ARROW1" else pa.ipc.open_stream
        content = opened(file).read_all()
    require_distinct(content.column_names)
    _require_size(path, content.num_rows, content.num_columns, os.path.getsize(path))
    # Arrow believes what such a file says of its buffers.
    content.validate(full=True)
    unreadable = _unreadable(content.schema)
    return content.drop_columns(list(unreadable)), unreadable


def _plain(column: Any) -> Any:
    """Return a column of Arrow whose values, unless they are text, are in no dictionary."""
    import pyarrow as pa

    is_coded = pa.types.is_dictionary(column.type) and not is_text(column.type)
    return column.cast(column.type.value_type) if is_coded else column


def _unreadable(schema: Any) -> dict[str, str]:
    return {entry.name: str(entry.type) for entry in schema if not is_plain(entry.type)}


def _require_size(path: str, n_rows: int, n_columns: int, size: int) -> None:
    """Compare what a file claims with its size."""
    claimed = 8 * n_rows * n_columns
    if not 0 <= claimed <= COLUMNAR_RATIO * size:
        raise InputError(
            f"expected a file of some {claimed // COLUMNAR_RATIO} bytes or more for "
            f"the {n_rows} rows and {n_columns} columns it claims, got "
            f"{size} bytes in {path!r}; leave out constant columns, or write it as CSV",
            argument="DATA",
        )


def _of_kind(name: str, path: str, column: TypedColumn, kind: str | None) -> TypedColumn:
    """Return a column as one of a kind; if none is known, text that spells dates as dates."""
    if kind is not None:
        return as_kind(name, path, column, kind)
    return typed_words(column) if column.kind == "text" else column


def _numpy(path: str, suffix: str, kinds: Mapping[str, str]) -> FileTable:
    with open(path, "rb") as file:
        arrays = {"X": read_npy(file)} if suffix == ".npy" else read_npz(file)
    matrices = {key: x for key, x in arrays.items() if x.ndim == 2}
    vectors = {key: x for key, x in arrays.items() if x.ndim == 1}
    key = "X" if "X" in matrices else next(iter(matrices), None)
    if key is None or (len(matrices) > 1 and "X" not in matrices):
        shapes = ", ".join(f"{name!r} {x.shape}" for name, x in arrays.items())
        raise InputError(
            f"expected one matrix (n_rows, n_columns), in an NPZ file named X, got "
            f"{shapes or 'no array'} in {path!r}",
            argument="DATA",
        )
    matrix = matrices[key]
    if matrix.dtype.kind not in "biuf":
        raise InputError(
            f"expected real numbers, got dtype {matrix.dtype} in {path!r}", argument="DATA"
        )
    # Before columns are made: a matrix of no bytes may claim any number of them.
    if matrix.size == 0:
        raise InputError(
            f"expected at least one row and column, got shape {matrix.shape} in {path!r}",
            argument="DATA",
        )
    columns = {str(i): matrix[:, i] for i in range(matrix.shape[1])}
    for name, vector in vectors.items():
        if len(vector) != len(matrix):
            raise InputError(
                f"expected {len(matrix)} values in {name!r}, one for each row of {key!r}, "
                f"got {len(vector)} in {path!r}",
                argument="DATA",
            )
        if name in columns:
            raise InputError(
                f"expected names other than the matrix's column numbers, got the vector "
                f"{name!r} in {path!r}",
                argument="DATA",
            )
    target = "y" if "y" in vectors else None
    typed = {
        name: _of_kind(name, path, typed_array(Place("DATA", name), values), kinds.get(name))
        for name, values in {**columns, **vectors}.items()
    }
    return FileTable(typed, len(matrix), path, has_names=False, target=target)
