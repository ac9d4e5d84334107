"""The score that early stopping goes by."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sklearn
from sklearn.base import is_classifier
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import accuracy_score, get_scorer, r2_score

from nnbackend.errors import InputError
from nnbackend.estimators.arrays import on_cpu

__all__ = ["ValidationScore"]

_Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ValidationScore:
    """The score of a model, as it stands, on validation data.

    Attributes
    ----------
    model : Estimator
        Has coefficients, and ``scoring``.
    outputs : callable
        Return the network's outputs for the rows.
    decode : callable
        Make predictions of outputs.
    X : array-like (n_samples, n_features)
        The rows as a scorer takes them: with the names of a data frame's columns.
    y : array-like
        Labels or values, in the form of predictions.
    sample_weight : array (n_samples,) or None
        Weights of the rows.
    is_held_out : bool
        Whether the rows are a part of the training data, or else the caller's own.
    """

    model: Any
    outputs: Callable[[], Any]
    decode: Callable[[Any], Any]
    X: Any
    y: Any
    sample_weight: Any
    is_held_out: bool

    def __call__(self) -> float:
        """Return the score; NaN where training has diverged.

        Raises
        ------
        InputError
            If the score is not finite and the network's outputs are: no epoch could be selected.
        """
        with (
            warnings.catch_warnings(record=True) as caught,
            np.errstate(over="ignore", invalid="ignore"),
        ):
            warnings.simplefilter("always")
            # Validation data has lost the names that the training data had.
            warnings.filterwarnings("ignore", "X does not have valid feature names", UserWarning)
            try:
                score = self._value()
            except ValueError:  # so do scikit-learn's scorers refuse infinite predictions
                if self._has_diverged():
                    return math.nan
                raise
            is_defined = math.isfinite(score)
            if not is_defined and self._has_diverged():
                return math.nan
        if not is_defined:
            argument = "early_stopping" if self.model.scoring is None else "scoring"
            raise InputError(self._message(score, caught), argument)
        for warning in caught:
            warnings.warn(warning.message, stacklevel=2)
        return score

    def _value(self) -> float:
        model = self.model
        # What follows takes arrays in the host's memory, whichever library fit was given.
        with sklearn.config_context(array_api_dispatch=False):
            if model.scoring is None:
                predicted = on_cpu(self.decode(self.outputs()))
                if predicted.dtype.kind == "f" and not np.isfinite(predicted).all():
                    return math.nan
                score = _accuracy if is_classifier(model) else _r2
                return score(self.y, predicted, self.sample_weight)
            weight = {} if self.sample_weight is None else {"sample_weight": self.sample_weight}
            return float(get_scorer(model.scoring)(model, on_cpu(self.X), self.y, **weight))

    def _has_diverged(self) -> bool:
        """Return whether outputs are NaN, infinite, or too large to be squared, as scores do."""
        outputs = on_cpu(self.outputs()).ravel()
        return not math.isfinite(outputs @ outputs)

    def _message(self, score: float, caught: Sequence[warnings.WarningMessage]) -> str:
        """Say which score is not finite, and why."""
        given = self.model.scoring
        scorer = given if isinstance(given, str) else getattr(given, "__name__", repr(given))
        if given is None:
            scorer = "accuracy" if is_classifier(self.model) else "R^2"
        if self.is_held_out:
            rows, advice = "the rows held out", "raise validation_fraction, or pass X_val and y_val"
        else:
            rows, advice = "y_val", "pass other validation data"
        y = np.asarray(self.y)
        if len(y) == 1:
            reason = f"{rows} are 1 row" if self.is_held_out else "y_val has 1 row"
            advice += " with more rows"
        elif is_classifier(self.model) and (constant := (y == y[:1]).all(axis=0)).any():
            column = "" if y.ndim == 1 else f" in column {int(np.argmax(constant))}"
            label = y[0] if y.ndim == 1 else y[0, int(np.argmax(constant))]
            reason = f"all {len(y)} rows of {rows} have the label {label!s}{column}"
            advice += " with every label"
        else:
            texts = {str(w.message) for w in caught if w.category is UndefinedMetricWarning}
            reason = " ".join(sorted(texts)) or f"the scorer returned it for {len(y)} rows"
            advice = "choose a scorer that is finite there"
        return (
            f"expected a finite score to choose an epoch by, got {score} from {scorer}: {reason}; "
            f"{advice}"
        )


def _accuracy(y: Any, predicted: _Array, weight: _Array | None) -> float:
    """Return scikit-learn's ``accuracy_score``, whose checks take longer than an epoch may."""
    is_alike = (
        isinstance(y, np.ndarray) and y.shape == predicted.shape and y.dtype == predicted.dtype
    )
    if not is_alike or y.dtype.kind not in "biuUS":
        return float(accuracy_score(y, predicted, sample_weight=weight))
    is_right = y == predicted
    return float(np.average(is_right if y.ndim == 1 else is_right.all(axis=1), weights=weight))


def _r2(y: Any, predicted: _Array, weight: _Array | None) -> float:
    """Return scikit-learn's ``r2_score``, in its order of operations."""
    is_alike = isinstance(y, np.ndarray) and y.shape == predicted.shape and len(y) > 1
    if not is_alike or y.dtype.kind != "f" or y.dtype != predicted.dtype:
        return float(r2_score(y, predicted, sample_weight=weight))
    rows, found = y.reshape(len(y), -1), predicted.reshape(len(y), -1)
    own = 1.0 if weight is None else weight[:, None]
    numerator = np.sum(own * (rows - found) ** 2, axis=0)
    mean = np.average(rows, axis=0, weights=weight)
    denominator = np.sum(own * (rows - mean) ** 2, axis=0)
    if not (numerator.all() and denominator.all()):
        # Where all targets are equal, or all predictions exact, the score is set by definition.
        return float(r2_score(y, predicted, sample_weight=weight))
    return float(np.average(1.0 - numerator / denominator))
