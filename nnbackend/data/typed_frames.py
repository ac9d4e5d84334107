"""Columns of frames and arrays of any library as typed columns; Arrow converts what it knows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import date, datetime
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np

from nnbackend.data.arrow_columns import is_plain, typed_arrow
from nnbackend.data.text_columns import gaps, text_column
from nnbackend.data.typed import NO_DATE, Table, TypedColumn
from nnbackend.errors import InputError

__all__ = ["table_of", "typed_array", "typed_arrow_column", "typed_pandas", "typed_polars"]

_Array = np.ndarray[Any, Any]

_GAPS = ("NoneType", "NAType", "NaTType")


def table_of(
    argument: str, labels: Sequence[Any], column: Callable[[int], TypedColumn], n_rows: int
) -> Table:
    """Return a table of columns by position, named by their labels.

    Raises
    ------
    InputError
        If two columns have one name.
    """
    names = [str(label) for label in labels]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if len(set(names)) < len(names):
        raise InputError(
            f"expected distinct column names, got {twice!r} twice; rename one", argument=argument
        )
    return Table({name: column(i) for i, name in enumerate(names)}, n_rows, argument)


def typed_array(argument: str, label: str, values: _Array) -> TypedColumn:
    """Return a column (n_rows,) of NumPy, of any dtype.

    Raises
    ------
    InputError
        If it holds anything but numbers, booleans, text, dates, times and durations.
    """
    kind = values.dtype.kind
    if values.ndim != 1:
        raise _odd(argument, label, f"arrays of {values.shape[1:]}")
    if kind == "b":
        return TypedColumn("boolean", values.astype(np.float64))
    if kind in "iuf":
        return TypedColumn("number", values.astype(np.float64))
    if kind == "M":
        return TypedColumn("date", values.astype("M8[us]").astype(np.int64))
    if kind == "m":
        seconds = values.astype("m8[us]").astype(np.float64) / 1e6
        return TypedColumn("number", np.where(np.isnat(values), np.nan, seconds))
    if kind == "c":
        raise _odd(argument, label, "complex numbers (Complex data not supported)")
    return _objects(argument, label, values.astype(object) if kind != "O" else values)


def typed_pandas(argument: str, label: str, column: Any) -> TypedColumn:
    """Return a column of pandas."""
    dtype = column.dtype
    if isinstance(dtype, np.dtype):
        return typed_array(argument, label, column.to_numpy())
    if hasattr(dtype, "categories"):
        # Whatever they are made of, they are categories.
        categories = [str(category) for category in dtype.categories]
        words = np.asarray([*categories, None], dtype=object)
        return text_column_of(column.cat.codes.to_numpy().astype(np.int64), words)
    if str(dtype).startswith("period"):
        return typed_array(argument, label, column.dt.to_timestamp().to_numpy())
    if str(dtype).startswith("interval"):
        return typed_array(argument, label, column.astype(str).to_numpy(dtype=object))
    import pyarrow as pa

    return typed_arrow_column(argument, label, pa.array(column, from_pandas=True))


def text_column_of(codes: _Array, words: _Array) -> TypedColumn:
    """Return a column of text of the words' indices, with those words that occur."""
    used, places = np.unique(codes, return_inverse=True)
    column = text_column([words[code] for code in used])
    return TypedColumn("text", column.values[places.reshape(-1)], column.words)


def typed_polars(argument: str, label: str, column: Any) -> TypedColumn:
    """Return a column of polars."""
    if str(column.dtype) in ("Int128", "UInt128"):
        column = column.cast(float)
    if str(column.dtype) == "Object":
        return _objects(argument, label, column.to_numpy())
    return typed_arrow_column(argument, label, column.to_arrow())


def typed_arrow_column(argument: str, label: str, column: Any) -> TypedColumn:
    """Return an array, or a chunked array, of Arrow."""
    import pyarrow as pa

    if isinstance(column, pa.Array):
        column = pa.chunked_array([column])
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        try:
            column = column.cast(pa.string())
        except pa.ArrowInvalid as error:
            raise _odd(argument, label, "bytes that are not UTF-8") from error
    if not is_plain(column.type):
        raise _odd(argument, label, str(column.type))
    return typed_arrow(label, argument, column)


def _objects(argument: str, label: str, values: _Array) -> TypedColumn:
    """Return a column of Python's objects: as Arrow takes them, or, mixed, as text."""
    import pyarrow as pa

    try:
        column = pa.array(values, from_pandas=True)
    except (pa.ArrowException, OverflowError, ValueError, TypeError):
        return _mixed(argument, label, values.tolist())
    if pa.types.is_date(column.type) and any(isinstance(item, datetime) for item in values):
        # Arrow cuts off the time of those that have one.
        return _mixed(argument, label, values.tolist())
    return typed_arrow_column(argument, label, column)


def _mixed(argument: str, label: str, items: list[Any]) -> TypedColumn:
    """Return objects of several types: numbers, dates, or the text that they show."""
    known = [(row, item) for row, item in enumerate(items) if not _is_gap(item)]
    if not known:
        return gaps(len(items))
    if all(isinstance(item, Real | Decimal | np.bool_) for _, item in known):
        numbers = [np.nan if _is_gap(item) else _float(item) for item in items]
        return TypedColumn("number", np.asarray(numbers, np.float64))
    if all(isinstance(item, date | np.datetime64) for _, item in known):
        moments = np.full(len(items), NO_DATE, np.int64)
        for row, item in known:
            moments[row] = _moment(item)
        return TypedColumn("date", moments)
    plain = (str, Real, Decimal, np.bool_, date, np.datetime64)
    row, odd = next(((row, item) for row, item in known if not isinstance(item, plain)), (0, None))
    if odd is not None:
        raise _odd(argument, label, f"{type(odd).__name__} in row {row}")
    return text_column([None if _is_gap(item) else _spelled(item) for item in items])


def _is_gap(item: Any) -> bool:
    if isinstance(item, str):
        return not item
    is_nan = isinstance(item, float | np.floating | Decimal) and math.isnan(item)
    return type(item).__name__ in _GAPS or is_nan


def _float(item: Any) -> float:
    try:
        return float(item)
    except OverflowError:
        return math.inf


def _moment(item: Any) -> int:
    if getattr(item, "tzinfo", None) is not None:
        item = (item - item.utcoffset()).replace(tzinfo=None)
    return int(np.datetime64(item, "us").astype(np.int64))


def _spelled(item: Any) -> str:
    if isinstance(item, float | np.floating) and float(item).is_integer():
        return str(int(item))
    return str(item)


def _odd(argument: str, label: str, what: str) -> InputError:
    return InputError(
        f"expected numbers, booleans, text or dates in column {label!r}, got {what}; convert the "
        "column, or leave it out",
        argument=argument,
    )
