"""The reference engine, which calls the formulas of ``core`` on any array API namespace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nnbackend.core.optimizers import OptimizerState
from nnbackend.core.propagation import DEVICE_ELEMENTS
from nnbackend.core.regularization import clip_by_global_norm, clip_by_value, dropout_mask
from nnbackend.core.types import Array
from nnbackend.engines.base import EngineState
from nnbackend.engines.driving import one_by_one
from nnbackend.parallel import Share

if TYPE_CHECKING:
    from nnbackend.data.examples import Data
    from nnbackend.device import Device
    from nnbackend.engines.base import Done, Engine, Problem, Start, Task

__all__ = ["ReferenceEngine", "data_loss"]


class ReferenceEngine:
    """Runs one step after another by pure functions; the tests compare other engines with it.

    Parameters
    ----------
    start : Start
        The problem, its data, and the initial parameters.
    """

    max_epochs_per_call = 1
    runs_parts = True

    def __init__(self, start: Start) -> None:
        self._problem, self._team = start.problem, start.team
        self._device, self._xp = start.device, start.device.xp
        self._dropout_rng = start.dropout
        self._parameters = self._finite = self._xp.asarray(start.parameters, copy=True)
        self._state = start.problem.optimizer.init(self._xp, self._parameters)
        self._step = 0
        # The sums over an epoch's steps so far; None between two epochs.
        self._totals: tuple[Any, Any] | None = None

    @staticmethod
    def do_together(tasks: Sequence[Task]) -> list[Done | None]:
        """Do tasks one by one; see ``Engine.do_together``."""
        return one_by_one(tasks)

    def current(self) -> Engine:
        """Return this engine."""
        return self

    @property
    def device(self) -> Device:
        """The device of all arrays."""
        return self._device

    @property
    def parameters(self) -> Array:
        """The current flat parameter vector."""
        return self._parameters

    @property
    def state(self) -> EngineState:
        """The state between two steps."""
        totals = None
        if self._totals is not None:
            totals = float(self._totals[0]), float(self._totals[1])
        dropout = self._dropout_rng.bit_generator.state
        return EngineState(self._parameters, self._finite, self.optimizer_state, totals, dropout)

    @property
    def optimizer_state(self) -> OptimizerState:
        """The optimizer's part of the state."""
        return OptimizerState(self._step, self._state)

    def set_state(self, state: EngineState) -> None:
        """Continue from a state; call this before the first step."""
        self._parameters, self._finite = state.parameters, state.finite
        self._step, self._state = state.optimizer
        # Floats are exact here: adding an array rounds them to its dtype, which they had before.
        self._totals = state.totals
        if state.dropout is not None:
            self._dropout_rng.bit_generator.state = state.dropout

    def run(
        self,
        data: Data,
        orders: Sequence[Any] | None,
        rates: Sequence[Sequence[float]],
        *,
        ends: bool = True,
    ) -> tuple[Array, Array]:
        """Run whole epochs, or a part of one; see ``Engine.run``."""
        losses: list[Array] = []
        finite: Array = self._xp.asarray(True)
        for epoch, epoch_rates in enumerate(rates):
            # With one epoch, do not read from the device here.
            if losses and not bool(finite):
                break
            self._run_steps(data, None if orders is None else orders[epoch], epoch_rates)
            if ends:
                loss, finite = self._end_epoch()
                losses.append(loss)
        none = self._xp.empty(0, dtype=self._parameters.dtype)
        return self._xp.concat(losses) if losses else none, finite

    def _run_steps(self, data: Data, order: Any, rates: Sequence[float]) -> None:
        """Run some steps of an epoch, and add their losses to the totals."""
        if self._totals is None:
            self._finite = self._parameters
            self._totals = (0.0, 0.0)
        weighted_loss, total_weight = self._totals
        n_samples = data.n_samples if order is None else len(order)
        size = n_samples if len(rates) == 1 else self._problem.batch_size
        # Do not warn here: the training reports a loss that diverges.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            for batch, rate in zip(self._batches(data, order, size), rates, strict=True):
                loss, count = self._take_step(*batch, rate)
                weighted_loss = weighted_loss + loss * count
                total_weight = total_weight + count
        self._totals = weighted_loss, total_weight

    def _end_epoch(self) -> tuple[Array, Array]:
        """End an epoch; return its mean loss (1,), and whether all is finite."""
        xp = self._xp
        weighted_loss, total_weight = self._totals or (0.0, 0.0)
        self._totals = None
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            loss = xp.reshape(xp.asarray(weighted_loss / total_weight), (1,))
        return loss, xp.all(xp.isfinite(self._parameters)) & xp.isfinite(loss[0])

    def restore_finite(self) -> None:
        """Restore the parameters after the last epoch without a NaN or infinity."""
        self._parameters = self._finite

    def snapshot(self) -> Any:
        """Return the current parameters; steps make new arrays, so this one does not change."""
        return self._parameters

    def restore(self, snapshot: Any) -> None:
        """Restore the parameters of a snapshot."""
        self._parameters = snapshot

    def data_loss(self, data: Data) -> Array:
        """Return the loss of the current parameters on ``data`` without penalties, as 0-d array."""
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            return data_loss(self._problem, self._device, self._parameters, data)

    def _batches(
        self, data: Data, order: Any, size: int
    ) -> Iterator[tuple[Array, Array, Array | None, Share]]:
        """Yield this process's examples of each step, and its share of the rows."""
        n_samples = data.n_samples if order is None else len(order)
        on_device = None if order is None else self._device.place(order)
        for start in range(0, n_samples, size):
            n = min(size, n_samples - start)
            part = Share.alone(n) if self._team is None else Share.of(self._team, n)
            rows = slice(start + part.rows.start, start + part.rows.stop)
            yield *self._batch(data, rows, order, on_device), part

    def _batch(
        self, data: Data, rows: slice, order: Any, on_device: Array | None
    ) -> tuple[Array, Array, Array | None]:
        """Return the examples of some rows, given the order on the host and on the device."""
        xp = self._xp

        def take(x: Array | None) -> Array | None:
            if x is None or on_device is None:
                return None if x is None else x[rows, ...]
            return xp.take(x, on_device[rows], axis=0)

        if not data.streams:
            return take(data.X), take(data.y), take(data.sample_weight)
        X = data.X[rows] if order is None else data.X[order[rows]]
        return self._device.place(X), take(data.y), take(data.sample_weight)

    def _take_step(
        self, X: Array, y: Array, weight: Array | None, part: Share, rate: float
    ) -> tuple[Array, Array]:
        """Update on a part of a batch; return the whole batch's objective and its weight."""
        xp, problem = self._xp, self._problem
        masks = self._draw_masks(part)
        loss, gradient = problem.objective.data_value_and_gradient(
            xp, self._parameters, X, y, weight, masks
        )
        share: Any = X.shape[0] if weight is None else xp.sum(weight)
        if self._team is not None:
            own = 0.0 if part.is_idle else share
            loss, share = self._team.reduce_step(gradient, loss, own)
        loss, gradient = problem.objective.penalize(xp, self._parameters, loss, gradient, share)
        if problem.clip_value is not None:
            gradient = clip_by_value(xp, gradient, problem.clip_value)
        if problem.clip_norm is not None:
            gradient = clip_by_global_norm(xp, gradient, problem.clip_norm)
        self._step += 1
        coefficients = problem.optimizer.coefficients(rate, self._step)
        self._parameters, self._state = problem.optimizer.update(
            xp, self._parameters, gradient, self._state, coefficients
        )
        if problem.loss_by_rows and weight is not None:
            share = xp.astype(xp.asarray(share > 0), xp.float64) * part.n
        return loss, share

    def _draw_masks(self, part: Share) -> list[Array | None] | None:
        """Draw the masks of a batch, the same in every process; return those of this part."""
        structure = self._problem.objective.structure
        if not structure.has_dropout:
            return None
        masks: list[Array | None] = []
        for rate, width in zip(structure.dropout, structure.layer_sizes[1:-1], strict=True):
            if rate == 0.0:
                masks.append(None)
                continue
            dtype = np.dtype(str(self._parameters.dtype))
            uniform = self._dropout_rng.random((part.n, width), dtype=dtype.type)
            masks.append(dropout_mask(self._xp, self._device.place(uniform[part.rows]), rate))
        return masks


def data_loss(problem: Problem, device: Device, parameters: Array, data: Data) -> Array:
    """Return the loss on ``data`` without penalties as 0-d array, by blocks of rows if need be."""
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
