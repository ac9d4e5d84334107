"""Networks to and from scikit-learn and torch: objects in, objects out, nothing is unpickled."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from nnbackend.core.activations import ACTIVATIONS
from nnbackend.core.standardization import Standardization
from nnbackend.core.types import Array
from nnbackend.device import Device, get_device
from nnbackend.errors import InputError
from nnbackend.floating_point import own_errors
from nnbackend.io.convert import folded, import_library, network_of, rounded
from nnbackend.model.network import Network
from nnbackend.model.stack import Stack

__all__ = [
    "EncodingEstimator",
    "LayeredEstimator",
    "StackedEstimator",
    "as_model",
    "fitted_to_nothing",
    "from_sklearn",
    "to_sklearn",
]


_SKLEARN_ACTIVATIONS = {
    "identity": "identity",
    "sigmoid": "logistic",
    "tanh": "tanh",
    "relu": "relu",
}


class LayeredEstimator:
    """An estimator with the fitted attributes of scikit-learn's networks; nnbackend's inherit it.

    ``from_sklearn`` takes these beside scikit-learn's own.
    """


class EncodingEstimator:
    """A transformer whose ``encoding_`` a network can have; nnbackend's ``TableEncoder`` is one."""


class StackedEstimator:
    """An ensemble: ``estimators_`` are of the class above; nnbackend's ensembles inherit it."""


class _Before(NamedTuple):
    """What stands before the last step of a Pipeline, if it does."""

    encoder: Any
    scaler: Any


def as_model(net: Any) -> Network | Stack:
    """Return a network as it is, an estimator as ``from_sklearn`` does, an ensemble as a stack.

    For an argument ``net`` that may be any of these, which the messages speak of.
    """
    if isinstance(net, Network | Stack):
        return net
    if not hasattr(net, "get_params"):
        raise InputError(f"expected a nnbackend.Network, got {type(net).__name__}", argument="net")
    steps = getattr(net, "steps", None) or [("", net)]
    if isinstance(steps[-1][1], StackedEstimator):
        return _stack("net", net)
    return _from_sklearn("net", net, "cpu")


@own_errors
def _stack(argument: str, estimator: Any) -> Stack:
    """Return the stack that an ensemble is, or a Pipeline that ends with one."""
    before, ensemble = _sklearn_parts(argument, estimator, StackedEstimator, "estimators_")
    networks = tuple(
        _network(argument, before, member, ensemble, "cpu") for member in ensemble.estimators_
    )
    classes = getattr(ensemble, "classes_", None)
    if classes is not None:
        return Stack(networks, labels=classes)
    return Stack(networks, np.atleast_1d(np.asarray(ensemble.noise_, np.float64)))


@own_errors
def from_sklearn(estimator: Any, *, device: str | Device = "cpu") -> Network:
    """Return the network that a fitted estimator of scikit-learn is.

    Outputs are equal to rounding. A classifier's classes become ``class_names``, as text, and
    ``predict`` returns their indices; classes 0, 1, 2, ... need no names. Whether classes were
    numbers or text is not kept: ``to_sklearn`` makes numbers of text such as "1", "2", "3". The
    state of the estimator's optimizer is not part of a network.

    Parameters
    ----------
    estimator : MLPClassifier or MLPRegressor
        Fitted, scikit-learn's or nnbackend's; or a fitted Pipeline of TableEncoder, StandardScaler,
        or both, and one of them: they become the network's encoding and standardization.
    device : str, default "cpu"
        The device of the network.

    Returns
    -------
    Network
        In the dtype of the estimator's coefficients.

    Raises
    ------
    InputError
        If it is another estimator, not fitted, or fitted to a single class.

    See Also
    --------
    to_sklearn : The way back.

    Examples
    --------
    >>> import nnbackend as nb
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.neural_network import MLPClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> estimator = MLPClassifier((8,), solver="lbfgs", max_iter=2000, random_state=0)
    >>> net = nb.from_sklearn(estimator.fit(X, y))
    >>> net
    Network([4, 8, 3], hidden='relu', output='softmax', dtype='float64', device='cpu')
    >>> bool((net.predict(X) == estimator.predict(X)).all())
    True
    """
    return _from_sklearn("estimator", estimator, device)


