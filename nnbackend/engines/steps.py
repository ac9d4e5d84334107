"""One training step, and the loss on data: of one network, or along leading axes of a stack."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nnbackend.core.objective import total_weight
from nnbackend.core.propagation import DEVICE_ELEMENTS
from nnbackend.core.regularization import clip_by_global_norm, clip_by_value
from nnbackend.core.types import Array, Namespace

if TYPE_CHECKING:
    from nnbackend.data.examples import Data
    from nnbackend.device import Device
    from nnbackend.engines.base import Problem

__all__ = ["LEAST_ROWS", "Batch", "Variables", "data_loss", "end_epoch", "host_dtype", "take_step"]

# An evaluation takes so many rows at once at least.
LEAST_ROWS = 256


class Variables(NamedTuple):
    """What steps change, in arrays that no step writes into.

    Attributes
    ----------
    parameters : array (..., n_parameters)
        The flat parameter vector.
    finite : array (..., n_parameters)
        The parameters after the last epoch without a NaN or infinity.
    state : tuple of arrays (..., n_parameters)
        The arrays of the optimizer.
    totals : tuple of two numbers or arrays (...), or None
        For the epoch's steps so far, the sum of the losses, each weighted by its examples, and the
        sum of these weights; None between two epochs.
    """

    parameters: Array
    finite: Array
    state: tuple[Array, ...]
    totals: tuple[Any, Any] | None = None

    def begin_epoch(self) -> Variables:
        """Return these, or at the beginning of an epoch those that know its first parameters."""
        if self.totals is not None:
            return self
        return self._replace(finite=self.parameters, totals=(0.0, 0.0))


class Batch(NamedTuple):
    """The examples of a step.

    Attributes
    ----------
    X, y, sample_weight : array
        As for ``Objective.value``.
    n_rows : int
        The number of rows, also those that other processes work on.
    """

    X: Array
    y: Array
    sample_weight: Array | None
    n_rows: int


def host_dtype(array: Array) -> Any:
    """Return NumPy's dtype of the same name as that of an array of any library."""
    return np.dtype(str(array.dtype).rpartition(".")[2])


def take_step(
    xp: Namespace,
    problem: Problem,
    variables: Variables,
    batch: Batch,
    masks: Sequence[Array | None] | None,
    coefficients: tuple[Any, ...],
    reduce: Callable[[Array, Any, Any], tuple[Any, Any]] | None = None,
) -> Variables:
    """Return the variables after a step of an epoch that has begun.

    Parameters
    ----------
    xp : namespace
        The array API namespace of the arrays.
    problem : Problem
        The training problem; in that of a stack, columns may stand for floats.
    variables : Variables
        Those before the step.
    batch : Batch
        The examples.
    masks : sequence of (array (..., n_samples, n_units) or None), optional
        Dropout masks, one per hidden layer.
    coefficients : tuple of numbers or arrays (..., 1)
        The optimizer's, for this step.
    reduce : callable, optional
        With several processes: turns a gradient, in place, and a loss and a weight into those of
        the whole batch.
    """
    parameters, objective = variables.parameters, problem.objective
    X, y, weight, n_rows = batch
    loss, gradient = objective.data_value_and_gradient(xp, parameters, X, y, weight, masks)
    share = total_weight(xp, X, weight)
    if reduce is not None:
        loss, share = reduce(gradient, loss, share)
    loss, gradient = objective.penalize(xp, parameters, loss, gradient, share)
    if problem.clip_value is not None:
        gradient = clip_by_value(xp, gradient, problem.clip_value)
    if problem.clip_norm is not None:
        gradient = clip_by_global_norm(xp, gradient, problem.clip_norm)
    parameters, state = problem.optimizer.update(
        xp, parameters, gradient, variables.state, coefficients
    )
    if problem.loss_by_rows and weight is not None:
        share = xp.astype(xp.asarray(share > 0), xp.float64) * n_rows
    weighted_loss, total = variables.totals or (0.0, 0.0)
    totals = weighted_loss + loss * share, total + share
    return Variables(parameters, variables.finite, state, totals)


def end_epoch(xp: Namespace, variables: Variables) -> tuple[Variables, Array, Array]:
    """End an epoch: return its mean loss (...), too, and whether all is finite (...)."""
    weighted_loss, total = variables.totals or (0.0, 0.0)
    loss = xp.asarray(weighted_loss / total)
    is_finite = xp.all(xp.isfinite(variables.parameters), axis=-1) & xp.isfinite(loss)
    return variables._replace(totals=None), loss, is_finite


def data_loss(problem: Problem, device: Device, parameters: Array, data: Data) -> Array:
    """Return the loss (...) on ``data`` without penalties, by blocks of rows if need be."""
    objective, xp = problem.objective, device.xp
    widest = max(objective.structure.layer_sizes) * math.prod(parameters.shape[:-1])
    size = problem.batch_size if data.streams else max(LEAST_ROWS, DEVICE_ELEMENTS // widest)
    if not data.streams and data.n_samples <= size:
        return objective.data_loss(xp, parameters, data.X, data.y, data.sample_weight)
    weighted_loss: Array = 0.0
    total: Array = 0.0
    for start in range(0, data.n_samples, size):
        rows = slice(start, start + size)
        X, y = device.place(data.X[rows]), data.y[rows, ...]
        weight = None if data.sample_weight is None else data.sample_weight[rows]
        share = total_weight(xp, X, weight)
        weighted_loss = weighted_loss + share * objective.data_loss(xp, parameters, X, y, weight)
        total = total + share
    return xp.asarray(weighted_loss / total)
