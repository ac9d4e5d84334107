"""Train many networks at once, each as ``train`` would train it alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np

from nnbackend.core.losses import Loss
from nnbackend.core.optimizers import OptimizerState
from nnbackend.core.standardization import Standardization
from nnbackend.data.door import look
from nnbackend.data.examples import Data
from nnbackend.data.placement import Memory
from nnbackend.data.source import Source
from nnbackend.device import Device, get_device
from nnbackend.engines import Training
from nnbackend.engines.choice import trainings_at_once
from nnbackend.engines.driving import together
from nnbackend.errors import DeviceMemoryError, InputError
from nnbackend.floating_point import callers_errors, own_errors
from nnbackend.model.network import Network
from nnbackend.training.arguments import check_early_stopping, resident, validation_of
from nnbackend.training.errors import DivergenceError
from nnbackend.training.history import Callback, EarlyStopping, History, TrainingState
from nnbackend.training.options import TrainingOptions
from nnbackend.training.plan import Plan, engine_name, objective_of, problem_of, require_network
from nnbackend.training.signals import Interruption

__all__ = ["train_many"]

_SECONDS_PER_PROGRESS = 0.1


@own_errors
def train_many(
    nets: Sequence[Network],
    X: Any,
    y: Any,
    *,
    rows: Sequence[Any] | None = None,
    validation_rows: Sequence[Any] | None = None,
    validation_data: tuple[Any, ...] | None = None,
    sample_weight: Any = None,
    optimizer: Any = None,
    loss: str | Loss | None = None,
    epochs: int | Sequence[int] = 50,
    batch_size: Any = 128,
    shuffle: bool = True,
    seed: Any = 0,
    early_stopping: EarlyStopping | Sequence[EarlyStopping | None] | None = None,
    callbacks: Callback | Iterable[Callback] = (),
    progress: Callable[[list[History]], object] | None = None,
    l1: float | Sequence[float] = 0.0,
    l2: float | Sequence[float] = 0.0,
    penalty_per_sample: bool = False,
    loss_by_rows: bool = False,
    clip_value: Any = None,
    clip_norm: Any = None,
    engine: str = "auto",
    precision: str = "float32",
    optimizer_state: Any = None,
) -> list[History]:
    """Train many networks at once: for a search, for folds, for an ensemble.

    Each network ends as ``train`` would leave it with its options and its rows of the data: with
    the same bits on the CPU, up to rounding on a GPU and on the reference engine. On the CPU, the
    networks are spread over the processors, one thread each, in this process; the data is shared
    and not copied. On a GPU and on the reference engine, networks form stacks, with one matrix
    product for all.

    Networks may differ in structure, dtype, device, rows, and in the options of which each may have
    its own: such an option is one value for all networks, or a list, tuple or array with a value
    for each. Only those that agree in structure, batch size and kind of optimizer form a stack.

    Parameters
    ----------
    nets : sequence of Network
        The networks, which are trained in place. Dropout rates are theirs.
    X, y : array-like
        As for ``train``; arrays or data frames in memory.
    rows : sequence of arrays, optional
        For each network the rows that it is trained on: row numbers, of which some may come more
        than once (a bootstrap), a mask of bools (n_samples,), or None for all.
    validation_rows : sequence of arrays, optional
        For each network the rows of X and y whose loss is computed after every epoch, such as a
        fold's held-out rows. They are copied once for each different array object.
    validation_data : tuple (X, y) or (X, y, sample_weight), optional
        Validation data of all networks, in place of ``validation_rows``.
    sample_weight : array-like (n_samples,), optional
        As for ``train``.
    optimizer : str or Optimizer, or a sequence of them, optional
        As for ``train``.
    loss : str or Loss, optional
        As for ``train``, the same for all.
    epochs, batch_size, seed, early_stopping, l1, l2, clip_value, clip_norm, optimizer_state
        As for ``train``, one for all or one for each.
    shuffle, penalty_per_sample, loss_by_rows, engine, precision
        As for ``train``, the same for all; ``shuffle`` is True or False.
    callbacks : callable or iterable of callables
        Functions to call as ``callback(state)`` after every epoch of every network, in this thread;
        ``state.number`` is the network's place in ``nets``, and ``state.stop()`` ends its training.
    progress : callable, optional
        A function to call about ten times a second as ``progress(histories)``, with the finished
        epochs of every network.

    Returns
    -------
    list of History
        One for each network. If a network diverges, its ``stopped`` is ``"diverged"``, it keeps its
        last finite parameters, and the others go on; a warning says how many did. After Ctrl-C,
        all keep what they have learnt, and ``stopped`` is ``"interrupted"``. ``epoch_seconds`` are
        those of the network's own work.

    Raises
    ------
    InputError
        If an argument is invalid; all networks are unchanged then.
    DeviceMemoryError
        If the memory does not suffice; the message says how much was needed.

    See Also
    --------
    train : One network; checkpoints, several processes, data larger than memory.

    Examples
    --------
    >>> import nnbackend as nb
    >>> X, y = [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], [0, 1, 1, 0]
    >>> nets = [nb.Network([2, 8, 1], hidden="tanh", seed=seed) for seed in range(3)]
    >>> optimizers = [nb.Adam(rate) for rate in (0.1, 0.05, 0.001)]
    >>> histories = nb.train_many(nets, X, y, optimizer=optimizers, epochs=200, batch_size=None)
    >>> [history.loss[-1] < 0.1 for history in histories]
    [True, True, False]
    """
    own: dict[str, Any] = {
        "optimizer": optimizer, "epochs": epochs, "batch_size": batch_size, "seed": seed,
        "early_stopping": early_stopping, "l1": l1, "l2": l2, "clip_value": clip_value,
        "clip_norm": clip_norm, "optimizer_state": optimizer_state,
    }  # fmt: skip
    shared: dict[str, Any] = {
        "loss": loss, "shuffle": shuffle, "callbacks": callbacks,
        "penalty_per_sample": penalty_per_sample, "loss_by_rows": loss_by_rows, "engine": engine,
        "precision": precision,
    }  # fmt: skip
    nets = _checked_networks(nets)
    options = _options(len(nets), own, shared)
    with ExitStack() as stack:
        for net in nets:
            stack.enter_context(net.being_trained())
        examples = _Examples(X, y, sample_weight, validation_data)
        chosen = (
            _each_rows("rows", rows, len(nets)),
            _each_rows("validation_rows", validation_rows, len(nets)),
        )
        plans = [
            _plan(net, given, examples, *indices)
            for net, given, *indices in zip(nets, options, *chosen, strict=True)
        ]
        examples.name_features(nets)
        return _Many(plans, progress).run()


def _checked_networks(given: Any) -> list[Network]:
    nets: list[Network] = list(given) if isinstance(given, Iterable) else [given]
    for number, net in enumerate(nets):
        require_network(net, f"nets[{number}]")
    if len(set(map(id, nets))) < len(nets):
        raise InputError("expected different networks, got one of them twice", argument="nets")
    return nets


def _options(n: int, own: dict[str, Any], shared: dict[str, Any]) -> list[TrainingOptions]:
    """Return the options of each network."""
    if not isinstance(shared["shuffle"], bool):
        raise InputError(
            f"expected True or False, got {shared['shuffle']!r}; choose rows with rows=",
            argument="shuffle",
        )
    columns = {name: _each(name, value, n) for name, value in own.items()}
    callbacks = TrainingOptions(callbacks=shared.pop("callbacks")).callbacks
    options = []
    for k in range(n):
        mine = {name: column[k] for name, column in columns.items()}
        numbered = tuple(partial(_call, callback, k) for callback in callbacks)
        try:
            options.append(TrainingOptions(**mine, callbacks=numbered, **shared))
        except InputError as error:
            # Say whose value it is, if each network has its own.
            if _is_for_each(own.get(str(error.argument))):
                raise InputError(error.message, argument=f"{error.argument}[{k}]") from error
            raise
    return options


def _call(callback: Callback, number: int, state: TrainingState) -> None:
    """Call a callback with the number of a network."""
    state.number = number
    callback(state)


def _is_for_each(value: Any) -> bool:
    """Whether a value of an option has an entry for each network."""
    if isinstance(value, np.ndarray):
        return value.ndim == 1
    return isinstance(value, list | tuple) and not isinstance(value, OptimizerState)


def _each(name: str, value: Any, n: int) -> list[Any]:
    """Return an option's value for each network."""
    if not _is_for_each(value):
        return [value] * n
    values = value.tolist() if isinstance(value, np.ndarray) else list(value)
    if len(values) != n:
        raise InputError(
            f"expected one value, or one for each of the {n} networks, got {len(values)}",
            argument=name,
        )
    return values


