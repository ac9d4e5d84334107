"""How a training step runs. Every engine gives the numbers of the reference engine.

An engine is made once per training from a ``Problem`` and the data, and is then asked for whole
epochs, so that it is free to plan buffers, fuse, capture or compile as it likes.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from nnbackend.checks import lookup
from nnbackend.core.objective import Objective
from nnbackend.core.optimizers import Optimizer
from nnbackend.core.types import Array
from nnbackend.device import Device
from nnbackend.engines.reference import ReferenceEngine
from nnbackend.engines.state import EngineState
from nnbackend.engines.watched import watched
from nnbackend.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    from nnbackend.distributed import Team

__all__ = [
    "Data",
    "Engine",
    "EngineState",
    "PartialEngine",
    "Problem",
    "default_engine",
    "get_engine",
    "reference_seconds",
]

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
class Data:
    """Examples on the device, in the form that the core takes.

    Attributes
    ----------
    X, y, sample_weight : array
        As in ``Objective.value``.
    streams : bool
        Whether ``X`` is a NumPy array in the host's memory, for want of room on the device: then
        engines copy the rows of a batch.
    """

    X: Array
    y: Array
    sample_weight: Array | None = None
    streams: bool = False

    @property
    def n_samples(self) -> int:
        """The number of rows."""
        return int(self.X.shape[0])

    def rows(self, start: int, stop: int) -> Data:
        """Return some of the rows, as views where the library's slices are views."""
        X, y, weight = (
            None if x is None else x[start:stop, ...] for x in (self.X, self.y, self.sample_weight)
        )
        return Data(X, y, weight, self.streams)


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


def _reference(device: Device) -> EngineFactory:
    del device
    return ReferenceEngine


def _cpu(device: Device) -> EngineFactory:
    if device.kind != "cpu":
        raise InputError(f"engine: 'cpu' runs on device='cpu', got a network on {device}")
    if missing := _missing_packages():
        raise MissingDependencyError(
            f"engine='cpu' needs {missing}, which is not installed; install it with: pip install "
            f"{missing}, or use engine='reference'"
        )
    from nnbackend.engines.cpu import CpuEngine

    return CpuEngine


def _cuda(device: Device) -> EngineFactory:
    if device.kind != "cuda":
        raise InputError(f"engine: 'cuda' runs on device='cuda', got a network on {device}")
    from nnbackend.engines.cuda import cuda_engine

    return cuda_engine


ENGINES: dict[str, Callable[[Device], EngineFactory]] = {
    "cpu": _cpu,
    "cuda": _cuda,
    "reference": _reference,
}

# Compiling a kind of network takes some seconds; a training shorter than that is not worth it.
COMPILATION_SECONDS = 3.0


def default_engine(device: Device, reference_seconds: float = math.inf) -> str:
    """Return the name of the engine that ``"auto"`` stands for.

    Nothing but the device and the length of the training decides, so that a training repeated
    gives the same bits.

    Parameters
    ----------
    device : Device
        Where the network is.
    reference_seconds : float
        What the training would take on the reference engine, roughly.
    """
    if device.kind != "cpu" or reference_seconds < COMPILATION_SECONDS:
        return "reference"
    if missing := _missing_packages():
        warnings.warn(
            f"{missing} is not installed: training runs on the slower reference engine; install it "
            f"with: pip install {missing}",
            stacklevel=4,
        )
        return "reference"
    return "cpu"


def reference_seconds(problem: Problem, n_samples: int, epochs: int) -> float:
    """Return what a training takes on the reference engine, roughly, on two cores of 2021."""
    shapes = problem.objective.structure.weight_shapes
    flops_per_sample = 6 * sum(n_in * n_out for n_in, n_out in shapes)
    n_steps = -(-n_samples // problem.batch_size)
    return epochs * (2e-4 * n_steps + n_samples * flops_per_sample / 4e10)


@cache
def _missing_packages() -> str:
    """Return what the CPU engine needs and is not installed."""
    names = ("numba", "scipy")
    return " and ".join(name for name in names if importlib.util.find_spec(name) is None)


def get_engine(
    engine: str, precision: str, device: Device, reference_seconds: float = math.inf
) -> EngineFactory:
    """Return what makes the engine of a name; of ``"auto"``, what ``default_engine`` says.

    Raises
    ------
    InputError
        For an unknown name, or a device or precision that the engine is not for.
    MissingDependencyError
        If a named engine needs a package that is not installed.
    """
    if precision not in PRECISIONS:
        raise InputError(
            f"precision: expected one of {', '.join(map(repr, PRECISIONS))}, got {precision!r}"
        )
    if precision != "float32" and engine != "cuda":
        raise InputError(
            f"precision: {precision!r} is one of engine='cuda' on device='cuda', got "
            f"engine={engine!r} on {device}; use that engine, or 'float32'"
        )
    if engine == "auto":
        engine = default_engine(device, reference_seconds)
    make = lookup("engine", engine, {"auto": _reference, **ENGINES})(device)
    return make if engine == "reference" else watched(make)
