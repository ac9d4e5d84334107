"""The compiled elementary functions against the C library's in extended precision."""

import numpy as np
import pytest

pytest.importorskip("numba")

from numba import njit

from nnbackend.engines import elementary

RNG = np.random.default_rng(0)
NAMES = ["exp", "expm1", "log", "log1p", "tanh"]
SPECIAL = [0.0, -0.0, 1.0, np.inf, -np.inf, np.nan, -1.0, -2.0, 1e-30, -1e-30, 89.0, 1e30, -1e30]


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


def arguments(name, dtype):
    """Return normal numbers of all magnitudes that matter, tiny ones and those near overflow."""
    largest = np.log(np.finfo(dtype).max)
    sizes = np.exp(RNG.uniform(-40.0, np.log(largest), 20_000))
    x = sizes * RNG.choice([-1.0, 1.0], sizes.size)
    if name == "log":
        return np.concatenate([np.exp(x), 1.0 + 0.1 * RNG.standard_normal(5_000)]).astype(dtype)
    if name == "log1p":
        return np.concatenate([np.exp(x), -RNG.random(5_000)]).astype(dtype)
    return x.astype(dtype)


@pytest.mark.parametrize("name", NAMES)
def test_results_are_within_three_units_in_the_last_place(name, functions):
    dtype, mapped = functions
    x = arguments(name, dtype)
    with np.errstate(all="ignore"):
        exact = getattr(np, name)(x.astype(np.longdouble))
        result = mapped[name](x)
        expected = exact.astype(dtype)
    normal = np.isfinite(expected) & (np.abs(exact) >= 2 * np.finfo(dtype).tiny)
    units = np.abs(result - exact)[normal] / np.spacing(np.abs(expected[normal]))
    assert units.max() < 3.0
    # What is too small becomes zero or stays small, and what is too large is infinite.
    assert np.abs(result[np.abs(exact) < np.finfo(dtype).tiny]).max(initial=0.0) <= 2 * (
        np.finfo(dtype).tiny
    )
    np.testing.assert_array_equal(result[np.isinf(expected)], expected[np.isinf(expected)])


@pytest.mark.parametrize("name", NAMES)
def test_special_values_are_those_of_the_c_library(name, functions):
    dtype, mapped = functions
    x = np.asarray(SPECIAL, dtype)
    with np.errstate(all="ignore"):
        expected = getattr(np, name)(x)
    tiny = float(np.finfo(dtype).tiny)
    np.testing.assert_allclose(mapped[name](x), expected, rtol=1e-6, atol=tiny)
