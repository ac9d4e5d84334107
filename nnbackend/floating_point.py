"""NumPy's floating-point error state: ours within the library, the caller's in the caller's code.

What ``np.seterr`` says, overflow and underflow included, is for the caller's arithmetic. Ours looks
at results instead, and says in its own words where they are not finite. So each public function
that computes is a door: within it NumPy neither raises nor warns. What it calls of the caller's -
callbacks, shuffles, batches - finds the state that the caller has set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np

__all__ = ["callers_errors", "callers_items", "own_errors"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

# The state outside of the door that we are in; None outside of all.
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
        if _CALLERS.get() is not None:
            return function(*args, **kwargs)
        token = _CALLERS.set(dict(np.geterr()))
        try:
            with np.errstate(all="ignore"):
                return function(*args, **kwargs)
        finally:
            _CALLERS.reset(token)

    return wrapped


@contextmanager
def callers_errors() -> Iterator[None]:
    """Go out of the door: the caller's code runs in the caller's error state."""
    state = _CALLERS.get() or {}
    token = _CALLERS.set(None)
    try:
        with np.errstate(**state):
            yield
    finally:
        _CALLERS.reset(token)


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