def _each_rows(name: str, value: Any, n: int) -> list[Any]:
    """Return the rows of each network; None for all rows."""
    if value is None:
        return [None] * n
    values = list(value) if isinstance(value, Iterable) else [value]
    if len(values) != n or isinstance(value, str):
        raise InputError(
            f"expected an array of row numbers, a mask or None for each of the {n} networks, got "
            f"{len(values)} entries",
            argument=name,
        )
    return values


class _Examples:
    """The data, which is checked and converted once for all networks that take it alike."""

    def __init__(self, X: Any, y: Any, sample_weight: Any, validation_data: Any) -> None:
        if y is None or isinstance(X, Source):
            raise InputError(
                "expected arrays X and y in memory; train networks one by one on a source of "
                "nb.sources or an iterable of batches",
                argument="X",
            )
        if isinstance(validation_data, list) and all(
            isinstance(entry, tuple | list) for entry in validation_data
        ):
            raise InputError(
                "expected one tuple (X, y) or (X, y, sample_weight) for all networks, got a list; "
                "choose rows for each with validation_rows",
                argument="validation_data",
            )
        self._features = look("X", X)
        self._given, self._validation = (self._features, y, sample_weight), validation_data
        self._known: dict[Any, tuple[Data, Data | None, Any]] = {}
        self._selected: dict[tuple[int, int], tuple[Data, Any]] = {}

    def of(self, net: Network, memory: Memory, loss: Loss) -> tuple[Data, Data | None]:
        """Return the data and the validation data in the form that a network takes."""
        key = _form(net, loss)
        known = self._known.get(key)
        if known is None:
            X, y, weight = self._given
            data = memory.prepare(X, y, loss, weight)
            # As of a network that is trained alone, whose names are those of X.
            memory.learn_feature_names(self._features.feature_names)
            validation = validation_of(memory, loss, self._validation)
            # The loss is kept, since its identity is a part of the key.
            known = self._known[key] = data, validation, loss
        return known[0], known[1]

    def name_features(self, nets: Iterable[Network]) -> None:
        """Let networks learn the names of the features."""
        for net in nets:
            net.learn_feature_names(self._features.feature_names)

    def selected(self, data: Data, rows: Any, indices: Any) -> Data:
        """Return a copy of some rows of the data, the same for the same array."""
        key = id(data), id(rows)
        if key not in self._selected:
            self._selected[key] = data.take(indices), rows
        return self._selected[key][0]


