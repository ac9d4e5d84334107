"""Learn in one pass over a table what each of its columns becomes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from nnbackend.checks import nearest
from nnbackend.core.encoding import DATE_PARTS, DateEncoding, NumberEncoding, year_and_day
from nnbackend.core.standardization import Moments, Standardization
from nnbackend.data.encoding import (
    Categories,
    ColumnEncoding,
    Dates,
    Dropped,
    Numbers,
    TableEncoding,
    converted,
)
from nnbackend.data.text_columns import as_kind, dates_of, gaps
from nnbackend.data.typed import NO_DATE, Table, TypedColumn
from nnbackend.errors import InputError

__all__ = ["BECOMES", "EncodingOptions", "Survey"]

_Array = np.ndarray[Any, Any]

# What ``columns=`` can ask for.
BECOMES = ("number", "category", "boolean", "date", "drop")

# Rows of the sample from which medians, quartiles and the parts of dates are taken.
_SAMPLE = 2**16

# Different values of a column that are counted; the rarest are forgotten beyond.
_MOST_VALUES = 100_000

# Rare values that are remembered as such.
_MOST_RARE = 10_000

# A text that differs in each of so many rows, or more, tells rows apart and nothing else.
_FEWEST_IDENTIFIERS = 20

# Names of columns of row numbers, as pandas, R and databases write them.
_IDENTIFIER = re.compile(
    r"(unnamed: ?\d+|index|row[._ ]?(names?|id|num|number|nr)?|(.*[._ ])?id|)", re.IGNORECASE
)

# Beyond this, sums and differences may overflow.
_LARGEST = float(np.finfo(np.float64).max)
_HUGE = _LARGEST / 4

# Numbers this much apart, as a share of their size, are equal but for rounding.
_ROUNDING = 4 * float(np.finfo(np.float64).eps)

_DAY = 86_400_000_000
_YEAR = 366 * _DAY


@dataclass(frozen=True, kw_only=True)
class EncodingOptions:
    """How columns are encoded.

    Attributes
    ----------
    columns : mapping of str to str
        What columns become, for those that are not to be decided by what they hold.
    squash : bool
        Whether heavy tails of numbers are squashed.
    min_frequency : int or None
        In how many rows a value of a category has to be for an input of its own; None: in 10, or
        in a hundredth of the rows if that is less, but in 2.
    max_categories : int
        The most values of a category with an input of their own.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    squash: bool = True
    min_frequency: int | None = None
    max_categories: int = 100


