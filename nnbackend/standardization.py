"""Standardization: columns shifted and scaled to mean 0 and standard deviation 1."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nnbackend.core.types import Array, Namespace

__all__ = ["Moments", "Standardization"]


class Moments(NamedTuple):
    """Means and variances of columns, which those of further rows can be merged into.

    They are those of the columns divided by their largest magnitude, so that neither sum nor
    square can overflow.

    Attributes
    ----------
    n_samples : int
        Rows so far.
    largest : array (n_columns,) of float64
        The largest magnitude of each column.
    centre, variance : array (n_columns,) of float64
        Mean and variance (ddof 0) of column / largest; 0 where that is 0.

    References
    ----------
    Chan, Golub, LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
    Variances", 1979.
    """

    n_samples: int
    largest: Array
    centre: Array
    variance: Array

    @classmethod
    def of(cls, xp: Namespace, columns: Array) -> Moments:
        """Return the moments of the columns of a matrix (n_samples, n_columns), finite numbers."""
        columns = xp.astype(columns, xp.float64)
        largest = xp.max(xp.abs(columns), axis=0)
        relative = columns / _divisor(xp, largest)
        centre = xp.mean(relative, axis=0)
        variance = xp.mean((relative - centre) ** 2, axis=0)
        return cls(int(columns.shape[0]), largest, centre, variance)

    def merge(self, xp: Namespace, other: Moments) -> Moments:
        """Return the moments of these rows and of others together."""
        n_samples = self.n_samples + other.n_samples
        own, share = self.n_samples / n_samples, other.n_samples / n_samples
        largest = xp.maximum(self.largest, other.largest)
        divisor = _divisor(xp, largest)
        ratio, other_ratio = self.largest / divisor, other.largest / divisor
        centre = self.centre * ratio
        distance = other.centre * other_ratio - centre
        within = own * self.variance * ratio**2 + share * other.variance * other_ratio**2
        return Moments(
            n_samples,
            largest,
            centre + share * distance,
            within + own * share * distance**2,
        )


def _divisor(xp: Namespace, largest: Array) -> Array:
    return xp.where(largest > 0, largest, xp.ones_like(largest))


class Standardization(NamedTuple):
    """A mean and a scale for each column: standardized = (x - mean) / scale.

    It computes in float64 whatever the network's dtype, so that a large mean costs no digits.

    Attributes
    ----------
    mean, scale : array (n_columns,) of float64
        The scale of a constant column is 1.
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
        """Return the means and standard deviations that moments stand for."""
        deviation = xp.sqrt(moments.variance)
        scale = deviation * moments.largest
        # Rounding leaves a constant column a deviation near 0; dividing by it would blow it up. A
        # deviation of the smallest numbers there are is 0.
        constant = (deviation <= 1e-12 * xp.abs(moments.centre)) | (scale == 0)
        scale = xp.where(constant, xp.ones_like(scale), scale)
        return cls(moments.centre * moments.largest, scale)

    def apply(self, x: Array) -> Array:
        """Return (x - mean) / scale in float64; what overflows is infinite, without a warning."""
        with np.errstate(over="ignore"):
            standardized: Array = (x - self.mean) / self.scale
        return standardized

    def undo(self, xp: Namespace, x: Array) -> Array:
        """Return x scale + mean in the dtype of ``x``."""
        return x * xp.astype(self.scale, x.dtype) + xp.astype(self.mean, x.dtype)
