"""Columns of Arrow, in whatever type they are stored, as typed columns."""

from __future__ import annotations

from typing import Any

from nnbackend.data import library_columns
from nnbackend.data.classify import Place
from nnbackend.data.text_columns import as_kind, gaps, words_as, words_of
from nnbackend.data.typed import TypedColumn

__all__ = ["is_plain", "is_text", "typed_arrow"]


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
    found = library_columns.typed_arrow(Place("DATA", name), column)
    return found if kind is None else as_kind(name, path, found, kind)


def is_text(kind: Any) -> bool:
    """Whether a type of Arrow is one of text."""
    import pyarrow.types as pt

    return bool(pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind))
