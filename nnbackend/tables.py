"""Reading a user's file - CSV, TSV, Parquet, NPY, NPZ - into named numeric columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nnbackend.checks import nearest
from nnbackend.datasets import Dataset, encode_target
from nnbackend.errors import InputError, MissingDependencyError

__all__ = ["Table", "read_dataset", "read_table"]

FORMATS = (".csv", ".csv.gz", ".tsv", ".parquet", ".npy", ".npz")


@dataclass(frozen=True)
class Table:
    """Columns of one file, by name, in the file's order.

    Attributes
    ----------
    path : str
        Where it came from.
    columns : dict of str to array (n_rows,)
        Numbers, booleans or text.
    has_names : bool
        Whether the names are the file's own; those of NPY and NPZ columns are their indices.
    target : str or None
        The column that an NPZ file itself marks as the target, by holding it as ``y``.
    missing : dict of str to array (n_rows,) of bool
        Where values are missing, for the columns that have such.
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
        if not self.has_names and name.lstrip("-").isdigit():
            names = list(self.columns)
            index = int(name)
            if -len(names) <= index < len(names):
                return names[index]
        raise InputError(
            f"{argument}: no column {name!r} in {self.path}{nearest(name, self.columns)}"
        )

    def require_complete(self, names: Sequence[str]) -> None:
        """Raise an InputError that lists every one of the named columns with missing values."""
        gaps = [name for name in names if name in self.missing]
        if gaps:
            listed = ", ".join(f"{name!r} ({int(self.missing[name].sum())})" for name in gaps[:8])
            more = f" and {len(gaps) - 8} more columns" if len(gaps) > 8 else ""
            row = int(np.argmax(self.missing[gaps[0]])) + 1
            raise InputError(
                f"DATA: expected no missing values, got some in {listed}{more}, the first in data "
                f"row {row} of {self.path}; remove or impute them, or leave columns out with --drop"
            )

    def features(self, names: Sequence[str]) -> np.ndarray[Any, Any]:
        """Return the named columns as a matrix (n_rows, len(names)) of finite float64."""
        self.require_complete(names)
        text = [name for name in names if self.columns[name].dtype.kind not in "biuf"]
        if text:
            raise InputError(
                f"DATA: expected numeric features, got text or dates in {_listed(text)} of "
                f"{self.path}; encode them as numbers, or leave them out with --drop"
            )
        if not names:
            raise InputError(f"DATA: expected at least one feature column in {self.path}, got none")
        X = np.stack([self.columns[name].astype(np.float64) for name in names], axis=1)
        bad = np.argwhere(~np.isfinite(X))
        if len(bad):
            row, column = bad[0]
            count = f" ({len(bad)} such values in all)" if len(bad) > 1 else ""
            raise InputError(
                f"DATA: expected finite numbers, got {X[row, column]} in row {row} of column "
                f"{names[column]!r} of {self.path}{count}; remove or impute them"
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
        raise InputError(f"DATA: expected a file ending in {', '.join(FORMATS)}, got {path!r}")
    if not Path(path).is_file():
        raise InputError(f"DATA: no such file {path!r}")
    reader = _read_numpy if suffix in (".npy", ".npz") else _read_arrow
    try:
        table = reader(path, suffix)
    except (OSError, EOFError) as error:
        raise InputError(f"DATA: cannot read {path!r} ({error}); is it whole?") from error
    if table.n_rows == 0:
        raise InputError(f"DATA: expected at least one row, got none in {path!r}")
    return table


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
            f"--target: expected the column to learn, one of {_listed(list(table.columns))}"
        )
    target = table.column("--target", target)
    left_out = {target, *(table.column("--drop", name) for name in drop)}
    features = [name for name in table.columns if name not in left_out]
    table.require_complete([target])
    y, class_names = encode_target(target, table.columns[target], task)
    name = Path(path).name
    for suffix in FORMATS:
        name = name.removesuffix(suffix)
    return Dataset(name, table.features(features), y, tuple(features), target, class_names)


def _listed(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _read_numpy(path: str, suffix: str) -> Table:
    try:
        # numpy.load leaves a file that it opened itself open if the archive is damaged.
        with Path(path).open("rb") as file:
            content = np.load(file, allow_pickle=False)
            arrays = {"X": content} if suffix == ".npy" else dict(content)
    # Damage surfaces as an error of the array, zip or deflate reader: of no common type.
    except Exception as error:
        raise _unreadable(path, error) from error
    matrices = {key: x for key, x in arrays.items() if x.ndim == 2}
    vectors = {key: x for key, x in arrays.items() if x.ndim == 1}
    key = "X" if "X" in matrices else next(iter(matrices), None)
    if key is None or (len(matrices) > 1 and "X" not in matrices):
        shapes = ", ".join(f"{name} {x.shape}" for name, x in arrays.items())
        raise InputError(
            f"DATA: expected one matrix (n_rows, n_columns), in an NPZ file named X, got "
            f"{shapes or 'no array'} in {path!r}"
        )
    matrix = matrices[key]
    if matrix.dtype.kind not in "biuf":
        raise InputError(f"DATA: expected real numbers, got dtype {matrix.dtype} in {path!r}")
    columns = {str(i): matrix[:, i] for i in range(matrix.shape[1])}
    for name, vector in vectors.items():
        if len(vector) != len(matrix):
            raise InputError(
                f"DATA: expected {len(matrix)} values in {name!r}, one for each row of {key!r}, "
                f"got {len(vector)} in {path!r}"
            )
    target = "y" if "y" in vectors else None
    return Table(path, {**columns, **vectors}, has_names=False, target=target)


def _read_arrow(path: str, suffix: str) -> Table:
    try:
        import pyarrow as pa
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependencyError(
            f"reading {suffix} files needs pyarrow; install it with: pip install pyarrow"
        ) from error
    try:
        if suffix == ".parquet":
            content = pyarrow.parquet.read_table(path)
        else:
            delimiter = "\t" if suffix == ".tsv" else ","
            options = pyarrow.csv.ParseOptions(delimiter=delimiter)
            convert = pyarrow.csv.ConvertOptions(strings_can_be_null=True)
            content = pyarrow.csv.read_csv(path, parse_options=options, convert_options=convert)
        names = content.column_names
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"DATA: expected distinct column names, got {_listed(twice)} twice")
    if suffix != ".parquet" and names and all(map(_is_number, names)):
        raise InputError(
            f"DATA: expected a header line with the columns' names in {path!r}, got the numbers "
            f"{_listed(names, 3)}; add one"
        )
    if len(names) == 1 and suffix != ".parquet" and any(sign in names[0] for sign in ";\t|"):
        raise InputError(
            f"DATA: expected columns separated by {'tabs' if suffix == '.tsv' else 'commas'} in "
            f"{path!r}, got the one column {names[0][:60]!r}; convert the separator"
        )
    columns = {}
    missing = {}
    for name in names:
        column = content.column(name)
        if pa.types.is_nested(column.type):
            raise InputError(
                f"DATA: expected plain columns, got {name!r} of type {column.type} in {path!r}"
            )
        if column.null_count:
            missing[name] = column.is_null().to_numpy()
        columns[name] = column.to_numpy()
    return Table(path, columns, has_names=True, missing=missing)


def _is_number(name: str) -> bool:
    """Whether a column's name is a decimal fraction, as in a file that begins with data."""
    try:
        return not float(name).is_integer()
    except (ValueError, OverflowError):
        return False


def _unreadable(path: str, error: BaseException) -> InputError:
    reason = " ".join(str(error).split())[:200]
    return InputError(f"DATA: cannot read {path!r}: {reason}; is it whole, and named as it should?")
