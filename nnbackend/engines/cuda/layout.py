"""Layout: place the parameters in the CUDA engine's own flat vector, with padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from nnbackend.engines.cuda.plan import Matrix, Vector

if TYPE_CHECKING:
    from nnbackend.core.types import Array, Namespace

__all__ = ["Layout", "round_up"]


class Layout:
    """The places of the parameters in the engine's own flat vector, with padding that stays zero.

    Parameters
    ----------
    weight_shapes : sequence of (int, int)
        (n_in, n_out) of each layer.
    dtype : {"float32", "float64"}
        The dtype of the parameters.
    row : callable
        ``row(n_out)`` is the number of elements for a row of ``n_out`` weights.
    step : int
        Weights and biases of each layer begin at a multiple of this number of elements.

    Attributes
    ----------
    weights : list of Matrix
    biases : list of Vector
    size : int
        The number of elements, including the padding.
    """

    def __init__(
        self,
        weight_shapes: Sequence[tuple[int, int]],
        dtype: str,
        row: Callable[[int], int],
        step: int,
    ) -> None:
        self.weights: list[Matrix] = []
        self.biases: list[Vector] = []
        start = 0
        for n_in, n_out in weight_shapes:
            ld = row(n_out)
            self.weights.append(Matrix("parameters", n_in, n_out, ld, start, dtype))
            start = round_up(start + n_in * ld, step)
            self.biases.append(Vector("parameters", n_out, start, dtype))
            start = round_up(start + n_out, step)
        self.size = start

    def _parts(self, flat: Array) -> list[Array]:
        """Return views of each layer's weights and biases, in the order of the packed vector."""
        parts = []
        for W, b in zip(self.weights, self.biases, strict=True):
            rows = flat[W.offset : W.offset + W.rows * W.ld].reshape(W.rows, W.ld)
            parts += [rows[:, : W.columns], flat[b.offset : b.offset + b.size]]
        return parts

    def pack(self, xp: Namespace, flat: Array) -> Array:
        """Return the parameters without padding as a new array, in the network's order."""
        return xp.concat([xp.reshape(part, (-1,)) for part in self._parts(flat)])

    def unpack(self, packed: Array, flat: Array) -> None:
        """Write parameters in the network's order to their places, not to the padding."""
        start = 0
        for part in self._parts(flat):
            part[...] = packed[start : start + part.size].reshape(part.shape)
            start += part.size


def round_up(value: int, multiple: int) -> int:
    """Return the smallest multiple that is not less than ``value``."""
    return -(-value // multiple) * multiple
