"""Run training steps in Python, with NumPy's products and compiled kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nnbackend.core.activations import Activation
from nnbackend.core.propagation import output_elements
from nnbackend.core.regularization import dropout_mask
from nnbackend.engines.native import driver
from nnbackend.engines.native.kernels import Kernels
from nnbackend.engines.tracing.formulas import hidden_kinds
from nnbackend.parallel import Share

if TYPE_CHECKING:
    from nnbackend.core.types import Namespace
    from nnbackend.engines.base import Problem
    from nnbackend.parallel import Team

__all__ = ["Steps"]

_Array = np.ndarray[Any, Any]
_Kernel = Callable[..., Any]


class Steps:
    """The kernels for the driver's functions when these run in Python.

    Parameters
    ----------
    problem : Problem
        The training problem.
    xp : namespace
        NumPy's array API namespace, for formulas that could not be recorded.
    kernels : Kernels
        The recorded formulas.
    module : module
        The module compiled from their source.
    dropout_rng : numpy.random.Generator
        The generator of the dropout masks.
    team : Team, optional
        The processes that share every step.

    Attributes
    ----------
    share : Share or None
        With a team, this process's part of the next batch.
    n_updates : int
        The number of steps since the engine last set it to 0.
    is_updating : bool
        Whether an update is in progress, so that only some parameters are updated.
    """

    def __init__(
        self,
        problem: Problem,
        xp: Namespace,
        kernels: Kernels,
        module: Any,
        dropout_rng: np.random.Generator,
        team: Team | None = None,
    ) -> None:
        self._problem = problem
        self._team = team
        self.share: Share | None = None
        self._labels = kernels.labels
        self._xp = xp
        self._dropout_rng = dropout_rng
        self.is_updating = False
        self._activations: list[tuple[_Kernel, _Kernel]] = []
        for number, (activation, drops) in enumerate(hidden_kinds(problem)):
            formulas = _HiddenFormulas(xp, activation, drops=drops)
            self._activations.append(
                tuple(
                    formula if name in kernels.unrecorded else getattr(module, name)
                    for name, formula in (
                        (f"activate_{number}", formulas.activate),
                        (f"pull_back_{number}", formulas.pull_back),
                    )
                )  # type: ignore[arg-type]
            )
        unrecorded = kernels.unrecorded
        self.output_loss: _Kernel = (
            self._loss if "output_loss" in unrecorded else module.output_loss
        )
        self._take: _Kernel = self._update if "update" in unrecorded else module.update
        self.n_updates = 0
        self.penalize: _Kernel = module.penalize
        self.clip: _Kernel = module.clip
        self.all_finite: _Kernel = module.all_finite
        self.total: _Kernel = module.total
        self.copy: _Kernel = module.copy
        self.is_finite = math.isfinite

    def run(self, *arguments: Any) -> tuple[int, bool]:
        """Run ``driver.run``."""
        result: tuple[int, bool] = driver.run(self, *arguments)
        return result

    def propagate(self, *arguments: Any) -> None:
        """Run ``driver.propagate``."""
        driver.propagate(self, *arguments)

    @staticmethod
    def product(A: _Array, B: _Array, out: _Array) -> None:
        """Write a matrix product to ``out``; without the BLAS if the inner size is 1."""
        if A.shape[1] == 1:
            np.multiply(A, B, out=out)
        else:
            np.matmul(A, B, out=out)

    @staticmethod
    def take(x: _Array, rows: _Array, out: _Array) -> None:
        """Write rows of an array to ``out``; the row numbers have to be valid."""
        # With mode="raise", NumPy would write to a buffer first.
        np.take(x, rows, axis=0, out=out[: rows.shape[0]], mode="clip")

    def drop(self, trains: bool, n: int, M: Sequence[_Array]) -> None:
        """Draw the masks in the same order and sizes as the reference engine."""
        for mask, rate in zip(M, self._problem.objective.structure.dropout, strict=False):
            if rate and not trains:
                mask[:n] = 1.0
            elif rate:
                part = self.share or Share.alone(n)
                size = part.n, mask.shape[1]
                uniform = self._dropout_rng.random(size, dtype=mask.dtype.type)
                mask[:n] = dropout_mask(self._xp, uniform[part.rows], rate)

    def reduce(
        self, gradient: _Array, loss: float, weight: float, n: int
    ) -> tuple[float, float, int]:
        """Reduce gradient and loss to the whole batch; return its loss, weight and rows."""
        if self._team is None or self.share is None:
            return loss, weight, n
        own = 0.0 if self.share.is_idle else weight
        return *self._team.reduce_step(gradient, loss, own), self.share.n

    def update(self, *arrays: Any) -> None:
        """Update the parameters, and count the step."""
        self._take(*arrays)
        self.n_updates += 1

    def activate(self, kind: int, *arrays: _Array) -> None:
        """Add the bias, apply the activation, and drop units."""
        self._activations[kind][0](*arrays)

    def pull_back(self, kind: int, *arrays: _Array) -> None:
        """Turn dA into dZ in place, and add its column sums."""
        self._activations[kind][1](*arrays)

    def _update(
        self, parameters: _Array, gradient: _Array, state: Any, c: _Array, hyper: _Array
    ) -> None:
        """Do the same as the kernel ``update``, on NumPy."""
        del hyper
        optimizer = self._problem.optimizer
        new, new_state = optimizer.update(
            self._xp, parameters, gradient, state[: len(optimizer.state_names)], tuple(c)
        )
        # Copy the state, which may be views of arrays that are overwritten first.
        new_state = tuple(np.array(value) for value in new_state)
        new = np.array(new)
        self.is_updating = True
        parameters[:] = new
        for entry, value in zip(state, new_state, strict=False):
            entry[...] = value
        self.is_updating = False

    def _loss(
        self, Z: _Array, b: _Array, y: _Array, weight: _Array, divisor: float, L: _Array, gb: _Array
    ) -> float:
        """Do the same as the kernel ``output_loss``, on NumPy."""
        objective = self._problem.objective
        Z += b
        target = y[:, 0] if self._labels else y
        L[:], Z[:] = output_elements(
            self._xp, objective.structure.output, objective.loss, Z, target
        )
        share = (weight / np.float64(divisor)).astype(Z.dtype)
        Z *= share
        gb += np.sum(Z, axis=0)
        return float(np.sum(L * share))


class _HiddenFormulas:
    """The two kernels of a hidden layer, on NumPy."""

    def __init__(self, xp: Namespace, activation: Activation, *, drops: bool) -> None:
        self._xp = xp
        self._activation = activation
        self._drops = drops

    def activate(self, Z: _Array, b: _Array, A: _Array, H: _Array, M: _Array) -> None:
        Z += b
        A[:] = self._activation.function(self._xp, Z)
        if self._drops:
            np.multiply(A, M, out=H)

    def pull_back(self, D: _Array, Z: _Array, A: _Array, M: _Array, gb: _Array) -> None:
        if self._drops:
            D *= M
        D *= self._activation.derivative(self._xp, Z, A)
        gb += np.sum(D, axis=0)
