"""Standardization against exact arithmetic: what float64 can tell apart is scaled."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nnbackend as nb
from nnbackend.core.standardization import Moments, Standardization

EPS = float(np.finfo(np.float64).eps)


def of_blocks(blocks):
    moments = [Moments.of(np, block) for block in blocks]
    merged = moments[0]
    for other in moments[1:]:
        merged = merged.merge(np, other)
    return Standardization.of(np, merged)


@st.composite
def offset_columns(draw):
    """Return numbers around an offset that vary by few or many of its steps, and where to cut."""
    offset = draw(
        st.sampled_from([1e-30, 1.0, -1.7e9, 1e15, -1e15, 1.7e18, 1e-250, 1e300, 1.7e308])
    )
    step = float(np.spacing(offset)) * 2.0 ** draw(st.integers(0, 50))
    steps = draw(st.lists(st.integers(-1000, 1000), min_size=2, max_size=40))
    if draw(st.booleans()):
        steps[-1] *= 10**6  # far from the others
    numbers = [offset, *(offset + k * step for k in steps)]
    columns = np.asarray([x for x in numbers if np.isfinite(x)])[:, None]
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(columns) - 1)), max_size=4)))
    return columns, [block for block in np.split(columns, cuts) if len(block)]


@given(offset_columns())
def test_mean_and_scale_are_exact_to_rounding_whatever_the_offset(drawn):
    columns, blocks = drawn
    exact = [Fraction(float(x)) for x in columns[:, 0]]
    n, low, high = len(exact), min(exact), max(exact)
    mean = sum(exact) / n
    variance = sum((x - mean) ** 2 for x in exact) / n
    for found in (of_blocks([columns]), of_blocks(blocks)):
        got_mean, got_scale = float(found.mean[0]), float(found.scale[0])
        if low == high:
            assert (got_mean, got_scale) == (float(low), 1.0)
            continue
        # The sum of n numbers of at most the range, in some blocks, and the last rounding.
        rounding = Fraction(2 * (n + 10) * EPS)
        nearest = Fraction(float(np.spacing(abs(got_mean)))) / 2
        assert abs(Fraction(got_mean) - mean) <= rounding * (high - low) + nearest
        # A square root of the ratio to the range, which a float can hold.
        deviation = Fraction(math.sqrt(variance / (high - low) ** 2)) * (high - low)
        assert abs(Fraction(got_scale) - deviation) <= rounding * deviation
        if abs(high) < 1e308:
            standardized = [Fraction(float(z)) for z in found.apply(columns)[:, 0]]
            z_mean = sum(standardized) / n
            z_deviation = math.sqrt(sum((z - z_mean) ** 2 for z in standardized) / n)
            # The mean is a float64: half a step off, in deviations.
            allowed = 2 * rounding * (high - low) / deviation + nearest / deviation
            assert abs(z_mean) <= allowed
            assert z_deviation == pytest.approx(1.0, abs=4 * (n + 10) * EPS)


NANOSECONDS = 1_700_000_000_000_000_000

# What float64 can tell apart, as it comes.
NEARLY_CONSTANT = {
    "float64": 1e15 + np.linspace(-100, 100, 41),
    "nanoseconds within 1 ms": float(NANOSECONDS) + 256.0 * np.arange(0, 4000, 7),
    "int64 nanoseconds": NANOSECONDS + 256 * np.arange(0, 4000, 7),
    "int64": 10**15 + np.arange(5),
    "float32 neighbours": np.where(np.arange(6) % 2, np.float32(1e8), np.float32(1e8 + 8)),
    "float64 neighbours": np.where(np.arange(6) % 3, 1.0, 1.0 + EPS),
    "tiny": 1e-290 * np.arange(5.0),
}


@pytest.mark.parametrize("kind", NEARLY_CONSTANT)
def test_a_column_that_varies_exactly_is_scaled(kind):
    column = NEARLY_CONSTANT[kind]
    net = nb.Network([1, 1], dtype="float64").standardize(column[:, None])
    exact = [Fraction(int(x)) if column.dtype.kind == "i" else Fraction(float(x)) for x in column]
    mean = sum(exact) / len(exact)
    scale = float(net.standardization.scale[0])
    unit = Fraction(scale)
    deviation = math.sqrt(sum(((x - mean) / unit) ** 2 for x in exact) / len(exact))
    assert deviation == pytest.approx(1.0, rel=1e-12)
    standardized = net.preparation.features(column[:, None])[:, 0]
    assert standardized.std() == pytest.approx(1.0, rel=1e-12)
    step = float(np.spacing(np.float64(mean)))
    assert abs(standardized.mean()) <= 1e-12 + 0.5 * step / scale


@pytest.mark.parametrize(
    "value", [0.1, -123456.789, 1.7e308, 5e-324, np.float32(0.1), NANOSECONDS, 2**53 + 1, True]
)
def test_a_constant_column_is_exactly_its_mean_and_not_scaled(value):
    columns = np.full((1001, 1), value)
    found = of_blocks(np.split(columns, [1, 2, 500, 900]))
    assert found.scale[0] == 1.0
    assert found.mean[0] == np.float64(value)
    net = nb.Network([1, 1]).standardize(columns)
    assert net.standardization.mean[0] == np.float64(value)
    assert not net.preparation.features(columns).any()


def test_blocks_that_are_constant_each_differ_together():
    blocks = [np.full((3, 1), 1e15 + k) for k in range(4)]
    found = of_blocks(blocks)
    assert found.mean[0] == 1e15 + 1.5
    assert found.scale[0] == pytest.approx(math.sqrt(1.25), rel=1e-15)


def test_integers_beyond_two_to_the_53_are_those_that_float64_has():
    column = np.asarray([[2**53], [2**53 + 1]])
    net = nb.Network([1, 1], dtype="float64").standardize(column)
    # float64 has no 2**53 + 1: both are 2**53.
    assert net.standardization.mean.tolist() == [2.0**53]
    assert net.standardization.scale.tolist() == [1.0]
