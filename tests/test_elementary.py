"""The native elementary functions against NumPy's and the C library's in higher precision."""

import ctypes
from functools import cache

import numpy as np
import pytest

from nnbackend.engines.native.library import libraries

NAMES = ["exp", "expm1", "log", "log1p", "tanh"]
DTYPES = [np.float32, np.float64]
UNSIGNED = {np.float32: np.uint32, np.float64: np.uint64}
WIDER = {np.float32: np.float64, np.float64: np.longdouble}


def apply(variant, name, x, size=None):
    """Return the native function of the first ``size`` elements of ``x``, and 7 for the others."""
    function = libraries()[variant][f"nnbackend_{name}_{x.dtype.name}"]
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ssize_t]
    function.restype = None
    result = np.full_like(x, 7.0)
    function(x.ctypes.data, result.ctypes.data, x.size if size is None else size)
    return result


@cache
def numbers(dtype):
    """Return numbers of every sign and exponent, and those around where a function turns."""
    info, unsigned = np.finfo(dtype), UNSIGNED[dtype]
    rng = np.random.default_rng(0)
    count = 200 if dtype is np.float32 else 50
    fractions = rng.integers(0, 2**info.nmant, (2 ** (info.bits - info.nmant), count), unsigned)
    heads = np.arange(fractions.shape[0], dtype=unsigned)[:, None] << unsigned(info.nmant)
    anywhere = (heads | fractions).reshape(-1).view(dtype)
    tiny, largest = np.longdouble(info.tiny), np.longdouble(info.max)
    smallest = np.longdouble(info.smallest_subnormal)
    turns = [
        *np.log([largest, tiny, smallest]),
        *(np.log(np.longdouble(2)) * (np.arange(-1100, 1100) / 2)),
        *(1.0, 2.0, 0.75, 1.5, np.sqrt(0.5), np.sqrt(2.0), tiny, smallest, largest, 0.0),
        *(info.eps / 2 ** np.arange(4.0)),
        np.inf,
        np.nan,
    ]
    with np.errstate(over="ignore"):
        turns = np.asarray([*turns, *np.negative(turns)]).astype(dtype)
    above = below = turns
    around = [turns]
    with np.errstate(over="ignore"):
        for _ in range(8):
            above, below = np.nextafter(above, dtype(np.inf)), np.nextafter(below, dtype(-np.inf))
            around += [above, below]
    # Where the functions are neither linear nor constant, and where exp is infinite or subnormal.
    curved = [rng.uniform(-16.0, 16.0, 20_000), rng.uniform(-2.0, 2.0, 20_000)]
    ends = [
        rng.uniform(low, high, 20_000)
        for low, high in (
            (float(np.log(smallest)) - 1.0, float(np.log(tiny)) + 1.0),
            (float(np.log(largest)) - 1.0, float(np.log(largest)) + 2.0),
        )
    ]
    return np.concatenate([anywhere, *around, *(part.astype(dtype) for part in curved + ends)])


@cache
def reference(name, dtype):
    """Return the function of ``numbers`` in a wider dtype, and rounded to ``dtype``."""
    with np.errstate(all="ignore"):
        exact = getattr(np, name)(numbers(dtype).astype(WIDER[dtype]))
        return exact, exact.astype(dtype)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("variant", libraries())
def test_results_are_within_three_units_in_the_last_place_over_the_whole_range(
    variant, dtype, name
):
    x = numbers(dtype)
    exact, expected = reference(name, dtype)
    result = apply(variant, name, x)
    is_finite = np.isfinite(expected)
    # A unit in the last place of a subnormal number is the smallest of them.
    units = np.abs(result[is_finite] - exact[is_finite]) / np.spacing(np.abs(expected[is_finite]))
    worst = x[is_finite][np.argmax(units)]
    assert np.isfinite(units).all(), worst
    assert units.max() < 3.0, (worst, units.max())
    # Infinities and NaN are the C library's, and so is the sign of every result.
    np.testing.assert_array_equal(result[~is_finite], expected[~is_finite])
    is_number = ~np.isnan(expected)
    differs = np.signbit(result[is_number]) != np.signbit(expected[is_number])
    assert not differs.any(), x[is_number][differs][:5]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("variant", libraries())
def test_every_length_gives_the_same_numbers_and_touches_no_others(variant, dtype, name):
    x = np.linspace(0.1, 2.0, 40).astype(dtype)
    whole = apply(variant, name, x)
    for size in range(x.size + 1):
        result = apply(variant, name, x, size)
        np.testing.assert_array_equal(result[:size], whole[:size])
        np.testing.assert_array_equal(result[size:], 7.0)


@pytest.mark.parametrize("variant", libraries())
def test_saturated_results_are_at_most_one(variant):
    for dtype in DTYPES:
        assert np.nanmax(np.abs(apply(variant, "tanh", numbers(dtype)))) == 1.0
        # From where 1 is the nearest number on: the derivative of a saturated unit is 0.
        x = np.geomspace((np.finfo(dtype).nmant + 6) * np.log(2) / 2, np.finfo(dtype).max / 2, 1000)
        np.testing.assert_array_equal(apply(variant, "tanh", x.astype(dtype)), 1.0)
        assert np.nanmin(apply(variant, "expm1", numbers(dtype))) == -1.0
        assert apply(variant, "exp", np.zeros(1, dtype)) == 1.0