class Survey:
    """What is known of a table's columns after some of its rows; ``encoding`` decides.

    The rows may come in any number of blocks, of which nothing is kept but counts, moments and a
    sample of 65 536 rows, drawn by the rows' numbers. It is exact for a table of that many rows or
    fewer, and the result does not depend on how rows were split into blocks, but for the rounding
    of means and deviations, and in columns of more than 100 000 different values, of which the
    rarest are forgotten on the way.

    Parameters
    ----------
    options : EncodingOptions
        How columns are encoded.
    """

    def __init__(self, options: EncodingOptions) -> None:
        self._options = options
        self._n_rows = 0
        self._columns: dict[str, _Column] | None = None
        self._priority = np.empty(0, np.uint64)
        self._limit = np.uint64(2**64 - 1)

    def update(self, table: Table) -> None:
        """Take further rows into account.

        Raises
        ------
        InputError
            If a column is not what it was in the rows before, cannot become what is asked, or
            holds an infinite number.
        """
        if self._columns is None:
            if not table.columns:
                raise InputError(
                    f"expected a table of columns, got 0 feature(s) (shape=({table.n_rows}, 0)) "
                    "while a minimum of 1 is required.",
                    argument=table.name,
                )
            self._require_known(table)
            self._columns = {
                name: _Column(name, self._options.columns.get(name)) for name in table.columns
            }
        table = replace(table.only(self._columns), first_row=self._n_rows)
        priority = _shuffled(np.arange(self._n_rows, self._n_rows + table.n_rows, dtype=np.uint64))
        is_chosen = priority < self._limit
        self._priority = np.concatenate([self._priority, priority[is_chosen]])
        for column in self._columns.values():
            column.update(table, is_chosen)
        self._n_rows += table.n_rows
        if len(self._priority) > _SAMPLE + _SAMPLE // 4:
            self._thin_out()

    def encoding(self) -> TableEncoding:
        """Return the encoding of a table with these rows.

        Raises
        ------
        InputError
            If there is no row, or no column is left.
        """
        if self._columns is None or self._n_rows == 0:
            raise InputError("expected a table of at least one row, got none", argument="X")
        if len(self._priority) > _SAMPLE:
            self._thin_out()
        columns = tuple(c.decided(self._options, self._n_rows) for c in self._columns.values())
        encoding = TableEncoding(columns)
        if encoding.n_outputs == 0 and self._n_rows == 1:
            raise InputError("expected rows that differ, got one row (n_samples = 1)", argument="X")
        if encoding.n_outputs == 0:
            reasons = "; ".join(f"{c.name!r} {c.description}" for c in columns[:4])
            raise InputError(
                f"expected a column that tells rows apart, got {reasons or 'no column'}; say that "
                "one is a 'number' or a 'category' to keep it",
                argument="columns",
            )
        return encoding

    def _require_known(self, table: Table) -> None:
        for name, becomes in self._options.columns.items():
            if name not in table.columns:
                raise InputError(
                    f"expected names of columns, got {name!r}{nearest(name, table.columns)}",
                    argument="columns",
                )
            if becomes not in BECOMES:
                raise InputError(
                    f"expected one of {', '.join(map(repr, BECOMES))} for {name!r}, got "
                    f"{becomes!r}{nearest(str(becomes), BECOMES)}",
                    argument="columns",
                )

    def _thin_out(self) -> None:
        """Keep the rows of the sample that come first in the random order."""
        self._limit = np.partition(self._priority, _SAMPLE)[_SAMPLE]
        is_kept = self._priority < self._limit
        self._priority = self._priority[is_kept]
        for column in (self._columns or {}).values():
            column.thin_out(is_kept)


def _shuffled(numbers: _Array) -> _Array:
    """Return a random-looking number for each number, all different (splitmix64)."""
    x = numbers + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return x ^ (x >> np.uint64(31))


