"""Standardization: columns shifted and scaled to mean 0 and standard deviation 1."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nnbackend.core.types import Array, Namespace

__all__ = ["Standardization"]


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
        columns = xp.astype(columns, xp.float64)
        # Divided by the largest magnitude first, so that neither sum nor square can overflow.
        largest = xp.max(xp.abs(columns), axis=0)
        largest = xp.where(largest > 0, largest, xp.ones_like(largest))
        relative = columns / largest
        centre = xp.mean(relative, axis=0)
        deviation = xp.sqrt(xp.mean((relative - centre) ** 2, axis=0))
        # Rounding leaves a constant column a deviation near 0; dividing by it would blow it up.
        constant = deviation <= 1e-12 * xp.abs(centre)
        scale = xp.where(constant, xp.ones_like(largest), deviation * largest)
        return cls(centre * largest, scale)

    def apply(self, x: Array) -> Array:
        """Return (x - mean) / scale in float64; what overflows is infinite, without a warning."""
        with np.errstate(over="ignore"):
            standardized: Array = (x - self.mean) / self.scale
        return standardized

    def undo(self, xp: Namespace, x: Array) -> Array:
        """Return x scale + mean in the dtype of ``x``."""
        return x * xp.astype(self.scale, x.dtype) + xp.astype(self.mean, x.dtype)
