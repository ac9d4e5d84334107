"""The arguments of ``train``, checked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nnbackend.checks import positive_integer, real
from nnbackend.core.losses import Loss
from nnbackend.core.optimizers import OptimizerState
from nnbackend.data.batches import Feed
from nnbackend.data.examples import Data, Examples, Resident
from nnbackend.data.placement import Memory
from nnbackend.data.sources import as_source
from nnbackend.data.stream import Stream
from nnbackend.device import Device
from nnbackend.engines.base import Problem
from nnbackend.errors import InputError
from nnbackend.model.network import Network
from nnbackend.parallel.team import Team
from nnbackend.training.history import Callback, EarlyStopping

__all__ = [
    "bound",
    "callback_tuple",
    "check_early_stopping",
    "check_flags",
    "check_randomness",
    "checked_optimizer_state",
    "examples_of",
    "validation_of",
]


def check_flags(**flags: Any) -> None:
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise InputError(f"{name}: expected True or False, got {flag!r}")


def check_randomness(shuffle: Any, seed: Any, *, keeps: bool, has_team: bool) -> None:
    """Check what decides the order of the examples."""
    if seed is not None:
        positive_integer("seed", seed, minimum=0)
    elif has_team:
        raise InputError(
            "seed: expected a number with a communicator, so that all processes draw alike, got "
            "None"
        )
    if not (isinstance(shuffle, bool) or callable(shuffle)):
        raise InputError(f"shuffle: expected True, False or a callable, got {shuffle!r}")
    if callable(shuffle) and (keeps or has_team):
        other = "checkpoint" if keeps else "communicator"
        raise InputError(
            f"shuffle: expected True or False with a {other}, got a callable, whose state "
            "nnbackend does not know"
        )


def examples_of(
    net: Network,
    memory: Memory,
    loss: Loss,
    given: tuple[Any, Any, Any],
    batch_size: int | None,
    shuffle: Any,
    team: Team | None,
) -> tuple[Examples, Data, int]:
    """Return the examples, a ``Data`` of the form of theirs, and the size of a batch."""
    X, y, sample_weight = given
    source = as_source(X, y, sample_weight)
    if source is not None:
        if batch_size is None:
            raise InputError(
                "batch_size: expected a number with data that is read in blocks, got None"
            )
        if callable(shuffle):
            raise InputError(
                "shuffle: expected True or False with data that is read in blocks, got a callable"
            )
        stream = Stream(net.preparation, source, loss, batch_size, shuffle)
        net.learn_feature_names(source)
        return stream, stream.form().rows(0, 0), min(batch_size, stream.n_samples)
    if y is None:
        if sample_weight is not None:
            raise InputError(
                "sample_weight: expected None without y, got weights; a batch that X yields "
                "has its own: (X, y, sample_weight)"
            )
        if team is not None:
            raise InputError(
                "X: expected arrays or a source of nb.sources with a communicator, got "
                f"{type(X).__name__}: whether all processes are brought the same batches cannot be "
                "known"
            )
        nothing = net.parameters[:0]
        return Feed(net.preparation, X, loss), Data(nothing, nothing), 1
    data = memory.prepare(X, y, loss, sample_weight)
    net.learn_feature_names(X)
    size = min(batch_size or data.n_samples, data.n_samples)
    return Resident(data, size, shuffle), data, size


def bound(name: str, value: float | None) -> float | None:
    return None if value is None else real(name, value, above=0.0)


def checked_optimizer_state(state: Any, problem: Problem, device: Device) -> OptimizerState:
    """Return an optimizer's state on the device; raise if it is not one of this problem."""
    if not isinstance(state, OptimizerState):
        raise InputError(
            "optimizer_state: expected the optimizer_state of a History, got "
            f"{type(state).__name__}"
        )
    names = problem.optimizer.state_names
    shapes = [tuple(array.shape) for array in state.arrays]
    expected = [(problem.objective.structure.n_parameters,)] * len(names)
    if shapes != expected:
        raise InputError(
            f"optimizer_state: expected {len(names)} arrays of {expected[:1] or 'no'} numbers, as "
            f"{problem.optimizer.name} has for this network, got shapes {shapes}"
        )
    return OptimizerState(state.step, tuple(map(device.place, state.arrays)))


def validation_of(memory: Memory, loss: Loss, validation_data: Any) -> Data | None:
    if validation_data is None:
        return None
    if not isinstance(validation_data, tuple | list) or len(validation_data) not in (2, 3):
        raise InputError(
            "validation_data: expected a tuple (X, y) or (X, y, sample_weight), got "
            + (
                f"{len(validation_data)} entries"
                if isinstance(validation_data, tuple | list)
                else type(validation_data).__name__
            )
        )
    X, y, weight = (*validation_data, None)[:3]
    names = ("validation_data[0]", "validation_data[1]", "validation_data[2]")
    return memory.prepare(X, y, loss, weight, names)


def callback_tuple(callbacks: Any, team: Team | None) -> tuple[Callback, ...]:
    """Return the callbacks that are called in this process."""
    given = tuple(callbacks) if isinstance(callbacks, Iterable) else (callbacks,)
    for callback in given:
        if not callable(callback):
            raise InputError(
                f"callbacks: expected a callable or several, called as callback(state), got "
                f"{callback!r}"
            )
    return given if team is None or team.rank == 0 else ()


def check_early_stopping(early_stopping: Any, validation: Data | None) -> None:
    if early_stopping is None:
        return
    if not isinstance(early_stopping, EarlyStopping):
        raise InputError(
            f"early_stopping: expected an EarlyStopping or None, got {early_stopping!r}"
        )
    if validation is None and early_stopping.monitor == "validation_loss":
        raise InputError(
            "early_stopping: expected validation_data to watch its loss, got None; pass it, or use "
            "EarlyStopping(monitor='loss')"
        )