class _Column:
    """What is known of one column.

    Text is counted by its words, and, as long as all of them spell dates, seen as dates as well:
    which of the two it is, is known only at the end.
    """

    def __init__(self, name: str, asked: str | None) -> None:
        self.name, self.asked = name, asked
        self.kind: str | None = None
        self.n_missing = 0
        self.counts: Counter[Any] = Counter()
        self.forgets = False
        self.moments: Moments | None = None
        self.is_whole = True
        # Of the rows of the sample the numbers, or dates; None for categories, which need none.
        self.sample: list[TypedColumn] | None = None if asked in ("category", "drop") else []

    def update(self, table: Table, is_chosen: _Array) -> None:
        """Take further rows into account."""
        column = table.columns[self.name]
        if self.asked == "drop" and self.kind is not None:
            return
        is_missing = column.is_missing
        n_missing = int(is_missing.sum())
        self.n_missing += n_missing
        if n_missing == len(is_missing):
            if self.sample is not None:
                self.sample.append(gaps(int(is_chosen.sum())))
            return
        self._learn_kind(column, int(np.argmin(is_missing)), table)
        if self.asked == "drop":
            return
        if column.kind == "text" and self.asked in (None, "category"):
            words = column.values[~is_missing] if n_missing else column.values
            counts = np.bincount(words, minlength=len(column.words))
            self._count(column.words, counts)
            dates = None if self.sample is None else dates_of(column, counts > 0)
            if dates is None:
                self.sample = self.moments = None
                return
            column = dates
        else:
            becomes = self.asked if self.asked in ("number", "boolean", "date") else column.kind
            column = converted(self.name, table, becomes)
        present = column.values[~is_missing] if n_missing else column.values
        if self.asked == "category":
            self._count(*(x.tolist() for x in np.unique(present, return_counts=True)))
            return
        moments = Moments.of(np, present[:, None])
        self.moments = self.moments.merge(np, moments) if self.moments else moments
        self.is_whole &= column.kind != "number" or bool((present == np.floor(present)).all())
        if self.sample is not None:
            self.sample.append(column.take(is_chosen))

    def thin_out(self, is_kept: _Array) -> None:
        """Keep some rows of the sample."""
        if self.sample is not None:
            self.sample = [self._sampled().take(is_kept)]

    def decided(self, options: EncodingOptions, n_rows: int) -> ColumnEncoding:
        """Return what the column becomes."""
        kind, name = self.kind or "number", self.name
        if self.asked == "drop":
            return Dropped(name, kind, "as asked")
        if self.n_missing == n_rows:
            return Dropped(name, kind, "all missing")
        decide: Callable[..., ColumnEncoding]
        if self.sample is None:
            decide = self._category
        elif self._sampled().kind == "date":
            decide = self._date
        else:
            decide = self._number
        return decide(options, n_rows)

    def _sampled(self) -> TypedColumn:
        """Return the rows of the sample as one column; a part of gaps alone is one of any kind."""
        parts = self.sample or []
        kind = next((part.kind for part in parts if not part.is_missing.all()), None)
        kind = kind or next((part.kind for part in parts if part.kind != "number"), "number")
        parts = [as_kind(self.name, "", part, kind) for part in parts]
        return TypedColumn(kind, np.concatenate([part.values for part in parts]))

    def _learn_kind(self, column: TypedColumn, row: int, table: Table) -> None:
        """Raise an InputError if the column cannot become what is asked, or was of another kind."""
        if self.kind is None:
            self._require_possible(column, table.name, table.first_row + row)
            self.kind = column.kind
        elif column.kind != self.kind:
            raise InputError(
                f"expected one kind of values in column {self.name!r}, got {self.kind} at first, "
                f"and {column.kind} ({column.shown(row)}) in row {table.first_row + row}; convert "
                "it",
                argument=table.name,
            )

    def _require_possible(self, column: TypedColumn, argument: str, row: int) -> None:
        possible = {
            "number": ("number", "category"),
            "boolean": ("boolean", "number", "category"),
            "text": ("category", "number", "date", "boolean"),
            "date": ("date",),
        }[column.kind]
        if self.asked not in (None, "drop", *possible):
            raise InputError(
                f"expected one of {', '.join(map(repr, possible))} or 'drop' for {self.name!r}, "
                f"which holds {column.kind} ({column.shown(row)} in row {row} of {argument}), got "
                f"{self.asked!r}",
                argument="columns",
            )

    def _count(self, values: Any, counts: Any) -> None:
        for value, count in zip(values, counts, strict=True):
            if count:
                self.counts[value] += int(count)
        if len(self.counts) > _MOST_VALUES:
            self.forgets = True
            self.counts = Counter(dict(self.counts.most_common(_MOST_VALUES // 2)))

    def _category(self, options: EncodingOptions, n_rows: int) -> ColumnEncoding:
        kind, name = str(self.kind), self.name
        counts = self.counts
        n_present = n_rows - self.n_missing
        if self.asked is None:
            if len(counts) == 1 and not self.n_missing:
                return Dropped(name, kind, f"constant ({next(iter(counts))!r})")
            if n_present >= _FEWEST_IDENTIFIERS and len(counts) == n_present and not self.forgets:
                return Dropped(name, kind, "a value of its own in every row")
        fewest = options.min_frequency
        if fewest is None:
            fewest = max(2, min(10, -(-n_rows // 100)))
        # Of values that are equally frequent, the first in order, however the rows were split.
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        kept = [value for value, n in ordered if n >= fewest][: options.max_categories]
        if not kept and (self.asked is None or self.forgets):
            n_values = f"more than {_MOST_VALUES}" if self.forgets else f"{len(counts)}"
            return Dropped(name, kind, f"{n_values} values, none of them in {fewest} rows or more")
        rare = sorted(value for value, _ in ordered[len(kept) :][:_MOST_RARE])
        return Categories(name, kind, tuple(sorted(kept)), tuple(rare), self.n_missing > 0)

    def _number(self, options: EncodingOptions, n_rows: int) -> ColumnEncoding:
        kind, name, moments = self.asked or str(self.kind), self.name, self.moments
        assert moments is not None  # noqa: S101 - a column of gaps was left out before
        values = self._sampled().values
        sample = values[~np.isnan(values)]
        lowest, highest = float(moments.lowest[0]), float(moments.highest[0])
        has_gaps = self.n_missing > 0
        if lowest == highest:
            if not has_gaps and self.asked is None:
                shown = str(bool(lowest)) if kind == "boolean" else f"{lowest:g}"
                return Dropped(name, kind, f"constant ({shown})")
            if self.asked is None:
                return Categories(name, kind, (lowest,), (), marks_gaps=True)
        if kind == "boolean":
            return Numbers(name, kind, NumberEncoding(0.5, 0.5, 0.5, marks_gaps=has_gaps))
        if self.asked is None and self._counts_rows(sample, lowest, highest, n_rows):
            return Dropped(name, kind, "row numbers, a value of its own in every row")
        return Numbers(
            name, kind, _scaled(moments, sample, squash=options.squash, marks_gaps=has_gaps)
        )

    def _counts_rows(self, sample: _Array, lowest: float, highest: float, n_rows: int) -> bool:
        """Whether whole numbers, each of them once, only tell rows apart.

        They do if they go from 0 or 1 to little beyond the number of rows (a part of a table has a
        part of its rows' numbers), or if the column's name says so.
        """
        if not self.is_whole or self.n_missing or n_rows < _FEWEST_IDENTIFIERS:
            return False
        is_dense = 0 <= lowest <= n_rows / 10 and highest < 2 * n_rows + lowest
        is_named = _IDENTIFIER.fullmatch(self.name) is not None
        return (is_dense or is_named) and len(np.unique(sample)) == len(sample)

    def _date(self, options: EncodingOptions, n_rows: int) -> ColumnEncoding:
        del n_rows
        name, moments = self.name, self.moments
        assert moments is not None  # noqa: S101 - a column of gaps was left out before
        has_gaps = self.n_missing > 0
        sample = self._sampled()
        present = sample.values[~sample.is_missing]
        if len(present) == 0:  # all of many rows' few dates are outside the sample
            present = np.append(moments.lowest, moments.highest).astype(np.int64)
        dates = np.unique(present)
        if len(dates) == 1 and not has_gaps and self.asked is None:
            return Dropped(name, "date", f"constant ({np.datetime64(int(dates[0]), 'us')})")
        years = year_and_day(np, present // _DAY)[0].astype(np.float64)
        gap = np.median(np.diff(dates)) if len(dates) > 1 else np.inf
        varies = {
            "year": _vary(years),
            "season": gap < _YEAR and _vary(year_and_day(np, dates // _DAY)[1]),
            "week": gap < 7 * _DAY and _vary((dates + 3 * _DAY) // _DAY % 7),
            "day": _vary(dates % _DAY),
            "trend": len(dates) > 1,
        }
        parts = tuple(part for part in DATE_PARTS if varies[part])
        trend, year = (
            _scaled(m, values, squash=options.squash, marks_gaps=False)
            for m, values in (
                (moments, present.astype(np.float64)),
                (Moments.of(np, years[:, None]), years),
            )
        )
        # A single date with gaps tells as much as where the gaps are.
        encoding = DateEncoding(parts, year, trend, has_gaps or not parts, NO_DATE)
        return Dates(name, "date", encoding)


def _vary(values: _Array) -> bool:
    return len(np.unique(values)) > 1


def _scaled(moments: Moments, sample: _Array, *, squash: bool, marks_gaps: bool) -> NumberEncoding:
    """Return the encoding of numbers: by their quartiles if squashed, else by their moments."""
    lowest, highest = float(moments.lowest[0]), float(moments.highest[0])
    if len(sample) == 0:  # all of many rows' few numbers are outside the sample
        sample = np.asarray([lowest, highest])
    # Halves twice, so that neither a sum nor a difference of the largest numbers overflows.
    unit = 0.25 if max(-lowest, highest) > _HUGE else 1.0
    median = float(np.median(unit * sample)) / unit
    if squash:
        low, high = np.quantile(unit * sample, [0.25, 0.75])
        scale = float(high - low)
        # Where half of the numbers are equal but for rounding, half of their range.
        if scale <= _ROUNDING * max(abs(low), abs(high)):
            scale = unit * highest / 2 - unit * lowest / 2
        scale = min(scale, unit * _LARGEST) / unit
        if scale > 0:
            return NumberEncoding(median, median, scale, squashes=True, marks_gaps=marks_gaps)
    mean, scale = (float(x[0]) for x in Standardization.of(np, moments))
    return NumberEncoding(median, mean, scale, squashes=False, marks_gaps=marks_gaps)