def _form(net: Network, loss: Loss) -> tuple[Any, ...]:
    """Return what decides how a network takes data."""
    preparation = net.preparation
    standardizations = preparation.standardization, preparation.target_standardization
    constants = tuple(map(_digest, standardizations, [preparation.device] * 2))
    plain = replace(preparation, standardization=None, target_standardization=None)
    return plain, constants, id(loss) if loss.__hash__ is None else loss


def _digest(standardization: Standardization | None, device: Device) -> Any:
    if standardization is None:
        return None
    return tuple(device.to_numpy(column).tobytes() for column in standardization)


def _plan(
    net: Network, options: TrainingOptions, examples: _Examples, rows: Any, validation_rows: Any
) -> Plan:
    """Check everything about the training of one network."""
    device, objective = get_device(net.device), objective_of(net, options)
    memory = Memory(net.preparation, objective, options.optimizer, options.batch_size)
    with device.activate(), memory.explained():
        data, validation = examples.of(net, memory, objective.loss)
        chosen = _row_numbers("rows", rows, data)
        if validation_rows is not None:
            if validation is not None:
                raise InputError(
                    "expected None with validation_data, got arrays; pass one of the two",
                    argument="validation_rows",
                )
            indices = _row_numbers("validation_rows", validation_rows, data)
            validation = examples.selected(data, validation_rows, indices)
        check_early_stopping(options.early_stopping, validation)
        own = resident(data, options, chosen)
        problem = problem_of(objective, options, own.batch_size)
        name = engine_name(own, options, device)
    return Plan(net, options, problem, own, data, validation, name)


def _row_numbers(name: str, rows: Any, data: Data) -> Any:
    """Return row numbers as int64; None for all rows."""
    if rows is None:
        return None
    n_samples, found = data.n_samples, np.asarray(rows)
    if found.dtype == bool and found.shape == (n_samples,):
        found = np.flatnonzero(found)
    is_valid = found.ndim == 1 and found.dtype.kind in "iu" and len(found) > 0
    if not is_valid or found.min() < 0 or found.max() >= n_samples:
        raise InputError(
            f"expected row numbers 0 to {n_samples - 1}, at least one, or a mask of bools "
            f"({n_samples},), got {found.dtype} of shape {found.shape}"
            + (f", {found.min()} to {found.max()}" if is_valid else ""),
            argument=name,
        )
    weight = data.sample_weight
    if weight is not None and not bool((weight[found] != 0).any()):
        raise InputError("expected rows of which some have weight, got zeros only", argument=name)
    return found.astype(np.int64)


