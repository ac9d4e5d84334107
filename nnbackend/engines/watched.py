"""Training on through a change of a formula that an engine has recorded.

A user's activation, loss or optimizer may read more than its arguments: a slope from a global, a
quantile from an attribute. An engine records the formula, and with it the value, when training
begins; a callback may change that. The reference engine calls the formula at every step.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from nnbackend.core.types import Array
from nnbackend.engines.formulas import fingerprint, is_label_target
from nnbackend.engines.reference import ReferenceEngine
from nnbackend.engines.state import EngineState

if TYPE_CHECKING:
    from nnbackend.device import Device
    from nnbackend.distributed import Team
    from nnbackend.engines import Data, Engine, EngineFactory, PartialEngine, Problem

__all__ = ["watched"]

_LOGGER = logging.getLogger("nnbackend")


@cache
def watched(make_engine: EngineFactory) -> EngineFactory:
    """Return what makes an engine that gives way to the reference engine if a formula changes."""

    def make(
        problem: Problem,
        device: Device,
        parameters: Array,
        data: Data,
        dropout_rng: np.random.Generator,
        team: Team | None = None,
    ) -> Engine:
        arguments = problem, device, parameters, data, dropout_rng, team
        dtype = str(parameters.dtype)
        labels = is_label_target(problem.objective, data.y.ndim)
        recorded = fingerprint(problem, dtype, labels=labels)
        if recorded != fingerprint(problem, dtype, labels=labels):
            _LOGGER.warning(
                "nnbackend: a formula of this network is another one each time it is called: "
                "training runs on the slower reference engine"
            )
            return ReferenceEngine(*arguments)
        engine = make_engine(*arguments)
        if not recorded or isinstance(engine, ReferenceEngine):
            return engine
        kind = _WatchedInParts if hasattr(engine, "run_steps") else _Watched
        return kind(engine, recorded, dtype, labels, arguments)

    return make


class _Watched:
    """An engine and, from the first change of a recorded formula on, the reference engine."""

    def __init__(
        self,
        engine: Engine,
        recorded: tuple[Any, ...],
        dtype: str,
        labels: bool,
        arguments: tuple[Problem, Device, Array, Data, np.random.Generator, Team | None],
    ) -> None:
        self._engine = engine
        self._recorded, self._dtype, self._labels = recorded, dtype, labels
        self._arguments = arguments

    def _follow(self) -> Engine:
        """Return the engine whose formulas are those of now."""
        if isinstance(self._engine, ReferenceEngine):
            return self._engine
        problem, device, _, data, dropout_rng, team = self._arguments
        if fingerprint(problem, self._dtype, labels=self._labels) != self._recorded:
            _LOGGER.warning(
                "nnbackend: a formula has changed during the training (a number that it reads): "
                "training goes on on the slower reference engine"
            )
            state = self._engine.state
            self._engine = ReferenceEngine(
                problem, device, state.parameters, data, dropout_rng, team
            )
            self._engine.set_state(state)
        return self._engine

    @property
    def max_epochs_per_call(self) -> int:
        """How many epochs ``run_epochs`` may be asked for at once."""
        return self._engine.max_epochs_per_call

    @property
    def parameters(self) -> Array:
        """The current flat parameter vector."""
        return self._engine.parameters

    @property
    def state(self) -> EngineState:
        """Where training stands."""
        return self._engine.state

    def set_state(self, state: EngineState) -> None:
        """Let training go on from there; before the first step."""
        self._engine.set_state(state)

    def run_epochs(
        self, orders: Sequence[Any] | None, rates: Sequence[Sequence[float]]
    ) -> tuple[Array, Array]:
        """Run epochs, one per list of rates, until one ends in a loss or parameter not finite."""
        return self._follow().run_epochs(orders, rates)

    def restore_finite(self) -> None:
        """Go back to the parameters that the last epoch without NaN and infinity ended with."""
        self._engine.restore_finite()

    def snapshot(self) -> Any:
        """Return the current parameters."""
        return self._engine.snapshot()

    def restore(self, snapshot: Any) -> None:
        """Go back to the parameters of a snapshot."""
        self._engine.restore(snapshot)

    def data_loss(self, data: Data) -> Array:
        """Return the loss of the current parameters on ``data`` without penalties, 0-d."""
        return self._follow().data_loss(data)


class _WatchedInParts(_Watched):
    """One whose epochs run in parts as well."""

    _engine: PartialEngine

    def run_steps(self, data: Data, order: Any, rates: Sequence[float]) -> None:
        """Run some steps of an epoch; their losses add up until ``end_epoch``."""
        self._follow()
        self._engine.run_steps(data, order, rates)

    def end_epoch(self) -> tuple[Array, Array]:
        """End an epoch: return its mean loss (1,), and whether all is finite."""
        return self._engine.end_epoch()