def _from_sklearn(argument: str, estimator: Any, device: str | Device) -> Network:
    """Return what ``from_sklearn`` does; ``argument`` is the estimator's name in messages."""
    networks = import_library("sklearn.neural_network", "scikit-learn")
    kinds = (networks.MLPClassifier, networks.MLPRegressor, LayeredEstimator)
    before, mlp = _sklearn_parts(argument, estimator, kinds, "coefs_")
    return _network(argument, before, mlp, mlp, device)


def _network(argument: str, before: _Before, mlp: Any, last: Any, device: str | Device) -> Network:
    """Return a fitted estimator, and what is before it, as a network.

    ``last`` is the last step, the estimator itself or the ensemble that it is of.
    """
    encoder, scaler = before
    net = network_of(
        [(f"coefs_[{i}]", W) for i, W in enumerate(mlp.coefs_)],
        [(f"intercepts_[{i}]", b) for i, b in enumerate(mlp.intercepts_)],
        hidden=mlp.activation,
        output=mlp.out_activation_,
        dropout=getattr(mlp, "dropout", 0.0),
        device=device,
        quantiles=getattr(mlp, "quantiles_", None),
    )

    def placed(mean: Array, scale: Array) -> Standardization:
        home = get_device(net.device)
        return Standardization(*(home.place(x, np.float64, copy=True) for x in (mean, scale)))

    if scaler is not None:
        mean = scaler.mean_ if scaler.with_mean else np.zeros(net.layer_sizes[0])
        scale = scaler.scale_ if scaler.with_std else np.ones(net.layer_sizes[0])
        net.standardization = placed(mean, scale)
    target = getattr(mlp, "target_standardization_", None)
    if target is not None:
        net.target_standardization = placed(*target)
    if encoder is None:
        names = getattr(last if scaler is None else scaler, "feature_names_in_", None)
        net.feature_names = None if names is None else tuple(names.tolist())
    else:
        net.encode_with(encoder)
    classes = getattr(mlp, "classes_", None)
    if classes is None:
        return net
    if len(classes) < 2:
        raise InputError(
            f"expected a classifier with at least two classes, got one, {classes.tolist()[0]!r}",
            argument=argument,
        )
    if classes.dtype.kind not in "iu" or not np.array_equal(classes, np.arange(len(classes))):
        net.class_names = tuple(map(str, classes.tolist()))
    return net


def fitted_to_nothing(net: Network) -> dict[str, Any]:
    """Return the sizes, counts and curves of an estimator that has a network, but saw no data."""
    return {
        "n_features_in_": net.layer_sizes[0],
        "n_layers_": len(net.layer_sizes),
        "n_outputs_": net.layer_sizes[-1],
        "n_iter_": 0,
        "t_": 0,
        "loss_": math.nan,
        "loss_curve_": [],
        "best_loss_": math.inf,
        "validation_scores_": None,
        "best_validation_score_": None,
        "_no_improvement_count": 0,
    }


