"""The reference engine: the core as it stands, on any array API namespace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nnbackend.core.optimizers import OptimizerState
from nnbackend.core.propagation import DEVICE_ELEMENTS
from nnbackend.core.regularization import clip_by_global_norm, clip_by_value, dropout_mask
from nnbackend.core.types import Array

if TYPE_CHECKING:
    from nnbackend.device import Device
    from nnbackend.engines import Data, Problem

__all__ = ["ReferenceEngine", "data_loss"]


class ReferenceEngine:
    """One step after the other, each a chain of pure functions; what other engines are held to.

    Parameters
    ----------
    problem : Problem
        What is to be trained, and how.
    device : Device
        Where all arrays live.
    parameters : array (n_parameters,)
        Where training starts.
    data : Data
        The training examples.
    dropout_rng : numpy.random.Generator
        Draws the dropout masks, on the host.
    """

    max_epochs_per_call = 1

    def __init__(
        self,
        problem: Problem,
        device: Device,
        parameters: Array,
        data: Data,
        dropout_rng: np.random.Generator,
    ) -> None:
        self._problem = problem
        self._device = device
        self._xp = device.xp
        self._data = data
        self._dropout_rng = dropout_rng
        self._parameters = self._finite = self._xp.asarray(parameters, copy=True)
        self._state = problem.optimizer.init(self._xp, self._parameters)
        self._step = 0

    @property
    def parameters(self) -> Array:
        """The current flat parameter vector."""
        return self._parameters

    @property
    def optimizer_state(self) -> OptimizerState:
        """Where the optimizer stands."""
        return OptimizerState(self._step, self._state)

    def set_optimizer_state(self, state: OptimizerState) -> None:
        """Let the optimizer go on from there; before the first step."""
        self._step, self._state = state

    def run_epochs(
        self, orders: Sequence[Any] | None, rates: Sequence[Sequence[float]]
    ) -> tuple[Array, Array]:
        """Run epochs, one per list of rates, until one ends in a loss or parameter not finite."""
        xp = self._xp
        losses: list[Array] = []
        finite: Array = True
        for epoch, epoch_rates in enumerate(rates):
            # With one epoch per call nothing is read back from the device here.
            if losses and not bool(finite):
                break
            self._finite = self._parameters
            losses.append(self._run_epoch(orders[epoch] if orders else None, epoch_rates))
            finite = xp.all(xp.isfinite(self._parameters)) & xp.isfinite(losses[-1])
        return xp.stack(losses), finite

    def _run_epoch(self, order: Any, rates: Sequence[float]) -> Array:
        weighted_loss: Array = 0.0
        total_weight: Array = 0.0
        # A diverging loss is reported by whoever reads it, not warned of here.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            # Batches first: they may end with an error of their own.
            for (X, y, weight), rate in zip(self._batches(order), rates, strict=True):
                loss = self._take_step(X, y, weight, rate)
                share = X.shape[0] if weight is None else self._xp.sum(weight)
                weighted_loss = weighted_loss + loss * share
                total_weight = total_weight + share
            return self._xp.asarray(weighted_loss / total_weight)

    def restore_finite(self) -> None:
        """Go back to the parameters that the last epoch without NaN and infinity ended with."""
        self._parameters = self._finite

    def snapshot(self) -> Any:
        """Return the current parameters; steps make new arrays, so this one stays as it is."""
        return self._parameters

    def restore(self, snapshot: Any) -> None:
        """Go back to the parameters of a snapshot."""
        self._parameters = snapshot

    def data_loss(self, data: Data) -> Array:
        """Return the loss of the current parameters on ``data`` without penalties, 0-d."""
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            return data_loss(self._problem, self._device, self._parameters, data)

    def _batches(self, order: Any) -> Iterator[tuple[Array, Array, Array | None]]:
        """Yield the examples of each step."""
        n_samples, size = self._data.n_samples, self._problem.batch_size
        on_device = None if order is None else self._device.place(order)
        for start in range(0, n_samples, size):
            yield self._batch(slice(start, min(start + size, n_samples)), order, on_device)

    def _batch(
        self, rows: slice, order: Any, on_device: Array | None
    ) -> tuple[Array, Array, Array | None]:
        """Return the examples of a batch; the order is there for the host and for the device."""
        xp, data = self._xp, self._data

        def take(x: Array | None) -> Array | None:
            if x is None or on_device is None:
                return None if x is None else x[rows, ...]
            return xp.take(x, on_device[rows], axis=0)

        if not data.streams:
            return take(data.X), take(data.y), take(data.sample_weight)
        X = data.X[rows] if order is None else data.X[order[rows]]
        return self._device.place(X), take(data.y), take(data.sample_weight)

    def _take_step(self, X: Array, y: Array, weight: Array | None, rate: float) -> Array:
        xp, problem = self._xp, self._problem
        masks = self._draw_masks(X.shape[0])
        loss, gradient = problem.objective.value_and_gradient(
            xp, self._parameters, X, y, weight, masks
        )
        if problem.clip_value is not None:
            gradient = clip_by_value(xp, gradient, problem.clip_value)
        if problem.clip_norm is not None:
            gradient = clip_by_global_norm(xp, gradient, problem.clip_norm)
        self._step += 1
        coefficients = problem.optimizer.coefficients(rate, self._step)
        self._parameters, self._state = problem.optimizer.update(
            xp, self._parameters, gradient, self._state, coefficients
        )
        return loss

    def _draw_masks(self, n_samples: int) -> list[Array | None] | None:
        structure = self._problem.objective.structure
        if not structure.has_dropout:
            return None
        masks: list[Array | None] = []
        for rate, width in zip(structure.dropout, structure.layer_sizes[1:-1], strict=True):
            if rate == 0.0:
                masks.append(None)
                continue
            dtype = np.dtype(str(self._parameters.dtype))
            uniform = self._dropout_rng.random((n_samples, width), dtype=dtype.type)
            masks.append(dropout_mask(self._xp, self._device.place(uniform), rate))
        return masks


def data_loss(problem: Problem, device: Device, parameters: Array, data: Data) -> Array:
    """Return the loss on ``data`` without penalties, 0-d, a block of rows at a time if need be."""
    objective, xp = problem.objective, device.xp
    widest = max(objective.structure.layer_sizes)
    size = problem.batch_size if data.streams else max(256, DEVICE_ELEMENTS // widest)
    if not data.streams and data.n_samples <= size:
        return objective.data_loss(xp, parameters, data.X, data.y, data.sample_weight)
    weighted_loss: Array = 0.0
    total_weight: Array = 0.0
    for start in range(0, data.n_samples, size):
        rows = slice(start, start + size)
        X, y = device.place(data.X[rows]), data.y[rows, ...]
        weight = None if data.sample_weight is None else data.sample_weight[rows]
        loss = objective.data_loss(xp, parameters, X, y, weight)
        share = X.shape[0] if weight is None else xp.sum(weight)
        weighted_loss = weighted_loss + loss * share
        total_weight = total_weight + share
    return xp.asarray(weighted_loss / total_weight)
