"""Columns of text as what they spell: numbers, booleans and dates, or the words themselves."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from nnbackend.data.typed import NO_DATE, NO_WORD, TypedColumn
from nnbackend.errors import InputError

__all__ = [
    "GAPS",
    "KIND_WORDS",
    "as_kind",
    "dates_of",
    "gaps",
    "has_commas_in",
    "has_decimal_commas",
    "text_as",
    "text_column",
    "typed_text",
    "typed_words",
    "words_of",
]

_Array = np.ndarray[Any, Any]

# What stands for a gap in a file of text, unless it is quoted.
GAPS = ("", " ", "NA", "N/A", "n/a", "#N/A", "<NA>", "nan", "NaN", "NAN", "NaT", "null", "NULL",
        "Null", "None", "?", "-")  # fmt: skip

# What messages call columns of a kind.
KIND_WORDS = {"number": "numbers", "boolean": "booleans", "text": "text", "date": "dates"}

_BOOLEANS = {"true": 1.0, "false": 0.0}
_DIGIT_BOOLEANS = {"1": 1.0, "0": 0.0, "1.0": 1.0, "0.0": 0.0}

# Whatever the user's locale writes: 1,5 and 1.234,5, and no 1.234 alone, which is one and a bit.
_COMMA = r"^\s*[+-]?(\d+|\d{1,3}(\.\d{3})+,|\d*,)\d*([eE][+-]?\d+)?\s*$"
# Thousands as 1,234 or 1,234.5, where a comma is none of decimals.
_GROUPED = r"^[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?$"
_LEADING_ZERO = r"^\s*[+-]?0\d"
_DATE = re.compile(
    # The year last only with dots, which no country writes with the month first.
    r"(?:([0-9]{4})([-/.])([0-9]{2})\2([0-9]{2})|([0-9]{2})\.([0-9]{2})\.([0-9]{4}))"
    r"([T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:[.,][0-9]{1,6})?)?)?"
    # Parts of a microsecond are left out.
    r"(?:(?<=[.,][0-9]{6})[0-9]{1,3})?(Z|[+-][0-9]{2}(?::?[0-9]{2})?)?"
)


def typed_text(strings: Any, *, has_commas: bool = False) -> TypedColumn:
    """Return a column of text as what all of its values spell.

    Parameters
    ----------
    strings : pyarrow.ChunkedArray of string
        The column, null where there is a gap.
    has_commas : bool, default False
        Whether 1,5 is a number as well.

    Returns
    -------
    TypedColumn
        Numbers, unless one has a leading zero (a zip code), booleans, dates, or text.
    """
    if strings.null_count == len(strings):
        return gaps(len(strings))
    values = _numbers(strings, has_commas=has_commas)
    if values is not None and not _any_match(strings, _LEADING_ZERO):
        return TypedColumn("number", values)
    words = words_of(strings)
    marked = _blanks_as_gaps(words)
    return _translated(marked, _booleans(marked.words), "boolean") or typed_words(words)


def text_as(name: str, path: str, strings: Any, kind: str, *, has_commas: bool) -> TypedColumn:
    """Return a column of text as one of a kind that is known; see ``as_kind``."""
    if strings.null_count == len(strings):
        return gaps(len(strings), kind)
    values = _numbers(strings, has_commas=has_commas) if kind == "number" else None
    if values is not None:
        return TypedColumn("number", values)
    return as_kind(name, path, words_of(strings), kind, has_commas=has_commas)


def gaps(n_rows: int, kind: str | None = None) -> TypedColumn:
    """Return a column of nothing but gaps, which is one of any kind."""
    if kind == "text":
        return TypedColumn("text", np.full(n_rows, NO_WORD, np.int64))
    if kind == "date":
        return TypedColumn("date", np.full(n_rows, NO_DATE, np.int64))
    return TypedColumn(kind or "number", np.full(n_rows, np.nan))


def text_column(items: Sequence[str | None]) -> TypedColumn:
    """Return texts as a column, None and an empty one as gaps."""
    places: dict[str, int] = {}
    codes = [places.setdefault(item, len(places)) if item else -1 for item in items]
    return TypedColumn("text", np.asarray(codes, np.int64), tuple(places))


def typed_words(words: TypedColumn) -> TypedColumn:
    """Return a column of text as dates, if all of its words spell ones, or as it is."""
    if not words.words:
        return gaps(len(words.values))
    return dates_of(words) or words


def dates_of(words: TypedColumn, occurs: _Array | None = None) -> TypedColumn | None:
    """Return a column of text as dates; None unless all of its words spell ones.

    Parameters
    ----------
    words : TypedColumn
        The column.
    occurs : array (n_words,) of bool, optional
        Which of the words occur, where some may not.
    """
    if occurs is None or occurs.all():
        return _translated(words, _dates(words.words), "date")
    index = np.flatnonzero(occurs)
    dates = _dates(tuple(words.words[i] for i in index))
    if dates is None:
        return None
    values = np.full(len(words.words), NO_DATE, np.int64)
    values[index] = dates
    return _translated(words, values, "date")


def as_kind(
    name: str,
    path: str,
    column: TypedColumn,
    kind: str,
    *,
    has_commas: bool = False,
    first_row: int = 0,
) -> TypedColumn:
    """Return a column as one of a kind that is known.

    Text becomes what its words spell. Of other columns, gaps alone are of any kind, and 0 and 1
    are booleans as well.

    Parameters
    ----------
    name, path : str
        The column's name and its table's, for messages.
    column : TypedColumn
        The column.
    kind : {"number", "boolean", "text", "date"}
        The kind.
    has_commas : bool, default False
        Whether 1,5 is a number as well.
    first_row : int, default 0
        What rows are counted from.

    Raises
    ------
    InputError
        If a value is not of that kind.
    """
    if column.kind == kind:
        return column
    if column.kind == "text":
        column = _blanks_as_gaps(column)
    is_missing = column.is_missing
    if bool(is_missing.all()):
        return gaps(len(column.values), kind)
    found, odd = column, ~is_missing
    if column.kind == "text":
        found = _spelled(column, kind, has_commas=has_commas)
        odd &= found.is_missing
    elif {column.kind, kind} == {"boolean", "number"}:
        found = TypedColumn(kind, column.values)
        odd &= (column.values != 0) & (column.values != 1)
    if bool(odd.any()):
        raise _changed_kind(name, path, kind, column, int(np.argmax(odd)), first_row)
    return found


def _spelled(words: TypedColumn, kind: str, *, has_commas: bool) -> TypedColumn:
    """Return what words spell as numbers, booleans or dates; gaps for those that spell none."""
    found = _booleans(words.words) if kind == "number" else None
    if found is None and kind == "number":
        found = np.asarray([_number(word, has_commas=has_commas) for word in words.words])
    elif kind == "boolean":
        known = {**_BOOLEANS, **_DIGIT_BOOLEANS}
        found = np.asarray([known.get(word.strip().lower(), np.nan) for word in words.words])
    elif kind == "date":
        found = _dates(words.words, is_strict=False)
    return _translated(words, found, kind) or gaps(len(words.values), kind)


def _changed_kind(
    name: str, path: str, kind: str, column: TypedColumn, row: int, first_row: int
) -> InputError:
    """Return the error of a column that cannot be read as its kind, with a value that shows it."""
    return InputError(
        f"expected {KIND_WORDS[kind]} in column {name!r}, got {KIND_WORDS[column.kind]}, such as "
        f"{column.shown(row)} in data row {first_row + row + 1} of {path!r}; correct the column",
        argument="DATA",
    )


def words_of(strings: Any) -> TypedColumn:
    """Return a column of text as its words, in the order in which they come; an empty one is a gap.

    Parameters
    ----------
    strings : pyarrow.ChunkedArray
        Of strings, or a dictionary of strings.
    """
    import pyarrow as pa

    if not pa.types.is_dictionary(strings.type):
        strings = strings.dictionary_encode()
    strings = strings.unify_dictionaries()
    if strings.num_chunks == 0:
        return TypedColumn("text", np.empty(0, np.int64))
    dictionary = strings.chunk(0).dictionary
    # Gaps come last. A dictionary may have words that do not occur, one twice, and a gap.
    n_words = len(dictionary)
    parts = [chunk.indices.cast("int64").fill_null(n_words).to_numpy() for chunk in strings.chunks]
    indices = np.concatenate(parts)
    used = np.flatnonzero(np.bincount(indices, minlength=n_words)[:n_words])
    places: dict[str, int] = {}
    codes = np.full(n_words + 1, NO_WORD, np.int64)
    codes[used] = [
        places.setdefault(word, len(places)) if word else NO_WORD
        for word in dictionary.take(pa.array(used)).to_pylist()
    ]
    return TypedColumn("text", codes[indices], tuple(places))


def _blanks_as_gaps(words: TypedColumn) -> TypedColumn:
    """Return a column of text whose blank words, which spell nothing, are gaps."""
    kept = [bool(word.strip()) for word in words.words]
    if all(kept):
        return words
    # The last is what a gap stays.
    codes = np.append(np.where(kept, np.cumsum(kept) - 1, NO_WORD), NO_WORD)
    return TypedColumn("text", codes[words.values], tuple(itertools.compress(words.words, kept)))


def _dates(words: tuple[str, ...], *, is_strict: bool = True) -> _Array | None:
    """Return the dates that words spell, as int64 microseconds since 1970 (UTC).

    Those of ISO 8601, also with slashes or dots, and 31.12.2024.

    With ``is_strict`` None, unless all words do; otherwise ``NO_DATE`` for those that do not.
    """
    result = np.full(len(words), NO_DATE, np.int64)
    moments: dict[int, str] = {}
    offsets: dict[int, int] = {}
    for i, word in enumerate(words):
        found = _DATE.fullmatch(word.strip())
        # A zone is one of a time.
        if found is not None and (found[9] is None or found[8] is not None):
            year, month, day = found.group(1, 3, 4) if found[1] else found.group(7, 6, 5)
            moments[i] = f"{year}-{month}-{day}{(found[8] or '').replace(',', '.')}"
            offsets[i] = _offset(found[9])
        elif is_strict:
            return None
    places = list(moments)
    try:
        read = np.array(list(moments.values()), "M8[us]")
    except ValueError:  # the 30th of February
        if is_strict:
            return None
        read = np.array([_moment(moment) for moment in moments.values()])
    known = ~np.isnat(read)
    values = read.astype(np.int64) - np.asarray(list(offsets.values()), np.int64)
    result[places] = np.where(known, values, NO_DATE)
    return result


def _moment(spelled: str) -> Any:
    """Return a date of numpy; NaT for one that no calendar has."""
    try:
        return np.datetime64(spelled, "us")
    except ValueError:
        return np.datetime64("NaT", "us")


def has_decimal_commas(strings: Any) -> bool:
    """Whether a column is one of numbers with a decimal comma."""
    return has_commas_in(strings) and _numbers(strings, has_commas=True) is not None


def has_commas_in(strings: Any) -> bool:
    """Whether there is a comma in a value of a column."""
    return strings.null_count < len(strings) and _any_match(strings, ",")


def _numbers(strings: Any, *, has_commas: bool) -> _Array | None:
    """Return the numbers that all of a column's values spell, or None."""
    import pyarrow as pa
    import pyarrow.compute as pc

    # Most columns of text are known by their first values.
    for sample in (strings.slice(0, 100), strings):
        try:
            numbers = pc.cast(sample, pa.float64())
        except pa.ArrowInvalid:
            plain = pc.utf8_trim_whitespace(sample)
            # Files that quote every value quote gaps as well.
            plain = pc.if_else(pc.equal(plain, ""), pa.scalar(None, plain.type), plain)
            if not has_commas:
                is_grouped = pc.match_substring_regex(plain, _GROUPED)
                plain = pc.if_else(is_grouped, pc.replace_substring(plain, ",", ""), plain)
            elif bool(pc.all(pc.match_substring_regex(plain, _COMMA)).as_py()):
                plain = pc.replace_substring(pc.replace_substring(plain, ".", ""), ",", ".")
            try:
                numbers = pc.cast(plain, pa.float64())
            except pa.ArrowInvalid:
                return None
    if numbers.null_count == len(numbers):  # blanks alone
        return None
    values = numbers.fill_null(np.nan).to_numpy()
    return np.array(values, np.float64)


