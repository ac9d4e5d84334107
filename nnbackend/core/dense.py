"""The dense (fully connected) layer, forward and backward."""

from __future__ import annotations

from typing import Literal, overload

from nnbackend.core.types import Array, Namespace

__all__ = ["backward", "forward"]


def forward(xp: Namespace, A: Array, W: Array, b: Array) -> Array:
    """Return the pre-activations Z = A W + b of a layer.

    With one example per column this is Z = W^T A + b.

    Parameters
    ----------
    xp : namespace
        The array API namespace of the arrays.
    A : array (..., n_samples, n_in)
        The layer's input.
    W : array (..., n_in, n_out)
        Weights.
    b : array (..., n_out)
        Biases.

    Returns
    -------
    array (..., n_samples, n_out)

    Examples
    --------
    >>> import numpy as np
    >>> forward(np, np.ones((1, 2)), np.asarray([[1.0], [2.0]]), np.asarray([0.5]))
    array([[3.5]])
    """
    return xp.matmul(A, W) + xp.expand_dims(b, axis=-2)


@overload
def backward(
    xp: Namespace, dZ: Array, A: Array, W: Array, *, input_gradient: Literal[True] = True
) -> tuple[Array, Array, Array]: ...
@overload
def backward(
    xp: Namespace, dZ: Array, A: Array, W: Array, *, input_gradient: Literal[False]
) -> tuple[Array, Array, None]: ...
@overload
def backward(
    xp: Namespace, dZ: Array, A: Array, W: Array, *, input_gradient: bool
) -> tuple[Array, Array, Array | None]: ...
def backward(
    xp: Namespace, dZ: Array, A: Array, W: Array, *, input_gradient: bool = True
) -> tuple[Array, Array, Array | None]:
    """Return the gradients dW = A^T dZ, db = sum(dZ) and dA = dZ W^T of a layer.

    ``dZ`` already contains the factor 1/m of the mean over examples, from the loss.
    With one example per column these are dW = dZ A^T, db = sum(dZ), dA = W^T dZ.

    Parameters
    ----------
    xp : namespace
        The array API namespace of the arrays.
    dZ : array (..., n_samples, n_out)
        Gradient of the loss with respect to the layer's pre-activations.
    A : array (..., n_samples, n_in)
        The layer's input.
    W : array (..., n_in, n_out)
        Weights.
    input_gradient : bool, default True
        False omits dA, which the first layer does not need: its input is data.

    Returns
    -------
    dW : array (..., n_in, n_out)
    db : array (..., n_out)
    dA : array (..., n_samples, n_in) or None

    Examples
    --------
    >>> import numpy as np
    >>> dZ, A, W = np.asarray([[0.5]]), np.asarray([[1.0, 2.0]]), np.asarray([[3.0], [4.0]])
    >>> dW, db, dA = backward(np, dZ, A, W)
    >>> dW.tolist(), db.tolist(), dA.tolist()
    ([[0.5], [1.0]], [0.5], [[1.5, 2.0]])
    """
    dW = xp.matmul(xp.matrix_transpose(A), dZ)
    db = xp.sum(dZ, axis=-2)
    dA = xp.matmul(dZ, xp.matrix_transpose(W)) if input_gradient else None
    return dW, db, dA
