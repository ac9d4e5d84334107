"""The compiled elementary functions against the C library's in extended precision."""

import numpy as np
import pytest

pytest.importorskip("numba")

from numba import njit

from nnbackend.engines.native import elementary

pytestmark = pytest.mark.slow

NAMES = ["exp", "expm1", "log", "log1p", "tanh"]
UNSIGNED = {np.float32: np.uint32, np.float64: np.uint64}


@pytest.fixture(scope="module", params=[np.float32, np.float64], ids=["float32", "float64"])
def functions(request):
    """Return the dtype, and the functions applied to whole arrays."""
    dtype = request.param

    def mapped(function):
        @njit(error_model="numpy")
        def loop(x):
            result = np.empty_like(x)
            for i in range(x.size):
                result[i] = function(x[i])
            return result

        return loop

    namespace = getattr(elementary, np.dtype(dtype).name)
    return dtype, {name: mapped(getattr(namespace, name)) for name in NAMES}


def numbers(dtype):
    """Return numbers of every sign and exponent, and those around where a function turns."""
    info, unsigned = np.finfo(dtype), UNSIGNED[dtype]
    rng = np.random.default_rng(0)
    fractions = rng.integers(0, 2**info.nmant, (2 ** (info.bits - info.nmant), 50), unsigned)
    heads = np.arange(fractions.shape[0], dtype=unsigned)[:, None] << unsigned(info.nmant)
    anywhere = (heads | fractions).reshape(-1).view(dtype)
    tiny, largest = np.longdouble(info.tiny), np.longdouble(info.max)
    smallest = np.longdouble(info.smallest_subnormal)
    turns = [
        *np.log([largest, tiny, smallest]),
        *(np.log(np.longdouble(2)) * (np.arange(-1100, 1100) / 2)),
        *(1.0, 2.0, np.sqrt(0.5), np.sqrt(2.0), tiny, smallest, largest, info.eps, 0.0),
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


@pytest.mark.parametrize("name", NAMES)
def test_results_are_within_three_units_in_the_last_place_over_the_whole_range(name, functions):
    dtype, mapped = functions
    x = numbers(dtype)
    with np.errstate(all="ignore"):
        exact = getattr(np, name)(x.astype(np.longdouble))
        expected = exact.astype(dtype)
        result = mapped[name](x)
        is_finite = np.isfinite(expected) & np.isfinite(exact)
        # A unit in the last place of a subnormal number is the smallest of them.
        units = np.abs(result - exact)[is_finite] / np.spacing(np.abs(expected[is_finite]))
    worst = x[is_finite][np.argmax(units)]
    assert np.isfinite(units).all(), worst
    assert units.max() < 3.0, (worst, units.max())
    # Infinities and NaN are the C library's, and so is the sign of every result.
    np.testing.assert_array_equal(result[~is_finite], expected[~is_finite])
    is_number = ~np.isnan(expected)
    differs = np.signbit(result[is_number]) != np.signbit(expected[is_number])
    assert not differs.any(), x[is_number][differs][:5]
