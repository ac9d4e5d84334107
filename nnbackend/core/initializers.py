"""Draw initial weights on the host, so that every device starts from the same numbers.

An initializer ``f(xp, rng, shape)`` returns an array of that shape, where fan_in = shape[-2] and
fan_out = shape[-1]; leading axes are a stack of independent draws. Biases start at zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from nnbackend.core.types import Array, Namespace

if TYPE_CHECKING:
    from numpy.random import Generator

__all__ = ["INITIALIZERS", "Initializer", "orthogonal"]

Initializer: TypeAlias = "Callable[[Namespace, Generator, tuple[int, ...]], Array]"

NORMAL_STANDARD_DEVIATION = 0.01


def _zeros(xp: Namespace, _rng: Generator, shape: tuple[int, ...]) -> Array:
    """Return zeros; use it to show that the units of a layer then stay equal to each other."""
    return xp.zeros(shape)


def _normal(_xp: Namespace, rng: Generator, shape: tuple[int, ...]) -> Array:
    return NORMAL_STANDARD_DEVIATION * rng.standard_normal(shape)


def _scaled_normal(variance: Callable[[int, int], float]) -> Initializer:
    def draw(_xp: Namespace, rng: Generator, shape: tuple[int, ...]) -> Array:
        return math.sqrt(variance(shape[-2], shape[-1])) * rng.standard_normal(shape)

    return draw


def _scaled_uniform(variance: Callable[[int, int], float]) -> Initializer:
    def draw(_xp: Namespace, rng: Generator, shape: tuple[int, ...]) -> Array:
        limit = math.sqrt(3.0 * variance(shape[-2], shape[-1]))
        return rng.uniform(-limit, limit, shape)

    return draw


def orthogonal(xp: Namespace, rng: Generator, shape: tuple[int, ...]) -> Array:
    """Return matrices with orthonormal rows or columns, whichever are fewer.

    Use the Q of a QR factorization of normal numbers, with its signs fixed by R's diagonal so that
    Q is uniformly distributed (Mezzadri 2007, arXiv:math-ph/0609050; Saxe et al. 2014,
    arXiv:1312.6120).

    Examples
    --------
    >>> import numpy as np
    >>> W = orthogonal(np, np.random.default_rng(0), (5, 3))
    >>> bool(np.allclose(W.T @ W, np.eye(3)))
    True
    """
    *stack, fan_in, fan_out = shape
    tall = (*stack, max(fan_in, fan_out), min(fan_in, fan_out))
    Q, R = xp.linalg.qr(rng.standard_normal(tall))
    Q = Q * xp.expand_dims(xp.sign(xp.linalg.diagonal(R)), axis=-2)
    return Q if fan_in >= fan_out else xp.matrix_transpose(Q)


INITIALIZERS: dict[str, Initializer] = {
    "zeros": _zeros,
    "normal": _normal,
    # Glorot and Bengio 2010: variance 2 / (fan_in + fan_out)
    "glorot_normal": _scaled_normal(lambda fan_in, fan_out: 2.0 / (fan_in + fan_out)),
    "glorot_uniform": _scaled_uniform(lambda fan_in, fan_out: 2.0 / (fan_in + fan_out)),
    # He et al. 2015, arXiv:1502.01852: variance 2 / fan_in
    "he_normal": _scaled_normal(lambda fan_in, _fan_out: 2.0 / fan_in),
    "he_uniform": _scaled_uniform(lambda fan_in, _fan_out: 2.0 / fan_in),
    # LeCun et al. 1998, "Efficient BackProp": variance 1 / fan_in
    "lecun_normal": _scaled_normal(lambda fan_in, _fan_out: 1.0 / fan_in),
    "lecun_uniform": _scaled_uniform(lambda fan_in, _fan_out: 1.0 / fan_in),
    "orthogonal": orthogonal,
}
