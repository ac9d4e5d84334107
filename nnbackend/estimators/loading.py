"""``load``: networks and ensembles from files. Networks load without scikit-learn."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from nnbackend.device import Device
from nnbackend.io.models import read
from nnbackend.io.sklearn import fitted_to_nothing
from nnbackend.model.network import Network
from nnbackend.model.stack import Stack

__all__ = ["load"]

# What scikit-learn calls our output activations.
_OUT_ACTIVATIONS = {"sigmoid": "logistic"}


def load(path: str | os.PathLike[str], device: str | Device = "cpu") -> Any:
    """Read a network, or an ensemble, from a file that ``save`` has written, on any device.

    Of an ensemble, or a Pipeline that ends with one, all that predictions take is in the file. The
    other parameters of its members, such as ``alpha``, are the defaults again.

    Parameters
    ----------
    path : path-like
        The file.
    device : str, default "cpu"
        The device of the network, whatever it was before.

    Returns
    -------
    Network, EnsembleClassifier, EnsembleRegressor or Pipeline
        What was saved; a single estimator was saved as a network.

    Raises
    ------
    ModelFileError
        If the file is missing, truncated, altered into something inconsistent, not a model of
        nnbackend, or names an activation that is not registered.
    DeviceError
        If the device is not there.
    """
    model = read(path, device)
    return model if isinstance(model, Network) else _ensemble(model)


def _ensemble(stack: Stack) -> Any:
    """Return the fitted ensemble, or Pipeline, that a stack is."""
    from nnbackend.estimators import ensemble as ensembles

    members = [_member(net, stack.labels) for net in stack.networks]
    is_classifier = stack.labels is not None
    kind = ensembles.EnsembleClassifier if is_classifier else ensembles.EnsembleRegressor
    template = type(members[0])(**members[0].get_params(deep=False))
    model = kind(template, len(members))
    n_outputs = stack.layer_sizes[-1]
    model.estimators_, model.n_outputs_ = members, n_outputs
    model.n_features_in_ = stack.layer_sizes[0]
    if isinstance(model, ensembles.EnsembleClassifier):
        model.classes_ = stack.labels
    elif stack.noise is not None:
        model.noise_ = float(stack.noise[0]) if n_outputs == 1 else stack.noise.copy()
    encoder, scaler = _encoder(stack.networks[0]), _scaler(stack.networks[0])
    if stack.feature_names is not None and encoder is None:
        names = np.asarray(stack.feature_names, dtype=object)
        (model if scaler is None else scaler).feature_names_in_ = names
    before = [step for step in (encoder, scaler) if step is not None]
    if not before:
        return model
    from sklearn.pipeline import make_pipeline

    return make_pipeline(*before, model)


def _encoder(net: Network) -> Any:
    """Return a fitted TableEncoder with the network's encoding; its parameters are the defaults."""
    if net.encoding is None:
        return None
    from nnbackend.estimators.table_encoder import TableEncoder

    encoder = TableEncoder()
    names = net.encoding.raw_names
    encoder.encoding_, encoder.n_features_in_ = net.encoding, len(names)
    if not net.encoding.has_no_names:
        encoder.feature_names_in_ = np.asarray(names, dtype=object)
    return encoder


def _scaler(net: Network) -> Any:
    """Return a fitted StandardScaler that does what the network's standardization does."""
    if net.standardization is None:
        return None
    from sklearn.preprocessing import StandardScaler

    from nnbackend.device import get_device

    to_numpy = get_device(net.device).to_numpy
    scaler = StandardScaler()
    mean, scale = (np.array(to_numpy(column)) for column in net.standardization)
    scaler.mean_, scaler.scale_, scaler.var_ = mean, scale, scale**2
    scaler.n_features_in_, scaler.n_samples_seen_ = len(mean), 0
    return scaler


def _member(net: Network, classes: Any) -> Any:
    """Return a network as a fitted estimator of ours."""
    from nnbackend.estimators.callbacks import fitted_attributes
    from nnbackend.estimators.mlp import MLPClassifier, MLPRegressor

    options: dict[str, Any] = {"hidden_layer_sizes": tuple(net.layer_sizes[1:-1])}
    if net.hidden:
        is_same = len(set(net.hidden)) == 1
        options["activation"] = net.hidden[0] if is_same else list(net.hidden)
        options["dropout"] = list(net.dropout) if any(net.dropout) else 0.0
    if net.device != "cpu":
        options["device"] = net.device
    model: Any
    if classes is not None:
        model = MLPClassifier(**options)
        model.classes_ = classes
    else:
        if net.output == "exp":
            options["loss"] = "poisson"
        model = MLPRegressor(**options)
    vars(model).update(
        fitted_attributes(net),
        **fitted_to_nothing(net),
        out_activation_=_OUT_ACTIVATIONS.get(net.output, net.output),
    )
    return model
