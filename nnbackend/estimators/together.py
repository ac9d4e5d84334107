"""Fit many estimators side by side: folds, settings and members of ensembles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from nnbackend.engines import Training
from nnbackend.engines.choice import trainings_at_once
from nnbackend.engines.driving import Ended, together
from nnbackend.estimators.fitting import Estimator, Passed
from nnbackend.estimators.mlp import MLPClassifier, MLPRegressor

__all__ = ["Fit", "fit_together"]


class Fit(NamedTuple):
    """A fit to do.

    Attributes
    ----------
    model : Estimator
        One of ours, which no other fit has.
    passed : Passed
        The arguments of its ``fit``. Fits may share arrays.
    """

    model: Estimator
    passed: Passed


def fit_together(
    fits: Iterable[Fit], on_round: Callable[[], None] | None = None
) -> Iterator[Ended[str]]:
    """Fit models side by side; yield each when its fit has ended, in whatever order.

    Each becomes what its ``fit`` alone would make of it: with the same bits on the CPU, to rounding
    elsewhere. Python runs in the caller's thread alone. Call this within ``own_errors``.

    Parameters
    ----------
    fits : iterable of Fit
        Taken one by one, when a fit begins: data can be made then.
    on_round : callable, optional
        Called now and then.

    Yields
    ------
    Ended
        Its ``number`` is that of the fit, its ``error`` what the fit raised, its ``seconds`` the
        time that the fit itself took.

    Raises
    ------
    KeyboardInterrupt
        After an interrupt, which ended all fits that had begun.
    """
    yield from together(
        map(_training, fits), trainings_at_once(), on_round, lambda why: why == "interrupted"
    )


def _can_pause(model: object) -> bool:
    """Whether a fit can be driven as a training; if not, it runs in this thread, to its end."""
    return (
        isinstance(model, Estimator)
        and model.can_pause
        # A subclass may have a fit of its own, which is then called as it is.
        and getattr(type(model), "fit", None) in (MLPClassifier.fit, MLPRegressor.fit)
    )


def _training(fit: Fit) -> Training[str]:
    if _can_pause(fit.model):
        return fit.model.fitting(fit.passed)
    return _alone(fit)


def _alone(fit: Fit) -> Training[str]:
    """Fit a model by its own method, without a pause."""
    given = {name: value for name, value in vars(fit.passed).items() if value is not None}
    fit.model.fit(**given)
    yield from ()
    return "completed"
