"""The structure of a network, and the place of each layer's parameters in one flat vector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from nnbackend.core.activations import Activation, Output
from nnbackend.core.types import Array, Namespace

__all__ = ["Structure"]


@dataclass(frozen=True)
class Structure:
    """Layer sizes, activations and dropout rates of a network.

    The flat parameter vector (..., n_parameters) holds W[1], b[1], W[2], b[2], ..., each row-major.

    Attributes
    ----------
    layer_sizes : tuple of int
        Units of the input, the hidden and the output layers.
    hidden : tuple of Activation
        One per hidden layer.
    output : Output
        The output activation.
    dropout : tuple of float
        The dropout rate of each hidden layer's activations.
    """

    layer_sizes: tuple[int, ...]
    hidden: tuple[Activation, ...]
    output: Output
    dropout: tuple[float, ...]

    @cached_property
    def weight_shapes(self) -> tuple[tuple[int, int], ...]:
        """(n_in, n_out) of each layer."""
        return tuple(zip(self.layer_sizes[:-1], self.layer_sizes[1:], strict=True))

    @cached_property
    def n_parameters(self) -> int:
        """The number of weights and biases of all layers."""
        return sum(n_in * n_out + n_out for n_in, n_out in self.weight_shapes)

    @property
    def n_targets(self) -> int:
        """The number of columns of targets, which is one for outputs that are a distribution."""
        return self.output.n_targets(self.layer_sizes[-1])

    @property
    def has_dropout(self) -> bool:
        """Whether any hidden layer drops units."""
        return any(self.dropout)

    def unflatten(self, xp: Namespace, flat: Array) -> tuple[list[Array], list[Array]]:
        """Split the flat vector into per-layer weights and biases.

        They are views of ``flat`` if the library's slices are views and ``flat`` is contiguous.

        Parameters
        ----------
        xp : namespace
            The array API namespace of ``flat``.
        flat : array (..., n_parameters)
            All parameters, or a gradient with respect to them.

        Returns
        -------
        weights : list of arrays (..., n_in, n_out)
        biases : list of arrays (..., n_out)
        """
        weights, biases, start = [], [], 0
        stack = flat.shape[:-1]
        for shape in self.weight_shapes:
            middle = start + math.prod(shape)
            end = middle + shape[1]
            weights.append(xp.reshape(flat[..., start:middle], (*stack, *shape)))
            biases.append(flat[..., middle:end])
            start = end
        return weights, biases

    def flatten(self, xp: Namespace, weights: Sequence[Array], biases: Sequence[Array]) -> Array:
        """Join per-layer weights and biases into the flat vector (..., n_parameters)."""
        parts = []
        for W, b in zip(weights, biases, strict=True):
            parts += [xp.reshape(W, (*W.shape[:-2], W.shape[-2] * W.shape[-1])), b]
        return xp.concat(parts, axis=-1)
