"""NumPy's floating-point error state: ours within the library, the caller's in the caller's code.

What ``np.seterr`` says, overflow and underflow included, is for the caller's arithmetic. Ours looks
at results instead, and says in its own words where they are not finite. So each public function
that computes is a door: within it NumPy neither raises nor warns. What it calls of the caller's -
callbacks, shuffles, batches - finds the state that the caller has set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np

__all__ = ["callers_errors", "callers_items", "own_errors"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

# The state outside of the outermost door.
_CALLERS: ContextVar[dict[str, Any] | None] = ContextVar("callers", default=None)


def own_errors(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function a door: whatever the caller's error state is, it computes the same.

    Examples
    --------
    >>> square = own_errors(lambda x: x * x)
    >>> with np.errstate(all="raise"):
    ...     print(square(np.float64(1e200)), square(np.float64(1e-200)))
    inf 0.0
    """

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        token = _CALLERS.set(dict(np.geterr())) if _CALLERS.get() is None else None
        try:
            with np.errstate(all="ignore"):
                return function(*args, **kwargs)
        finally:
            if token is not None:
                _CALLERS.reset(token)

    return wrapped


def callers_errors() -> np.errstate:
    """Return the context of the caller's error state, in which the caller's code is to run."""
    return np.errstate(**(_CALLERS.get() or {}))


def callers_items(items: Iterable[T]) -> Iterator[T]:
    """Yield what an iterable of the caller's gives, each item made in the caller's error state."""
    with callers_errors():
        iterator = iter(items)
    while True:
        with callers_errors():
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item
