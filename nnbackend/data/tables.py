"""Reading a user's file - CSV, TSV, Parquet, NPY, NPZ - into named numeric columns."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nnbackend.checks import nearest
from nnbackend.data.datasets import Dataset, encode_target
from nnbackend.data.numpy_files import read_npy, read_npz
from nnbackend.data.parquet import INDEX_COLUMN
from nnbackend.errors import InputError, MissingDependencyError

__all__ = ["Table", "read_dataset", "read_table"]


FORMATS = (".csv", ".csv.gz", ".tsv", ".parquet", ".npy", ".npz")


# Parquet writes a run of equal values in a few bytes; in tables of nothing but constants, as
# pyarrow and others write them, some 2 000 to 64 000 bytes of memory come of one in the file.
PARQUET_RATIO = 2**16


# What is read at once, and so the longest line of CSV: 900 000 numbers of 18 characters.
LINE_BYTES = 2**24


@dataclass(frozen=True)
class Table:
    """Columns of one file, by name, in the file's order.

    Attributes
    ----------
    path : str
        The path of its file.
    columns : dict of str to array (n_rows,)
        Numbers, booleans or text.
    has_names : bool
        Whether the names are the file's own; those of NPY and NPZ columns are their indices.
    target : str or None
        The column that an NPZ file itself marks as the target, by holding it as ``y``.
    missing : dict of str to array (n_rows,) of bool
        For each column with gaps, which rows are missing.
    """

    path: str
    columns: dict[str, np.ndarray[Any, Any]]
    has_names: bool
    target: str | None = None
    missing: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)

    @property
    def n_rows(self) -> int:
        """The number of rows."""
        return len(next(iter(self.columns.values()), ()))

    def column(self, argument: str, name: str) -> str:
        """Return the name of the column that ``name`` means, a negative index included."""
        if name in self.columns:
            return name
        if not self.has_names and re.fullmatch("-?[0-9]{1,18}", name):
            names = list(self.columns)
            index = int(name)
            if -len(names) <= index < len(names):
                return names[index]
        raise InputError(
            f"no column {name!r} in {self.path}{nearest(name, self.columns)}", argument=argument
        )

    def require_complete(self, names: Sequence[str]) -> None:
        """Raise an InputError that lists every one of the named columns with missing values."""
        gaps = [name for name in names if name in self.missing]
        if gaps:
            listed = ", ".join(f"{name!r} ({int(self.missing[name].sum())})" for name in gaps[:8])
            more = f" and {len(gaps) - 8} more columns" if len(gaps) > 8 else ""
            row = int(np.argmax(self.missing[gaps[0]])) + 1
            raise InputError(
                f"expected no missing values, got some in {listed}{more}, the first in data "
                f"row {row} of {self.path}; remove or impute them, or leave columns out with "
                "--drop",
                argument="DATA",
            )

    def features(self, names: Sequence[str]) -> np.ndarray[Any, Any]:
        """Return the named columns as a matrix (n_rows, len(names)) of finite float64."""
        self.require_complete(names)
        text = [name for name in names if self.columns[name].dtype.kind not in "biuf"]
        if text:
            raise InputError(
                f"expected numeric features, got text or dates in {_listed(text)} of "
                f"{self.path}; encode them as numbers, or leave them out with --drop",
                argument="DATA",
            )
        if not names:
            raise InputError(
                f"expected at least one feature column in {self.path}, got none", argument="DATA"
            )
        X = np.stack([self.columns[name].astype(np.float64) for name in names], axis=1)
        bad = np.argwhere(~np.isfinite(X))
        if len(bad):
            row, column = bad[0]
            count = f" ({len(bad)} such values in all)" if len(bad) > 1 else ""
            raise InputError(
                f"expected finite numbers, got {X[row, column]} in row {row} of column "
                f"{names[column]!r} of {self.path}{count}; remove or impute them",
                argument="DATA",
            )
        return X


def read_table(path: str) -> Table:
    """Read a file; nothing in it is ever executed.

    Parameters
    ----------
    path : str
        ``.csv`` (also ``.csv.gz``) or ``.tsv`` with a header line, ``.parquet``, ``.npy`` with a
        matrix, or ``.npz`` with a matrix and, optionally, a vector of targets.

    Raises
    ------
    InputError
        If the file is missing, unreadable, truncated, empty or of another format.
    """
    suffix = next((s for s in sorted(FORMATS, key=len, reverse=True) if path.endswith(s)), None)
    if suffix is None:
        raise InputError(
            f"expected a file ending in {', '.join(FORMATS)}, got {path!r}", argument="DATA"
        )
    if not os.path.isfile(path):
        raise InputError(f"no such file {path!r}", argument="DATA")
    with _readable(path):
        table = _read_numpy(path, suffix) if suffix.startswith(".np") else _read_arrow(path, suffix)
    if table.n_rows == 0:
        raise InputError(f"expected at least one row, got none in {path!r}", argument="DATA")
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


def read_dataset(
    path: str, target: str | None, drop: Sequence[str] = (), task: str = "auto"
) -> Dataset:
    """Read a file and split it into features and target.

    Parameters
    ----------
    path : str
        As for ``read_table``.
    target : str or None
        The target column: its name; for NPY its index, negative ones from the end; for NPZ the key
        of the vector. None: NPZ's ``y``.
    drop : sequence of str, optional
        Columns to leave out.
    task : {"auto", "classification", "regression"}, default "auto"
        As for ``encode_target``.
    """
    table = read_table(path)
    if target is None:
        target = table.target
    if target is None:
        raise InputError(
            f"expected the column to learn, one of {_listed(list(table.columns))}",
            argument="--target",
        )
    target = table.column("--target", target)
    left_out = {target, *(table.column("--drop", name) for name in drop)}
    features = [name for name in table.columns if name not in left_out]
    table.require_complete([target])
    y, class_names = encode_target(target, table.columns[target], task)
    name = os.path.basename(path)
    for suffix in FORMATS:
        name = name.removesuffix(suffix)
    return Dataset(name, table.features(features), y, tuple(features), target, class_names)


def _listed(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _read_numpy(path: str, suffix: str) -> Table:
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
    return Table(path, {**columns, **vectors}, has_names=False, target=target)


def _read_arrow(path: str, suffix: str) -> Table:
    try:
        import pyarrow as pa
    except ImportError as error:
        raise MissingDependencyError(
            f"reading {suffix} files needs pyarrow; install it with: pip install pyarrow"
        ) from error
    content = _parquet(path) if suffix == ".parquet" else _csv(path, suffix)
    _require_distinct(content.column_names)
    columns = {}
    missing = {}
    for name, column in zip(content.column_names, content.itercolumns(), strict=True):
        if INDEX_COLUMN.fullmatch(name):
            continue
        if column.null_count:
            missing[name] = column.is_null().to_numpy()
        is_text = pa.types.is_dictionary(column.type)
        is_decimal = pa.types.is_decimal(column.type)
        numbers = column.cast(pa.float64()) if is_decimal else column
        columns[name] = _words(column) if is_text else numbers.to_numpy()
    return Table(path, columns, has_names=True, missing=missing)


def _require_distinct(names: Sequence[str]) -> None:
    if len(set(names)) == len(names):
        return
    seen: set[str] = set()
    twice = {name: None for name in names if name in seen or seen.add(name)}  # type: ignore[func-returns-value]
    raise InputError(
        f"expected distinct column names, got {_listed(list(twice))} twice", argument="DATA"
    )


def _words(column: Any) -> np.ndarray[Any, Any]:
    """Return a dictionary column as an array of what its codes stand for, None where missing."""
    parts = [np.empty(0, dtype=object)]
    for chunk in column.chunks:
        words = np.asarray([*chunk.dictionary.to_pylist(), None], dtype=object)
        codes = chunk.indices.cast("int64").fill_null(len(words) - 1)
        parts.append(words[codes.to_numpy()])
    return np.concatenate(parts)


def _parquet(path: str) -> Any:
    """Return a Parquet file's content, after comparing what it claims with its size."""
    import pyarrow as pa
    import pyarrow.parquet

    file = pa.OSFile(os.fsencode(path))
    reader = pyarrow.parquet.ParquetFile(file)
    schema, metadata = reader.schema_arrow, reader.metadata
    for entry in schema:
        if pa.types.is_nested(entry.type):
            raise InputError(
                f"expected plain columns, got {entry.name!r} of type {entry.type} in {path!r}",
                argument="DATA",
            )
    claimed = 8 * metadata.num_rows * len(schema)
    if not 0 <= claimed <= PARQUET_RATIO * file.size():
        raise InputError(
            f"expected a Parquet file of some {claimed // PARQUET_RATIO} bytes or more for "
            f"the {metadata.num_rows} rows and {len(schema)} columns it claims, got "
            f"{file.size()} bytes in {path!r}; leave out constant columns, or write it as CSV",
            argument="DATA",
        )
    # As a dictionary, a long text is held once, however many rows have it.
    texts = [entry.name for entry in schema if _is_bytes(entry.type)]
    return pyarrow.parquet.ParquetFile(file, read_dictionary=texts).read()


