"""Columns of arrays and of Python's objects as typed columns: numbers, booleans, text or dates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np

from nnbackend.data.typed import NO_DATE, NO_WORD, TypedColumn
from nnbackend.errors import InputError

__all__ = ["Place", "dates", "encoded", "number_column", "seconds", "text", "typed_array"]

_Array = np.ndarray[Any, Any]

# Microseconds of a unit of time; of those below one, how many of them a microsecond has.
_MICROSECONDS = {"us": 1, "ms": 10**3, "s": 10**6, "m": 60 * 10**6, "h": 3600 * 10**6}
_MICROSECONDS |= {"D": 86400 * 10**6, "W": 7 * 86400 * 10**6}
_PARTS = {"ns": 10**3, "ps": 10**6, "fs": 10**9, "as": 10**12}

_GAPS = ("NoneType", "NAType", "NaTType")


@dataclass(frozen=True)
class Place:
    """Where a column stands, for messages.

    Attributes
    ----------
    argument : str
        The argument that the table was given as.
    column : str
        The column's name.
    """

    argument: str
    column: str

    def refusal(self, found: str, advice: str, example: Any = None, row: int = 0) -> InputError:
        """Return the error of a column that is of no kind."""
        shown = "" if example is None else f" ({str(example)[:40]!r} in row {row})"
        return InputError(
            f"expected numbers, booleans, text or dates in column {self.column!r}, got "
            f"{found}{shown}; {advice}",
            argument=self.argument,
        )


def typed_array(place: Place, values: _Array) -> TypedColumn:
    """Return a column of an array of whatever dtype.

    Parameters
    ----------
    place : Place
        Where it stands, for messages.
    values : array (n_rows,)
        Numbers, dates, text or Python's objects.

    Raises
    ------
    InputError
        If it holds anything else.
    """
    kind = values.dtype.kind
    if values.ndim > 1:
        raise place.refusal(f"arrays of {values.shape[1:]}", "make columns of them")
    if kind == "b":
        return TypedColumn("boolean", values.astype(np.float64))
    if kind in "iuf":
        return number_column(values)
    if kind in "mM":
        unit, step = np.datetime_data(values.dtype)
        if unit in ("Y", "M"):
            values, unit, step = values.astype(f"{kind}8[D]"), "D", 1
        make = seconds if kind == "m" else dates
        return make(place, values.astype(np.int64), unit, step)
    if kind in "US":
        return text(place, *encoded(values.tolist()))
    if kind in "OT":
        return _typed_objects(place, values.tolist())
    if kind == "c":
        raise place.refusal("complex numbers (Complex data not supported)", "make columns of parts")
    advice = "make columns of its parts" if kind == "V" else "convert it to numbers"
    raise place.refusal(f"dtype {values.dtype}", f"{advice}, or leave it out")


def number_column(values: _Array) -> TypedColumn:
    """Return a column of numbers, whose gaps are NaN."""
    return TypedColumn("number", values.astype(np.float64, copy=False))


def dates(place: Place, values: _Array, unit: str, step: int = 1) -> TypedColumn:
    """Return a column of dates.

    Parameters
    ----------
    place : Place
        Where it stands, for messages.
    values : array (n_rows,) of int64
        The time since 1970, ``NO_DATE`` where there is a gap.
    unit : str
        A unit of NumPy's of a week or less, such as "ms".
    step : int
        How many of these units make 1.

    Raises
    ------
    InputError
        If int64 does not hold the microseconds.
    """
    gap = values == NO_DATE
    if unit in _PARTS:
        result = (
            np.floor_divide(values, _PARTS[unit]) if step == 1 else values * step // _PARTS[unit]
        )
    else:
        factor = step * _MICROSECONDS[unit]
        limit = np.iinfo(np.int64).max // factor
        beyond = ~gap & ((values > limit) | (values < -limit))
        if beyond.any():
            row = int(np.argmax(beyond))
            raise place.refusal(
                "a date that is more than 292000 years away", "remove it", int(values[row]), row
            )
        result = values * factor
    result[gap] = NO_DATE
    return TypedColumn("date", result)


def seconds(place: Place, values: _Array, unit: str, step: int = 1) -> TypedColumn:
    """Return durations, or times since midnight, as a column of numbers of seconds.

    The parameters are those of ``dates``.
    """
    del place  # as for dates
    # The divisor is a whole number, so that a second is one exactly.
    if unit in _PARTS:
        result = values * float(step) / (_PARTS[unit] * 10.0**6)
    else:
        result = values * float(step * _MICROSECONDS[unit]) / 10.0**6
    result[values == NO_DATE] = np.nan
    return number_column(result)


def encoded(items: Sequence[Any]) -> tuple[_Array, list[Any]]:
    """Return, for each item, the index of what it equals among the different ones, and these."""
    index = {item: i for i, item in enumerate(dict.fromkeys(items))}
    codes = np.fromiter(map(index.__getitem__, items), np.int64, len(items))
    return codes, list(index)


def text(place: Place, codes: _Array, values: Sequence[Any]) -> TypedColumn:
    """Return a column of text, whatever its words spell: a part of a column cannot tell.

    Parameters
    ----------
    place : Place
        Where it stands, for messages.
    codes : array (n_rows,) of integers
        The index of each row's value; negative where there is a gap.
    values : sequence
        What the codes stand for: text, bytes in UTF-8, gaps, and what ``str`` makes text of. Equal
        ones become one word, and those that do not occur none.

    Raises
    ------
    InputError
        If text is not UTF-8, or a value is a list, an array or another object.
    """
    codes = codes.astype(np.int64, copy=False)
    present = codes >= 0
    occurs = np.bincount(codes[present], minlength=len(values)) > 0
    places: dict[str, int] = {}
    new = np.full(len(values) + 1, NO_WORD, np.int64)
    for i in np.flatnonzero(occurs).tolist():
        if not _is_gap(values[i]):
            word = _word(place, values[i], codes, i)
            if word:
                new[i] = places.setdefault(word, len(places))
    words = tuple(places)
    # The last of ``new`` is what a negative code becomes.
    result = new[np.where(present, codes, len(values))]
    if not words:
        return number_column(np.full(len(codes), np.nan))
    return TypedColumn("text", result, words)


def _word(place: Place, value: Any, codes: _Array, code: int) -> str:
    """Return a value as text."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            # A model file that has learnt it could not be read.
            found, advice = "text that UTF-8 cannot hold", "read it with errors='replace'"
            row = int(np.argmax(codes == code))
            raise place.refusal(found, f"{advice} ({error.reason})", ascii(value), row) from error
        return str(value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            advice = f"decode it first ({error.reason} at byte {error.start})"
            row = int(np.argmax(codes == code))
            raise place.refusal("bytes that are not UTF-8", advice, value, row) from error
    if _family(type(value)) == "number" and not isinstance(value, Decimal) and abs(value) < 2**53:
        whole = math.trunc(value)
        return str(whole if whole == value else value)
    return str(value)


def _family(kind: type) -> str:
    """Return which kind of column objects of a type make; empty for one of none."""
    if kind.__name__ in _GAPS:
        return "gap"
    families: dict[str, Any] = {
        "text": str | bytes,
        "boolean": bool | np.bool_,
        "duration": timedelta | np.timedelta64,
        "number": Real | Decimal,
        "date": date | np.datetime64,
        "time": time,
    }
    for family, types in families.items():
        if issubclass(kind, types):
            return family
    # A period of pandas.
    return "date" if hasattr(kind, "to_timestamp") and kind.__name__ == "Period" else ""


def _is_gap(item: Any) -> bool:
    if isinstance(item, float | np.floating):
        return bool(np.isnan(item))
    if isinstance(item, np.datetime64 | np.timedelta64):
        return bool(np.isnat(item))
    if isinstance(item, Decimal):
        return item.is_nan()
    return type(item).__name__ in _GAPS or (isinstance(item, str | bytes) and not item)


def _typed_objects(place: Place, items: list[Any]) -> TypedColumn:
    """Return a column of Python's objects, by what they are apart from gaps."""
    families = {kind: _family(kind) for kind in set(map(type, items))}
    unknown = next((kind for kind, family in families.items() if not family), None)
    if unknown is not None:
        row = next(i for i, item in enumerate(items) if type(item) is unknown)
        raise place.refusal(
            f"objects of type {unknown.__name__}",
            "make columns of numbers or text of it, or leave it out",
            items[row],
            row,
        )
    found = set(families.values()) - {"gap"}
    if len(found) > 1:
        # NaN stands for a gap next to dates and text, and an empty text next to numbers.
        others = (item for item in items if type(item) is not str)
        found = {families[type(item)] for item in others if not _is_gap(item)}
        if str in families and any(item for item in items if type(item) is str):
            found.add("text")
    if "text" in found:
        # Equal ones of different types, such as 1 and True, are different words.
        alike = len(found) == 1
        return text(place, *encoded(items if alike else [_shown(place, item) for item in items]))
    if found <= {"number", "boolean"}:
        return _typed_numbers(place, items, "boolean" if found == {"boolean"} else "number")
    if len(found) > 1:
        names = sorted(found)
        row = next(
            i for i, item in enumerate(items)
            if families[type(item)] == names[1] and not _is_gap(item)
        )  # fmt: skip
        raise place.refusal(
            f"a mixture of {names[0]}s and {names[1]}s", "make them alike", items[row], row
        )
    codes, values = encoded(items)
    known: Callable[[Any], int] = {"date": _instant, "duration": _duration, "time": _time}[
        found.pop()
    ]
    instants = [NO_DATE if _is_gap(value) or value == "" else known(value) for value in values]
    column = np.array(instants, np.int64)[codes]
    if known is _instant:
        return TypedColumn("date", column)
    return seconds(place, column, "us")


def _shown(place: Place, item: Any) -> str:
    return "" if _is_gap(item) else _word(place, item, np.zeros(1, np.int64), 0)


def _typed_numbers(place: Place, items: Iterable[Any], kind: str) -> TypedColumn:
    try:
        values = [np.nan if item is None or _is_gap(item) else float(item) for item in items]
    except (OverflowError, ValueError) as error:  # an integer of 400 digits
        raise place.refusal(f"a number that float64 does not hold ({error})", "scale it") from error
    return TypedColumn(kind, np.asarray(values, np.float64))


def _instant(value: Any) -> int:
    if hasattr(value, "to_timestamp") and not isinstance(value, date):
        value = value.to_timestamp()
    if isinstance(value, np.datetime64):
        return int(value.astype("M8[us]").astype(np.int64))
    if isinstance(value, datetime) and value.tzinfo is not None:
        value = value.astimezone(UTC).replace(tzinfo=None)
    if not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)  # noqa: DTZ001
    return int(np.datetime64(value.replace(), "us").astype(np.int64))


def _duration(value: Any) -> int:
    return int(np.timedelta64(value, "us").astype(np.int64))


def _time(value: time) -> int:
    return 10**6 * (3600 * value.hour + 60 * value.minute + value.second) + value.microsecond
