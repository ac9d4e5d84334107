"""Build the parts of a ``Network``: check its arguments, make structure and parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from nnbackend.checks import lookup, positive_integer, real
from nnbackend.core.activations import activation
from nnbackend.core.distributions import output
from nnbackend.core.initializers import INITIALIZERS
from nnbackend.core.structure import Structure
from nnbackend.core.types import Array
from nnbackend.errors import InputError
from nnbackend.floating_point import own_errors

__all__ = ["generator", "initial_parameters", "make_structure"]

# At eight bytes each, more parameters cannot be addressed.
_MOST_PARAMETERS = 2**59
_R = TypeVar("_R")


def generator(seed: Any) -> np.random.Generator:
    """Return the random generator that ``seed`` is, or that it seeds."""
    if isinstance(seed, np.random.Generator):
        return seed
    if seed is not None:
        seed = positive_integer("seed", seed, minimum=0)
    return np.random.default_rng(seed)


def make_structure(
    layer_sizes: Any, hidden: Any, output_name: Any, dropout: Any, quantiles: Any = None
) -> Structure:
    """Return the structure that the checked arguments of ``Network`` describe."""
    given = _sequence(layer_sizes)
    if given is None or len(given) < 2:
        raise InputError(
            "expected at least two sizes, such as [30, 16, 1] for the input, one "
            f"hidden and the output layer, got {layer_sizes!r}",
            argument="layer_sizes",
        )
    sizes = tuple(positive_integer(f"layer_sizes[{i}]", size) for i, size in enumerate(given))
    activations = _per_layer(
        "hidden", hidden, len(sizes) - 2, lambda value: activation("hidden", value)
    )
    rates = _per_layer(
        "dropout", dropout, len(sizes) - 2, lambda x: real("dropout", x, minimum=0.0, below=1.0)
    )
    chosen = output("output", output_name, quantiles)
    chosen.require_size(sizes[-1])
    structure = Structure(sizes, activations, chosen, rates)
    if structure.n_parameters > _MOST_PARAMETERS:
        raise InputError(
            "expected sizes whose weights a machine can address, got "
            f"{float(min(structure.n_parameters, 10**300)):.1e} parameters",
            argument="layer_sizes",
        )
    return structure


def _sequence(value: Any) -> list[Any] | None:
    """Return the entries of a list, tuple or 1-D array; None for anything else."""
    if isinstance(value, np.ndarray):
        return value.tolist() if value.ndim == 1 else None
    return list(value) if isinstance(value, list | tuple | range) else None


def _per_layer(
    argument: str, value: Any, n_hidden: int, check: Callable[[Any], _R]
) -> tuple[_R, ...]:
    """Return one checked entry per hidden layer, given one for each or a single one for all."""
    entries = _sequence(value)
    if entries is None:
        if isinstance(value, np.ndarray) and value.ndim == 0:
            value = value[()]
        return (check(value),) * n_hidden
    if len(entries) != n_hidden:
        raise InputError(
            f"expected one entry for each of the {n_hidden} hidden layers, or a single "
            f"one for all, got {len(entries)}",
            argument=argument,
        )
    return tuple(check(entry) for entry in entries)


@own_errors
def initial_parameters(
    structure: Structure, initializer: str | None, rng: np.random.Generator
) -> Array:
    """Return newly drawn parameters (n_parameters,) in float64, on the host."""
    if initializer is not None:
        names = [initializer] * len(structure.weight_shapes)
    else:
        names = [*(entry.initializer for entry in structure.hidden), "glorot_uniform"]
    weights = [
        lookup("initializer", name, INITIALIZERS)(np, rng, shape)
        for name, shape in zip(names, structure.weight_shapes, strict=True)
    ]
    biases = [np.zeros(n_out) for _, n_out in structure.weight_shapes]
    return structure.flatten(np, weights, biases)
