"""Keep NumPy's floating-point error state apart: ours in the library, the caller's outside.

``np.seterr`` sets what NumPy does about overflow and the like in the caller's arithmetic. The
library checks its results instead, and raises its own errors if they are not finite. So every
public function that computes switches NumPy's errors and warnings off while it runs, and switches
them back on around the caller's own code: callbacks, shuffles, iterables of batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from functools import wraps
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

import numpy as np

__all__ = ["callers_errors", "callers_items", "own_errors"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

# The caller's state while a function of ours runs; None at all other times.
_CALLERS: ContextVar[dict[str, Any] | None] = ContextVar("callers", default=None)


def own_errors(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function compute the same whatever error state its caller has set.

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


class callers_errors:  # noqa: N801 - used like a function
    """Run the caller's code, within a ``with`` statement, in the caller's error state."""

    __slots__ = ("_errors", "_token")

    def __enter__(self) -> None:
        self._errors = np.errstate(**(_CALLERS.get() or {}))
        self._token = _CALLERS.set(None)
        self._errors.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._errors.__exit__(kind, error, traceback)
        _CALLERS.reset(self._token)


def callers_items(items: Iterable[T]) -> Iterator[T]:
    """Yield the items of the caller's iterable, making each in the caller's error state."""
    with callers_errors():
        iterator = iter(items)
    while True:
        with callers_errors():
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item
