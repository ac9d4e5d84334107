"""The values that parameters of the estimators may have, and the error for others.

The messages are those of scikit-learn's estimators, whose own checks are private to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, cast

import numpy as np
import sklearn

from nnbackend.core.activations import Activation
from nnbackend.core.losses import Loss
from nnbackend.core.optimizers import Optimizer
from nnbackend.errors import InputError

__all__ = ["CLASSIFIER", "ENSEMBLE", "REGRESSOR", "ParameterError", "Rule", "check_parameters"]


class ParameterError(InputError, TypeError):
    """A parameter of an estimator has a type or value that it must not have.

    As in scikit-learn, it can be caught as a ``ValueError`` and as a ``TypeError``.
    """


@dataclass(frozen=True)
class Rule:
    """One of the ways in which a value can be valid.

    Attributes
    ----------
    text : str
        The expected value, in words that follow "must be".
    holds : callable
        Return whether a value is valid in this way.
    """

    text: str
    holds: Callable[[Any], bool]


def _number(kind: type, low: float, high: float = math.inf, brackets: str = "[)") -> Rule:
    """Return the rule of an int or a float between bounds; brackets include a bound."""

    def holds(value: Any) -> bool:
        if not isinstance(value, kind):
            return False
        value = cast("float", value)
        above = value >= low if brackets[0] == "[" else value > low
        below = value <= high if brackets[1] == "]" else value < high
        # Without an upper bound infinity is valid.
        return bool(above and (below or (high == math.inf and value == high)))

    bounds = [low, high] if kind is Integral else [float(low), float(high)]
    name = "an int" if kind is Integral else "a float"
    return Rule(f"{name} in the range {brackets[0]}{bounds[0]}, {bounds[1]}{brackets[1]}", holds)


def _choice(*names: str) -> Rule:
    texts = ", ".join(map(repr, names))
    return Rule(f"a str among {{{texts}}}", lambda x: isinstance(x, str) and x in names)


def _instance(kind: type) -> Rule:
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    name = f"{module}{kind.__qualname__}"
    return Rule(f"an instance of {name!r}", lambda x: isinstance(x, kind))


def _is_array_like(value: Any) -> bool:
    has_items = any(hasattr(value, name) for name in ("__len__", "shape", "__array__"))
    return has_items and not np.isscalar(value)


_NONE = Rule("None", lambda x: x is None)
_ARRAY_LIKE = Rule("an array-like", _is_array_like)
_CALLABLE = Rule("a callable", callable)
_REAL = Rule("a float", lambda x: isinstance(x, Real))
_TEXT = _instance(str)
_BOOLEAN = (_instance(bool), _instance(np.bool_))
_POSITIVE_INT = _number(Integral, 1)
_FRACTION = (_number(Real, 0, 1),)

_SHARED: dict[str, Sequence[Rule]] = {
    "hidden_layer_sizes": (_ARRAY_LIKE, _POSITIVE_INT),
    "activation": (_TEXT, _ARRAY_LIKE, _instance(Activation)),
    "solver": (_choice("lbfgs", "sgd", "adam"),),
    "alpha": (_number(Real, 0),),
    "batch_size": (_choice("auto"), _POSITIVE_INT),
    "learning_rate": (_choice("constant", "invscaling", "adaptive"),),
    "learning_rate_init": (_number(Real, 0, brackets="()"),),
    "power_t": (_number(Real, 0),),
    "max_iter": (_POSITIVE_INT,),
    "shuffle": _BOOLEAN,
    "random_state": (
        _number(Integral, 0, 2**32 - 1, "[]"), _instance(np.random.RandomState), _NONE,
    ),
    "tol": (_number(Real, 0),),
    "verbose": (_number(Integral, 0), *_BOOLEAN),
    "warm_start": _BOOLEAN,
    "momentum": (_number(Real, 0, 1, "[]"),),
    "nesterovs_momentum": _BOOLEAN,
    "early_stopping": _BOOLEAN,
    "validation_fraction": _FRACTION,
    "beta_1": _FRACTION,
    "beta_2": _FRACTION,
    "epsilon": (_number(Real, 0, brackets="()"),),
    "n_iter_no_change": (
        _POSITIVE_INT,
        Rule("a float among {inf}", lambda x: _REAL.holds(x) and x == math.inf),
    ),
    "max_fun": (_POSITIVE_INT,),
    "optimizer": (_TEXT, _instance(Optimizer), _NONE),
    "dropout": (_ARRAY_LIKE, _REAL),
    "clip_norm": (_REAL, _NONE),
    "scoring": (_TEXT, _CALLABLE, _NONE),
    "callbacks": (_ARRAY_LIKE, _CALLABLE, _NONE),
    "device": (_TEXT, _NONE),
    "engine": (_TEXT,),
    "precision": (_TEXT,),
}  # fmt: skip

CLASSIFIER: dict[str, Sequence[Rule]] = {
    **_SHARED,
    "class_weight": (_instance(dict), _instance(list), _TEXT, _NONE),
    "label_smoothing": (_REAL,),
}
REGRESSOR: dict[str, Sequence[Rule]] = {
    **_SHARED,
    "loss": (_TEXT, _instance(Loss)),
    "quantiles": (_ARRAY_LIKE, _NONE),
    "standardize_target": _BOOLEAN,
}

ENSEMBLE: dict[str, Sequence[Rule]] = {
    "n_estimators": (_POSITIVE_INT,),
    "bootstrap": _BOOLEAN,
    "noise_folds": (_number(Integral, 2), _NONE),
    "random_state": _SHARED["random_state"],
}


def check_parameters(model: object, rules: Mapping[str, Sequence[Rule]]) -> None:
    """Raise a ParameterError if a parameter of a model is valid by none of its rules.

    Parameters
    ----------
    model : estimator
        Has the parameters as attributes. A subclass may have others, of which there is no rule.
    rules : mapping
        The ways in which each can be valid.
    """
    if sklearn.get_config()["skip_parameter_validation"]:
        return
    given = vars(model)
    for name, allowed in rules.items():
        # A subclass may do without some.
        if name not in given or any(rule.holds(given[name]) for rule in allowed):
            continue
        *texts, last = (rule.text for rule in allowed)
        expected = f"{', '.join(texts)} or {last}" if texts else last
        raise ParameterError(
            f"The {name!r} parameter of {type(model).__name__} must be {expected}. Got "
            f"{given[name]!r} instead."
        )
