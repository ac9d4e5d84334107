"""How a training step runs. Every engine gives the numbers of the reference engine.

An engine is made once per training from a ``Problem`` and the data, and is then asked for whole
epochs, so that it is free to plan buffers, fuse, capture or compile as it likes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from nnbackend.checks import lookup
from nnbackend.core.objective import Objective
from nnbackend.core.optimizers import Optimizer
from nnbackend.core.types import Array
from nnbackend.device import Device
from nnbackend.engines.reference import ReferenceEngine
from nnbackend.errors import InputError

__all__ = ["Data", "Engine", "Problem", "get_engine"]

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
    """

    objective: Objective
    optimizer: Optimizer
    batch_size: int
    clip_value: float | None = None
    clip_norm: float | None = None


@dataclass(frozen=True)
class Data:
    """Examples on the device, in the form that the core takes."""

    X: Array
    y: Array
    sample_weight: Array | None = None

    @property
    def n_samples(self) -> int:
        """The number of rows."""
        return int(self.X.shape[0])


class Engine(Protocol):
    """What training asks of an engine."""

    def __init__(
        self,
        problem: Problem,
        device: Device,
        parameters: Array,
        data: Data,
        dropout_rng: np.random.Generator,
    ) -> None: ...

    @property
    def parameters(self) -> Array:
        """The current flat parameter vector."""

    def run_epoch(self, order: Array | None, rates: Sequence[float]) -> Array:
        """Take one step per rate over the rows in ``order``; return the mean objective, 0-d.

        Nothing is read back from the device. An interrupt leaves ``parameters`` as some completed
        step left them.
        """

    def snapshot(self) -> Any:
        """Return the current parameters as something that later steps do not change."""

    def restore(self, snapshot: Any) -> None:
        """Go back to the parameters of a snapshot."""

    def data_loss(self, data: Data) -> Array:
        """Return the loss of the current parameters on ``data`` without penalties, 0-d."""


def _reference(device: Device) -> type[Engine]:
    del device
    return ReferenceEngine


def _cpu(device: Device) -> type[Engine]:
    if device.kind != "cpu":
        raise InputError(f"engine: 'cpu' runs on device='cpu', got a network on {device}")
    from nnbackend.engines.cpu import CpuEngine

    return CpuEngine


# The reference engine serves as "auto" until another one is proven on every kind of problem.
ENGINES: dict[str, Callable[[Device], type[Engine]]] = {
    "auto": _reference,
    "cpu": _cpu,
    "reference": _reference,
}


def get_engine(engine: str, precision: str, device: Device) -> type[Engine]:
    """Return the engine that a name stands for; ``"auto"`` is the reference.

    Raises
    ------
    InputError
        For an unknown name, or a precision that no engine offers on this device.
    """
    if precision not in PRECISIONS:
        raise InputError(
            f"precision: expected one of {', '.join(map(repr, PRECISIONS))}, got {precision!r}"
        )
    if precision != "float32":
        raise InputError(
            f"precision: {precision!r} needs an engine with tensor-core products, which device "
            f"{device.name!r} does not have in this version; use 'float32'"
        )
    return lookup("engine", engine, ENGINES)(device)
