"""Check the arguments of ``train`` that need the network or the data."""

from __future__ import annotations

from typing import Any

from nnbackend.core.losses import Loss
from nnbackend.core.optimizers import OptimizerState
from nnbackend.data.batches import Feed
from nnbackend.data.door import look
from nnbackend.data.examples import Data, Examples, Resident
from nnbackend.data.placement import Memory
from nnbackend.data.sources import as_source
from nnbackend.data.stream import Stream
from nnbackend.device import Device
from nnbackend.engines import Problem
from nnbackend.errors import InputError
from nnbackend.model.network import Network
from nnbackend.parallel import Team
from nnbackend.training.history import EarlyStopping
from nnbackend.training.options import TrainingOptions

__all__ = [
    "check_early_stopping",
    "examples_of",
    "placed_optimizer_state",
    "resident",
    "validation_of",
]


def examples_of(
    net: Network,
    memory: Memory,
    loss: Loss,
    given: tuple[Any, Any, Any],
    options: TrainingOptions,
    team: Team | None,
) -> tuple[Examples, Data, int]:
    """Return the examples, a ``Data`` with the form of theirs, and the size of a batch."""
    X, y, sample_weight = given
    batch_size, shuffle = options.batch_size, options.shuffle
    source = as_source(X, y, sample_weight)
    if source is not None:
        if batch_size is None:
            raise InputError(
                "expected a number with data that is read in blocks, got None",
                argument="batch_size",
            )
        if callable(shuffle):
            raise InputError(
                "expected True or False with data that is read in blocks, got a callable",
                argument="shuffle",
            )
        stream = Stream(net.preparation, source, loss, batch_size, shuffle)
        memory.learn_feature_names(source.feature_names)
        net.learn_feature_names(source.feature_names)
        return stream, stream.form().rows(0, 0), min(batch_size, stream.n_samples)
    if y is None:
        if sample_weight is not None:
            raise InputError(
                "expected None without y, got weights; a batch that X yields "
                "has its own: (X, y, sample_weight)",
                argument="sample_weight",
            )
        if team is not None:
            raise InputError(
                "expected arrays or a source of nb.sources with a communicator, got "
                f"{type(X).__name__}, which may yield other batches in each process",
                argument="X",
            )
        nothing = net.parameters[:0]
        return Feed(net.preparation, X, loss), Data(nothing, nothing), 1
    features = look("X", X)
    data = memory.prepare(features, y, loss, sample_weight)
    memory.learn_feature_names(features.feature_names)
    net.learn_feature_names(features.feature_names)
    examples = resident(data, options)
    return examples, data, examples.batch_size


def resident(data: Data, options: TrainingOptions, rows: Any = None) -> Resident:
    """Return examples in the device's memory, all or some of the rows of ``data``."""
    n_samples = data.n_samples if rows is None else len(rows)
    size = min(options.batch_size or n_samples, n_samples)
    return Resident(data, size, options.shuffle, rows)


def placed_optimizer_state(
    state: OptimizerState, problem: Problem, device: Device
) -> OptimizerState:
    """Return an optimizer's state on the device; raise if it does not fit the problem."""
    names = problem.optimizer.state_names
    shapes = [tuple(array.shape) for array in state.arrays]
    expected = [(problem.objective.structure.n_parameters,)] * len(names)
    if shapes != expected:
        raise InputError(
            f"expected {len(names)} arrays of {expected[:1] or 'no'} numbers, as "
            f"{problem.optimizer.name} has for this network, got shapes {shapes}",
            argument="optimizer_state",
        )
    return OptimizerState(state.step, tuple(map(device.place, state.arrays)))


def validation_of(memory: Memory, loss: Loss, validation_data: Any) -> Data | None:
    """Return the validation data as engines take it; None without any."""
    if validation_data is None:
        return None
    if not isinstance(validation_data, tuple | list) or len(validation_data) not in (2, 3):
        raise InputError(
            "expected a tuple (X, y) or (X, y, sample_weight), got "
            + (
                f"{len(validation_data)} entries"
                if isinstance(validation_data, tuple | list)
                else type(validation_data).__name__
            ),
            argument="validation_data",
        )
    X, y, weight = (*validation_data, None)[:3]
    names = ("validation_data[0]", "validation_data[1]", "validation_data[2]")
    return memory.prepare(X, y, loss, weight, names)


def check_early_stopping(early_stopping: EarlyStopping | None, validation: Data | None) -> None:
    """Raise an InputError if early stopping watches a loss that is never computed."""
    if (
        validation is None
        and early_stopping is not None
        and early_stopping.monitor == "validation_loss"
    ):
        raise InputError(
            "expected validation_data to watch its loss, got None; pass it, or use "
            "EarlyStopping(monitor='loss')",
            argument="early_stopping",
        )
