"""History, the record of a training; TrainingState, for callbacks; EarlyStopping, the rule."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from nnbackend.checks import positive_integer, real
from nnbackend.core.optimizers import OptimizerState
from nnbackend.errors import InputError

if TYPE_CHECKING:
    from nnbackend.model.network import Network

__all__ = ["LISTS", "Callback", "EarlyStopping", "Follower", "History", "TrainingState"]

# The lists of a history, with one entry per epoch.
LISTS = ("loss", "validation_loss", "learning_rate", "epoch_seconds")


@dataclass
class History:
    """The record of a training: lists with one entry per finished epoch.

    Attributes
    ----------
    loss : list of float
        The mean objective (loss and penalties) over the epoch's steps. Each step's objective is
        taken before its update and weighted by its examples.
    validation_loss : list of float
        The loss on the validation data after the epoch, without penalties and dropout; empty
        without validation data.
    learning_rate : list of float
        The learning rate of the epoch's last step.
    epoch_seconds : list of float
        Wall-clock seconds, validation included.
    best_epoch : int or None
        With early stopping, the epoch (counted from 1) of the lowest watched loss.
    stopped : str
        Why training ended: ``"completed"``, ``"early stopping"``, ``"callback"``,
        ``"interrupted"``, ``"terminated"`` or ``"diverged"``.
    n_samples : int
        Training examples per epoch.
    peak_device_bytes : int or None
        GPU memory that CuPy's pool held when training ended; None on the CPU. Freed blocks stay in
        the pool, so this is at least the peak of this training, and may include that of earlier
        computations.
    optimizer_state : OptimizerState or None
        The state of the optimizer after the last step, from which a later training can continue.
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
        """Training examples per second over all finished epochs; NaN without any."""
        seconds = sum(self.epoch_seconds)
        return self.n_samples * self.n_epochs / seconds if seconds > 0 else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the optimizer's state as a dictionary of JSON values."""
        facts = asdict(replace(self, optimizer_state=None))
        del facts["optimizer_state"]
        return facts

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> History:
        """Return the history that ``to_dict`` turned into a dictionary.

        Raises
        ------
        ValueError, TypeError, KeyError
            If ``to_dict`` cannot have made the dictionary.
        """
        lists: dict[str, Any] = {
            name: [real(name, value) for value in facts[name]] for name in LISTS
        }
        n_epochs = len(lists["loss"])
        wrong = {name for name, entries in lists.items() if len(entries) != n_epochs}
        if wrong and (wrong != {"validation_loss"} or lists["validation_loss"]):
            raise InputError(
                f"expected {n_epochs} entries in each of {sorted(wrong)}", argument="history"
            )
        best_epoch, peak = facts["best_epoch"], facts["peak_device_bytes"]
        if (
            best_epoch is not None
            and not 1 <= positive_integer("best_epoch", best_epoch) <= n_epochs
        ):
            raise InputError(f"expected 1 to {n_epochs}, got {best_epoch}", argument="best_epoch")
        return cls(
            **lists,
            best_epoch=best_epoch,
            stopped=str(facts["stopped"]),
            n_samples=positive_integer("n_samples", facts["n_samples"], minimum=0),
            peak_device_bytes=None if peak is None else positive_integer("peak", peak, minimum=0),
        )


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when the watched loss has not improved for a number of epochs.

    The best epoch is the first one even if the loss never falls after it; the parameters before
    training never count as best. If the watched loss becomes NaN or infinite, even in the first
    epoch, training raises a ``DivergenceError``.

    Parameters
    ----------
    patience : int, default 10
        The number of epochs without improvement that end the training.
    min_delta : float, default 0.0
        An improvement lowers the best loss by more than this.
    monitor : {"validation_loss", "loss"}, default "validation_loss"
        The loss to watch.
    restore_best : bool, default True
        Give the network the parameters of the best epoch at the end, however training ends. If it
        ends within the first epoch, there is none, and ``history.best_epoch`` is None. The
        parameters are those at the end of the epoch, also with ``monitor="loss"``, whose losses are
        taken before each update.
    """

    patience: int = 10
    min_delta: float = 0.0
    monitor: str = "validation_loss"
    restore_best: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "patience", positive_integer("patience", self.patience))
        object.__setattr__(self, "min_delta", real("min_delta", self.min_delta, minimum=0.0))
        if not isinstance(self.restore_best, bool):
            raise InputError(
                f"expected True or False, got {self.restore_best!r}", argument="restore_best"
            )
        if self.monitor not in ("validation_loss", "loss"):
            raise InputError(
                f"expected 'validation_loss' or 'loss', got {self.monitor!r}", argument="monitor"
            )


@dataclass
class TrainingState:
    """The state of a training after an epoch, which callbacks receive.

    Attributes
    ----------
    network : Network
        The network, with a copy of the parameters after the epoch, for reading. Training has its
        own parameters, so changes made here are lost.
    history : History
        All finished epochs, including this one.
    epoch : int
        The number of finished epochs.
    epochs : int
        The number of epochs in all.
    number : int
        In ``train_many``, the place of the network among all.
    """

    network: Network
    history: History
    epoch: int
    epochs: int
    number: int = 0
    _stop: bool = field(default=False, repr=False)

    def stop(self) -> None:
        """End the training after this epoch."""
        self._stop = True

    @property
    def stop_requested(self) -> bool:
        """Whether a callback has asked to end the training."""
        return self._stop


Callback: TypeAlias = Callable[[TrainingState], object]


class Follower(ABC):
    """A callback that says when it has to be called, so that epochs run without a pause."""

    # Whether ``state.network`` is to have the parameters.
    reads_network = True

    @abstractmethod
    def horizon(self) -> int:
        """Return after how many epochs to call it."""

    @abstractmethod
    def __call__(self, state: TrainingState) -> object:
        """Take down the epochs since the last call, and end the training or not."""