def _most_that_fit(device: Device, plans: Sequence[Plan]) -> int:
    """Return how many trainings a device's memory holds at once."""
    largest = kept = 0
    for plan in plans:
        structure, options = plan.net.structure, plan.options
        n_states = len(options.optimizer.state_names)
        itemsize = plan.net.preparation.itemsize
        # Parameters, gradient, a finite copy and a snapshot; each layer's three arrays of a batch.
        vectors = (4 + n_states) * structure.n_parameters
        batch = 3 * plan.problem.batch_size * sum(structure.layer_sizes)
        largest = max(largest, (vectors + batch) * itemsize)
        kept += n_states * structure.n_parameters * itemsize
    free = device.free_bytes()
    if kept + largest > free:
        raise DeviceMemoryError(
            f"device {device.name!r}: out of memory: {len(plans)} networks need about "
            f"{kept / 2**30:.2f} GiB for the states of their optimizers and "
            f"{largest / 2**30:.2f} GiB for one in training, and {free / 2**30:.2f} GiB are there; "
            "train fewer networks in a call, lower batch_size, or use SGD without momentum, which "
            "has no state"
        )
    return max(1, (free - kept) // largest)


class _Many:
    """The trainings of one call."""

    def __init__(
        self, plans: list[Plan], progress: Callable[[list[History]], object] | None
    ) -> None:
        self._plans, self._progress = plans, progress
        self._histories = [
            History(stopped="interrupted", n_samples=plan.examples.n_samples) for plan in plans
        ]
        self._last_progress = perf_counter()

    def run(self) -> list[History]:
        """Run the trainings; return their histories."""
        trainings = (self._training(number) for number in range(len(self._plans)))
        is_interrupted = self._is_interrupted
        going_on = set(range(len(self._plans)))
        with (
            suppress(KeyboardInterrupt),
            closing(together(trainings, self._most(), self._tell, is_interrupted)) as all_of_them,
        ):
            for ended in all_of_them:
                if isinstance(ended.error, DivergenceError):
                    self._histories[ended.number] = ended.error.history
                elif ended.error is not None:
                    raise ended.error
                going_on.discard(ended.number)
            self._tell(at_once=True)
        # An interrupt may have come where no training could learn of it.
        for number in going_on:
            self._histories[number].stopped = "interrupted"
        self._warn_of_divergence()
        return self._histories

    def _training(self, number: int) -> Training[History]:
        plan = self._plans[number]
        device = get_device(plan.net.device)
        with device.activate():
            loop = plan.begin(Interruption())
        self._histories[number] = loop.history
        return (yield from loop.run())

    @staticmethod
    def _is_interrupted(history: History) -> bool:
        return history.stopped == "interrupted"

    def _tell(self, *, at_once: bool = False) -> None:
        now = perf_counter()
        if self._progress is None or not (
            at_once or now - self._last_progress >= _SECONDS_PER_PROGRESS
        ):
            return
        self._last_progress = now
        with callers_errors():
            self._progress(self._histories)

    def _most(self) -> int:
        """Return how many trainings run at once: as many as are of use and fit the memory."""
        by_device: dict[Device, list[Plan]] = {}
        for plan in self._plans:
            by_device.setdefault(get_device(plan.net.device), []).append(plan)
        most = min((_most_that_fit(*entry) for entry in by_device.items()), default=1)
        is_stack = any(plan.engine == "reference" for plan in self._plans)
        useful = len(self._plans) if is_stack else min(len(self._plans), trainings_at_once())
        return max(1, min(most, useful))

    def _warn_of_divergence(self) -> None:
        diverged = [k for k, history in enumerate(self._histories) if history.stopped == "diverged"]
        if diverged:
            some = ", ".join(map(str, diverged[:8])) + (", ..." if len(diverged) > 8 else "")
            warnings.warn(
                f"{len(diverged)} of {len(self._histories)} networks diverged and keep their last "
                f"finite parameters (numbers {some}): lower their learning rate, clip the gradient "
                "(clip_norm=1.0), or standardize the features",
                RuntimeWarning,
                stacklevel=5,
            )
