"""Who decides whether a training ends, and which parameters it ends with."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from nnbackend.engines.base import Engine
from nnbackend.floating_point import callers_errors
from nnbackend.training.history import History, TrainingState
from nnbackend.training.options import TrainingOptions

if TYPE_CHECKING:
    from nnbackend.model.network import Network
    from nnbackend.parallel.team import Team

__all__ = ["Stopping"]


class Stopping:
    """The rule of early stopping, and the callbacks.

    Parameters
    ----------
    net : Network
        What callbacks look at.
    engine : Engine
        Has the parameters.
    options : TrainingOptions
        The number of epochs, the rule, and the callbacks.
    team : Team, optional
        The processes of the training: those of one decide for all.

    Attributes
    ----------
    best : snapshot or None
        The parameters of the best epoch, where they are to come back.
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
        # Those of one process speak for all.
        self._callbacks = options.callbacks if team is None or team.rank == 0 else ()
        self._state = TrainingState(net, History(), 0, options.epochs)
        self._best_loss = math.inf
        self.best: Any = None

    @property
    def is_watching(self) -> bool:
        """Whether there is something to do after every epoch."""
        return self._rule is not None or bool(self._callbacks)

    def resume(self, history: History, best: Any) -> None:
        """Go on after the epochs of a history."""
        self.best = best
        if history.best_epoch is not None and self._rule is not None:
            self._best_loss = getattr(history, self._rule.monitor)[history.best_epoch - 1]

    def has_run_out_of_patience(self, history: History) -> bool:
        """Whether the watched loss has not improved for too long."""
        rule = self._rule
        return rule is not None and history.n_epochs - (history.best_epoch or 0) >= rule.patience

    def decide(self, history: History) -> str | None:
        """Look at a finished epoch; return why the training ends, None if it goes on."""
        self._note_the_best(history)
        if self._callbacks:
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

    def _note_the_best(self, history: History) -> None:
        rule = self._rule
        if rule is None:
            return
        watched = getattr(history, rule.monitor)[-1]
        if watched < self._best_loss - rule.min_delta:
            self._best_loss, history.best_epoch = watched, history.n_epochs
            if rule.restore_best:
                self.best = self._engine.snapshot()

    def _is_asked_to_stop(self) -> bool:
        """Whether a callback has asked to end; those of one process speak for all."""
        if self._team is None:
            return self._state.stop_requested
        self._team.check_equal(self._engine.parameters)
        return self._team.total([float(self._state.stop_requested)])[0] > 0