@own_errors
def to_sklearn(net: Network) -> Any:
    """Return a network as a fitted estimator of scikit-learn.

    Predictions and probabilities are equal to rounding, and the estimator can be pickled, scored,
    and trained further: ``partial_fit`` and ``warm_start`` begin at the network's parameters, with
    a fresh optimizer. ``n_iter_`` is 0 and ``loss_`` NaN, for no data was seen.

    scikit-learn's networks standardize nothing: the standardization is folded into the weights of
    the first layer, and that of a target into the last, in float64, before they are rounded to the
    network's dtype. Where that is too coarse for a feature or target that is not standardized (in
    float32 mostly one with a mean more than 839 deviations from 0), the network is refused;
    ``to_sklearn(net.astype("float64"))`` keeps the digits. Dropout is left out: it plays no part in
    prediction, and scikit-learn has none.

    ``class_names`` become the classes, sorted as scikit-learn has them, and with them the columns
    of ``predict_proba``. Where all of them are written as whole numbers they become numbers, and
    True and False bools, even if they were text before ``from_sklearn``: compare predictions with
    such labels by ``estimator.predict(X).astype(str)``. Without names the classes are 0, 1, 2, ...;
    labels of a multilabel network always are. Two softmax outputs become the one logistic output of
    their difference.

    Parameters
    ----------
    net : Network
        With one of the hidden activations identity, sigmoid, tanh and relu, for all hidden layers.

    Returns
    -------
    sklearn.neural_network.MLPClassifier or MLPRegressor
        The former for a sigmoid or softmax output, the latter for identity and exp (Poisson).

    Raises
    ------
    InputError
        If scikit-learn has no such network, or its dtype is too coarse for the standardization.

    See Also
    --------
    from_sklearn : The way back.

    Examples
    --------
    >>> import nnbackend as nb
    >>> net = nb.Network([2, 4, 1], hidden="tanh")
    >>> net.class_names = ("no", "yes")
    >>> estimator = nb.to_sklearn(net)
    >>> estimator
    MLPClassifier(activation='tanh', hidden_layer_sizes=(4,))
    >>> estimator.classes_.tolist(), estimator.predict_proba([[0.0, 0.0]]).tolist()
    (['no', 'yes'], [[0.5, 0.5]])
    """
    if isinstance(net, Network) and net.structure.output.is_distribution:
        raise InputError(
            "expected a network with an output that scikit-learn's networks have, got "
            f"output={net.output!r}",
            argument="net",
        )
    weights, biases = folded(net)
    options: dict[str, Any] = {"hidden_layer_sizes": tuple(net.layer_sizes[1:-1])}
    if net.hidden:
        options["activation"] = _common_activation(net)
    module = import_library("sklearn.neural_network", "scikit-learn")
    fitted: dict[str, Any] = {}
    if net.output in ("sigmoid", "softmax"):
        estimator = module.MLPClassifier(**options)
        y, weights[-1], biases[-1] = _sklearn_classes(net, weights[-1], biases[-1])
        binarizer = import_library("sklearn.preprocessing", "scikit-learn").LabelBinarizer().fit(y)
        fitted |= {"_label_binarizer": binarizer, "classes_": binarizer.classes_}
        is_softmax = binarizer.y_type_ == "multiclass"
        fitted["out_activation_"] = "softmax" if is_softmax else "logistic"
    else:
        if net.output == "exp":
            options["loss"] = "poisson"
        estimator = module.MLPRegressor(**options)
        fitted["out_activation_"] = net.output
    weights, biases = rounded(net, weights, biases)
    if net.feature_names is not None:
        fitted["feature_names_in_"] = np.asarray(net.feature_names, dtype=object)
    check_random_state = import_library("sklearn.utils", "scikit-learn").check_random_state
    # What scikit-learn's own fit leaves behind; partial_fit makes the optimizer if there is none.
    fitted |= {
        **fitted_to_nothing(net),
        "n_outputs_": biases[-1].size,
        "coefs_": weights,
        "intercepts_": biases,
        "_best_coefs": [W.copy() for W in weights],
        "_best_intercepts": [b.copy() for b in biases],
        "_random_state": check_random_state(estimator.random_state),
    }
    for name, value in fitted.items():
        setattr(estimator, name, value)
    return estimator


