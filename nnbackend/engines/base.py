"""The interface of engines: the problem they solve, their start, their state, their methods."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np

from nnbackend.core.objective import Objective
from nnbackend.core.optimizers import Optimizer, OptimizerState
from nnbackend.core.types import Array
from nnbackend.data.examples import Data
from nnbackend.device import Device

if TYPE_CHECKING:
    from nnbackend.parallel import Team

__all__ = [
    "PRECISIONS",
    "Crew",
    "Done",
    "Engine",
    "EngineFactory",
    "EngineState",
    "Evaluation",
    "Problem",
    "Start",
    "Steps",
    "Task",
    "Training",
]

PRECISIONS = ("float32", "tf32", "bfloat16")


@dataclass(frozen=True)
class Problem:
    """A training problem: everything that an engine has to know before it gets data.

    Attributes
    ----------
    objective : Objective
        The function to minimize.
    optimizer : Optimizer
        The rule by which a gradient changes the parameters.
    batch_size : int
        Examples per step; the last step of an epoch takes the remaining ones.
    clip_value, clip_norm : float or None
        Bounds on every element of the gradient, and on its norm over all parameters.
    precision : {"float32", "tf32", "bfloat16"}
        The precision of products of float32 arrays.
    loss_by_rows : bool
        Whether an epoch's mean objective weights each step by its rows, not by the sum of their
        weights. A step whose weights are all zero does not count in either case.
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
    """The arguments from which every engine is made.

    Attributes
    ----------
    problem : Problem
        The training problem.
    device : Device
        The device of all arrays.
    parameters : array (n_parameters,)
        The initial parameters.
    data : Data
        The training examples, or some with the same form as those that ``run`` will get.
    dropout : numpy.random.Generator
        The generator of the dropout masks, on the host.
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
    """The methods that training needs of an engine."""

    @property
    def device(self) -> Device:
        """The device of all arrays."""

    @property
    def max_epochs_per_call(self) -> int:
        """The largest number of epochs of one call of ``run``."""

    @property
    def runs_parts(self) -> bool:
        """Whether ``run`` takes parts of an epoch, and examples other than ``Start.data``."""

    @property
    def parameters(self) -> Array:
        """The current flat parameter vector."""

    @property
    def state(self) -> EngineState:
        """The state between two steps."""

    @property
    def optimizer_state(self) -> OptimizerState:
        """The optimizer's part of the state."""

    def set_state(self, state: EngineState) -> None:
        """Continue from a state; call this before the first step."""

    def run(
        self,
        data: Data,
        orders: Sequence[Any] | None,
        rates: Sequence[Sequence[float]],
        *,
        ends: bool = True,
    ) -> tuple[Array, Array]:
        """Run whole epochs, or a part of one; stop after an epoch with a NaN or infinity.

        An epoch gives the same bits however it is cut into parts. After an interrupt,
        ``parameters`` are those after some completed step.

        Parameters
        ----------
        data : Data
            The examples that the engine was made with, or others with the same form.
        orders : sequence of NumPy arrays (n,) of int, optional
            For each epoch the rows of ``data`` to take, one batch after another; None takes all
            rows in their order.
        rates : sequence of sequences of float
            For each epoch the learning rates of its steps. With one step, all rows are one batch.
        ends : bool, default True
            Whether the epoch ends with its last step. If not, the losses of its steps are kept for
            the call that ends it.

        Returns
        -------
        losses : array (n,)
            The mean objective of each epoch that ended, including one that is not finite.
        is_finite : array () of bool
            Whether all losses and parameters were finite. With one epoch, nothing is read back
            from the device.
        """

    def restore_finite(self) -> None:
        """Restore the parameters after the last epoch without a NaN or infinity."""

    def current(self) -> Engine:
        """Return the engine that does the next task, usually this one."""

    @staticmethod
    def crew(most: int) -> Crew:
        """Return what does tasks of engines of this class, of so many engines at the same time.

        An engine has one task at most. On the CPU, every task gives the same bits as alone with the
        native engine; with the reference engine, networks may form a stack, and give the same
        numbers up to rounding.
        """

    def snapshot(self) -> Any:
        """Return the current parameters in a form that later steps do not change."""

    def restore(self, snapshot: Any) -> None:
        """Restore the parameters of a snapshot."""

    def data_loss(self, data: Data) -> Array:
        """Return the loss of the current parameters on ``data`` without penalties, as 0-d array."""


EngineFactory = Callable[[Start], Engine]


@dataclass(eq=False)
class Steps:
    """A task: to run steps; the arguments are those of ``Engine.run``."""

    engine: Engine
    data: Data
    orders: Sequence[Any] | None
    rates: Sequence[Sequence[float]]
    ends: bool = True

    def do(self) -> tuple[Array, Array]:
        """Run the steps."""
        return self.engine.run(self.data, self.orders, self.rates, ends=self.ends)


@dataclass(eq=False)
class Evaluation:
    """A task: to compute the loss on data; see ``Engine.data_loss``."""

    engine: Engine
    data: Data

    def do(self) -> Array:
        """Compute the loss."""
        return self.engine.data_loss(self.data)


Task: TypeAlias = Steps | Evaluation


class Crew(Protocol):
    """Does tasks of several trainings, side by side where that is faster.

    Attributes
    ----------
    has_threads : bool
        Whether tasks go on while nobody asks for them.
    """

    has_threads: bool

    def take(self, task: Task) -> None:
        """Take a task over, and perhaps begin it; ``task.engine`` is its ``current`` engine."""

    def done(self, seconds: float) -> list[tuple[Task, Done]]:
        """Return tasks that are done, and forget them.

        Wait for one, or do some work, but no longer than so many seconds or a task.
        """

    def close(self) -> None:
        """Stop the tasks that are not done; their engines are then between two steps."""


class Done(NamedTuple):
    """The outcome of a task.

    Attributes
    ----------
    value : object
        What the task's ``do`` returns.
    error : BaseException or None
        What it raised.
    seconds : float
        How long the task itself took; of tasks that were done at once, each has a part.
    """

    value: Any
    error: BaseException | None
    seconds: float


_R = TypeVar("_R")

# A training yields tasks for its engine, receives for each how many seconds it waited for others
# and the task's value, and returns its result.
Training: TypeAlias = Generator[Task, tuple[float, Any], _R]


class EngineState(NamedTuple):
    """The state of an engine between two steps, in arrays that later steps do not change.

    Attributes
    ----------
    parameters : array (n_parameters,)
        The current flat parameter vector.
    finite : array (n_parameters,)
        The parameters after the last epoch without a NaN or infinity.
    optimizer : OptimizerState
        The state of the optimizer.
    totals : tuple of float or None
        For the epoch's steps so far, the sum of the losses, each weighted by its examples, and the
        sum of these weights; None between two epochs.
    dropout : dict or None
        The state of the generator of the dropout masks; None if a GPU keeps it.
    """

    parameters: Array
    finite: Array
    optimizer: OptimizerState
    totals: tuple[float, float] | None = None
    dropout: Mapping[str, Any] | None = None
