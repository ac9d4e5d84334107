"""scikit-learn's MLPClassifier and MLPRegressor, fitted and evaluated by nnbackend's.

This module alone reads and writes attributes that are private to scikit-learn: those that a fit
leaves in an estimator for ``partial_fit``, warm starts and ``predict``, so that the estimator goes
on without nnbackend. Where a version does not have them, nothing is taken over: see ``install``.
"""

from __future__ import annotations

import copy
import inspect
import math
import sys
import warnings
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import numpy as np
import scipy.sparse
import sklearn
from array_api_compat import is_array_api_obj
from sklearn import neural_network
from sklearn.utils import check_random_state

from nnbackend.accel.patching import Declined
from nnbackend.core.distributions import output
from nnbackend.core.optimizers import OptimizerState
from nnbackend.core.structure import Structure
from nnbackend.data.sources import as_source
from nnbackend.device import device_of, get_device
from nnbackend.estimators import mlp
from nnbackend.estimators.fitting import Estimator, Standing

__all__ = ["fit", "partial_fit", "partial_fit_classes", "predict", "predict_proba", "require"]


# The fitted attributes that both have by the same name and with the same meaning.
_FITTED = (
    "n_features_in_", "feature_names_in_", "classes_", "n_outputs_", "n_layers_",
    "out_activation_", "coefs_", "intercepts_", "n_iter_", "t_", "loss_", "loss_curve_",
    "best_loss_", "validation_scores_", "best_validation_score_", "_no_improvement_count",
)  # fmt: skip
# What scikit-learn's optimizers are made with, as they name it, by the estimator's parameter.
_MADE_WITH = {
    "adam": {
        "learning_rate_init": "learning_rate_init",
        "beta_1": "beta_1",
        "beta_2": "beta_2",
        "epsilon": "epsilon",
    },
    "sgd": {
        "learning_rate_init": "learning_rate_init",
        "lr_schedule": "learning_rate",
        "momentum": "momentum",
        "nesterov": "nesterovs_momentum",
        "power_t": "power_t",
    },
}
# Their arrays, in the order of those of nnbackend's.
_STATE = {"adam": ("ms", "vs"), "sgd": ("velocities",)}
# One of each, which scikit-learn makes: their classes are private to it.
_OPTIMIZERS = {
    solver: vars(
        neural_network.MLPRegressor(
            hidden_layer_sizes=(1,), solver=solver, random_state=0
        ).partial_fit([[0.0]], [0.0])
    )["_optimizer"]
    for solver in _STATE
}
# nnbackend's take more than scikit-learn's: there these are errors.
_VALUES = {
    "activation": ("identity", "logistic", "tanh", "relu"),
    "loss": ("squared_error", "poisson", "log_loss"),
}
# Fewer steps cost less than to hand the parameters and the optimizer over and back.
_MIN_STEPS = 5
# nnbackend's make a sparse matrix dense.
_MAX_DENSE_BYTES = 2**28


