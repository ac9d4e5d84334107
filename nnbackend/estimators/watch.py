"""What happens after every epoch of an estimator's fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from nnbackend.device import get_device
from nnbackend.errors import InputError
from nnbackend.estimators.callbacks import Tasks, fitted_attributes
from nnbackend.estimators.formulas import EpochRate
from nnbackend.estimators.scores import ValidationScore
from nnbackend.floating_point import callers_errors, own_errors
from nnbackend.model.network import Network
from nnbackend.training.errors import DivergenceError
from nnbackend.training.history import Follower, TrainingState

__all__ = ["Watch"]


class Watch(Follower):
    """Record curves, look for a better score, and set the rate.

    That needs the end of every epoch only if something happens there: a score, a callback, a line
    of text or a new rate. If not, several epochs run in a call: as many as cannot be too many.
    """

    def __init__(
        self,
        model: Any,
        net: Network,
        rate: EpochRate,
        n_samples: int,
        score: ValidationScore | None,
        tasks: Tasks | None,
        no_improvement_count: int,
    ) -> None:
        self._model, self._net, self._rate, self._n_samples = model, net, rate, n_samples
        self._score, self._tasks = score, tasks
        self.no_improvement_count = no_improvement_count
        self._hooks, self._n_seen = _callbacks(model.callbacks), 0
        self._best_epoch: int | None = None
        self._best = self._parameters() if self.has_best else None
        self.is_converged = False
        self._is_invscaling = model.solver == "sgd" and model.learning_rate == "invscaling"
        self.reads_network = score is not None or tasks is not None or bool(self._hooks)
        if tasks is not None:
            tasks.begin_epoch()

    @property
    def has_best(self) -> bool:
        """Whether early stopping has a score, of an epoch or an earlier fit, and so a best one."""
        return self._score is not None and math.isfinite(self._model.best_validation_score_)

    def horizon(self) -> int:
        """Return how many epochs can run before anything may happen."""
        if self.reads_network or self._model.verbose or self._is_invscaling:
            return 1
        patience = self._model.n_iter_no_change - self.no_improvement_count
        return int(max(0, min(patience, self._model.max_iter))) + 1

    @own_errors
    def __call__(self, state: TrainingState) -> None:
        """Take the losses of epochs down, look for improvement, and call the callbacks."""
        model, history = self._model, state.history
        for loss in history.loss[self._n_seen :]:
            model.n_iter_ += 1
            model.t_ += self._n_samples
            model.loss_ = loss
            model.loss_curve_.append(loss)
            if model.verbose:
                print(f"Iteration {model.n_iter_}, loss = {loss:.8f}")
            self._look_for_improvement(state)
        if history.validation_loss:
            model.validation_loss_curve_ += history.validation_loss[self._n_seen :]
        self._n_seen = history.n_epochs
        if self._is_invscaling:
            self._rate.value = float(model.learning_rate_init) / (model.t_ + 1) ** model.power_t
        if self.no_improvement_count > model.n_iter_no_change:
            self._stop_or_slow_down(state)
        for hook in self._hooks:
            with callers_errors():
                hook(state)
        if self._tasks is not None:
            if self._tasks.end_epoch():
                self.is_converged = True
                state.stop()
            if not state.stop_requested and state.epoch < state.epochs:
                self._tasks.begin_epoch()

    def _look_for_improvement(self, state: TrainingState) -> None:
        """Count the epochs without improvement; keep the coefficients of the best score."""
        model = self._model
        if self._score is None:
            is_improved = model.loss_ <= model.best_loss_ - model.tol
            model.best_loss_ = min(model.loss_, model.best_loss_)
        else:
            self._show()
            score = self._score()
            model.validation_scores_.append(score)
            if model.verbose:
                print(f"Validation score: {score:f}")
            is_improved = score >= model.best_validation_score_ + model.tol
            if not math.isfinite(score):
                what = f"the validation score became NaN or infinite in epoch {state.epoch}"
                raise DivergenceError(what, state.history, what)
            if score > model.best_validation_score_:
                model.best_validation_score_ = score
                self._best, self._best_epoch = self._parameters(), state.epoch
        self.no_improvement_count = 0 if is_improved else self.no_improvement_count + 1

    def _show(self) -> None:
        """Let the model predict with the network's parameters as they are."""
        vars(self._model).update(fitted_attributes(self._net))

    def end(self) -> None:
        """Leave the model its coefficients, the best where there are such; tell callbacks."""
        if self._best is not None:
            self._net.take_parameters(self._best)
        self._show()
        if self._tasks is not None:
            self._tasks.end()

    def _parameters(self) -> Any:
        """Return a copy of the network's parameters."""
        return get_device(self._net.device).xp.asarray(self._net.parameters, copy=True)

    def divergence(self, error: DivergenceError) -> str:
        """Return a warning that training broke off: which epoch's coefficients the model has."""
        model = self._model
        kept = "before this fit" if self._best_epoch is None else f"of epoch {self._best_epoch}"
        rate = f"learning_rate_init (the rate was {self._rate.value:g})"
        if model.optimizer is not None:
            rate = "the learning rate of optimizer"
        self.is_converged = True
        return (
            f"Training diverged: {error.what}. The model has the coefficients {kept}, whose "
            f"validation score of {model.best_validation_score_:g} was the best. Lower {rate}, set "
            "clip_norm=1.0, or standardize the features."
        )

    def _stop_or_slow_down(self, state: TrainingState) -> None:
        """End the training, or take a fifth of the rate where it is adaptive."""
        model = self._model
        what = "Validation score" if model.early_stopping else "Training loss"
        message = (
            f"{what} did not improve more than tol={model.tol:f} for {model.n_iter_no_change} "
            "consecutive epochs."
        )
        is_adaptive = model.solver == "sgd" and model.learning_rate == "adaptive"
        if is_adaptive and self._rate.value > 1e-6:
            self._rate.value /= 5.0
            self.no_improvement_count = 0
            if model.verbose:
                print(f"{message} Setting learning rate to {self._rate.value:f}")
            return
        if model.verbose:
            print(f"{message}{' Learning rate too small.' if is_adaptive else ''} Stopping.")
        self.is_converged = True
        state.stop()


def _callbacks(given: Any) -> Sequence[Callable[[TrainingState], object]]:
    if given is None:
        return ()
    hooks = (given,) if callable(given) else tuple(given)
    for hook in hooks:
        if not callable(hook):
            raise InputError(f"expected callables, got {hook!r}", argument="callbacks")
    return hooks
