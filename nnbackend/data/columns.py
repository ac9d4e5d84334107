"""Columns of data frames as numbers: pandas, polars and Arrow, whatever they store them as.

Each library is used by the public methods of what the caller gave; none is imported here. A gap -
None, NA, null, NaT - becomes NaN, which the check for finite numbers then finds and names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np

from nnbackend.errors import InputError

__all__ = ["arrow_numbers", "join", "numbers", "pandas_numbers", "polars_numbers"]


_Array = np.ndarray[Any, Any]


_GAPS = ("NoneType", "NAType", "NaTType")


def pandas_numbers(column: Any) -> _Array:
    """Return a column of pandas as an array, gaps of nullable dtypes as NaN."""
    dtype = column.dtype
    # Nullable and Arrow's dtypes know which of NumPy's they are.
    plain = None if isinstance(dtype, np.dtype) else getattr(dtype, "numpy_dtype", None)
    if plain is None or plain.kind not in "biuf":
        return np.asarray(column)
    if column.isna().any():
        return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan))
    return np.asarray(column.to_numpy(dtype=plain))


def polars_numbers(column: Any) -> _Array:
    """Return a column of polars as an array."""
    if str(column.dtype).startswith(("Decimal", "Int128", "UInt128")):
        column = column.cast(float)
    return np.asarray(column.to_numpy())


def arrow_numbers(column: Any) -> _Array:
    """Return an array of Arrow as one of NumPy."""
    return np.asarray(column)


def join(columns: Sequence[_Array], n_rows: int) -> _Array:
    """Return columns as one matrix, in the dtype that holds the numbers of all of them.

    That is float64 for integers of more than 16 bits next to floats; integers beyond 2**53 are
    rounded then.
    """
    dtype = np.result_type(*(x.dtype for x in columns)) if columns else np.dtype(np.float64)
    result = np.empty((n_rows, len(columns)), dtype, order="F")
    for i, column in enumerate(columns):
        result[:, i] = column
    return result


def numbers(name: str, where: str, values: _Array) -> _Array:
    """Return a column of numbers: as it is, or, of Python's objects, as float64.

    Parameters
    ----------
    name : str
        The name of the argument, for messages.
    where : str
        Which column of it; empty where it is nothing else.
    values : array (n_rows,)
        The column, in any dtype.

    Raises
    ------
    InputError
        If it holds text, dates or anything else that is no real number.
    """
    if values.ndim > 1 and where:
        raise InputError(
            f"expected one number in each row of {where}, got an array of "
            f"{values.shape[1:]}; make columns of them",
            argument=name,
        )
    if values.dtype.kind in "biuf":
        return values
    if values.dtype.kind != "O":
        raise _refusal(name, where, values, 0)
    items = values.ravel().tolist()
    kinds = {kind: _is_number(kind) for kind in set(map(type, items))}
    if not all(kinds.values()):
        row = next(i for i, item in enumerate(items) if not kinds[type(item)])
        raise _refusal(name, where, values, row)
    try:
        converted = [np.nan if type(item).__name__ in _GAPS else float(item) for item in items]
    except (OverflowError, ValueError) as error:  # an integer of 400 digits, a signalling NaN
        raise InputError(
            f"expected numbers that float64 holds{where and f' in {where}'} ({error})",
            argument=name,
        ) from error
    return np.asarray(converted, np.float64).reshape(values.shape)


def _is_number(kind: type) -> bool:
    """Whether objects of a type are real numbers, or gaps."""
    return issubclass(kind, Real | Decimal | np.bool_) or kind.__name__ in _GAPS


def _n_gaps(values: _Array) -> int:
    """Return how many values are gaps, of dates, durations or objects."""
    if values.dtype.kind in "mM":
        return int(np.isnat(values).sum())
    if values.dtype.kind != "O":
        return 0
    items = values.ravel().tolist()
    return sum(
        type(item).__name__ in _GAPS or (isinstance(item, float) and math.isnan(item))
        for item in items
    )


def _refusal(name: str, where: str, values: _Array, row: int) -> InputError:
    """Return the error of a column that holds something else than numbers."""
    example = values.ravel()[row] if values.size else None
    column = f"{name}[{where.removeprefix('column ')}]" if where else name
    if values.dtype.kind in "US" or isinstance(example, str | bytes):
        what = "text"
        advice = (
            f"number its words as the training data's were, such as numpy.unique({column}, "
            "return_inverse=True)[1], or leave it out"
        )
    elif values.dtype.kind == "M" or isinstance(example, date):
        what = "dates"
        advice = f"pass seconds, such as numpy.asarray({column}, 'M8[s]').astype('float64')"
    elif values.dtype.kind == "m" or isinstance(example, timedelta):
        what = "durations"
        advice = f"pass seconds, such as numpy.asarray({column}, 'm8[s]').astype('float64')"
    elif isinstance(example, time):
        what, advice = "times of the day", "pass seconds, or leave it out"
    else:
        kind = values.dtype.name if values.dtype.kind != "O" else type(example).__name__
        what, advice = kind, "convert it to numbers, or leave it out"
    gaps = _n_gaps(values)
    if gaps:
        advice = f"fill the gaps ({gaps} of them) first, then {advice}"
    shown = "" if example is None else f" ({str(example)[:40]!r} in row {row})"
    return InputError(
        f"expected real numbers, got {what}{where and f' in {where}'}{shown}; {advice}",
        argument=name,
    )