class _Deputy(Estimator):
    """An estimator of nnbackend that works for one of scikit-learn's.

    It begins with the parameters and fitted attributes of that one, and hands it the attributes
    that it ends with.
    """

    theirs: type

    def _warn(self, message: str, category: type[Warning] = UserWarning) -> None:
        # From where scikit-learn warns: programs filter its warnings by module, too.
        module: Any = sys.modules[self.theirs.__module__]
        line = inspect.unwrap(self.theirs.fit).__code__.co_firstlineno  # type: ignore[attr-defined]
        registry = vars(module).setdefault("__warningregistry__", {})
        warnings.warn_explicit(message, category, module.__file__, line, module.__name__, registry)

    def take_attributes(self, model: Any) -> None:
        """Begin with the fitted attributes of scikit-learn's."""
        held = vars(model)
        for name in _FITTED:
            if name in held:
                value = held[name]
                # Lists grow in a fit, which may fail.
                setattr(self, name, list(value) if isinstance(value, list) else value)

    def take_optimizer(self, model: Any) -> None:
        """Begin with the optimizer of scikit-learn's, if that has one."""
        theirs = vars(model).get("_optimizer")
        if theirs is None:
            return
        made_with = {there: getattr(model, here) for there, here in _MADE_WITH[self.solver].items()}
        if type(theirs) is not type(_OPTIMIZERS[self.solver]) or any(
            getattr(theirs, name) != value for name, value in made_with.items()
        ):
            raise Declined("parameters of the optimizer have changed since partial_fit made it")
        structure, n_layers = self._structure(), len(self.coefs_)
        xp = get_device("cpu").xp
        arrays = []
        for name in _STATE[self.solver]:
            parts = getattr(theirs, name)
            arrays.append(structure.flatten(xp, parts[:n_layers], parts[n_layers:]))
        is_adam = self.solver == "adam"
        rate = theirs.learning_rate_init if is_adam else theirs.learning_rate
        step = theirs.t if is_adam else 0
        self._optimizer = Standing(float(rate), OptimizerState(step, tuple(arrays)))

    def give(self, model: Any) -> None:
        """Hand all fitted attributes to scikit-learn's, those of its own included."""
        held = vars(self)
        for name in _FITTED:
            if name in held:
                setattr(model, name, held[name])
            elif name in vars(model):
                delattr(model, name)
        model._random_state = check_random_state(self.random_state)  # noqa: SLF001
        # The same arrays, as there after early stopping.
        model._best_coefs = self.coefs_  # noqa: SLF001
        model._best_intercepts = self.intercepts_  # noqa: SLF001
        if self.solver == "lbfgs":
            self._give_places(model)
        else:
            self._give_optimizer(model)

    def _give_places(self, model: Any) -> None:
        """Hand over where each array stands in the vector of L-BFGS: all weights, all biases."""
        model._coef_indptr, model._intercept_indptr = [], []  # noqa: SLF001
        start = 0
        for W in self.coefs_:
            model._coef_indptr.append((start, start + W.size, W.shape))  # noqa: SLF001
            start += W.size
        for b in self.intercepts_:
            model._intercept_indptr.append((start, start + b.size))  # noqa: SLF001
            start += b.size

    def _give_optimizer(self, model: Any) -> None:
        """Hand scikit-learn's the optimizer of a fit by steps."""
        standing = self._optimizer
        if standing.state is None:  # training broke off
            vars(model).pop("_optimizer", None)
            return
        theirs = copy.copy(_OPTIMIZERS[self.solver])
        vars(theirs).update(
            {there: getattr(self, here) for there, here in _MADE_WITH[self.solver].items()}
        )
        theirs.learning_rate = standing.learning_rate
        structure, xp = self._structure(), get_device("cpu").xp
        for name, flat in zip(_STATE[self.solver], standing.state.arrays, strict=True):
            weights, biases = structure.unflatten(xp, flat)
            setattr(theirs, name, [*weights, *biases])
        if self.solver == "adam":
            theirs.t = standing.state.step
            bias_1, bias_2 = 1.0 - theirs.beta_1**theirs.t, 1.0 - theirs.beta_2**theirs.t
            theirs.learning_rate = standing.learning_rate * bias_2**0.5 / bias_1
        model._optimizer = theirs  # noqa: SLF001

    def _structure(self) -> Structure:
        sizes = (len(self.coefs_[0]), *map(len, self.intercepts_))
        hidden = tuple(self._hidden(len(sizes) - 2))
        chosen = output("out_activation_", self.out_activation_)
        return Structure(sizes, hidden, chosen, (0.0,) * len(hidden))


class MLPClassifier(_Deputy, mlp.MLPClassifier):
    """Works for scikit-learn's class of this name, which messages contain."""

    theirs = neural_network.MLPClassifier

    def give(self, model: Any) -> None:
        """Hand over the encoding of the classes, too."""
        super().give(model)
        model._label_binarizer = self._label_binarizer  # noqa: SLF001


class MLPRegressor(_Deputy, mlp.MLPRegressor):
    """Works for scikit-learn's class of this name, which messages contain."""

    theirs = neural_network.MLPRegressor


def _inner(theirs: type) -> dict[str, Any]:
    """Return what scikit-learn's methods call in their own class, and a subclass may override."""
    names = {
        name
        for base in theirs.__mro__
        if base.__module__.startswith("sklearn.neural_network.")
        for name in vars(base)
        if name.startswith("_") and not name.startswith(("__", "_abc_"))
    }
    return {name: getattr(theirs, name) for name in sorted(names)}


_DEPUTIES: Mapping[type, type[_Deputy]] = {
    deputy.theirs: deputy for deputy in (MLPClassifier, MLPRegressor)
}
_PARAMETERS = {theirs: tuple(inspect.signature(theirs).parameters) for theirs in _DEPUTIES}
_UNKNOWN = {
    theirs: set(_PARAMETERS[theirs]) - set(inspect.signature(deputy).parameters)
    for theirs, deputy in _DEPUTIES.items()
}
_INNER = {theirs: _inner(theirs) for theirs in _DEPUTIES}


def fit(model: Any, X: Any, y: Any, sample_weight: Any = None) -> Any:
    """Fit an estimator of scikit-learn; the arguments are those of its method."""
    return _fitted(model, X, y, sample_weight, is_partial=False)


def partial_fit(model: Any, X: Any, y: Any, sample_weight: Any = None, **classes: Any) -> Any:
    """Take an epoch of steps; the arguments are those of the methods of both estimators."""
    if model.solver not in _STATE:
        raise Declined(f"solver={model.solver!r} takes no steps")
    if as_source(X) is not None:
        raise Declined("X is so large that nnbackend would train on one part after another")
    return _fitted(model, X, y, sample_weight, is_partial=True, **classes)


def partial_fit_classes(
    model: Any, X: Any, y: Any, sample_weight: Any = None, classes: Any = None
) -> Any:
    """Take an epoch of steps; the arguments are those of the classifier's method."""
    return partial_fit(model, X, y, sample_weight, classes=classes)


