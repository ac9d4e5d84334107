"""What happens after every epoch of an estimator's fit."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from sklearn.exceptions import ConvergenceWarning

from nnbackend.errors import InputError
from nnbackend.estimators.arrays import Targets
from nnbackend.estimators.formulas import EpochRate
from nnbackend.floating_point import callers_errors, own_errors
from nnbackend.model.network import Network
from nnbackend.training.errors import DivergenceError
from nnbackend.training.history import TrainingState

__all__ = ["Tasks", "Watch"]


class Tasks:
    """scikit-learn's callbacks (``set_callbacks``): of the fit, and of every epoch in it.

    They are handed what the caller passed, as scikit-learn's own estimators do: a score of the
    estimator takes labels, not their codes.
    """

    def __init__(self, model: Any, net: Network, max_tasks: int) -> None:
        self._model, self._net = model, net
        given = model._given  # noqa: SLF001 - the other half of it
        weight = given.sample_weight
        self._passed = {
            "estimator": model,
            "X": given.X,
            "y": given.y,
            "metadata": None if weight is None else {"sample_weight": weight},
        }
        self._fit = model._init_callback_context(max_subtasks=max_tasks)  # noqa: SLF001 - its mixin
        self._fit.call_on_fit_task_begin(**self._passed)

    def _fitted(self) -> dict[str, Any]:
        fitted: dict[str, Any] = self._model._fitted_so_far(self._net)  # noqa: SLF001
        return fitted

    def begin_epoch(self) -> None:
        self._epoch = self._fit.subcontext(task_name="epoch")
        self._epoch.call_on_fit_task_begin(**self._passed, reconstruction_attributes=self._fitted)

    def end_epoch(self) -> bool:
        """Return whether a callback asks to stop."""
        passed = self._passed
        return bool(
            self._epoch.call_on_fit_task_end(**passed, reconstruction_attributes=self._fitted)
        )

    def end(self) -> None:
        self._fit.call_on_fit_task_end(**self._passed, reconstruction_attributes={})


class Watch:
    """What happens after every epoch: curves, the search for a better score, and the rate."""

    def __init__(
        self,
        model: Any,
        rate: EpochRate,
        n_samples: int,
        validation: Targets | None,
        tasks: Tasks | None,
    ) -> None:
        self._model, self._rate, self._n_samples = model, rate, n_samples
        self._validation = validation or (None, None, None)
        self._tasks = tasks
        if tasks is not None:
            tasks.begin_epoch()
        self._hooks = _callbacks(model.callbacks)
        self._best_epoch: int | None = None
        self.is_converged = False

    @own_errors
    def __call__(self, state: TrainingState) -> None:
        model = self._model
        model.n_iter_ += 1
        model.t_ += self._n_samples
        model.loss_ = state.history.loss[-1]
        model.loss_curve_.append(model.loss_)
        if state.history.validation_loss:
            model.validation_loss_curve_.append(state.history.validation_loss[-1])
        if model.verbose:
            print(f"Iteration {model.n_iter_}, loss = {model.loss_:.8f}")
        self._look_for_improvement(state)
        if model.solver == "sgd" and model.learning_rate == "invscaling":
            self._rate.value = float(model.learning_rate_init) / (model.t_ + 1) ** model.power_t
        if model._no_improvement_count > model.n_iter_no_change:  # noqa: SLF001
            self._stop_or_slow_down(state)
        for hook in self._hooks:
            with callers_errors():
                hook(state)
        if self._tasks is None:
            return
        if self._tasks.end_epoch():
            self.is_converged = True
            state.stop()
        if not state.stop_requested and state.epoch < state.epochs:
            self._tasks.begin_epoch()

    def _look_for_improvement(self, state: TrainingState) -> None:
        """Count the epochs without improvement; keep the coefficients of the best score."""
        model = self._model
        is_scored, best = model.early_stopping, model.best_validation_score_
        if is_scored:
            model._take_parameters(state.network)  # noqa: SLF001 - the other half of it
        model._update_no_improvement_count(is_scored, *self._validation)  # noqa: SLF001
        if not is_scored:
            return
        if not math.isfinite(model.validation_scores_[-1]):
            what = f"the validation score became NaN or infinite in epoch {state.epoch}"
            raise DivergenceError(what, state.history, what)
        if model.best_validation_score_ != best:
            self._best_epoch = state.epoch

    def end(self) -> None:
        """Tell scikit-learn's callbacks of the end."""
        if self._tasks is not None:
            self._tasks.end()

    def warn_of_divergence(self, error: DivergenceError) -> None:
        """Say that training broke off, and which epoch's coefficients the model has."""
        model = self._model
        kept = "before this fit" if self._best_epoch is None else f"of epoch {self._best_epoch}"
        rate = f"learning_rate_init (the rate was {self._rate.value:g})"
        if model.optimizer is not None:
            rate = "the learning rate of optimizer"
        warnings.warn(
            f"Training diverged: {error.what}. The model has the coefficients {kept}, whose "
            f"validation score of {model.best_validation_score_:g} was the best. Lower {rate}, set "
            "clip_norm=1.0, or standardize the features.",
            ConvergenceWarning,
            stacklevel=3,
        )
        self.is_converged = True

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
            model._no_improvement_count = 0  # noqa: SLF001
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
            raise InputError(f"callbacks: expected callables, got {hook!r}")
    return hooks
