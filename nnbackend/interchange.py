"""Networks to and from scikit-learn and torch: objects in, objects out, nothing is unpickled."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from nnbackend.core.activations import ACTIVATIONS, LEAKY_RELU_SLOPE
from nnbackend.core.types import Array
from nnbackend.device import Device, get_device
from nnbackend.errors import InputError, MissingDependencyError
from nnbackend.floating_point import own_errors
from nnbackend.inputs import place
from nnbackend.network import DTYPES, Network
from nnbackend.standardization import Standardization

__all__ = ["as_network", "from_sklearn", "from_torch", "to_sklearn", "to_torch"]

_SKLEARN_ACTIVATIONS = {
    "identity": "identity",
    "sigmoid": "logistic",
    "tanh": "tanh",
    "relu": "relu",
}

# Modules of torch that compute what ours do, given these attributes (one of several values each).
# Softplus turns linear beyond its threshold: at 20 that is 2e-9 off.
_TORCH_ACTIVATIONS: dict[str, tuple[str, dict[str, tuple[Any, ...]]]] = {
    "Sigmoid": ("sigmoid", {}),
    "Tanh": ("tanh", {}),
    "ReLU": ("relu", {}),
    "LeakyReLU": ("leaky_relu", {"negative_slope": (LEAKY_RELU_SLOPE,)}),
    "ELU": ("elu", {"alpha": (1.0,)}),
    "Softplus": ("softplus", {"beta": (1.0,), "threshold": (20.0,)}),
    "SiLU": ("silu", {}),
    "GELU": ("gelu", {"approximate": ("tanh",)}),
    "Softmax": ("softmax", {"dim": (-1, 1)}),
}


def as_network(net: Any) -> Network:
    """Return a network as it is, and an estimator as ``from_sklearn`` does.

    For an argument ``net`` that may be either, which the messages speak of.
    """
    if isinstance(net, Network):
        return net
    if not hasattr(net, "get_params"):
        raise InputError(f"net: expected a nnbackend.Network, got {type(net).__name__}")
    return _from_sklearn("net", net, "cpu")


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
        Fitted, scikit-learn's or nnbackend's; or a fitted Pipeline of StandardScaler and one of
        them: the scaler becomes the network's standardization.
    device : str, default "cpu"
        Where the network is to live.

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
    scaler, mlp = _sklearn_parts(argument, estimator)
    net = _network(
        [(f"coefs_[{i}]", W) for i, W in enumerate(mlp.coefs_)],
        [(f"intercepts_[{i}]", b) for i, b in enumerate(mlp.intercepts_)],
        hidden=mlp.activation,
        output=mlp.out_activation_,
        dropout=getattr(mlp, "dropout", 0.0),
        device=device,
    )
    if scaler is not None:
        mean = scaler.mean_ if scaler.with_mean else np.zeros(net.layer_sizes[0])
        scale = scaler.scale_ if scaler.with_std else np.ones(net.layer_sizes[0])
        home = get_device(net.device)
        net.standardization = Standardization(
            *(home.place(x, np.float64, copy=True) for x in (mean, scale))
        )
    names = getattr(mlp if scaler is None else scaler, "feature_names_in_", None)
    net.feature_names = None if names is None else tuple(names.tolist())
    classes = getattr(mlp, "classes_", None)
    if classes is None:
        return net
    if len(classes) < 2:
        raise InputError(
            f"{argument}: expected a classifier with at least two classes, got one, "
            f"{classes.tolist()[0]!r}"
        )
    if classes.dtype.kind not in "iu" or not np.array_equal(classes, np.arange(len(classes))):
        net.class_names = tuple(map(str, classes.tolist()))
    return net


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
    weights, biases = _folded(net)
    options: dict[str, Any] = {"hidden_layer_sizes": tuple(net.layer_sizes[1:-1])}
    if net.hidden:
        options["activation"] = _common_activation(net)
    module = _import("sklearn.neural_network", "scikit-learn")
    fitted: dict[str, Any] = {}
    if net.output in ("sigmoid", "softmax"):
        estimator = module.MLPClassifier(**options)
        y, weights[-1], biases[-1] = _sklearn_classes(net, weights[-1], biases[-1])
        binarizer = _import("sklearn.preprocessing", "scikit-learn").LabelBinarizer().fit(y)
        fitted |= {"_label_binarizer": binarizer, "classes_": binarizer.classes_}
        is_softmax = binarizer.y_type_ == "multiclass"
        fitted["out_activation_"] = "softmax" if is_softmax else "logistic"
    else:
        if net.output == "exp":
            options["loss"] = "poisson"
        estimator = module.MLPRegressor(**options)
        fitted["out_activation_"] = net.output
    weights, biases = _rounded(net, weights, biases)
    if net.feature_names is not None:
        fitted["feature_names_in_"] = np.asarray(net.feature_names, dtype=object)
    check_random_state = _import("sklearn.utils", "scikit-learn").check_random_state
    # What scikit-learn's own fit leaves behind; partial_fit makes the optimizer if there is none.
    fitted |= {
        "n_features_in_": net.layer_sizes[0],
        "n_layers_": len(net.layer_sizes),
        "n_outputs_": biases[-1].size,
        "coefs_": weights,
        "intercepts_": biases,
        "_best_coefs": [W.copy() for W in weights],
        "_best_intercepts": [b.copy() for b in biases],
        "n_iter_": 0,
        "t_": 0,
        "loss_": math.nan,
        "loss_curve_": [],
        "best_loss_": math.inf,
        "validation_scores_": None,
        "best_validation_score_": None,
        "_no_improvement_count": 0,
        "_random_state": check_random_state(estimator.random_state),
    }
    for name, value in fitted.items():
        setattr(estimator, name, value)
    return estimator


@own_errors
def from_torch(
    source: Any,
    *,
    hidden: Any = None,
    output: str | None = None,
    device: str | Device = "cpu",
) -> Network:
    """Return the network that a torch module, or its state dict, is.

    Outputs are equal to rounding. Objects alone are taken; nothing is unpickled.

    Parameters
    ----------
    source : torch.nn.Sequential, or mapping of str to tensor
        A module may hold Linear, Dropout after an activation, and Identity, Sigmoid, Tanh, ReLU,
        LeakyReLU, ELU, Softplus, SiLU, GELU(approximate="tanh"), with torch's default parameters;
        it may end with Sigmoid or Softmax. Identity and a Flatten of the features are passed over,
        a Sequential may hold others. A state dict has the weight (n_out, n_in) and the bias
        (n_out,) of Linear layers: if their names differ in numbers only, in the order of these
        (which files that sort by name lose), else in the order they stand.
    hidden : str, Activation, or one of these per hidden layer, optional
        The hidden activations; a state dict does not know them, a module does.
    output : {"sigmoid", "softmax", "identity", "exp"}, optional
        The output activation, which a state dict does not know. A module that ends with a Linear
        layer gives an identity output, what it computes; if it was trained on logits, with
        CrossEntropyLoss or BCEWithLogitsLoss, say ``"softmax"`` or ``"sigmoid"``.
    device : str, default "cpu"
        Where the network is to live, wherever the tensors are.

    Returns
    -------
    Network
        In float64 if a tensor is, else float32.

    Raises
    ------
    InputError
        If there is anything else in it, or numbers that are not finite.
    MissingDependencyError
        If torch is not installed.

    See Also
    --------
    to_torch : The way back.

    Examples
    --------
    >>> import nnbackend as nb
    >>> net = nb.Network([4, 8, 3], hidden="silu", output="softmax")
    >>> state = nb.to_torch(net)  # doctest: +SKIP
    >>> nb.from_torch(state, hidden="silu", output="softmax")  # doctest: +SKIP
    Network([4, 8, 3], hidden='silu', output='softmax', dtype='float32', device='cpu')
    """
    torch = _import("torch")
    dropout: Any = 0.0
    if isinstance(source, torch.nn.Module):
        if hidden is not None:
            raise InputError(
                f"hidden: expected None with a module, which knows its activations, got {hidden!r}"
            )
        read = _ModuleReader(torch, source)
        hidden, dropout = read.hidden, read.dropout
        layers = _torch_layers(torch, read.entries)
        if output is not None and read.output not in (None, output):
            raise InputError(
                f"output: expected None or {read.output!r}, with which the module ends, got "
                f"{output!r}"
            )
        output = read.output or output or "identity"
    elif isinstance(source, Mapping):
        layers = _in_forward_order(_torch_layers(torch, source))
        if output is None:
            raise InputError(
                "output: expected 'sigmoid', 'softmax', 'identity' or 'exp', for a state dict does "
                "not say it, got None"
            )
        if hidden is None:
            if len(layers) > 1:
                raise InputError(
                    f"hidden: expected one activation for all {len(layers) - 1} hidden layers or "
                    "one for each, for a state dict does not say them, got None"
                )
            hidden = ()
    else:
        raise InputError(
            f"source: expected a torch.nn.Sequential or a state dict, got {type(source).__name__}"
        )
    for below, layer in pairwise(layers):
        if layer.weight.shape[1] != below.weight.shape[0]:
            raise InputError(
                f"{layer.prefix}weight: expected shape (n_out, {below.weight.shape[0]}), to take "
                f"the outputs of {below.prefix}weight, got {layer.weight.shape}"
            )
    return _network(
        [(f"{layer.prefix}weight", layer.weight.T) for layer in layers],
        [(f"{layer.prefix}bias", layer.bias) for layer in layers],
        hidden=hidden,
        output=output,
        dropout=dropout,
        device=device,
    )


@own_errors
def to_torch(net: Network) -> dict[str, Any]:
    """Return a network as the state dict of a torch.nn.Sequential.

    It fits ``Sequential(Linear, activation, Linear, activation, ..., Linear)``: the entries are
    ``"0.weight"`` (n_out, n_in), ``"0.bias"``, ``"2.weight"``, ... Activations are not in it;
    those that torch shares are Identity, Sigmoid, Tanh, ReLU, LeakyReLU, ELU, Softplus, SiLU, and
    GELU(approximate="tanh"), and a Sequential with Dropout numbers its layers otherwise. The
    standardization is folded into the weights, as ``to_sklearn`` does it.

    Parameters
    ----------
    net : Network
        Of any activations.

    Returns
    -------
    dict of str to torch.Tensor
        On the CPU, in the network's dtype: for ``load_state_dict`` and ``torch.save``.

    Raises
    ------
    InputError
        If the network's dtype is too coarse for the standardization, as ``to_sklearn`` says. A
        module that is to take ``to_torch(net.astype("float64"))`` has to be in float64 as well:
        ``module.double()``.
    MissingDependencyError
        If torch is not installed.

    See Also
    --------
    from_torch : The way back.

    Examples
    --------
    >>> import nnbackend as nb
    >>> net = nb.Network([4, 8, 3], hidden="relu", output="softmax")
    >>> from torch import nn  # doctest: +SKIP
    >>> module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))  # doctest: +SKIP
    >>> module.load_state_dict(nb.to_torch(net))  # doctest: +SKIP
    <All keys matched successfully>
    """
    weights, biases = _rounded(net, *_folded(net))
    torch = _import("torch")
    state = {}
    for layer, (W, b) in enumerate(zip(weights, biases, strict=True)):
        state[f"{2 * layer}.weight"] = torch.from_numpy(np.ascontiguousarray(W.T))
        state[f"{2 * layer}.bias"] = torch.from_numpy(b)
    return state


def _import(module: str, package: str | None = None) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = package or module
        raise MissingDependencyError(
            f"networks go to and from {package} where it is installed; install it with: pip "
            f"install {package}"
        ) from error


def _network(
    weights: list[tuple[str, Array]],
    biases: list[tuple[str, Array]],
    *,
    hidden: Any,
    output: str,
    device: str | Device,
    dropout: Any = 0.0,
) -> Network:
    """Return a network with named weights (n_in, n_out) and biases, whose values are checked."""
    for name, x in (*weights, *biases):
        if not np.isfinite(x).all():
            raise InputError(f"{name}: expected finite numbers, got NaN or infinity")
    net = Network(
        [len(weights[0][1]), *(len(b) for _, b in biases)],
        hidden=hidden,
        output=output,
        initializer="zeros",
        dropout=dropout,
        dtype=np.result_type(*(x for _, x in (*weights, *biases))).name,
        device=device,
    )
    net.set_parameters([W for _, W in weights], [b for _, b in biases])
    return net


def _folded(net: Any) -> tuple[list[Array], list[Array]]:
    """Return weights and biases in float64 with which the network needs no standardization."""
    if not isinstance(net, Network):
        raise InputError(f"net: expected a nnbackend.Network, got {type(net).__name__}")
    host = net.to("cpu")
    weights = [W.astype(np.float64) for W in host.weights]
    biases = [b.astype(np.float64) for b in host.biases]
    if host.standardization is not None:
        mean, scale = host.standardization
        weights[0] = weights[0] / scale[:, np.newaxis]
        biases[0] = biases[0] - mean @ weights[0]
    if host.target_standardization is not None:
        mean, scale = host.target_standardization
        weights[-1], biases[-1] = weights[-1] * scale, biases[-1] * scale + mean
    return weights, biases


def _rounded(
    net: Network, weights: list[Array], biases: list[Array]
) -> tuple[list[Array], list[Array]]:
    """Return arrays in the network's dtype, which has to hold them and what they compute."""
    cpu, dtype = Device("cpu"), DTYPES[net.dtype]
    rounded = (
        [place(f"weights[{i}]", W, cpu, dtype) for i, W in enumerate(weights)],
        [place(f"biases[{i}]", b, cpu, dtype) for i, b in enumerate(biases)],
    )
    host = net.to("cpu")
    for kind, columns in (
        ("feature", host.standardization),
        ("target", host.target_standardization),
    ):
        if columns is None or not (exceeds := columns.exceeds(np, dtype)).any():
            continue
        k = int(np.argmax(exceeds))
        is_cured = net.dtype == "float32" and not columns.exceeds(np, np.float64).any()
        remedy = (
            "pass net.astype('float64')"
            if is_cured
            else f"subtract its mean from the {kind} before net.standardize and nb.train"
        )
        raise InputError(
            f"net: expected a standardization that {net.dtype} weights can take up, got a mean of "
            f"{columns.mean[k]:g} with a scale of {columns.scale[k]:g} for {kind} {k}, for which "
            f"{net.dtype} is too coarse; {remedy}"
        )
    return rounded


