"""Standardization: columns shifted and scaled to mean 0 and standard deviation 1."""

from __future__ import annotations

from typing import NamedTuple

from nnbackend.core.types import Array, Namespace

__all__ = ["Moments", "Standardization"]

# A dtype whose steps exceed this share of a column's deviation loses its signal.
_LARGEST_STEP = 1e-4

# Predictions of a target are expected within this many deviations.
_FARTHEST = 1e4


class Moments(NamedTuple):
    """Means and variances of columns, which can be merged with those of further rows.

    They describe (column - lowest) / (highest - lowest), numbers from 0 to 1. Subtracting first
    keeps the digits of a column with a large offset, and neither sums nor squares can overflow.

    Attributes
    ----------
    n_samples : int
        The number of rows so far.
    lowest, highest : array (n_columns,) of float64
        The smallest and the largest number of each column; equal where it is constant.
    centre, variance : array (n_columns,) of float64
        The mean and the variance (ddof 0) of the scaled numbers; 0 for a constant column.

    References
    ----------
    Chan, Golub, LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
    Variances", 1979.
    """

    n_samples: int
    lowest: Array
    highest: Array
    centre: Array
    variance: Array

    @classmethod
    def of(cls, xp: Namespace, columns: Array) -> Moments:
        """Return the moments of a matrix (n_samples, n_columns) of finite numbers, by column."""
        columns = xp.astype(columns, xp.float64)
        lowest, highest = xp.min(columns, axis=0), xp.max(columns, axis=0)
        unit, span = _range(xp, lowest, highest)
        relative = (unit * columns - unit * lowest) / span
        centre = xp.mean(relative, axis=0)
        variance = xp.mean((relative - centre) ** 2, axis=0)
        return cls(int(columns.shape[0]), lowest, highest, centre, variance)

    def merge(self, xp: Namespace, other: Moments) -> Moments:
        """Return the moments of these rows and other rows together."""
        n_samples = self.n_samples + other.n_samples
        own, share = self.n_samples / n_samples, other.n_samples / n_samples
        lowest = xp.minimum(self.lowest, other.lowest)
        highest = xp.maximum(self.highest, other.highest)
        unit, span = _range(xp, lowest, highest)

        def rescaled(moments: Moments) -> tuple[Array, Array]:
            start, end = unit * moments.lowest, unit * moments.highest
            ratio = (end - start) / span
            centre = (start - unit * lowest) / span + ratio * moments.centre
            return centre, ratio**2 * moments.variance

        centre, variance = rescaled(self)
        other_centre, other_variance = rescaled(other)
        distance = other_centre - centre
        within = own * variance + share * other_variance
        return Moments(
            n_samples,
            lowest,
            highest,
            centre + share * distance,
            within + own * share * distance**2,
        )


def _range(xp: Namespace, lowest: Array, highest: Array) -> tuple[Array, Array]:
    """Return a unit, 1 or 1/2, and highest - lowest in that unit; 1 where they are equal.

    The unit is 1/2 for numbers so large that their difference would overflow.
    """
    largest = xp.maximum(xp.abs(lowest), xp.abs(highest))
    unit = xp.where(largest > 2.0**1022, 0.5 * xp.ones_like(largest), xp.ones_like(largest))
    span = unit * highest - unit * lowest
    return unit, xp.where(span > 0, span, xp.ones_like(span))


class Standardization(NamedTuple):
    """A mean and a scale for each column: standardized = (x - mean) / scale.

    It computes in float64 whatever the network's dtype, so that a large mean costs no digits.

    Attributes
    ----------
    mean, scale : array (n_columns,) of float64
        A column whose numbers are all equal has that number as its mean, and the scale 1.
    """

    mean: Array
    scale: Array

    @classmethod
    def fit(cls, xp: Namespace, columns: Array) -> Standardization:
        """Return the means and standard deviations (ddof 0) of the columns of a matrix.

        Parameters
        ----------
        xp : namespace
            The array API namespace of ``columns``.
        columns : array (n_samples, n_columns)
            Finite numbers.
        """
        return cls.of(xp, Moments.of(xp, columns))

    @classmethod
    def of(cls, xp: Namespace, moments: Moments) -> Standardization:
        """Return the means and standard deviations of given moments.

        Any difference that float64 can represent counts as a deviation.
        """
        lowest, highest = moments.lowest, moments.highest
        unit, span = _range(xp, lowest, highest)
        scale = xp.sqrt(moments.variance) * span / unit
        # The deviation of the smallest subnormal numbers rounds to 0.
        scale = xp.where((highest > lowest) & (scale > 0), scale, xp.ones_like(scale))
        mean = (unit * lowest + moments.centre * span) / unit
        return cls(xp.minimum(xp.maximum(mean, lowest), highest), scale)

    def apply(self, x: Array) -> Array:
        """Return (x - mean) / scale in float64; results that overflow are infinite."""
        return (x - self.mean) / self.scale

    def undo(self, xp: Namespace, x: Array) -> Array:
        """Return x scale + mean in float64."""
        return xp.astype(x, xp.float64) * self.scale + self.mean

    def exceeds(self, xp: Namespace, dtype: object) -> Array:
        """Return for each column whether a dtype is too coarse for its original numbers.

        It is too coarse if its spacing at the mean, eps |mean|, exceeds 1e-4 scales, or if the
        column comes near its largest or smallest numbers. float32 is too coarse for a mean more
        than 839 scales from 0.
        """
        limits = xp.finfo(dtype)
        size = xp.abs(self.mean)
        tiny = float(limits.smallest_normal) * xp.ones_like(size)
        step = float(limits.eps) * xp.maximum(size, tiny)
        room = (float(limits.max) - size) / _FARTHEST
        return (step > _LARGEST_STEP * self.scale) | (self.scale > room)