def _is_bytes(type_: Any) -> bool:
    import pyarrow as pa

    return type_ in (pa.string(), pa.binary(), pa.large_string(), pa.large_binary())


def _csv(path: str, suffix: str) -> Any:
    """Return a CSV file's content."""
    import pyarrow as pa
    import pyarrow.csv

    delimiter = "\t" if suffix == ".tsv" else ","

    def stream() -> Any:
        file = pa.OSFile(os.fsencode(path))
        return pa.CompressedInputStream(file, "gzip") if suffix == ".csv.gz" else file

    # Before Arrow makes columns, of some kilobytes each: compressed commas cost next to nothing.
    names = _header(path, stream(), delimiter)
    _require_distinct(names)
    if names and all(map(_is_number, names)):
        raise InputError(
            f"expected a header line with the columns' names in {path!r}, got the numbers "
            f"{_listed(names, 3)}; add one",
            argument="DATA",
        )
    if len(names) == 1 and any(sign in names[0] for sign in ";\t|"):
        raise InputError(
            f"expected columns separated by {'tabs' if suffix == '.tsv' else 'commas'} in "
            f"{path!r}, got the one column {names[0][:60]!r}; convert the separator",
            argument="DATA",
        )
    content = pyarrow.csv.read_csv(
        stream(),
        read_options=pyarrow.csv.ReadOptions(block_size=LINE_BYTES),
        parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter),
        convert_options=pyarrow.csv.ConvertOptions(strings_can_be_null=True),
    )
    try:
        kinds = dict(zip(content.column_names, content.schema.types, strict=True))
    except UnicodeDecodeError as error:
        raise _encoding_error(f"the header line of {path!r}") from error
    # Arrow reads a column of text that is not UTF-8 as one of bytes.
    for name, kind in kinds.items():
        if kind in (pa.binary(), pa.large_binary()):
            raise _encoding_error(f"column {name!r} of {path!r}")
    return content


def _encoding_error(where: str) -> InputError:
    return InputError(
        f"expected text in UTF-8, got other bytes in {where}; convert the file, for example with: "
        "iconv -f latin1 -t utf-8 OLD.csv > NEW.csv",
        argument="DATA",
    )


def _header(path: str, stream: Any, delimiter: str) -> list[str]:
    """Return the fields of the first line that is not empty."""
    import csv

    line = b""
    while len(line) < LINE_BYTES and (more := stream.read(2**16)):
        line = (line + more).lstrip(b"\r\n")
        if b"\n" in more or b"\r" in more:
            break
    line = re.split(rb"[\r\n]", line, maxsplit=1)[0]
    if len(line) >= LINE_BYTES:
        raise InputError(
            f"expected lines of less than {LINE_BYTES} bytes, got a longer one in {path!r}",
            argument="DATA",
        )
    # Arrow says what is wrong with the encoding; a byte order mark it leaves out.
    text = line.decode("utf-8-sig", errors="replace")
    return next(csv.reader([text], delimiter=delimiter), [])


def _is_number(name: str) -> bool:
    """Whether a column's name is a decimal fraction, as in a file that begins with data."""
    try:
        return not float(name).is_integer()
    except (ValueError, OverflowError):
        return False