def predict(model: Any, X: Any) -> Any:
    """Return classes or values."""
    return _evaluating(model, X).predict(X)


def predict_proba(model: Any, X: Any) -> Any:
    """Return the probabilities of the classes."""
    return _evaluating(model, X).predict_proba(X)


def require(model: Any, X: Any) -> None:
    """Raise Declined where fits of an estimator are not taken over, or X is none for them."""
    if not isinstance(model, tuple(_DEPUTIES)):
        raise Declined(f"{type(model).__name__} is not one of scikit-learn's networks")
    _deputy(model, X)


def _fitted(
    model: Any, X: Any, y: Any, sample_weight: Any, *, is_partial: bool, **classes: Any
) -> Any:
    deputy = _deputy(model, X)
    if scipy.sparse.issparse(y):
        raise Declined("y is sparse")
    if deputy.warm_start and deputy.early_stopping and "coefs_" in vars(model):
        raise Declined("a warm start with early_stopping keeps the last parameters there")
    if _most_steps(deputy, X, is_partial=is_partial) < _MIN_STEPS:
        raise Declined(f"it is at most {_MIN_STEPS - 1} steps, which are as fast there")
    deputy.take_attributes(model)
    random = deputy.random_state
    # A generator that goes on from one fit to the next has to be where it was if this one fails.
    generator = None if isinstance(random, Integral) else check_random_state(random)
    state = None if generator is None else generator.get_state(legacy=False)
    try:
        if is_partial:
            deputy.take_optimizer(model)
            deputy.partial_fit(X, y, sample_weight, **classes)
        else:
            deputy.fit(X, y, sample_weight)
    except (ValueError, TypeError):
        if generator is not None:
            generator.set_state(state)
        raise
    except Warning:
        # Of a fit at its end, where warnings are errors: as there, the model is fitted then.
        if "loss_" in vars(deputy):
            deputy.give(model)
        raise
    deputy.give(model)
    return model


def _most_steps(deputy: Any, X: Any, *, is_partial: bool) -> float:
    """Return how many steps a fit may take."""
    if deputy.solver not in _STATE:
        return math.inf
    shape = getattr(X, "shape", None)
    n_rows = shape[0] if shape else len(X) if hasattr(X, "__len__") else math.inf
    if n_rows == math.inf:
        return math.inf
    n_rows_per_batch = 200 if deputy.batch_size == "auto" else deputy.batch_size
    return math.ceil(n_rows / max(1, n_rows_per_batch)) * (1 if is_partial else deputy.max_iter)


def _evaluating(model: Any, X: Any) -> Any:
    if "coefs_" not in vars(model):
        raise Declined("the estimator is not fitted")
    deputy = _deputy(model, X)
    if getattr(vars(model).get("_label_binarizer"), "sparse_input_", False):
        raise Declined("the estimator was fitted to a sparse y, and predicts such")
    deputy.take_attributes(model)
    return deputy


def _deputy(model: Any, X: Any) -> Any:
    """Return an estimator of nnbackend with the parameters; raise Declined if it cannot serve."""
    theirs = next(kind for kind in _DEPUTIES if isinstance(model, kind))
    _require_own_methods(model, theirs)
    _require_plain(X)
    if _UNKNOWN[theirs]:
        unknown = ", ".join(sorted(_UNKNOWN[theirs]))
        raise Declined(
            f"scikit-learn {sklearn.__version__} has parameters of later date: {unknown}"
        )
    try:
        parameters = {name: getattr(model, name) for name in _PARAMETERS[theirs]}
    except AttributeError as error:
        raise Declined(str(error)) from error
    for name, values in _VALUES.items():
        if name in parameters and parameters[name] not in values:
            raise Declined(f"{name}={parameters[name]!r} is not one of scikit-learn's")
    return _DEPUTIES[theirs](**parameters)


def _require_own_methods(model: Any, theirs: type) -> None:
    """Raise Declined where the model computes in another way than its class in scikit-learn."""
    kind, inner = type(model), _INNER[theirs]
    changed = [name for name, value in inner.items() if getattr(kind, name, None) is not value]
    changed += sorted(inner.keys() & vars(model).keys())
    if changed:
        raise Declined(f"{kind.__name__} has its own {', '.join(changed)}")


def _require_plain(X: Any) -> None:
    """Raise Declined for features that scikit-learn takes in another way, or not at all."""
    if isinstance(X, np.ndarray):
        return
    if scipy.sparse.issparse(X):
        n_bytes = 8 * X.shape[0] * X.shape[1] if X.ndim == 2 else 0
        if n_bytes > _MAX_DENSE_BYTES:
            raise Declined("X is a large sparse matrix, which nnbackend would make dense")
    elif is_array_api_obj(X):
        home = device_of(X)
        if sklearn.get_config()["array_api_dispatch"] or (home is not None and home.kind != "cpu"):
            raise Declined(f"X is an array of {type(X).__module__.partition('.')[0]}")
