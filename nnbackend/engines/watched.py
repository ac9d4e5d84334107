"""Switch to the reference engine when a formula changes that an engine has recorded.

A user's activation, loss or optimizer may read more than its arguments: a slope from a global, a
quantile from an attribute. An engine records the formula, including that value, when training
begins; later a callback may change the value. The reference engine calls the formula at every step,
so it follows the change.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from nnbackend.core.types import Array
from nnbackend.engines.base import EngineState
from nnbackend.engines.driving import Alone
from nnbackend.engines.reference import ReferenceEngine
from nnbackend.engines.tracing.formulas import fingerprint, is_label_target

if TYPE_CHECKING:
    from nnbackend.core.optimizers import OptimizerState
    from nnbackend.data.examples import Data
    from nnbackend.device import Device
    from nnbackend.engines.base import Crew, Engine, EngineFactory, Start

__all__ = ["watched"]

_LOGGER = logging.getLogger("nnbackend")


@cache
def watched(make_engine: EngineFactory) -> EngineFactory:
    """Return a factory of engines that switch to the reference engine if a formula changes."""

    def make(start: Start) -> Engine:
        recorded = _fingerprint(start)
        if not recorded:
            return make_engine(start)
        if recorded != _fingerprint(start):
            _LOGGER.warning(
                "nnbackend: a formula of this network changes each time it is called: training "
                "runs on the slower reference engine"
            )
            return ReferenceEngine(start)
        engine = make_engine(start)
        if isinstance(engine, ReferenceEngine):
            return engine
        return _Watched(engine, recorded, start)

    return make


def _fingerprint(start: Start) -> tuple[Any, ...]:
    """Return the fingerprint of the user's formulas, which is empty without any."""
    problem = start.problem
    labels = is_label_target(problem.objective, start.data.y.ndim)
    return fingerprint(problem, str(start.parameters.dtype), labels=labels)


class _Watched:
    """An engine, replaced by the reference engine at the first change of a recorded formula."""

    def __init__(self, engine: Engine, recorded: tuple[Any, ...], start: Start) -> None:
        self._engine, self._recorded, self._start = engine, recorded, start

    @staticmethod
    def crew(most: int) -> Crew:
        """Return a crew that does tasks one by one."""
        del most
        return Alone()

    def current(self) -> Engine:
        """Return the engine with the current formulas."""
        if isinstance(self._engine, ReferenceEngine):
            return self._engine
        if _fingerprint(self._start) != self._recorded:
            _LOGGER.warning(
                "nnbackend: a formula has changed during the training (a number that it reads): "
                "training continues on the slower reference engine"
            )
            state = self._engine.state
            self._engine = ReferenceEngine(replace(self._start, parameters=state.parameters))
            self._engine.set_state(state)
        return self._engine

    @property
    def device(self) -> Device:
        """The device of all arrays."""
        return self._start.device

    @property
    def max_epochs_per_call(self) -> int:
        """The largest number of epochs of one call of ``run``."""
        return self._engine.max_epochs_per_call

    @property
    def runs_parts(self) -> bool:
        """Whether ``run`` takes parts of an epoch."""
        return self._engine.runs_parts

    @property
    def parameters(self) -> Array:
        """The current flat parameter vector."""
        return self._engine.parameters

    @property
    def state(self) -> EngineState:
        """The state between two steps."""
        return self._engine.state

    @property
    def optimizer_state(self) -> OptimizerState:
        """The optimizer's part of the state."""
        return self._engine.optimizer_state

    def set_state(self, state: EngineState) -> None:
        """Continue from a state; call this before the first step."""
        self._engine.set_state(state)

    def run(
        self,
        data: Data,
        orders: Sequence[Any] | None,
        rates: Sequence[Sequence[float]],
        *,
        ends: bool = True,
    ) -> tuple[Array, Array]:
        """Run whole epochs, or a part of one; see ``Engine.run``."""
        return self.current().run(data, orders, rates, ends=ends)

    def restore_finite(self) -> None:
        """Restore the parameters after the last epoch without a NaN or infinity."""
        self._engine.restore_finite()

    def snapshot(self) -> Any:
        """Return the current parameters."""
        return self._engine.snapshot()

    def restore(self, snapshot: Any) -> None:
        """Restore the parameters of a snapshot."""
        self._engine.restore(snapshot)

    def data_loss(self, data: Data) -> Array:
        """Return the loss of the current parameters on ``data`` without penalties, as 0-d array."""
        return self.current().data_loss(data)
