"""The reference engine, which calls the formulas of ``core`` on any array API namespace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from nnbackend.core.optimizers import OptimizerState
from nnbackend.core.regularization import dropout_mask
from nnbackend.core.types import Array
from nnbackend.engines.base import EngineState
from nnbackend.engines.stack import Stacks, kind_of_network
from nnbackend.engines.steps import Batch, Variables, data_loss, end_epoch, host_dtype, take_step
from nnbackend.parallel import Share

if TYPE_CHECKING:
    from nnbackend.data.examples import Data
    from nnbackend.device import Device
    from nnbackend.engines.base import Crew, Engine, Start

__all__ = ["ReferenceEngine"]


class ReferenceEngine:
    """Runs one step after another by pure functions; the tests compare other engines with it.

    Parameters
    ----------
    start : Start
        The problem, its data, and the initial parameters.

    Attributes
    ----------
    problem : Problem
        The problem.
    dropout : numpy.random.Generator
        The generator of the dropout masks.
    variables : Variables
        The parameters, and what else steps change. They may be rows of a stack's arrays.
    step : int
        The number of steps taken.
    """

    max_epochs_per_call = 1
    runs_parts = True

    def __init__(self, start: Start) -> None:
        self.problem, self._team = start.problem, start.team
        self._device, self._xp = start.device, start.device.xp
        self.dropout = start.dropout
        parameters = self._xp.asarray(start.parameters, copy=True)
        state = start.problem.optimizer.init(self._xp, parameters)
        self.variables, self.step = Variables(parameters, parameters, state), 0

    @staticmethod
    def crew(most: int) -> Crew:
        """Return a crew that does the tasks of like networks as one stack."""
        del most
        return Stacks()

    @cached_property
    def kind(self) -> object:
        """What networks of a stack have in common; None for one that is no part of any."""
        if self._team is not None:
            return None
        return kind_of_network(self.problem, self._device, host_dtype(self.parameters))

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
        return self.variables.parameters

    @property
    def state(self) -> EngineState:
        """A copy of the state between two steps."""
        totals = self.variables.totals
        if totals is not None:
            totals = float(totals[0]), float(totals[1])
        parameters, finite = self.snapshot(), self._copy(self.variables.finite)
        dropout = self.dropout.bit_generator.state
        return EngineState(parameters, finite, self.optimizer_state, totals, dropout)

    @property
    def optimizer_state(self) -> OptimizerState:
        """A copy of the optimizer's part of the state."""
        return OptimizerState(self.step, tuple(map(self._copy, self.variables.state)))

    def set_state(self, state: EngineState) -> None:
        """Continue from a state; call this before the first step."""
        self.step, arrays = state.optimizer
        # Floats are exact here: adding an array rounds them to its dtype, which they had before.
        self.variables = Variables(state.parameters, state.finite, arrays, state.totals)
        if state.dropout is not None:
            self.dropout.bit_generator.state = state.dropout

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
        none = self._xp.empty(0, dtype=self.parameters.dtype)
        return self._xp.concat(losses) if losses else none, finite

    def _run_steps(self, data: Data, order: Any, rates: Sequence[float]) -> None:
        """Run some steps of an epoch, and add their losses to the totals."""
        self.variables = self.variables.begin_epoch()
        n_samples = data.n_samples if order is None else len(order)
        size = n_samples if len(rates) == 1 else self.problem.batch_size
        # Do not warn here: the training reports a loss that diverges.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            for batch, rate in zip(self._batches(data, order, size), rates, strict=True):
                self._take_step(*batch, rate)

    def _end_epoch(self) -> tuple[Array, Array]:
        """End an epoch; return its mean loss (1,), and whether all is finite."""
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            self.variables, loss, is_finite = end_epoch(self._xp, self.variables)
        return self._xp.reshape(loss, (1,)), is_finite

    def restore_finite(self) -> None:
        """Restore the parameters after the last epoch without a NaN or infinity."""
        self.restore(self.variables.finite)

    def snapshot(self) -> Any:
        """Return a copy of the current parameters."""
        return self._copy(self.parameters)

    def _copy(self, array: Array) -> Array:
        """Return a copy, which unlike a row of a stack does not keep the others in memory."""
        return self._xp.asarray(array, copy=True)

    def restore(self, snapshot: Any) -> None:
        """Restore the parameters of a snapshot."""
        self.variables = self.variables._replace(parameters=snapshot)

    def data_loss(self, data: Data) -> Array:
        """Return the loss of the current parameters on ``data`` without penalties, as 0-d array."""
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            return data_loss(self.problem, self._device, self.parameters, data)

    def _batches(self, data: Data, order: Any, size: int) -> Iterator[tuple[Batch, Share]]:
        """Yield this process's examples of each step, and its share of the rows."""
        n_samples = data.n_samples if order is None else len(order)
        on_device = None if order is None else self._device.place(order)
        for start in range(0, n_samples, size):
            n = min(size, n_samples - start)
            part = Share.alone(n) if self._team is None else Share.of(self._team, n)
            rows = slice(start + part.rows.start, start + part.rows.stop)
            yield Batch(*self._batch(data, rows, order, on_device), part.n), part

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

    def _take_step(self, batch: Batch, part: Share, rate: float) -> None:
        """Update on a part of a batch; add the whole batch's objective to the totals."""
        team, masks = self._team, self._draw_masks(part)

        def reduce(gradient: Array, loss: Array, share: Any) -> tuple[Any, Any]:
            assert team is not None  # noqa: S101
            return team.reduce_step(gradient, loss, 0.0 if part.is_idle else share)

        coefficients = self.problem.optimizer.coefficients(rate, self.step + 1)
        self.variables = take_step(
            self._xp, self.problem, self.variables, batch, masks, coefficients,
            None if team is None else reduce,
        )  # fmt: skip
        self.step += 1

    def _draw_masks(self, part: Share) -> list[Array | None] | None:
        """Draw the masks of a batch, the same in every process; return those of this part."""
        structure = self.problem.objective.structure
        if not structure.has_dropout:
            return None
        masks: list[Array | None] = []
        for rate, width in zip(structure.dropout, structure.layer_sizes[1:-1], strict=True):
            if rate == 0.0:
                masks.append(None)
                continue
            dtype = host_dtype(self.parameters)
            uniform = self.dropout.random((part.n, width), dtype=dtype.type)
            masks.append(dropout_mask(self._xp, self._device.place(uniform[part.rows]), rate))
        return masks
