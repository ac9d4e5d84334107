"""Where an engine stands."""

from __future__ import annotations

from typing import NamedTuple

from nnbackend.core.optimizers import OptimizerState
from nnbackend.core.types import Array

__all__ = ["EngineState"]


class EngineState(NamedTuple):
    """Where an engine stands between two steps; arrays that later steps do not change.

    Attributes
    ----------
    parameters : array (n_parameters,)
        The current flat parameter vector.
    finite : array (n_parameters,)
        The one that the last epoch without NaN and infinity ended with.
    optimizer : OptimizerState
        Where the optimizer stands.
    totals : tuple of float or None
        Of the epoch's steps so far, the sum of the losses, each weighted by its examples, and the
        sum of these weights; None between two epochs.
    """

    parameters: Array
    finite: Array
    optimizer: OptimizerState
    totals: tuple[float, float] | None = None
