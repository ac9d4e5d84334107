"""Columns of pandas, polars and Arrow as typed columns.

Each library is used by the public methods of what the caller gave; none is imported here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nnbackend.data.classify import (
    Place,
    dates,
    number_column,
    seconds,
    text,
    typed_array,
)
from nnbackend.data.typed import NO_DATE, NO_WORD, TypedColumn

__all__ = ["typed_arrow", "typed_pandas", "typed_polars"]

_Array = np.ndarray[Any, Any]

_ADVICE = "make columns of its parts, or leave it out"


def typed_pandas(place: Place, column: Any) -> TypedColumn:
    """Return a column of pandas as a typed column."""
    dtype = column.dtype
    if hasattr(dtype, "pyarrow_dtype"):
        return typed_arrow(place, column.array.__arrow_array__())
    if hasattr(dtype, "categories"):
        return text(place, column.cat.codes.to_numpy(), list(column.cat.categories))
    if hasattr(dtype, "storage"):  # text
        codes, words = column.factorize()
        return text(place, codes, list(words))
    plain = None if isinstance(dtype, np.dtype) else getattr(dtype, "numpy_dtype", None)
    if plain is not None and plain.kind in "biuf":
        values = column.to_numpy(dtype=np.float64, na_value=np.nan)
        return TypedColumn("boolean" if plain.kind == "b" else "number", values)
    if hasattr(dtype, "tz"):
        column = column.dt.tz_convert("UTC").dt.tz_localize(None)
    elif str(dtype).startswith("period"):
        column = column.dt.to_timestamp()
    return typed_array(place, np.asarray(column))


def typed_polars(place: Place, column: Any) -> TypedColumn:
    """Return a column of polars as a typed column."""
    dtype = column.dtype
    name = str(dtype).partition("(")[0]
    if dtype.is_nested():
        raise place.refusal(str(dtype), _ADVICE)
    if dtype.is_numeric() or name in ("Boolean", "Null"):
        values = column.cast(float).to_numpy()
        return TypedColumn("boolean", values) if name == "Boolean" else number_column(values)
    if name in ("Date", "Datetime", "Duration", "Time"):
        ticks = column.to_physical().cast(int).fill_null(NO_DATE).to_numpy()
        unit = getattr(dtype, "time_unit", None) or ("D" if name == "Date" else "ns")
        make = dates if name.startswith("Date") else seconds
        return make(place, ticks, unit)
    if name in ("String", "Categorical", "Enum", "Binary"):
        column = column if name in ("String", "Binary") else column.cast(str)
        words = column.unique()
        codes = column.replace_strict(words, np.arange(len(words)))
        return text(place, codes.to_numpy(), words.to_list())
    return typed_array(place, np.asarray(column.to_list(), object))


def typed_arrow(place: Place, column: Any) -> TypedColumn:
    """Return an array of Arrow, in chunks or not, as a typed column."""
    type_ = column.type
    if hasattr(type_, "storage_type"):
        type_ = type_.storage_type
        column = column.cast(type_)
    name = str(type_)
    if name == "bool":
        return TypedColumn("boolean", _floats(column))
    if name.startswith(("int", "uint", "float", "double", "halffloat", "decimal", "null")):
        return number_column(_floats(column))
    if name.startswith(("timestamp", "date", "duration", "time")):
        # Times of 32 bits are not cast to 64 by Arrow at once.
        narrow = "int32" if name.startswith(("date32", "time32")) else "int64"
        ticks = column.cast(narrow).cast("int64").fill_null(NO_DATE)
        unit = name.partition("[")[2].rstrip("]").partition(",")[0]
        make = dates if name.startswith(("timestamp", "date")) else seconds
        return make(
            place, ticks.to_numpy(zero_copy_only=False).copy(), "D" if unit == "day" else unit
        )
    is_dictionary = name.startswith("dictionary")
    if not is_dictionary and not name.startswith(
        ("string", "large_string", "binary", "large_binary", "fixed_size_binary")
    ):
        raise place.refusal(name, _ADVICE)
    if not is_dictionary:
        column = column.dictionary_encode()
    codes = [np.empty(0, np.int64)]
    words: list[Any] = []
    dictionary, offset = None, 0
    for chunk in getattr(column, "chunks", [column]):
        if dictionary is None or not chunk.dictionary.equals(dictionary):
            dictionary, offset = chunk.dictionary, len(words)
            try:
                words += dictionary.to_pylist()
            except UnicodeDecodeError as error:
                advice = f"decode it first ({error.reason})"
                raise place.refusal("text that is not UTF-8", advice) from error
        own = chunk.indices.cast("int64").fill_null(NO_WORD).to_numpy(zero_copy_only=False)
        codes.append(np.where(own < 0, NO_WORD, own + offset))
    return text(place, np.concatenate(codes), words)


def _floats(column: Any) -> _Array:
    values = column.cast("double", safe=False)
    # The float is what a gap is converted to.
    return np.asarray(values.to_numpy(zero_copy_only=False), np.float64)
