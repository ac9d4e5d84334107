"""What the exchanges with scikit-learn and torch share."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from nnbackend.core.types import Array
from nnbackend.data.validation import DTYPES, place
from nnbackend.device import Device
from nnbackend.errors import InputError, MissingDependencyError
from nnbackend.model.network import Network

__all__ = ["folded", "import_library", "network_of", "rounded"]


def import_library(module: str, package: str | None = None) -> Any:
    """Import another library; raise an error that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = package or module
        raise MissingDependencyError(
            f"networks go to and from {package} where it is installed; install it with: pip "
            f"install {package}"
        ) from error


def network_of(
    weights: list[tuple[str, Array]],
    biases: list[tuple[str, Array]],
    *,
    hidden: Any,
    output: str,
    device: str | Device,
    dropout: Any = 0.0,
    quantiles: Any = None,
) -> Network:
    """Return a network with named weights (n_in, n_out) and biases, whose values are checked."""
    for name, x in (*weights, *biases):
        if not np.isfinite(x).all():
            raise InputError("expected finite numbers, got NaN or infinity", argument=name)
    net = Network(
        [len(weights[0][1]), *(len(b) for _, b in biases)],
        hidden=hidden,
        output=output,
        initializer="zeros",
        dropout=dropout,
        dtype=np.result_type(*(x for _, x in (*weights, *biases))).name,
        device=device,
        quantiles=quantiles,
    )
    net.set_parameters([W for _, W in weights], [b for _, b in biases])
    return net


def folded(net: Any) -> tuple[list[Array], list[Array]]:
    """Return weights and biases in float64 with which the network needs no standardization."""
    if not isinstance(net, Network):
        raise InputError(f"expected a nnbackend.Network, got {type(net).__name__}", argument="net")
    if net.encoding is not None:
        raise InputError(
            "expected a network without an encoder, which belongs to no layer, got one that takes "
            "tables; convert net.copy().encode_with(None), and encode its tables before",
            argument="net",
        )
    host = net.to("cpu")
    weights = [W.astype(np.float64) for W in host.weights]
    biases = [b.astype(np.float64) for b in host.biases]
    if host.standardization is not None:
        mean, scale = host.standardization
        weights[0] = weights[0] / scale[:, np.newaxis]
        biases[0] = biases[0] - mean @ weights[0]
    if host.target_standardization is not None:
        if not host.structure.output.is_linear:
            raise InputError(
                "expected a network without a standardization of its targets, which the weights of "
                f"output={host.output!r} cannot take up, got one; standardize the features alone, "
                "and scale y yourself",
                argument="net",
            )
        mean, scale = host.target_standardization
        weights[-1], biases[-1] = weights[-1] * scale, biases[-1] * scale + mean
    return weights, biases


def rounded(
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
            f"expected a standardization that {net.dtype} weights can take up, got a mean of "
            f"{columns.mean[k]:g} with a scale of {columns.scale[k]:g} for {kind} {k}, for which "
            f"{net.dtype} is too coarse; {remedy}",
            argument="net",
        )
    return rounded
