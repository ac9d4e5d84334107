"""The objective that L-BFGS minimizes, in scikit-learn's order of operations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from nnbackend.core import propagation
from nnbackend.core.objective import Objective
from nnbackend.core.structure import Structure
from nnbackend.core.types import Array, Namespace

__all__ = ["packed", "unpacked", "value_and_gradient"]


def packed(xp: Namespace, weights: Sequence[Array], biases: Sequence[Array]) -> Array:
    """Return all weights, then all biases, in one vector: the order of scikit-learn's L-BFGS."""
    return xp.concat([xp.reshape(x, (-1,)) for x in (*weights, *biases)])


def unpacked(structure: Structure, flat: Array) -> tuple[list[Array], list[Array]]:
    """Return weights and biases as views of such a vector."""
    parts, start = [], 0
    shapes = structure.weight_shapes
    for shape in (*shapes, *((n_out,) for _, n_out in shapes)):
        size = math.prod(shape)
        parts.append(flat[start : start + size].reshape(shape))
        start += size
    return parts[: len(shapes)], parts[len(shapes) :]


def value_and_gradient(
    xp: Namespace,
    objective: Objective,
    alpha: float,
    weights: list[Array],
    biases: list[Array],
    X: Array,
    y: Array,
    sample_weight: Array | None,
) -> tuple[Array, Array]:
    """Return the objective with scikit-learn's ``alpha``, and its gradient as a packed vector.

    It is ``Objective.value_and_gradient`` with every sum taken in scikit-learn's order, over the
    rows first and divided last: L-BFGS makes differences of 1e-16 large within some 50 iterations.
    """
    structure = objective.structure
    trace = propagation.forward(xp, structure, weights, biases, X)
    element, dZ = propagation.output_elements(xp, structure.output, objective.loss, trace.logits, y)
    total: Any = X.shape[0]
    if sample_weight is not None:
        column = xp.expand_dims(sample_weight, axis=-1)
        element, dZ, total = element * column, dZ * column, xp.sum(sample_weight)
    value = xp.sum(xp.sum(element, axis=0) / total)
    flat = [xp.reshape(W, (-1,)) for W in weights]
    value = value + 0.5 * alpha * sum(W @ W for W in flat) / total
    dW, db = propagation.backward(xp, structure, weights, trace, dZ)
    dW = [g + alpha * W for g, W in zip(dW, weights, strict=True)]
    return value, packed(xp, dW, db) / total