def _number(word: str, *, has_commas: bool) -> float:
    """Return the number that a word spells, or NaN."""
    plain = word.strip()
    if has_commas and re.match(_COMMA, plain):
        plain = plain.replace(".", "").replace(",", ".")
    elif not has_commas and re.match(_GROUPED, plain):
        plain = plain.replace(",", "")
    if "_" in plain:
        return np.nan
    try:
        return float(plain)
    except ValueError:
        return np.nan


def _any_match(strings: Any, pattern: str) -> bool:
    import pyarrow.compute as pc

    return bool(pc.any(pc.match_substring_regex(strings, pattern)).as_py())


def _booleans(words: tuple[str, ...]) -> _Array | None:
    if not 0 < len(words) <= 2 * 3:  # true, True and TRUE
        return None
    found = [_BOOLEANS.get(word.lower()) for word in words]
    return None if None in found else np.asarray(found)


def _translated(words: TypedColumn, values: _Array | None, kind: str) -> TypedColumn | None:
    """Return a column of text with a value in place of each word; None if there are no values."""
    if values is None:
        return None
    gap: Any = NO_DATE if kind == "date" else np.nan
    return TypedColumn(kind, np.append(values, np.asarray(gap, values.dtype))[words.values])


def _offset(zone: str | None) -> int:
    """Return a time zone's microseconds before UTC."""
    if zone is None or zone == "Z":
        return 0
    digits = zone[1:].replace(":", "")
    minutes = 60 * int(digits[:2]) + int(digits[2:] or 0)
    return (-1 if zone[0] == "-" else 1) * 60_000_000 * minutes
