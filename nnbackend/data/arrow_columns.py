"""Columns of Arrow, in whatever type they are stored, as typed columns."""

from __future__ import annotations

from typing import Any

import numpy as np

from nnbackend.data.classify import Place, dates
from nnbackend.data.text_columns import as_kind, gaps, words_as, words_of
from nnbackend.data.typed import NO_DATE, TypedColumn

__all__ = ["is_plain", "is_text", "typed_arrow"]

_TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def is_plain(kind: Any) -> bool:
    """Whether a type of Arrow is one of numbers, booleans, text or dates."""
    import pyarrow.types as pt

    if pt.is_dictionary(kind):
        return is_plain(kind.value_type)
    checks = (pt.is_null, pt.is_boolean, pt.is_integer, pt.is_floating, pt.is_decimal, pt.is_date,
              pt.is_timestamp, pt.is_duration, pt.is_time)  # fmt: skip
    return is_text(kind) or any(check(kind) for check in checks)


def typed_arrow(name: str, path: str, column: Any, kind: str | None = None) -> TypedColumn:
    """Return a column whose type is plain.

    Decimals and integers become the nearest float64, durations and times of the day seconds. Text
    is text, whatever it spells, unless ``kind`` says otherwise: what becomes of a column depends
    on its type alone, and not on which of its rows are there.

    Parameters
    ----------
    name, path : str
        The column's name and its file's, for messages.
    column : pyarrow.ChunkedArray
        The column; null is a gap.
    kind : str, optional
        The kind that it has to be.

    Raises
    ------
    InputError
        If it is not of that kind, or holds a date that microseconds do not reach.
    """
    import pyarrow as pa
    import pyarrow.types as pt

    if pt.is_dictionary(column.type) and not is_text(column.type.value_type):
        column = column.cast(column.type.value_type)
    if column.null_count == len(column):
        return gaps(len(column), kind)
    if pt.is_dictionary(column.type) or is_text(column.type):
        is_words = pt.is_dictionary(column.type)
        words = words_of(column if is_words else column.cast(pa.string()))
        if kind is not None:
            return words_as(name, path, words, kind)
        return words if words.words else gaps(len(column))
    found = _stored(Place("DATA", name), column)
    return found if kind is None else as_kind(name, path, found, kind)


def _stored(place: Place, column: Any) -> TypedColumn:
    """Return a column that is none of text as what it is stored as."""
    import pyarrow as pa
    import pyarrow.types as pt

    kind = column.type
    if pt.is_boolean(kind):
        return TypedColumn("boolean", _floats(column.cast(pa.int8()).cast(pa.float64())))
    if pt.is_date(kind):
        is_days = kind.bit_width == 32
        ticks = column.cast(pa.int32() if is_days else pa.int64())
        return dates(place, _integers(ticks), "D" if is_days else "ms")
    if pt.is_timestamp(kind):
        return dates(place, _integers(column), kind.unit)
    if pt.is_duration(kind) or pt.is_time(kind):
        width = pa.int32() if kind.bit_width == 32 else pa.int64()
        return TypedColumn("number", _floats(column.cast(width)) / _TICKS[kind.unit])
    return TypedColumn("number", _floats(column))


def is_text(kind: Any) -> bool:
    """Whether a type of Arrow is one of text."""
    import pyarrow.types as pt

    return bool(pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind))


def _floats(column: Any) -> np.ndarray[Any, Any]:
    import pyarrow as pa

    # Integers beyond 2**53 are rounded.
    values = column.cast(pa.float64(), safe=False).fill_null(np.nan)
    return np.array(values.to_numpy(), np.float64)


def _integers(column: Any) -> np.ndarray[Any, Any]:
    import pyarrow as pa

    return np.array(column.cast(pa.int64()).fill_null(NO_DATE).to_numpy(), np.int64)
