"""The objective that L-BFGS minimizes, as a function of SciPy's vector.

The CPU engine computes it in an order of sums of its own. Without that engine every sum is taken in
scikit-learn's order, over the rows first and divided last: L-BFGS makes differences of 1e-16 large
within some 50 iterations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from nnbackend.core import propagation
from nnbackend.core.objective import Objective
from nnbackend.core.structure import Structure
from nnbackend.core.types import Array, Namespace
from nnbackend.data.examples import Data
from nnbackend.device import Device
from nnbackend.engines import default_engine, get_engine

__all__ = ["Evaluation", "evaluation"]

_Vector = np.ndarray[Any, Any]


class Evaluation(Protocol):
    """The objective as a function of a vector, in which parameters have an order."""

    def __call__(self, x: _Vector) -> tuple[float, _Vector]:
        """Return the objective and a new vector of its gradient, both in float64."""

    def vector(self, parameters: Array) -> _Vector:
        """Return flat parameters of a network as a vector in float64."""

    def unpacked(self, x: _Vector) -> tuple[list[_Vector], list[_Vector]]:
        """Return weights and biases as views of a vector."""


def evaluation(
    objective: Objective, device: Device, parameters: Array, data: Data, engine: str
) -> Evaluation:
    """Return the objective on data, for an engine as ``train`` takes it.

    Parameters
    ----------
    objective : Objective
        The function; of penalties it has ``l2`` alone, per sample.
    device : Device
        The device of all arrays.
    parameters : array (n_parameters,)
        Any parameters, in the dtype of the computation.
    data : Data
        The examples.
    engine : str
        The engine's name, or ``"auto"``.
    """
    if engine == "auto":
        engine = default_engine(device)
    # It raises where there is no such engine.
    get_engine(engine, "float32", device)
    if engine not in ("native", "cpu"):
        return _InOrder(objective, device, data, str(parameters.dtype))
    return _Native(objective, device, parameters, data)


class _Native:
    """The objective as the CPU engine computes it; a vector is flat as a network's parameters."""

    def __init__(self, objective: Objective, device: Device, parameters: Array, data: Data) -> None:
        from nnbackend.engines.native.objective import NativeObjective

        self._structure = objective.structure
        self._objective = NativeObjective(objective, device, parameters, data)

    def __call__(self, x: _Vector) -> tuple[float, _Vector]:
        value, gradient = self._objective(x)
        return value, gradient.astype(np.float64)

    def vector(self, parameters: Array) -> _Vector:
        return np.asarray(parameters, np.float64)

    def unpacked(self, x: _Vector) -> tuple[list[_Vector], list[_Vector]]:
        return self._structure.unflatten(np, x)


class _InOrder:
    """The objective in scikit-learn's order of operations, on any device."""

    def __init__(self, objective: Objective, device: Device, data: Data, dtype: str) -> None:
        self._objective, self._device, self._data, self._dtype = objective, device, data, dtype

    def __call__(self, x: _Vector) -> tuple[float, _Vector]:
        device, objective = self._device, self._objective
        weights, biases = _unpacked(objective.structure, device.place(x.astype(self._dtype)))
        value, gradient = _value_and_gradient(
            device.xp, objective, weights, biases, *self._data.arrays
        )
        return float(value), device.to_numpy(gradient).astype(np.float64)

    def vector(self, parameters: Array) -> _Vector:
        xp = self._device.xp
        flat = _packed(xp, *self._objective.structure.unflatten(xp, parameters))
        return self._device.to_numpy(flat).astype(np.float64)

    def unpacked(self, x: _Vector) -> tuple[list[_Vector], list[_Vector]]:
        return _unpacked(self._objective.structure, x)


def _packed(xp: Namespace, weights: Sequence[Array], biases: Sequence[Array]) -> Array:
    """Return all weights, then all biases, in one vector: the order of scikit-learn's L-BFGS."""
    return xp.concat([xp.reshape(x, (-1,)) for x in (*weights, *biases)])


def _unpacked(structure: Structure, flat: Array) -> tuple[list[Array], list[Array]]:
    """Return weights and biases as views of such a vector."""
    parts, start = [], 0
    shapes = structure.weight_shapes
    for shape in (*shapes, *((n_out,) for _, n_out in shapes)):
        size = math.prod(shape)
        parts.append(flat[start : start + size].reshape(shape))
        start += size
    return parts[: len(shapes)], parts[len(shapes) :]


def _value_and_gradient(
    xp: Namespace,
    objective: Objective,
    weights: list[Array],
    biases: list[Array],
    X: Array,
    y: Array,
    sample_weight: Array | None,
) -> tuple[Array, Array]:
    """Return the objective, whose ``l2`` is scikit-learn's ``alpha``, and its packed gradient."""
    structure, alpha = objective.structure, objective.l2
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
    return value, _packed(xp, dW, db) / total
