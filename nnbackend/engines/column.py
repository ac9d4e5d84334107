"""Column: a number of each network of a stack, which formulas take in place of a float."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nnbackend.core.types import Array

if TYPE_CHECKING:
    from nnbackend.device import Device

__all__ = ["Column", "number_of_each"]


def number_of_each(numbers: Sequence[float], device: Device, dtype: Any) -> Any:
    """Return the number if it is the same for all networks, else a column of them."""
    first = numbers[0]
    if all(number == first for number in numbers):
        return first
    return Column(np.asarray(numbers, np.float64), device, dtype)


class Column:
    """A number of each network of a stack, which formulas take in place of a float.

    It behaves as Python's floats do in the array API standard: arithmetic among numbers is that of
    float64, on the host, and only where an array is met are they rounded to its dtype. Arrays have
    the axis of the stack first, and stand on the right: their own operators do not know columns. A
    formula that tests a number for 0 has to do its work if any of the networks needs it.

    Parameters
    ----------
    numbers : NumPy array (n_networks,) of float64
        The numbers.
    device : Device
        The device of the arrays.
    dtype : NumPy dtype
        Their dtype.
    """

    def __init__(self, numbers: Any, device: Device, dtype: Any) -> None:
        self._numbers, self._device, self._dtype = numbers, device, dtype
        # Every step asks for the same: keep what is on the device, and results like 1 - beta.
        self._placed: dict[int, Array] = {}
        self._results: dict[tuple[Any, ...], Column] = {}

    def __bool__(self) -> bool:
        return bool(np.any(self._numbers))

    def _with(self, operation: Callable[[Any, Any], Any], other: Any) -> Any:
        """Return ``operation(self, other)`` of an array or a number."""
        if isinstance(other, int | float):
            return self._result(operation, self._numbers, other)
        return operation(self._like(other.ndim), other)

    def _result(self, operation: Callable[[Any, Any], Any], *operands: Any) -> Column:
        """Return a column of the results of ``operation``, of these numbers and another."""
        key = operation, *(None if operand is self._numbers else operand for operand in operands)
        if key not in self._results:
            self._results[key] = Column(operation(*operands), self._device, self._dtype)
        return self._results[key]

    def _like(self, n_dimensions: int) -> Array:
        """Return the numbers on the device, with so many axes, the stack's first."""
        if n_dimensions not in self._placed:
            # A number may be too large for the dtype: it becomes infinite.
            with np.errstate(over="ignore"):
                rounded = self._numbers.astype(self._dtype)
            shape = (-1, *[1] * (n_dimensions - 1))
            self._placed[n_dimensions] = self._device.place(rounded.reshape(shape))
        return self._placed[n_dimensions]

    def __mul__(self, other: Any) -> Any:
        return self._with(operator.mul, other)

    def __add__(self, other: Any) -> Any:
        return self._with(operator.add, other)

    def __truediv__(self, other: Any) -> Any:
        return self._with(operator.truediv, other)

    def __le__(self, other: Any) -> Any:
        return self._with(operator.le, other)

    def __rmul__(self, other: float) -> Column:
        return self._result(operator.mul, other, self._numbers)

    def __rsub__(self, other: float) -> Column:
        return self._result(operator.sub, other, self._numbers)

    def __rtruediv__(self, other: float) -> Column:
        return self._result(operator.truediv, other, self._numbers)
