"""A table: named columns, each of one kind, whatever library or file they came from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nnbackend.checks import closest
from nnbackend.errors import InputError

__all__ = ["KINDS", "NO_DATE", "NO_WORD", "Table", "TypedColumn"]

_Array = np.ndarray[Any, Any]

KINDS = ("number", "boolean", "text", "date")

# What stands for a gap: in a column of text, and in one of dates (numpy's NaT).
NO_WORD = -1
NO_DATE = np.iinfo(np.int64).min


@dataclass(frozen=True)
class TypedColumn:
    """A column of numbers, booleans, text or dates, with gaps.

    Attributes
    ----------
    kind : {"number", "boolean", "text", "date"}
        What the column holds. Durations are numbers of seconds; dates may have times.
    values : array (n_rows,)
        Numbers as float64, booleans as 0.0 and 1.0, NaN where there is a gap. Of text the index
        of each word in ``words`` as int64, ``NO_WORD`` where there is a gap. Dates as int64
        microseconds since 1970 (UTC, or whatever the table's clock shows), ``NO_DATE`` where there
        is a gap.
    words : tuple of str
        The different words of a column of text, none of them empty: an empty text is a gap.
    """

    kind: str
    values: _Array
    words: tuple[str, ...] = ()

    @property
    def is_missing(self) -> _Array:
        """Which rows are gaps (n_rows,)."""
        if self.kind in ("number", "boolean"):
            return np.isnan(self.values)
        gap = NO_WORD if self.kind == "text" else NO_DATE
        return np.equal(self.values, gap)

    def take(self, rows: _Array | slice) -> TypedColumn:
        """Return the column's rows with these indices, or where a mask is true."""
        return TypedColumn(self.kind, self.values[rows], self.words)

    def shown(self, row: int) -> str:
        """Return one value as a message shows it."""
        value = self.values[row]
        if self.is_missing[row]:
            return "a gap"
        if self.kind == "text":
            return repr(self.words[int(value)][:40])
        if self.kind == "date":
            return str(np.datetime64(int(value), "us"))
        return str(bool(value)) if self.kind == "boolean" else repr(float(value))


@dataclass(frozen=True)
class Table:
    """Columns of equal length, by name.

    Attributes
    ----------
    columns : mapping of str to TypedColumn
        In the table's order.
    n_rows : int
        The number of rows.
    name : str
        What messages call the table: an argument's name, or a file's.
    first_row : int
        The number of its first row, where it is a block of a longer table; for messages.
    """

    columns: Mapping[str, TypedColumn]
    n_rows: int
    name: str = "X"
    first_row: int = 0

    def take(self, rows: _Array | slice) -> Table:
        """Return the rows with these indices, or where a mask is true."""
        columns = {name: column.take(rows) for name, column in self.columns.items()}
        n_rows = len(np.empty(self.n_rows, bool)[rows])
        return Table(columns, n_rows, self.name)

    def only(self, names: Iterable[str]) -> Table:
        """Return the named columns, in that order.

        Raises
        ------
        InputError
            If one is missing.
        """
        names = list(names)
        missing = [name for name in names if name not in self.columns]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            close = closest(missing[0], [name for name in self.columns if name not in set(names)])
            hint = "" if close is None else f", but {close!r}; rename it if it is that column"
            raise InputError(
                f"expected the columns of the training data, got none named {missing[0]!r}{more}"
                f"{hint}",
                argument=self.name,
            )
        return replace(self, columns={name: self.columns[name] for name in names})
