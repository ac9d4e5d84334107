"""Regularization: penalties, dropout, and clipped gradients."""

from __future__ import annotations

from collections.abc import Sequence

from nnbackend.core.elementwise import sign
from nnbackend.core.types import Array, Namespace

__all__ = ["clip_by_global_norm", "clip_by_value", "dropout_mask", "penalty", "penalty_elements"]


def penalty(
    xp: Namespace, weights: Sequence[Array], l1: float, l2: float
) -> tuple[Array, list[Array]]:
    """Return the penalty l1 sum(abs(W)) + l2 / 2 sum(W^2) over all layers, and its gradients.

    Biases are not penalized. The objective adds the penalty to the mean loss over examples, so
    scikit-learn's ``alpha`` equals ``l2`` times the number of examples in a batch.

    Parameters
    ----------
    xp : namespace
        The array API namespace of the arrays.
    weights : sequence of arrays (..., n_in, n_out)
        One array per layer.
    l1, l2 : float
        Strengths.

    Returns
    -------
    value : array (...)
    gradients : list of arrays (..., n_in, n_out)
        l1 sign(W) + l2 W, where sign(W) is 0 for NaN.

    Examples
    --------
    >>> import numpy as np
    >>> value, (gradient,) = penalty(np, [np.asarray([[3.0], [-1.0]])], l1=0.5, l2=0.1)
    >>> round(float(value), 6), gradient.round(6).tolist()
    (2.5, [[0.8], [-0.6]])
    """
    elements = [penalty_elements(xp, W, l1, l2) for W in weights]
    values = [xp.sum(value, axis=(-2, -1)) for value, _ in elements]
    return sum(values[1:], values[0]), [gradient for _, gradient in elements]


def penalty_elements(xp: Namespace, W: Array, l1: float, l2: float) -> tuple[Array, Array]:
    """Return l1 abs(W) + l2 / 2 W^2 and its derivative l1 sign(W) + l2 W, element by element."""
    value, derivative = 0.5 * l2 * W * W, l2 * W
    if not l1:
        return value, derivative
    return l1 * xp.abs(W) + value, l1 * sign(xp, W) + derivative


def dropout_mask(xp: Namespace, uniform: Array, rate: float) -> Array:
    """Return the mask of inverted dropout: 0 with probability ``rate``, else 1 / (1 - rate).

    Multiplying a layer's activations by the mask keeps their expectation, so prediction needs no
    rescaling (Srivastava et al. 2014).

    Parameters
    ----------
    xp : namespace
        The array API namespace of the array.
    uniform : array (..., n_samples, n_units)
        Uniform random numbers in [0, 1).
    rate : float in [0, 1)
        The probability that a unit is dropped.

    Returns
    -------
    array (..., n_samples, n_units)

    Examples
    --------
    >>> import numpy as np
    >>> dropout_mask(np, np.asarray([0.1, 0.3, 0.9]), rate=0.2)
    array([0.  , 1.25, 1.25])
    """
    # Numbers stand on the left of arrays, as in ``optimizers.py``.
    return 1.0 / (1.0 - rate) * xp.astype(rate <= uniform, uniform.dtype)


def clip_by_value(xp: Namespace, gradient: Array, limit: float) -> Array:
    """Return the gradient with every element clipped to [-limit, limit].

    Examples
    --------
    >>> import numpy as np
    >>> clip_by_value(np, np.asarray([-3.0, 0.5, 2.0]), limit=1.0)
    array([-1. ,  0.5,  1. ])
    """
    bound = limit * xp.ones_like(gradient)
    return xp.maximum(xp.minimum(gradient, bound), -bound)


def clip_by_global_norm(xp: Namespace, gradient: Array, max_norm: float) -> Array:
    """Return the flat gradient (..., n_parameters), scaled down to the norm ``max_norm`` if longer.

    The factor is min(1, max_norm / (norm + 1e-6)), as in torch's ``clip_grad_norm_``, with the norm
    over all parameters (Pascanu et al. 2013, arXiv:1211.5063).

    Examples
    --------
    >>> import numpy as np
    >>> clip_by_global_norm(np, np.asarray([3.0, 4.0]), max_norm=1.0).round(4)
    array([0.6, 0.8])
    """
    # Divide by the largest element before squaring, so that no square overflows.
    largest = xp.max(xp.abs(gradient), axis=-1, keepdims=True)
    relative = gradient / xp.where(largest > 0, largest, xp.ones_like(largest))
    norm = largest * xp.sqrt(xp.sum(relative * relative, axis=-1, keepdims=True))
    factor = max_norm / (norm + 1e-6)
    return gradient * xp.minimum(factor, xp.ones_like(factor))