def _sklearn_parts(argument: str, estimator: Any) -> tuple[Any, Any]:
    """Return the StandardScaler, or None, and the network of a fitted estimator."""
    networks = _import("sklearn.neural_network", "scikit-learn")
    pipeline = _import("sklearn.pipeline", "scikit-learn").Pipeline
    standard = _import("sklearn.preprocessing", "scikit-learn").StandardScaler
    is_pipeline = isinstance(estimator, pipeline)
    *before, last = [step for _, step in estimator.steps] if is_pipeline else [estimator]
    if (
        not isinstance(last, networks.MLPClassifier | networks.MLPRegressor)
        or len(before) > 1
        or not all(isinstance(step, standard) for step in before)
    ):
        what = type(estimator).__name__
        if is_pipeline:
            what += f" of {', '.join(type(step).__name__ for step in (*before, last))}"
        raise InputError(
            f"{argument}: expected a fitted MLPClassifier or MLPRegressor, or a Pipeline of "
            f"StandardScaler and one of them, got {what}"
        )
    scaler = before[0] if before else None
    if not hasattr(last, "coefs_") or (scaler is not None and not hasattr(scaler, "scale_")):
        raise InputError(
            f"{argument}: expected a fitted {type(estimator).__name__}, got one that is not "
            "fitted; call fit first"
        )
    return scaler, last


