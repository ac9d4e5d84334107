"""What an engine is: the problem it solves, the state it is in, and what training asks of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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

__all__ = ["PRECISIONS", "Engine", "EngineFactory", "EngineState", "Problem", "Start"]

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


@dataclass(frozen=True)
class Start:
    """What an engine is made of.

    Attributes
    ----------
    problem : Problem
        What is to be trained, and how.
    device : Device
        Where all arrays live.
    parameters : array (n_parameters,)
        Where training starts.
    data : Data
        The training examples, or some in the form of those that ``run`` will be given.
    dropout : numpy.random.Generator
        Draws the dropout masks, on the host.
    team : Team or None
        The processes that share every step.
    """

    problem: Problem
    device: Device
    parameters: Array
    data: Data
    dropout: np.random.Generator
    team: Team | None = None


class Engine(Protocol):
    """What training asks of an engine."""

    @property
    def max_epochs_per_call(self) -> int:
        """How many epochs ``run`` may be asked for at once."""

    @property
    def runs_parts(self) -> bool:
        """Whether ``run`` takes parts of an epoch, and other examples than its own."""

    @property
    def parameters(self) -> Array:
        """The current flat parameter vector."""

    @property
    def state(self) -> EngineState:
        """Where training stands."""

    def set_state(self, state: EngineState) -> None:
        """Let training go on from there; before the first step."""

    def run(
        self,
        data: Data,
        orders: Sequence[Any] | None,
        rates: Sequence[Sequence[float]],
        *,
        ends: bool = True,
    ) -> tuple[Array, Array]:
        """Run whole epochs, or a part of one, until an epoch ends in a NaN or infinity.

        However an epoch is cut into parts, its steps give the same bits. After an interrupt,
        ``parameters`` are those of some completed step.

        Parameters
        ----------
        data : Data
            Examples: those that the engine was made with, or others in their form.
        orders : sequence of NumPy arrays (n,) of int, optional
            For each epoch the rows of ``data`` to take, a batch after the other; None: all, as
            they are.
        rates : sequence of sequences of float
            For each epoch the learning rates of its steps. With one step, all rows are one batch.
        ends : bool, default True
            Whether an epoch ends with its last step. If not, the losses of its steps are kept for
            the call that ends it.

        Returns
        -------
        losses : array (n,)
            The mean objective of each epoch that ended, the bad one included.
        is_finite : array () of bool
            Whether all losses and parameters were finite. With one epoch, nothing is read back
            from the device.
        """

    def restore_finite(self) -> None:
        """Go back to the parameters that the last good epoch ended with."""

    def snapshot(self) -> Any:
        """Return the current parameters as something that later steps do not change."""

    def restore(self, snapshot: Any) -> None:
        """Go back to the parameters of a snapshot."""

    def data_loss(self, data: Data) -> Array:
        """Return the loss of the current parameters on ``data`` without penalties, 0-d."""


EngineFactory = Callable[[Start], Engine]


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
    dropout : dict or None
        The state of the generator that draws the dropout masks; None where a GPU keeps it.
    """

    parameters: Array
    finite: Array
    optimizer: OptimizerState
    totals: tuple[float, float] | None = None
    dropout: Mapping[str, Any] | None = None
