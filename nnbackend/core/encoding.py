"""Columns of a table as inputs of a network: numbers, categories and dates.

Each encoding takes one column (n_samples,) and returns its inputs (n_samples, n_outputs), in the
array API namespace of the column; the same functions are traced for ONNX.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from nnbackend.core.types import Array, Namespace

__all__ = ["DATE_PARTS", "CategoryEncoding", "DateEncoding", "NumberEncoding", "year_and_day"]

# Within this many scales a squashed number grows like itself, beyond like its logarithm.
_KNEE = 3.0

_DAY = 86_400_000_000  # microseconds
_WEEK = 7 * _DAY

# The inputs that a date can have, in their order.
DATE_PARTS = ("year", "season", "week", "day", "trend")


class NumberEncoding(NamedTuple):
    """A number, shifted and scaled: z = (x - centre) / scale.

    With ``squashes`` it is 3 asinh(z / 3), which is z near 0 and grows like a logarithm far out: an
    outlier does not drown the other rows, and what a target owes to a tail can be learnt.
    (RealMLP's z / sqrt(1 + (z / 3)^2), Holzmueller et al. 2024, arXiv:2407.04491, hardly tells 10
    scales from 100.)

    Attributes
    ----------
    fill : float
        What a gap is computed as.
    centre, scale : float
        The shift, and the unit > 0.
    squashes : bool
        Whether heavy tails are squashed.
    marks_gaps : bool
        Whether a second input is 1 where there is a gap, else 0.
    """

    fill: float
    centre: float
    scale: float
    squashes: bool = False
    marks_gaps: bool = False

    @property
    def n_outputs(self) -> int:
        """The number of inputs of the network that the column becomes."""
        return 2 if self.marks_gaps else 1

    def apply(self, xp: Namespace, x: Array) -> Array:
        """Return the inputs of a column of float64, whose gaps are NaN.

        Examples
        --------
        >>> import numpy as np
        >>> NumberEncoding(fill=1.0, centre=1.0, scale=2.0, marks_gaps=True).apply(
        ...     np, np.asarray([3.0, np.nan])
        ... )
        array([[1., 0.],
               [0., 1.]])
        """
        is_gap = xp.isnan(x)
        z = (xp.where(is_gap, self.fill * xp.ones_like(x), x) - self.centre) / self.scale
        if self.squashes:
            # Beyond 1e100 the square would overflow.
            size = xp.minimum(xp.abs(z), 1e100 * xp.ones_like(z)) / _KNEE
            # asinh, of operators that onnxruntime has in float64; log1p keeps the digits near 0.
            asinh = xp.log1p(size + size**2 / (1.0 + xp.sqrt(1.0 + size**2)))
            z = _KNEE * xp.where(z < 0, -asinh, asinh)
        return xp.stack([z, xp.astype(is_gap, x.dtype)][: self.n_outputs], axis=1)


class CategoryEncoding(NamedTuple):
    """A category as one input per value, 1 where the column has it, else 0.

    Attributes
    ----------
    n_outputs : int
        The number of inputs.
    """

    n_outputs: int

    def apply(self, xp: Namespace, codes: Array) -> Array:
        """Return the inputs, in float64, of a column of int64: the index of each row's value.

        A row of another index, such as -1, becomes zeros.

        Examples
        --------
        >>> import numpy as np
        >>> CategoryEncoding(2).apply(np, np.asarray([1, -1]))
        array([[0., 1.],
               [0., 0.]])
        """
        values = xp.arange(self.n_outputs, dtype=codes.dtype)
        return xp.astype(xp.expand_dims(codes, axis=1) == values, xp.float64)


class DateEncoding(NamedTuple):
    """A date, or a time, as numbers.

    The parts, in the order of ``DATE_PARTS``: the calendar year; the position in the year, in the
    week and in the day as sine and cosine of 2 pi times the share that has passed; and the date
    itself, for a trend. A year begins on March 1 here, so that a leap day is its last and shifts no
    other day. All are 0 where there is a gap.

    Attributes
    ----------
    parts : tuple of str
        Some of ``DATE_PARTS``, in their order.
    year, trend : NumberEncoding
        How the year, and the microseconds since 1970, are scaled.
    marks_gaps : bool
        Whether a last input is 1 where there is a gap, else 0.
    gap : int
        The integer that stands for a gap.
    """

    parts: tuple[str, ...]
    year: NumberEncoding
    trend: NumberEncoding
    marks_gaps: bool
    gap: int

    @property
    def n_outputs(self) -> int:
        """The number of inputs of the network that the column becomes."""
        return sum(1 if part in ("year", "trend") else 2 for part in self.parts) + self.marks_gaps

    def apply(self, xp: Namespace, date: Array) -> Array:
        """Return the inputs, in float64, of a column of int64: microseconds since 1970.

        Examples
        --------
        >>> import numpy as np
        >>> plain = NumberEncoding(fill=0.0, centre=0.0, scale=1.0)
        >>> noon = np.asarray(["2000-03-01T12:00"], "M8[us]").astype(np.int64)
        >>> DateEncoding(("year", "day"), plain, plain, False, -1).apply(np, noon).astype(int)
        array([[2000,    0,   -1]])
        """
        is_gap = date == self.gap
        date = xp.where(is_gap, xp.zeros_like(date), date)
        year, day_of_year = year_and_day(xp, date // _DAY)
        time_of_day = date % _DAY
        # 1970-01-01 was a Thursday: weeks begin on Monday.
        angles = {
            "season": xp.astype(day_of_year, xp.float64) / 366.0,
            "week": xp.astype((date + 3 * _DAY) % _WEEK, xp.float64) / _WEEK,
            "day": xp.astype(time_of_day, xp.float64) / _DAY,
        }
        columns = []
        for part in self.parts:
            if part in angles:
                angle = 2.0 * math.pi * angles[part]
                columns += [xp.sin(angle), xp.cos(angle)]
            else:
                number, encoding = (year, self.year) if part == "year" else (date, self.trend)
                columns.append(encoding.apply(xp, xp.astype(number, xp.float64))[:, 0])
        columns = [xp.where(is_gap, xp.zeros_like(column), column) for column in columns]
        if self.marks_gaps:
            columns.append(xp.astype(is_gap, xp.float64))
        return xp.stack(columns, axis=1)


def year_and_day(xp: Namespace, days: Array) -> tuple[Array, Array]:
    """Return the Gregorian year of days since 1970, and their number since the last March 1.

    Parameters
    ----------
    xp : namespace
        The array API namespace of the array.
    days : array (n_samples,) of int64
        Days since 1970-01-01.

    Returns
    -------
    year, day : arrays (n_samples,) of int64
        The year as the calendar counts it, from January 1; the day from 0, on March 1, to 365.

    Examples
    --------
    >>> import numpy as np
    >>> days = np.asarray(["1970-01-01", "2000-02-29", "2000-03-01"], "M8[D]").astype(np.int64)
    >>> [column.tolist() for column in year_and_day(np, days)]
    [[1970, 2000, 2000], [306, 365, 0]]
    """
    # The calendar repeats every 400 years, of 146 097 days; 0000-03-01 was day -719 468.
    days = days + 719_468
    era = days // 146_097
    day = days % 146_097
    # Every 4th year has a day more, but every 100th, and every 400th after all.
    year = (day - day // 1_460 + day // 36_524 - day // 146_096) // 365
    day = day - (365 * year + year // 4 - year // 100)
    # January and February, from day 306 on, are of the next calendar year.
    is_next = xp.astype(day >= 306, year.dtype)
    return year + 400 * era + is_next, day
