"""The formulas of tables: numbers, categories and dates, in every array library."""

# ruff: noqa: DTZ001 - the dates of tables have no zone
import datetime as dt
import math

import numpy as np
import pytest
from backends import require
from hypothesis import given
from hypothesis import strategies as st

from nnbackend.core.encoding import (
    DATE_PARTS,
    CategoryEncoding,
    DateEncoding,
    NumberEncoding,
    year_and_day,
)
from nnbackend.data.typed import NO_DATE

DAY = 86_400_000_000
PLAIN = NumberEncoding(0.0, 0.0, 1.0)


@pytest.mark.parametrize("library", ["numpy", "array_api_strict", "torch"])
def test_formulas_are_those_of_the_array_api(library):
    compat = {"torch": "array_api_compat.torch", "numpy": "array_api_compat.numpy"}
    require(library)
    xp = require(compat.get(library, library))
    numbers = np.asarray([0.5, np.nan, -2.0, 1e300, -5e-324])
    dates = np.asarray([NO_DATE, 0, -1, 17 * 365 * DAY + 5, -(10**17)])
    codes = np.asarray([-1, 0, 2, 1, 3])
    encodings = (
        (NumberEncoding(1.0, 0.5, 2.0, squashes=True, marks_gaps=True), numbers),
        (CategoryEncoding(3), codes),
        (DateEncoding(DATE_PARTS, PLAIN, PLAIN, True, NO_DATE), dates),
    )
    for encoding, x in encodings:
        result = encoding.apply(xp, xp.asarray(x))
        assert result.dtype == xp.float64
        assert result.shape == (5, encoding.n_outputs)
        own = encoding.apply(np, x)
        np.testing.assert_allclose(np.asarray(result), own, rtol=1e-15, atol=1e-15)


def test_every_day_has_the_year_and_place_of_the_calendar():
    first, last = dt.date(1600, 1, 1), dt.date(2400, 12, 31)
    days = np.arange((first - dt.date(1970, 1, 1)).days, (last - dt.date(1970, 1, 1)).days + 1)
    years, places = year_and_day(np, days)
    calendar = [first + dt.timedelta(days=i) for i in range(len(days))]
    assert years.tolist() == [day.year for day in calendar]
    # In common years the same day has the same place; a leap day is the last of all.
    place = {}
    for day, found in zip(calendar, places.tolist(), strict=True):
        assert place.setdefault((day.month, day.day), found) == found
    assert (place[3, 1], place[2, 28], place[2, 29]) == (0, 364, 365)
    assert sorted(place.values()) == list(range(366))


@given(st.datetimes(dt.datetime(1, 1, 1), dt.datetime(9999, 12, 31)))
def test_week_and_day_are_those_of_datetime(moment):
    zero = dt.datetime(1970, 1, 1)
    microseconds = np.asarray([(moment - zero) // dt.timedelta(microseconds=1)])
    encoding = DateEncoding(("year", "week", "day"), PLAIN, PLAIN, False, NO_DATE)
    (found,) = encoding.apply(np, microseconds)
    midnight = dt.datetime.combine(moment, dt.time())
    day = (moment - midnight) / dt.timedelta(days=1)
    week = (moment.weekday() + day) / 7
    angles = 2 * math.pi * np.asarray([week, day])
    waves = np.stack([np.sin(angles), np.cos(angles)], axis=1).reshape(-1)
    np.testing.assert_allclose(found, [moment.year, *waves], rtol=0, atol=1e-12)


@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=False), min_size=1),
    st.floats(-1e300, 1e300),
    st.floats(1e-300, 1e300),
)
def test_squashed_numbers_are_finite_and_increasing(values, centre, scale):
    encoding = NumberEncoding(centre, centre, scale, squashes=True, marks_gaps=True)
    x = np.sort(np.asarray(values))
    with np.errstate(over="ignore"):
        result = encoding.apply(np, x)
    # 3 asinh(1e100 / 3)
    assert (np.abs(result[:, 0]) < 700).all()
    assert result[:, 1].tolist() == np.isnan(x).tolist()
    present = result[~np.isnan(x), 0]
    assert (np.diff(present) >= -1e-12).all()
    assert (result[np.isnan(x), 0] == 0).all()


def test_small_numbers_are_hardly_squashed():
    z = np.asarray([-1e-3, 1e-4])
    encoding = NumberEncoding(0.0, 0.0, 1.0, squashes=True)
    np.testing.assert_allclose(encoding.apply(np, z)[:, 0], z, rtol=1e-6)
