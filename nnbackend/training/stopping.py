"""Stopping: decide after every epoch whether a training ends, and which parameters it keeps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from nnbackend.engines import Engine
from nnbackend.floating_point import callers_errors
from nnbackend.training.history import Follower, History, TrainingState
from nnbackend.training.options import TrainingOptions

if TYPE_CHECKING:
    from nnbackend.model.network import Network
    from nnbackend.parallel import Team

__all__ = ["Stopping"]


class Stopping:
    """Applies early stopping and runs callbacks.

    Parameters
    ----------
    net : Network
        The network that callbacks receive.
    engine : Engine
        The engine that has the parameters.
    options : TrainingOptions
        The options, with the number of epochs, the rule of early stopping, and the callbacks.
    team : Team, optional
        The processes of the training, of which rank 0 decides for all.

    Attributes
    ----------
    best : snapshot or None
        The parameters of the best epoch, if they are to be restored.
    """

    def __init__(
        self,
        net: Network,
        engine: Engine,
        options: TrainingOptions,
        team: Team | None = None,
    ) -> None:
        self._net, self._engine, self._epochs = net, engine, options.epochs
        self._rule, self._team = options.early_stopping, team
        # Run callbacks only in the process of rank 0.
        self._callbacks = options.callbacks if team is None or team.rank == 0 else ()
        self._shows_network = any(
            not isinstance(callback, Follower) or callback.reads_network
            for callback in self._callbacks
        )
        self._state = TrainingState(net, History(), 0, options.epochs)
        self._best_loss, self._n_seen = math.inf, 0
        self.best: Any = None

    def horizon(self, history: History) -> int:
        """Return how many epochs may run before there is something to do or decide."""
        rule = self._rule
        most = self._epochs
        for callback in self._callbacks:
            most = min(most, callback.horizon() if isinstance(callback, Follower) else 1)
        if rule is None:
            return most
        # The parameters of the best epoch are copied before the next one changes them.
        patience = 1 if rule.restore_best else rule.patience - self._epochs_since_best(history)
        return min(most, patience)

    def resume(self, history: History, best: Any) -> None:
        """Continue after the epochs of a history."""
        self.best, self._n_seen = best, history.n_epochs
        if history.best_epoch is not None and self._rule is not None:
            self._best_loss = getattr(history, self._rule.monitor)[history.best_epoch - 1]

    def has_run_out_of_patience(self, history: History) -> bool:
        """Whether the watched loss has not improved within the patience."""
        rule = self._rule
        return rule is not None and self._epochs_since_best(history) >= rule.patience

    @staticmethod
    def _epochs_since_best(history: History) -> int:
        return history.n_epochs - (history.best_epoch or 0)

    def decide(self, history: History) -> str | None:
        """Return why the training ends after the last epoch; None if it continues."""
        self.note_the_best(history)
        if self._callbacks:
            if self._shows_network:
                self._net.take_parameters(self._engine.parameters)
            self._state.history, self._state.epoch = history, history.n_epochs
            with callers_errors():
                for callback in self._callbacks:
                    callback(self._state)
        if self._is_asked_to_stop():
            return "callback"
        if history.n_epochs < self._epochs and self.has_run_out_of_patience(history):
            return "early stopping"
        return None

    def note_the_best(self, history: History) -> None:
        """Note which of the epochs since the last call is the best so far."""
        rule = self._rule
        if rule is None:
            return
        watched = getattr(history, rule.monitor)
        for epoch in range(self._n_seen, len(watched)):
            if watched[epoch] < self._best_loss - rule.min_delta:
                self._best_loss, history.best_epoch = watched[epoch], epoch + 1
                if rule.restore_best:
                    self.best = self._engine.snapshot()
        self._n_seen = len(watched)

    def _is_asked_to_stop(self) -> bool:
        """Whether a callback has asked to stop, in the process of rank 0 for all of a team."""
        if self._team is None:
            return self._state.stop_requested
        self._team.check_equal(self._engine.parameters)
        return self._team.total([float(self._state.stop_requested)])[0] > 0
