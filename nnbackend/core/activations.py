"""Activations: a function and its derivative, element by element.

Every function here uses only arithmetic, comparisons and the standard's element-wise functions, so
it works for any shape and stays finite wherever the mathematical value is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from nnbackend.checks import lookup
from nnbackend.core.initializers import INITIALIZERS
from nnbackend.core.standardization import Standardization
from nnbackend.core.types import Array, Namespace
from nnbackend.errors import InputError

__all__ = [
    "ACTIVATIONS",
    "OUTPUTS",
    "Activation",
    "Output",
    "activation",
    "is_built_in",
    "register_activation",
]

LEAKY_RELU_SLOPE = 0.01


@dataclass(frozen=True)
class Activation:
    """The activation of a hidden layer: A = g(Z), and g'(Z) for the backward pass.

    Attributes
    ----------
    name : str
        The name that a saved model stores.
    function : callable
        ``function(xp, Z) -> A``, element-wise, in the namespace ``xp`` of ``Z``.
    derivative : callable
        ``derivative(xp, Z, A) -> g'(Z)``, with the shape and dtype of ``Z``; ``A`` is ``g(Z)``,
        which saves work where g' is simpler in terms of it.
    initializer : str
        The initializer that keeps the variance of the signal through a layer with this activation.

    Examples
    --------
    >>> import numpy as np
    >>> from nnbackend.core.activations import ACTIVATIONS
    >>> tanh = ACTIVATIONS["tanh"]
    >>> Z = np.asarray([-1.0, 0.0])
    >>> A = tanh.function(np, Z)
    >>> tanh.derivative(np, Z, A).round(4)
    array([0.42, 1.  ])
    """

    name: str
    function: Callable[[Namespace, Array], Array]
    derivative: Callable[[Namespace, Array, Array], Array]
    initializer: str = "he_normal"


@dataclass(frozen=True)
class Output:
    """The activation of the output layer: logits Z to predictions A.

    Attributes
    ----------
    name : str
        The name that a saved model stores.
    function : callable
        ``function(xp, Z) -> A``; softmax works over the last axis, the others element-wise.
    pullback : callable
        ``pullback(xp, dA, A) -> dZ`` turns the gradient with respect to the predictions into the
        gradient with respect to the logits.
    is_distribution : bool
        Whether the outputs describe the distribution of one target; see ``distributions``.
    """

    name: str
    function: Callable[[Namespace, Array], Array]
    pullback: Callable[[Namespace, Array, Array], Array]
    is_distribution: ClassVar[bool] = False

    @property
    def is_standardizable(self) -> bool:
        """Whether a network may learn standardized targets, because ``restored`` undoes that."""
        return self.name == "identity"

    @property
    def is_linear(self) -> bool:
        """Whether scaled and shifted logits give scaled and shifted outputs."""
        return self.name == "identity"

    def n_targets(self, n_outputs: int) -> int:
        """Return the number of columns of y for a number of outputs."""
        return n_outputs

    def require_size(self, n_outputs: int) -> None:
        """Raise an InputError unless the output can have so many columns."""

    def restored(self, xp: Namespace, A: Array, target: Standardization) -> Array:
        """Return in float64 the outputs in the units of a target, given those of a standardized."""
        return target.undo(xp, A)

    def point(self, A: Array) -> Array:
        """Return the prediction of each target (n_samples, n_targets)."""
        return A

    def spread(self, A: Array) -> dict[str, Array]:
        """Return what outputs say of a target beside ``point``, by the names of an ONNX file."""
        del A
        return {}

    def interval(self, xp: Namespace, A: Array, coverage: float) -> Array:
        """Return the lower and upper ends (n_samples, 2) of intervals that contain a target.

        Parameters
        ----------
        xp : namespace
            The array API namespace of ``A``.
        A : array (n_samples, n_outputs)
            The outputs, in the units of the target.
        coverage : float in (0, 1)
            The probability that an interval contains its target.

        Raises
        ------
        InputError
            If the outputs do not say it.
        """
        del xp, A, coverage
        raise InputError(
            "expected a network with output='gaussian' or 'quantile', which knows how far targets "
            f"are spread, got output={self.name!r}",
            argument="predict_interval",
        )


def _identity(_xp: Namespace, Z: Array) -> Array:
    return Z


def _one(xp: Namespace, Z: Array, _A: Array) -> Array:
    return xp.ones_like(Z)


def sigmoid(xp: Namespace, Z: Array) -> Array:
    """Return 1 / (1 + exp(-Z)), accurate in both tails since it only uses exp(-|Z|)."""
    E = xp.exp(-xp.abs(Z))
    return xp.where(Z >= 0, xp.ones_like(Z), E) / (1.0 + E)


def softplus(xp: Namespace, Z: Array) -> Array:
    """Return log(1 + exp(Z)) without overflow."""
    return xp.maximum(Z, xp.zeros_like(Z)) + xp.log1p(xp.exp(-xp.abs(Z)))


def softmax(xp: Namespace, Z: Array) -> Array:
    """Return exp(Z) / sum(exp(Z)) over the last axis, shifted by the largest logit."""
    E = xp.exp(Z - xp.max(Z, axis=-1, keepdims=True))
    return E / xp.sum(E, axis=-1, keepdims=True)


def _sigmoid_derivative(_xp: Namespace, _Z: Array, A: Array) -> Array:
    return A * (1.0 - A)


def _tanh(xp: Namespace, Z: Array) -> Array:
    return xp.tanh(Z)


def _tanh_derivative(_xp: Namespace, _Z: Array, A: Array) -> Array:
    return 1.0 - A * A


def _relu(xp: Namespace, Z: Array) -> Array:
    return xp.maximum(Z, xp.zeros_like(Z))


def _relu_derivative(xp: Namespace, _Z: Array, A: Array) -> Array:
    return xp.astype(A > 0, A.dtype)


def _leaky_relu(xp: Namespace, Z: Array) -> Array:
    return xp.where(Z > 0, Z, LEAKY_RELU_SLOPE * Z)


def _leaky_relu_derivative(xp: Namespace, _Z: Array, A: Array) -> Array:
    one = xp.ones_like(A)
    return xp.where(A > 0, one, LEAKY_RELU_SLOPE * one)


def _elu(xp: Namespace, Z: Array) -> Array:
    return xp.where(Z > 0, Z, xp.expm1(xp.minimum(Z, xp.zeros_like(Z))))


def _elu_derivative(xp: Namespace, Z: Array, _A: Array) -> Array:
    return xp.exp(xp.minimum(Z, xp.zeros_like(Z)))


def _softplus_derivative(xp: Namespace, Z: Array, _A: Array) -> Array:
    return sigmoid(xp, Z)


def _silu(xp: Namespace, Z: Array) -> Array:
    return Z * sigmoid(xp, Z)


def _silu_derivative(xp: Namespace, Z: Array, _A: Array) -> Array:
    S = sigmoid(xp, Z)
    return S * (1.0 + Z * (1.0 - S))


# GELU in its tanh form is Z sigmoid(2 c (Z + a Z^3)); the standard has no erf for the exact form.
_GELU_SCALE = 2.0 * math.sqrt(2.0 / math.pi)
_GELU_CUBIC = 0.044715
_GELU_SATURATED = 32.0  # beyond this the sigmoid is 0 or 1 in float64, and a cube could overflow


def _gelu_gate(xp: Namespace, Z: Array) -> tuple[Array, Array]:
    """Return sigmoid(v) and dv/dZ for v = 2 c (Z + a Z^3), clipping Z where v is saturated."""
    limit = _GELU_SATURATED * xp.ones_like(Z)
    C = xp.maximum(xp.minimum(Z, limit), -limit)
    square = C * C
    gate = sigmoid(xp, _GELU_SCALE * C * (1.0 + _GELU_CUBIC * square))
    return gate, _GELU_SCALE * (1.0 + 3.0 * _GELU_CUBIC * square)


def _gelu(xp: Namespace, Z: Array) -> Array:
    return Z * _gelu_gate(xp, Z)[0]


def _gelu_derivative(xp: Namespace, Z: Array, _A: Array) -> Array:
    gate, slope = _gelu_gate(xp, Z)
    return gate + Z * gate * (1.0 - gate) * slope


def _exp(xp: Namespace, Z: Array) -> Array:
    return xp.exp(Z)


def _identity_pullback(_xp: Namespace, dA: Array, _A: Array) -> Array:
    return dA


def _sigmoid_pullback(_xp: Namespace, dA: Array, A: Array) -> Array:
    return dA * A * (1.0 - A)


def _softmax_pullback(xp: Namespace, dA: Array, A: Array) -> Array:
    return A * (dA - xp.sum(dA * A, axis=-1, keepdims=True))


def _exp_pullback(_xp: Namespace, dA: Array, A: Array) -> Array:
    return dA * A


ACTIVATIONS: dict[str, Activation] = {
    entry.name: entry
    for entry in (
        Activation("identity", _identity, _one, "glorot_uniform"),
        Activation("sigmoid", sigmoid, _sigmoid_derivative, "glorot_uniform"),
        Activation("tanh", _tanh, _tanh_derivative, "glorot_uniform"),
        Activation("relu", _relu, _relu_derivative),
        Activation("leaky_relu", _leaky_relu, _leaky_relu_derivative),
        Activation("elu", _elu, _elu_derivative),
        Activation("softplus", softplus, _softplus_derivative),
        Activation("silu", _silu, _silu_derivative),
        Activation("gelu", _gelu, _gelu_derivative),
    )
}
ACTIVATIONS["logistic"] = ACTIVATIONS["sigmoid"]  # scikit-learn's name

OUTPUTS: dict[str, Output] = {
    entry.name: entry
    for entry in (
        Output("identity", _identity, _identity_pullback),
        Output("sigmoid", sigmoid, _sigmoid_pullback),
        Output("softmax", softmax, _softmax_pullback),
        Output("exp", _exp, _exp_pullback),
    )
}
OUTPUTS["logistic"] = OUTPUTS["sigmoid"]

_BUILT_IN = dict(ACTIVATIONS)


def register_activation(
    name: str,
    function: Callable[[Namespace, Array], Array],
    derivative: Callable[[Namespace, Array, Array], Array],
    *,
    initializer: str = "he_normal",
) -> Activation:
    """Make a pair of functions available as the hidden activation ``name``.

    A saved model stores the name alone, so the pair has to be registered before it is loaded.
    Registering a name again replaces the pair; the built-in names are taken.

    Parameters
    ----------
    name : str
        The new name.
    function : callable
        ``function(xp, Z) -> A``, element-wise on arrays of any shape, using the functions of the
        array API namespace ``xp`` and writing into nothing.
    derivative : callable
        ``derivative(xp, Z, A) -> g'(Z)``, with the shape and dtype of ``Z``.
    initializer : str, default "he_normal"
        The initializer of layers with this activation in networks that name no initializer.

    Returns
    -------
    Activation
        The entry, which ``Network(hidden=...)`` takes as well as its name.

    Raises
    ------
    InputError
        If the name is not a string or built in, or a function is not callable.

    Examples
    --------
    >>> import nnbackend as nb
    >>> square = nb.register_activation("square", lambda xp, Z: Z * Z, lambda xp, Z, A: 2.0 * Z)
    >>> nb.Network([2, 3, 1], hidden="square").hidden
    ('square',)
    """
    if not isinstance(name, str) or not name:
        raise InputError(f"expected a non-empty string, got {name!r}", argument="name")
    if name in _BUILT_IN:
        raise InputError(f"{name!r} is a built-in activation; choose another name", argument="name")
    for argument, value in (("function", function), ("derivative", derivative)):
        if not callable(value):
            raise InputError(f"expected a callable, got {value!r}", argument=argument)
    lookup("initializer", initializer, INITIALIZERS)
    ACTIVATIONS[name] = Activation(name, function, derivative, initializer)
    return ACTIVATIONS[name]


def is_built_in(activation: Activation) -> bool:
    """Whether an activation belongs to the package, so that its formulas never change."""
    return activation in _BUILT_IN.values()


def activation(argument: str, value: str | Activation) -> Activation:
    """Return the hidden activation that ``value`` names, or ``value`` if it is one."""
    return value if isinstance(value, Activation) else lookup(argument, value, ACTIVATIONS)
