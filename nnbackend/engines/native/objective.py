"""An objective in the C library, for optimizers of whoever calls it, such as L-BFGS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nnbackend.core.optimizers import SGD
from nnbackend.engines.base import Problem, Start
from nnbackend.engines.native.engine import NativeEngine

if TYPE_CHECKING:
    from nnbackend.core.objective import Objective
    from nnbackend.core.types import Array
    from nnbackend.data.examples import Data
    from nnbackend.device import Device

__all__ = ["NativeObjective"]


class NativeObjective:
    """What ``Objective.value_and_gradient`` returns, but for rounding, on examples that stay.

    It sums rows in an order of its own, which does not depend on the number of threads. Formulas
    that cannot be recorded run on NumPy in between.

    Parameters
    ----------
    objective : Objective
        The function.
    device : Device
        The CPU.
    parameters : array (n_parameters,)
        Any parameters, in the dtype of the computation.
    data : Data
        The examples, at least one.
    """

    def __init__(self, objective: Objective, device: Device, parameters: Array, data: Data) -> None:
        # Nothing is updated, and no unit is dropped.
        problem = Problem(objective, SGD(1.0), data.n_samples)
        self._engine = NativeEngine(
            Start(problem, device, parameters, data, np.random.default_rng(0))
        )
        self._data = data

    def __call__(self, parameters: Any) -> tuple[float, Array]:
        """Return value and gradient at flat parameters of any dtype, which are rounded to its own.

        The gradient is in the dtype of the computation; the next call overwrites it.
        """
        self._engine.restore(parameters)
        return self._engine.value_and_gradient(self._data)