def _common_activation(net: Network) -> str:
    """Return scikit-learn's name of the activation that all hidden layers have."""
    known = ", ".join(_SKLEARN_ACTIVATIONS)
    for layer, entry in enumerate(net.structure.hidden, start=1):
        if entry.name not in _SKLEARN_ACTIVATIONS or entry != ACTIVATIONS[entry.name]:
            raise InputError(
                f"net: expected hidden activations that scikit-learn has ({known}), got "
                f"{entry.name!r} in hidden layer {layer}"
            )
        if entry.name != net.hidden[0]:
            raise InputError(
                "net: expected one activation for all hidden layers, as scikit-learn has it, got "
                f"{net.hidden[0]!r} in hidden layer 1 and {entry.name!r} in hidden layer {layer}"
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
        raise InputError("net: expected at least two softmax outputs, got one")
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
            f"net.class_names: expected None or {n_classes} different names, got {names!r}"
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


class _Layer(NamedTuple):
    """A Linear layer: what its entries' names begin with, weight (n_out, n_in), bias (n_out,)."""

    prefix: str
    weight: Array
    bias: Array


def _torch_layers(torch: Any, entries: Mapping[Any, Any]) -> list[_Layer]:
    """Return the Linear layers of a state dict, in the order they stand."""
    arrays: dict[str, dict[str, Array]] = {}
    for key, value in entries.items():
        match = re.fullmatch(r"(|.*\.)(weight|bias)", str(key), re.DOTALL)
        if match is None:
            raise InputError(
                f"source: expected the weight and bias of Linear layers, got an entry {key!r}"
            )
        arrays.setdefault(match[1], {})[match[2]] = _torch_array(torch, key, value)
    if not arrays:
        raise InputError("source: expected at least one Linear layer, got none")
    for prefix, parts in arrays.items():
        if missing := {"weight", "bias"} - parts.keys():
            raise InputError(
                "source: expected a weight and a bias of each Linear layer, got no "
                f"{prefix}{missing.pop()}"
            )
        shape, bias_shape = parts["weight"].shape, parts["bias"].shape
        if len(shape) != 2:
            raise InputError(
                f"{prefix}weight: expected the matrix (n_out, n_in) of a Linear layer, got shape "
                f"{shape}; layers of other kinds are none of a Network's"
            )
        if bias_shape != shape[:1]:
            raise InputError(f"{prefix}bias: expected shape {shape[:1]}, got {bias_shape}")
    return [_Layer(prefix, parts["weight"], parts["bias"]) for prefix, parts in arrays.items()]


def _in_forward_order(layers: list[_Layer]) -> list[_Layer]:
    """Return layers in the order of the numbers in their names, if these differ in nothing else."""
    if len({re.sub(r"\d+", "#", layer.prefix) for layer in layers}) > 1:
        return layers
    return sorted(layers, key=lambda layer: [int(n) for n in re.findall(r"\d+", layer.prefix)])


def _torch_array(torch: Any, name: str, value: Any) -> Array:
    """Return a tensor as a NumPy array of float32 or float64."""
    if not isinstance(value, torch.Tensor):
        raise InputError(f"{name}: expected a torch tensor, got {type(value).__name__}")
    if torch.nn.parameter.is_lazy(value):
        raise InputError(
            f"{name}: expected an initialized layer, got a lazy one; call the module with data "
            "first"
        )
    if not value.is_floating_point():
        raise InputError(f"{name}: expected a tensor of floats, got {value.dtype}")
    exact = value.dtype in (torch.float32, torch.float64)
    try:
        host = value.detach().cpu()
        return (host if exact else host.float()).numpy()
    except (RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{name}: cannot be read as an array ({reason})") from error


class _ModuleReader:
    """Reads the structure of a Sequential, module after module.

    Attributes
    ----------
    entries : dict of str to tensor
        Weights and biases of the Linear layers, in order.
    hidden : list of str
        The activation of each hidden layer.
    dropout : list of float
        The dropout rate of each hidden layer.
    output : {"sigmoid", "softmax"} or None
        The output activation, if the module has one.
    """

    def __init__(self, torch: Any, module: Any) -> None:
        self.entries: dict[str, Any] = {}
        self.hidden: list[str] = []
        self.dropout: list[float] = []
        self._nn = torch.nn
        # Of the layer that is being read.
        self._activation: str | None = None
        self._rate = 0.0
        for name, leaf in self._leaves(module, ""):
            self._take(name, leaf)
        if self._rate:
            raise InputError(
                "source: expected Dropout after hidden layers only, got one at the end"
            )
        if self._activation not in (None, "sigmoid", "softmax"):
            raise InputError(
                "source: expected a module that ends with a Linear layer, Sigmoid or Softmax, got "
                f"{self._activation!r} at the end"
            )
        self.output = self._activation

    def _leaves(self, module: Any, name: str) -> Iterator[tuple[str, Any]]:
        is_sequence = isinstance(module, self._nn.Sequential)
        if not is_sequence or type(module).forward is not self._nn.Sequential.forward:
            yield name, module
            return
        # named_children() would leave out a module's second place in the sequence.
        for child, inner in module.named_modules(remove_duplicate=False):
            if child and "." not in child:
                yield from self._leaves(inner, f"{name}.{child}" if name else child)

    def _take(self, name: str, leaf: Any) -> None:
        nn, kind = self._nn, type(leaf)
        if kind in (nn.Linear, nn.LazyLinear):
            self._begin_layer(name, leaf)
        elif kind is nn.Identity or (kind is nn.Flatten and leaf.start_dim == 1):
            return  # no more than that, on rows of features
        elif kind is nn.Dropout:
            self._require(name, leaf, self._rate == 0.0, "one Dropout after a hidden layer")
            self._rate = float(leaf.p)
        else:
            activation = self._activation_of(name, leaf)
            self._require(name, leaf, self._activation is None, "one activation after a layer")
            self._require(name, leaf, self._rate == 0.0, "Dropout after the activation, not before")
            self._activation = activation
        self._require(name, leaf, bool(self.entries), "a Linear layer first")

    def _begin_layer(self, name: str, leaf: Any) -> None:
        if self.entries:
            self._require(name, leaf, self._activation != "softmax", "Softmax at the end only")
            self.hidden.append(self._activation or "identity")
            self.dropout.append(self._rate)
        self._activation, self._rate = None, 0.0
        prefix = f"{name}." if name else ""
        own = leaf.named_parameters(recurse=False)
        self.entries |= {f"{prefix}{key}": value for key, value in own}

    def _activation_of(self, name: str, leaf: Any) -> str:
        """Return our name of an activation module that computes what ours does."""
        kind = type(leaf).__name__
        is_known = kind in _TORCH_ACTIVATIONS and type(leaf) is getattr(self._nn, kind)
        self._require(
            name, leaf, is_known, "Linear, Dropout, or an activation that a Network has, too"
        )
        ours, attributes = _TORCH_ACTIVATIONS[kind]
        expected = ", ".join(f"{key}={values[0]!r}" for key, values in attributes.items())
        is_equal = all(getattr(leaf, key) in values for key, values in attributes.items())
        self._require(name, leaf, is_equal, f"{kind}({expected})")
        return ours

    @staticmethod
    def _require(name: str, leaf: Any, holds: bool, expected: str) -> None:
        if holds:
            return
        is_compound = any(True for _ in leaf.children())
        what = type(leaf).__name__ if is_compound else str(leaf)
        where = f" at {name!r}" if name else ""
        hint = "; of a module of your own give the state_dict()" if is_compound else ""
        raise InputError(f"source: expected {expected}, got {what}{where}{hint}")
