"""The objective that training minimizes, as a function of the flat parameter vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nnbackend.core import propagation
from nnbackend.core.losses import Loss
from nnbackend.core.regularization import penalty
from nnbackend.core.structure import Structure
from nnbackend.core.types import Array, Namespace

__all__ = ["Objective", "total_weight"]


@dataclass(frozen=True)
class Objective:
    """The mean loss over examples plus the penalties on the weights.

    Attributes
    ----------
    structure : Structure
        The structure of the network.
    loss : Loss
        A loss that fits its output.
    l1, l2 : float
        Strengths of the penalties l1 sum(abs(W)) + l2 / 2 sum(W^2).
    penalty_per_sample : bool
        Whether to divide the penalties by the number of a batch's examples, or by the sum of their
        weights, as scikit-learn does with ``alpha``.
    """

    structure: Structure
    loss: Loss
    l1: float = 0.0
    l2: float = 0.0
    penalty_per_sample: bool = False

    @property
    def is_penalized(self) -> bool:
        """Whether there is any penalty."""
        return bool(self.l1 or self.l2)

    def data_loss(
        self,
        xp: Namespace,
        parameters: Array,
        X: Array,
        y: Array,
        sample_weight: Array | None = None,
    ) -> Array:
        """Return the mean loss (...) without penalties and dropout, as validation reports it."""
        weights, biases = self.structure.unflatten(xp, parameters)
        logits = propagation.logits(xp, self.structure, weights, biases, X)
        return propagation.output_loss(xp, self.structure, self.loss, logits, y, sample_weight)[0]

    def value(
        self,
        xp: Namespace,
        parameters: Array,
        X: Array,
        y: Array,
        sample_weight: Array | None = None,
    ) -> Array:
        """Return the objective (...), without dropout."""
        value = self.data_loss(xp, parameters, X, y, sample_weight)
        if self.is_penalized:
            weights, _ = self.structure.unflatten(xp, parameters)
            extra = penalty(xp, weights, self.l1, self.l2)[0]
            value = value + extra * self._penalty_scale(xp, total_weight(xp, X, sample_weight))
        return value

    def value_and_gradient(
        self,
        xp: Namespace,
        parameters: Array,
        X: Array,
        y: Array,
        sample_weight: Array | None = None,
        masks: Sequence[Array | None] | None = None,
    ) -> tuple[Array, Array]:
        """Return the objective and its gradient.

        Parameters
        ----------
        xp : namespace
            The array API namespace of the arrays.
        parameters : array (..., n_parameters)
            The flat parameter vector.
        X : array (..., n_samples, n_features)
            Examples, one per row.
        y, sample_weight : array
            As in ``Loss.value_and_gradient``.
        masks : sequence of (array or None), optional
            Dropout masks, as in ``propagation.forward``.

        Returns
        -------
        value : array (...)
        gradient : array (..., n_parameters)
        """
        value, gradient = self.data_value_and_gradient(xp, parameters, X, y, sample_weight, masks)
        total = total_weight(xp, X, sample_weight)
        return self.penalize(xp, parameters, value, gradient, total)

    def data_value_and_gradient(
        self,
        xp: Namespace,
        parameters: Array,
        X: Array,
        y: Array,
        sample_weight: Array | None = None,
        masks: Sequence[Array | None] | None = None,
    ) -> tuple[Array, Array]:
        """Return the same as ``value_and_gradient``, but without penalties."""
        weights, biases = self.structure.unflatten(xp, parameters)
        value, dW, db = propagation.loss_and_gradients(
            xp, self.structure, self.loss, weights, biases, X, y, sample_weight, masks
        )
        return value, self.structure.flatten(xp, dW, db)

    def penalize(
        self, xp: Namespace, parameters: Array, value: Array, gradient: Array, total_weight: Any
    ) -> tuple[Array, Array]:
        """Add the penalties to a value and its gradient.

        Parameters
        ----------
        xp : namespace
            The array API namespace of the arrays.
        parameters : array (..., n_parameters)
            The flat parameter vector.
        value : array (...)
            The mean loss of a batch.
        gradient : array (..., n_parameters)
            Its gradient.
        total_weight : int, float or array (...)
            The number of the batch's examples, or the sum of their weights.

        Returns
        -------
        value : array (...)
        gradient : array (..., n_parameters)
        """
        if not self.is_penalized:
            return value, gradient
        weights, _ = self.structure.unflatten(xp, parameters)
        extra, penalty_gradients = penalty(xp, weights, self.l1, self.l2)
        scale = self._penalty_scale(xp, total_weight)
        value = value + extra * scale
        if not isinstance(scale, float):
            scale = xp.expand_dims(xp.expand_dims(scale, axis=-1), axis=-1)
        dW, db = self.structure.unflatten(xp, gradient)
        dW = [g + p * scale for g, p in zip(dW, penalty_gradients, strict=True)]
        return value, self.structure.flatten(xp, dW, db)

    def _penalty_scale(self, xp: Namespace, total_weight: Any) -> Array | float:
        if not self.penalty_per_sample:
            return 1.0
        if isinstance(total_weight, int | float):
            return 1.0 / (float(total_weight) or 1.0)
        return 1.0 / xp.where(total_weight > 0, total_weight, xp.ones_like(total_weight))


def total_weight(xp: Namespace, X: Array, sample_weight: Array | None) -> Any:
    """Return the number of examples, an int, or the sum of their weights (...)."""
    return X.shape[-2] if sample_weight is None else xp.sum(sample_weight, axis=-1)
