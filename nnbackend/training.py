"""The one training loop: epochs of batches, validation, early stopping, history, callbacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from time import perf_counter
from typing import Any, NoReturn, TypeAlias

import numpy as np

from nnbackend.checks import positive_integer, real
from nnbackend.core.losses import Loss
from nnbackend.core.optimizers import Adam, Optimizer, OptimizerState
from nnbackend.core.optimizers import optimizer as get_optimizer
from nnbackend.core.schedules import Clock, as_schedule
from nnbackend.device import Device, get_device
from nnbackend.engines import Data, Engine, Problem, get_engine, reference_seconds
from nnbackend.errors import DivergenceError, InputError
from nnbackend.feed import Feed, FeedEngine
from nnbackend.memory import Memory
from nnbackend.network import Network

__all__ = ["Callback", "EarlyStopping", "History", "TrainingState", "train"]

# Ctrl-C and the history wait that long at most, or for one epoch.
SECONDS_PER_CALL = 0.1


@dataclass
class History:
    """What happened in training: lists with one entry per finished epoch.

    Attributes
    ----------
    loss : list of float
        The mean of the objective (loss and penalties) over the epoch's steps, each taken before
        its update and weighted by its examples.
    validation_loss : list of float
        The loss on the validation data after the epoch, without penalties and dropout; empty where
        there is none.
    learning_rate : list of float
        The rate of the epoch's last step.
    epoch_seconds : list of float
        Wall-clock seconds, validation included.
    best_epoch : int or None
        With early stopping, the epoch (counted from 1) of the lowest watched loss.
    stopped : str
        Why training ended: ``"completed"``, ``"early stopping"``, ``"callback"``,
        ``"interrupted"`` or ``"diverged"``.
    n_samples : int
        Training examples per epoch.
    peak_device_bytes : int or None
        GPU memory that CuPy's pool held when training ended. Freed blocks stay in the pool, so it
        is at least the peak of this training; what ran before may have left more. None on the
        CPU.
    optimizer_state : OptimizerState or None
        Where the optimizer stands after the last step, for a training that goes on from here.
    """

    loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    epoch_seconds: list[float] = field(default_factory=list)
    best_epoch: int | None = None
    stopped: str = "completed"
    n_samples: int = 0
    peak_device_bytes: int | None = None
    optimizer_state: OptimizerState | None = field(default=None, repr=False, compare=False)

    @property
    def n_epochs(self) -> int:
        """The number of finished epochs."""
        return len(self.loss)

    @property
    def samples_per_second(self) -> float:
        """Training examples per second over all finished epochs; NaN where there are none."""
        seconds = sum(self.epoch_seconds)
        return self.n_samples * self.n_epochs / seconds if seconds > 0 else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Return all but the optimizer's state as a dictionary that JSON can hold."""
        facts = asdict(replace(self, optimizer_state=None))
        del facts["optimizer_state"]
        return facts


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when the watched loss has not improved for a number of epochs.

    Parameters
    ----------
    patience : int, default 10
        That many epochs without improvement end the training.
    min_delta : float, default 0.0
        An improvement lowers the best loss by more than this.
    monitor : {"validation_loss", "loss"}, default "validation_loss"
        Which loss is watched.
    restore_best : bool, default True
        Give the network the parameters of the best epoch at the end, however training ends. With
        ``monitor="loss"``, which is taken before each update, they are those the epoch ended with.
    """

    patience: int = 10
    min_delta: float = 0.0
    monitor: str = "validation_loss"
    restore_best: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "patience", positive_integer("patience", self.patience))
        object.__setattr__(self, "min_delta", real("min_delta", self.min_delta, minimum=0.0))
        if not isinstance(self.restore_best, bool):
            raise InputError(f"restore_best: expected True or False, got {self.restore_best!r}")
        if self.monitor not in ("validation_loss", "loss"):
            raise InputError(f"monitor: expected 'validation_loss' or 'loss', got {self.monitor!r}")


@dataclass
class TrainingState:
    """What a callback sees after every epoch.

    Attributes
    ----------
    network : Network
        The network, with a copy of the parameters that the epoch ended with, to look at: training
        goes on from its own, and changes made here are lost.
    history : History
        All finished epochs, this one included.
    epoch : int
        Finished epochs.
    epochs : int
        Epochs that were asked for.
    """

    network: Network
    history: History
    epoch: int
    epochs: int
    _stop: bool = field(default=False, repr=False)

    def stop(self) -> None:
        """End the training after this epoch."""
        self._stop = True

    @property
    def stop_requested(self) -> bool:
        """Whether a callback has asked to end the training."""
        return self._stop


Callback: TypeAlias = Callable[[TrainingState], object]


def train(
    net: Network,
    X: Any,
    y: Any = None,
    *,
    optimizer: str | Optimizer | None = None,
    loss: str | Loss | None = None,
    epochs: int = 50,
    batch_size: int | None = 128,
    shuffle: bool | Callable[[], Any] = True,
    seed: int | None = 0,
    sample_weight: Any = None,
    validation_data: tuple[Any, ...] | None = None,
    early_stopping: EarlyStopping | None = None,
    callbacks: Callback | Iterable[Callback] = (),
    l1: float = 0.0,
    l2: float = 0.0,
    penalty_per_sample: bool = False,
    clip_value: float | None = None,
    clip_norm: float | None = None,
    engine: str = "auto",
    precision: str = "float32",
    optimizer_state: OptimizerState | None = None,
) -> History:
    """Train a network in place: forward propagation, loss, backward propagation, update.

    Data is checked and placed on the network's device once; features that a GPU has no room for
    stay on the host, and the rows of each batch are copied. The loss leaves the device once per
    epoch. Ctrl-C ends the training and returns what was learnt so far, with ``"interrupted"`` in
    ``history.stopped``: look at it in a loop over trainings.

    Parameters
    ----------
    net : Network
        Trained in place, on its own device.
    X : array-like (n_samples, n_features)
        One example per row. Without ``y``: an iterable of batches (X, y) or (X, y, sample_weight),
        such as torch's DataLoader, each pass over which is an epoch; ``batch_size`` and ``shuffle``
        are its own matter then, and the reference engine trains. Features of very different scales
        train badly: call ``net.standardize(X)`` first, and ``net.standardize(X, y)`` for a
        regression.
    y : array-like
        Sigmoid: labels 0 and 1, (n_samples,) or (n_samples, n_outputs). Softmax: integer labels
        (n_samples,), or rows (n_samples, n_classes) that sum to one. Identity, exp: numbers,
        (n_samples,) or (n_samples, n_outputs).
    optimizer : str or Optimizer, optional
        ``nb.SGD``, ``nb.RMSprop``, ``nb.Adagrad``, ``nb.Adam`` or ``nb.AdamW``, with a learning
        rate or a schedule of ``nb.schedules``; or a name, for its defaults. By default
        ``nb.Adam(1e-3)``.
    loss : str or Loss, optional
        ``binary_cross_entropy``, ``softmax_cross_entropy``, ``squared_error``, ``absolute_error``,
        ``huber``, ``poisson``, or an instance from ``nb.losses``. By default what the output
        implies: sigmoid the first, softmax the second, identity the third, exp the last.
    epochs : int, default 50
        Passes over the data.
    batch_size : int or None, default 128
        Examples per step; the last batch of an epoch may be shorter. None, or as many as there are:
        full-batch gradient descent.
    shuffle : bool or callable, default True
        Draw a new order of the examples for every epoch; a callable is called for each, and returns
        the order: an array (n_samples,) of row numbers.
    seed : int or None, default 0
        Draws the orders and the dropout masks, on the host. None is a new draw each time.
    sample_weight : array-like (n_samples,), optional
        Weights >= 0; the loss of a batch is the weighted mean over its examples.
    validation_data : tuple (X, y) or (X, y, sample_weight), optional
        Its loss is taken after every epoch.
    early_stopping : EarlyStopping, optional
        When to stop, and whether the best parameters come back.
    callbacks : callable or iterable of callables
        Each is called as ``callback(state)`` after every epoch, with a ``TrainingState``;
        ``state.stop()`` ends the training.
    l1, l2 : float, default 0.0
        Penalties l1 sum(abs(W)) + l2 / 2 sum(W^2) on the weights.
    penalty_per_sample : bool, default False
        Divide the penalties by the number of a batch's examples, or by the sum of their weights, as
        scikit-learn's ``alpha`` is.
    clip_value, clip_norm : float, optional
        Clip each element of the gradient to [-clip_value, clip_value]; scale the whole gradient
        down to the norm clip_norm.
    engine : {"auto", "reference", "cpu", "cuda"}, default "auto"
        How the steps run; every engine gives the same numbers, to rounding. ``"cpu"`` is the faster
        one there. It compiles its kernels with Numba when a kind of network is first trained, which
        takes seconds, and keeps them in ``~/.cache/nnbackend``. ``"cuda"`` plans a network's steps
        on the GPU, fuses their kernels and replays them as CUDA graphs; it has not run on a GPU
        yet. Its kernels take float32 numbers below 1.2e-38 as 0. ``"auto"`` is ``"cpu"`` for a
        network on the CPU and a training of more than some seconds, else ``"reference"``.
    precision : {"float32", "tf32", "bfloat16"}, default "float32"
        Of the matrix products in a float32 network; sums and parameters are float32 in any case.
        ``"tf32"`` and ``"bfloat16"`` round their operands to 10 and 7 bits behind the point, which
        tensor cores multiply several times faster; they need ``engine="cuda"``. With ``"float32"``
        nothing is ever computed in less.
    optimizer_state : OptimizerState, optional
        ``history.optimizer_state`` of the training that this one continues, with the same optimizer
        and network: step number, moments and velocity go on from there.

    Returns
    -------
    History

    Raises
    ------
    InputError
        If an argument is not as said; the network is unchanged then. Of batches that are brought, a
        later one may be wrong: the steps before it are kept.
    DeviceMemoryError
        If the memory of a GPU does not suffice; the message says what was needed.
    DivergenceError
        If the loss or a parameter becomes NaN or infinite; the network keeps the parameters that
        the last finite epoch ended with.

    Examples
    --------
    >>> import nnbackend as nb
    >>> X, y = [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], [0, 1, 1, 0]
    >>> net = nb.Network([2, 8, 1], hidden="tanh", seed=1)
    >>> history = nb.train(net, X, y, optimizer=nb.Adam(0.05), epochs=200, batch_size=None)
    >>> net.predict(X)
    array([0, 1, 1, 0])
    >>> history.loss[-1] < 0.1 < history.loss[0]
    True
    """
    if not isinstance(net, Network):
        raise InputError(f"net: expected a nnbackend.Network, got {type(net).__name__}")
    chosen = Adam(1e-3) if optimizer is None else get_optimizer(optimizer)
    epochs = positive_integer("epochs", epochs)
    if batch_size is not None:
        batch_size = positive_integer("batch_size", batch_size)
    if seed is not None:
        seed = positive_integer("seed", seed, minimum=0)
    clip_value, clip_norm = _bound("clip_value", clip_value), _bound("clip_norm", clip_norm)
    if not (isinstance(shuffle, bool) or callable(shuffle)):
        raise InputError(f"shuffle: expected True, False or a callable, got {shuffle!r}")
    if not isinstance(penalty_per_sample, bool):
        raise InputError(f"penalty_per_sample: expected True or False, got {penalty_per_sample!r}")
    hooks = _callbacks(callbacks)
    device = get_device(net.device)
    objective = net.objective(loss, l1, l2, penalty_per_sample=penalty_per_sample)
    memory = Memory(net, objective, chosen, batch_size)
    with device.activate(), memory.explained():
        data: Data | Feed
        if y is None:
            if sample_weight is not None:
                raise InputError(
                    "sample_weight: expected None without y, got weights; a batch that X yields "
                    "has its own: (X, y, sample_weight)"
                )
            data, size = Feed(net, X, objective.loss), 1
        else:
            data = memory.prepare(X, y, objective.loss, sample_weight)
            net.learn_feature_names(X)
            size = min(batch_size or data.n_samples, data.n_samples)
        validation = _validation(memory, objective.loss, validation_data)
        _check_early_stopping(early_stopping, validation)
        problem = Problem(objective, chosen, size, clip_value, clip_norm, precision)
        shuffle_seed, dropout_seed = np.random.SeedSequence(seed).spawn(2)
        make_engine = _engine_for(data, problem, engine, device, epochs)
        runner = make_engine(
            problem, device, net.parameters, data, np.random.default_rng(dropout_seed)
        )
        if optimizer_state is not None:
            runner.set_optimizer_state(_checked_state(optimizer_state, problem, device))
        loop = _Loop(net, runner, problem, data, validation, early_stopping, hooks, epochs)
        return loop.run(_order(shuffle, data, loop.steps, np.random.default_rng(shuffle_seed)))


def _bound(name: str, value: float | None) -> float | None:
    return None if value is None else real(name, value, above=0.0)


def _engine_for(
    data: Data | Feed, problem: Problem, engine: str, device: Device, epochs: int
) -> Callable[..., Engine]:
    """Return what makes the engine."""
    seconds = reference_seconds(problem, data.n_samples, epochs)
    named = get_engine(engine, problem.precision, device, seconds)
    if not isinstance(data, Feed):
        return named
    if engine not in ("auto", "reference"):
        raise InputError(
            f"engine: expected 'auto' or 'reference' with an iterable of batches, got {engine!r}; "
            "pass arrays X and y for it"
        )
    return FeedEngine


def _order(
    shuffle: Any, data: Data | Feed, steps: int, rng: np.random.Generator
) -> Callable[[], Any] | None:
    """Return what draws the order of an epoch; None where the rows stay as they are."""
    # Batches that are brought come in an order of their own; that of one batch's rows is no matter.
    if isinstance(data, Feed):
        return None
    n_samples = data.n_samples
    if not callable(shuffle):
        return (lambda: rng.permutation(n_samples)) if shuffle and steps > 1 else None

    def draw() -> Any:
        order = np.asarray(shuffle())
        # A permutation: anything else would leave rows out, or read beyond the data.
        if order.shape != (n_samples,) or not np.array_equal(np.sort(order), np.arange(n_samples)):
            raise InputError(
                f"shuffle: expected the callable to return the numbers 0 to {n_samples - 1} in "
                f"some order, got an array of shape {order.shape}"
            )
        return order

    return draw


def _checked_state(state: Any, problem: Problem, device: Device) -> OptimizerState:
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


def _validation(memory: Memory, loss: Loss, validation_data: Any) -> Data | None:
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


def _callbacks(callbacks: Any) -> tuple[Callback, ...]:
    given = tuple(callbacks) if isinstance(callbacks, Iterable) else (callbacks,)
    for callback in given:
        if not callable(callback):
            raise InputError(
                f"callbacks: expected a callable or several, called as callback(state), got "
                f"{callback!r}"
            )
    return given


def _check_early_stopping(early_stopping: Any, validation: Data | None) -> None:
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


class _Loop:
    """One training: what lives as long as the call to ``train``."""

    def __init__(
        self,
        net: Network,
        engine: Engine,
        problem: Problem,
        data: Data | Feed,
        validation: Data | None,
        early_stopping: EarlyStopping | None,
        callbacks: tuple[Callback, ...],
        epochs: int,
    ) -> None:
        self.net = net
        self.engine = engine
        self.problem = problem
        self.validation = validation
        self.early_stopping = early_stopping
        self.callbacks = callbacks
        self.epochs = epochs
        self.device = get_device(net.device)
        self.schedule = as_schedule(problem.optimizer.learning_rate)
        self.schedule_state = self.schedule.start()
        self.data = data
        self.steps = (
            len(data) if isinstance(data, Feed) else -(-data.n_samples // problem.batch_size)
        )
        self.last_good: Any = None
        self.history = History(n_samples=data.n_samples)
        self.state = TrainingState(net, self.history, 0, epochs)
        self.best_loss = math.inf
        self.best: Any = None

    def run(self, draw_order: Callable[[], Any] | None) -> History:
        """Run the epochs; whatever ends them, the network gets the parameters it is owed."""
        history, engine = self.history, self.engine
        self.last_good = self._snapshot_to_validate()
        n_epochs = 1
        try:
            while (epoch := len(history.epoch_seconds)) < self.epochs:
                start = perf_counter()
                n_epochs = min(n_epochs, self.epochs - epoch)
                rates = [self._rates(number) for number in range(epoch, epoch + n_epochs)]
                orders = self._orders(draw_order, n_epochs)
                losses, validation_loss, finite = self._epochs(orders, rates)
                seconds = (perf_counter() - start) / len(losses)
                good = losses if finite else losses[:-1]
                self._record(good, validation_loss, rates, seconds)
                if not finite:
                    self._diverge(losses[-1], validation_loss, rates[len(good)][-1])
                self.last_good = self._snapshot_to_validate()
                if self._should_stop():
                    break
                n_epochs = self._epochs_at_once(n_epochs, seconds)
        except KeyboardInterrupt:
            history.stopped = "interrupted"
            # It may have come between two of an epoch's entries; the seconds are the last of them.
            for entries in (history.loss, history.validation_loss, history.learning_rate):
                del entries[len(history.epoch_seconds) :]
            xp = self.device.xp
            if not bool(xp.all(xp.isfinite(engine.parameters))):
                self._restore_good()
        finally:
            if self.best is not None:
                engine.restore(self.best)
            self._write_back()
            history.peak_device_bytes = self.device.pool_bytes()
            history.optimizer_state = engine.optimizer_state
        return history

    def _rates(self, epoch: int) -> list[float]:
        clock = Clock(epoch * self.steps, self.steps, self.steps * self.epochs)
        return self.schedule.rates(clock, self.steps, self.schedule_state)

    def _orders(self, draw: Callable[[], Any] | None, n_epochs: int) -> list[Any] | None:
        orders = None if draw is None else [draw() for _ in range(n_epochs)]
        # That of a full batch's rows changes nothing.
        return None if self.steps == 1 else orders

    def _record(
        self,
        losses: list[float],
        validation_loss: float | None,
        rates: list[list[float]],
        seconds: float,
    ) -> None:
        """Add good epochs to the history; only a single one has a validation loss."""
        history = self.history
        history.n_samples = self.data.n_samples
        for loss, epoch_rates in zip(losses, rates, strict=False):
            history.loss.append(loss)
            history.learning_rate.append(epoch_rates[-1])
            if validation_loss is not None:
                history.validation_loss.append(validation_loss)
            watched = loss if validation_loss is None else validation_loss
            self.schedule_state = self.schedule.observe(self.schedule_state, watched)
            history.epoch_seconds.append(seconds)

    def _diverge(self, loss: float, validation_loss: float | None, rate: float) -> NoReturn:
        self._restore_good()
        self.history.stopped = "diverged"
        message = self._divergence_message(loss, validation_loss, rate)
        raise DivergenceError(message, self.history)

    def _restore_good(self) -> None:
        if self.last_good is None:
            self.engine.restore_finite()
        else:
            self.engine.restore(self.last_good)

    def _snapshot_to_validate(self) -> Any:
        """Return the parameters, if good ones may turn out to be bad on the validation data."""
        return None if self.validation is None else self.engine.snapshot()

    def _epochs_at_once(self, n_epochs: int, seconds: float) -> int:
        """Return how many epochs the next call may run: 0.1 s of them where nobody looks on."""
        if (
            self.validation is not None
            or self.early_stopping is not None
            or self.callbacks
            or self.schedule.observes
        ):
            return 1
        wanted = int(SECONDS_PER_CALL / max(seconds, 1e-9))
        return max(1, min(wanted, 16 * n_epochs, self.engine.max_epochs_per_call))

    def _epochs(
        self, orders: list[Any] | None, rates: list[list[float]]
    ) -> tuple[list[float], float | None, bool]:
        """Run epochs; read their losses and whether all is finite in one transfer."""
        xp = self.device.xp
        losses, is_finite = self.engine.run_epochs(orders, rates)
        scalars = [losses, xp.reshape(xp.astype(xp.asarray(is_finite), losses.dtype), (1,))]
        if self.validation is not None:
            loss = xp.astype(xp.asarray(self.engine.data_loss(self.validation)), losses.dtype)
            scalars.append(xp.reshape(loss, (1,)))
        values = self.device.to_numpy(xp.concat(scalars)).tolist()
        validation_loss = values.pop() if self.validation is not None else None
        finite = bool(values.pop())
        return values, validation_loss, finite and math.isfinite(validation_loss or 0.0)

    def _should_stop(self) -> bool:
        history, rule = self.history, self.early_stopping
        epoch = history.n_epochs
        if rule is not None:
            watched = getattr(history, rule.monitor)[-1]
            if watched < self.best_loss - rule.min_delta:
                self.best_loss, history.best_epoch = watched, epoch
                if rule.restore_best:
                    self.best = self.engine.snapshot()
        if self.callbacks:
            self._write_back()
            self.state.epoch = epoch
            for callback in self.callbacks:
                callback(self.state)
            if self.state.stop_requested:
                history.stopped = "callback"
                return True
        if rule is None or epoch == self.epochs:
            return False
        if epoch - (history.best_epoch or 0) >= rule.patience:
            history.stopped = "early stopping"
            return True
        return False

    def _write_back(self) -> None:
        self.net.parameters[...] = self.engine.parameters

    def _divergence_message(self, loss: float, validation_loss: float | None, rate: float) -> str:
        epoch = self.history.n_epochs
        if not math.isfinite(loss):
            what = f"the loss became {loss}"
        elif validation_loss is not None and not math.isfinite(validation_loss):
            what = f"the validation loss became {validation_loss}"
        else:
            what = "a parameter became NaN or infinite"
        kept_epoch = epoch if self.best is None else self.history.best_epoch
        kept = f"after epoch {kept_epoch}" if kept_epoch else "before training"
        return (
            f"{what} in epoch {epoch + 1}; the network keeps its parameters from {kept}: lower the "
            f"learning rate (it was {rate:g}), clip the gradient (clip_norm=1.0), or standardize "
            "the features"
        )
