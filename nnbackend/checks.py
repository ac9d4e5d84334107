"""Checks of single arguments: each returns the clean value or raises one clear sentence."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any, TypeVar

from nnbackend.errors import InputError

__all__ = ["closest", "listed", "lookup", "nearest", "positive_integer", "real"]

T = TypeVar("T")


def closest(name: str, known: Collection[str]) -> str | None:
    """Return the known name that is most like a name, whatever their case; None if none is near.

    Examples
    --------
    >>> closest("PRIZE", ["Price", "size"])
    'Price'
    """
    folded = {other.casefold(): other for other in reversed(list(known))}
    close = get_close_matches(name.casefold(), list(folded), n=1, cutoff=0.6)
    return folded[close[0]] if close else None


def nearest(name: str, known: Collection[str]) -> str:
    """Return a hint such as ``"; did you mean 'relu'?"``, or the whole list if nothing is near."""
    close = closest(name, known)
    if close is not None:
        return f"; did you mean {close!r}?"
    return f"; known: {', '.join(sorted(known))}"


def listed(names: Sequence[Any], most: int | None = 8, show: Callable[[Any], str] = repr) -> str:
    """Return names as a line shows them: ``most`` of them, if there is a most, and how many more.

    Examples
    --------
    >>> listed(["a", "b", "c"], most=2)
    "'a', 'b' and 1 more"
    """
    most = len(names) if most is None else most
    shown = ", ".join(show(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def lookup(argument: str, name: Any, table: Mapping[str, T]) -> T:
    """Return ``table[name]``, or raise an error that suggests the nearest known name."""
    if not isinstance(name, str):
        raise InputError(
            f"expected a name ({', '.join(sorted(table))}), got {type(name).__name__} {name!r}",
            argument=argument,
        )
    if name not in table:
        raise InputError(f"unknown name {name!r}{nearest(name, table)}", argument=argument)
    return table[name]


def positive_integer(argument: str, value: Any, *, minimum: int = 1) -> int:
    """Return ``value`` as a Python int of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
        raise InputError(f"expected an integer >= {minimum}, got {value!r}", argument=argument)
    return int(value)


def real(
    argument: str,
    value: Any,
    *,
    above: float | None = None,
    minimum: float | None = None,
    below: float | None = None,
    maximum: float | None = None,
) -> float:
    """Return ``value`` as a finite Python float within the bounds.

    Hyperparameters have to be Python floats, since a NumPy float64 scalar would promote float32
    arrays to float64.
    """
    bounds = [
        f"{sign} {bound:g}"
        for sign, bound in ((">", above), (">=", minimum), ("<", below), ("<=", maximum))
        if bound is not None
    ]
    expected = " and ".join(["a finite number", *bounds]).replace(" and", "", 1)
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputError(f"expected {expected}, got {value!r}", argument=argument)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if (
        not math.isfinite(number)
        or (above is not None and number <= above)
        or (minimum is not None and number < minimum)
        or (below is not None and number >= below)
        or (maximum is not None and number > maximum)
    ):
        raise InputError(f"expected {expected}, got {value!r}", argument=argument)
    return number
