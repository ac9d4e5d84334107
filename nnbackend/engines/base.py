"""What an engine is: the problem it solves, the state it is in, and what training asks of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from nnbackend.core.objective import Objective
from nnbackend.core.optimizers import Optimizer, OptimizerState
from nnbackend.core.types import Array
from nnbackend.data.examples import Data
from nnbackend.device import Device

if TYPE_CHECKING:
    from nnbackend.parallel.team import Team

__all__ = ["Engine", "EngineFactory", "EngineState", "PRECISIONS", "PartialEngine", "Problem"]


PRECISIONS = ("float32", "tf32", "bfloat16")


@dataclass(frozen=True)
class Problem:
    """What is to be trained, and how: everything an engine has to know before it sees data.

    Attributes
    ----------
    objective : Objective
        What is minimized.
    optimizer : Optimizer
        How a gradient changes the parameters.
    batch_size : int
        Examples per step; the last step of an epoch takes what is left.
    clip_value, clip_norm : float or None
        Bounds on every element of the gradient, and on its norm over all parameters.
    precision : {"float32", "tf32", "bfloat16"}
        Of the products of float32 arrays.
    loss_by_rows : bool
        Whether an epoch's mean objective counts each step by its rows, not by the sum of their
        weights. A step whose weights are all zero is not counted either way.
    """

    objective: Objective
    optimizer: Optimizer
    batch_size: int
    clip_value: float | None = None
    clip_norm: float | None = None
    precision: str = "float32"
    loss_by_rows: bool = False


class Engine(Protocol):
    """What training asks of an engine."""

    @property
    def max_epochs_per_call(self) -> int:
        """How many epochs ``run_epochs`` may be asked for at once."""

    @property
    def parameters(self) -> Array:
        """The current flat parameter vector."""

    @property
    def state(self) -> EngineState:
        """Where training stands."""

    def set_state(self, state: EngineState) -> None:
        """Let training go on from there; before the first step."""

    def run_epochs(
        self, orders: Sequence[Any] | None, rates: Sequence[Sequence[float]]
    ) -> tuple[Array, Array]:
        """Run epochs until one ends in a loss or parameter that is not finite.

        Parameters
        ----------
        orders : sequence of NumPy arrays (n_samples,) of int, optional
            The rows of each epoch, a batch after the other; None: as they are.
        rates : sequence of sequences of float
            For each epoch, the learning rates of its steps.

        Returns
        -------
        losses : array (n,)
            The mean objective of each epoch that was run, the bad one included.
        is_finite : array () of bool
            Whether all are good. With one epoch, nothing is read back from the device.

        After an interrupt, ``parameters`` are those of some completed step.
        """

    def restore_finite(self) -> None:
        """Go back to the parameters that the last good epoch ended with."""

    def snapshot(self) -> Any:
        """Return the current parameters as something that later steps do not change."""

    def restore(self, snapshot: Any) -> None:
        """Go back to the parameters of a snapshot."""

    def data_loss(self, data: Data) -> Array:
        """Return the loss of the current parameters on ``data`` without penalties, 0-d."""


class PartialEngine(Engine, Protocol):
    """An engine that runs an epoch in parts as well."""

    def run_steps(self, data: Data, order: Any, rates: Sequence[float]) -> None:
        """Run some steps of an epoch; their losses add up until ``end_epoch``.

        However an epoch is cut, its steps give the same bits.

        Parameters
        ----------
        data : Data
            Examples in the form of those that the engine was made with.
        order : NumPy array (n,) of int, optional
            The rows of ``data`` to take, a batch after the other; None: all, as they are.
        rates : sequence of float
            The learning rate of each step. With one, all rows are one batch.
        """

    def end_epoch(self) -> tuple[Array, Array]:
        """End an epoch that was run in parts, and return what ``run_epochs`` does of one."""


# Makes an engine of the arguments of ``ReferenceEngine``.
EngineFactory = Callable[[Problem, Device, Array, Data, np.random.Generator, "Team | None"], Engine]


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