def _sklearn_parts(argument: str, estimator: Any, kinds: Any, fitted: str) -> tuple[_Before, Any]:
    """Return the encoder and the scaler, and the last step of a fitted estimator.

    The latter is one of ``kinds``, and has the attribute ``fitted`` once it is that.
    """
    pipeline = import_library("sklearn.pipeline", "scikit-learn").Pipeline
    standard = import_library("sklearn.preprocessing", "scikit-learn").StandardScaler
    is_pipeline = isinstance(estimator, pipeline)
    *before, last = [step for _, step in estimator.steps] if is_pipeline else [estimator]
    encoder = before.pop(0) if before and isinstance(before[0], EncodingEstimator) else None
    scaler = before.pop(0) if before and isinstance(before[0], standard) else None
    if before or not isinstance(last, kinds):
        what = type(estimator).__name__
        if is_pipeline:
            what += f" of {', '.join(type(step).__name__ for _, step in estimator.steps)}"
        raise InputError(
            f"expected a fitted MLPClassifier or MLPRegressor, or a Pipeline of TableEncoder, "
            f"StandardScaler, or both, and one of them, got {what}",
            argument=argument,
        )
    if (
        not hasattr(last, fitted)
        or (encoder is not None and not hasattr(encoder, "encoding_"))
        or (scaler is not None and not hasattr(scaler, "scale_"))
    ):
        raise InputError(
            f"expected a fitted {type(estimator).__name__}, got one that is not "
            "fitted; call fit first",
            argument=argument,
        )
    return _Before(encoder, scaler), last


def _common_activation(net: Network) -> str:
    """Return scikit-learn's name of the activation that all hidden layers have."""
    known = ", ".join(_SKLEARN_ACTIVATIONS)
    for layer, entry in enumerate(net.structure.hidden, start=1):
        if entry.name not in _SKLEARN_ACTIVATIONS or entry != ACTIVATIONS[entry.name]:
            raise InputError(
                f"expected hidden activations that scikit-learn has ({known}), got "
                f"{entry.name!r} in hidden layer {layer}",
                argument="net",
            )
        if entry.name != net.hidden[0]:
            raise InputError(
                "expected one activation for all hidden layers, as scikit-learn has it, got "
                f"{net.hidden[0]!r} in hidden layer 1 and {entry.name!r} in hidden layer {layer}",
                argument="net",
            )
    return _SKLEARN_ACTIVATIONS[net.hidden[0]]


def _sklearn_classes(net: Network, W: Array, b: Array) -> tuple[Array, Array, Array]:
    """Return targets that have all classes, and the output layer as scikit-learn orders them."""
    n_outputs = len(b)
    if net.output == "sigmoid" and n_outputs > 1:
        return np.eye(n_outputs, dtype=np.int64), W, b
    if net.output == "sigmoid":
        # The sigmoid of z is the softmax of 0 and z.
        W, b = np.hstack([np.zeros_like(W), W]), np.hstack([np.zeros_like(b), b])
    if len(b) < 2:
        raise InputError("expected at least two softmax outputs, got one", argument="net")
    labels = _labels(net.class_names, len(b))
    order = np.argsort(labels)
    W, b = W[:, order], b[order]
    if len(b) == 2:
        W, b = W[:, 1:] - W[:, :1], b[1:] - b[:1]
    # Twice each: of many classes with a single example scikit-learn warns.
    return np.repeat(labels, 2), W, b


def _labels(names: Any, n_classes: int) -> Array:
    """Return class names as labels: numbers and bools where all of them are written so."""
    if names is None:
        return np.arange(n_classes)
    names = [str(name) for name in names]
    if len(names) != n_classes or len(set(names)) != n_classes:
        raise InputError(
            f"expected None or {n_classes} different names, got {names!r}",
            argument="net.class_names",
        )
    if set(names) == {"False", "True"}:
        return np.asarray([name == "True" for name in names])
    for kind in (int, float):
        try:
            numbers = [kind(name) for name in names]
        except ValueError:
            continue
        # Fractions are no classes for scikit-learn.
        if list(map(str, numbers)) == names and all(float(x).is_integer() for x in numbers):
            return np.asarray(numbers)
    return np.asarray(names)
