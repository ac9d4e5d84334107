"""The examples of a training, and the parts of an epoch."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from nnbackend.core.types import Array
from nnbackend.device import device_of
from nnbackend.errors import InputError
from nnbackend.floating_point import callers_errors

__all__ = [
    "Data",
    "Examples",
    "Orders",
    "Part",
    "Resident",
    "data_digest",
    "empty_steps",
    "is_zero_weight",
]


# Bytes that are hashed at once.
_HASHED_BYTES = 2**24


class Part(NamedTuple):
    """Some successive steps of an epoch.

    Attributes
    ----------
    data : Data
        Examples.
    order : NumPy array (n,) of int or None
        Which of them to take, a batch after the other; None: all, as they are.
    n_steps : int
        Steps.
    empty : NumPy array (n_steps,) of bool, optional
        The steps whose examples all have weight 0; None: there are none.
    """

    data: Data
    order: Any
    n_steps: int
    empty: Any = None

    def steps(self, start: int, stop: int, batch_size: int) -> Part:
        """Return some of the steps."""
        if (start, stop) == (0, self.n_steps):
            return self
        first, last = start * batch_size, stop * batch_size
        empty = None if self.empty is None else self.empty[start:stop]
        if self.order is not None:
            return Part(self.data, self.order[first:last], stop - start, empty)
        last = min(last, self.data.n_samples)
        return Part(self.data.rows(first, last), None, stop - start, empty)

    def with_weight(self, rates: Sequence[float], batch_size: int) -> tuple[Part, Sequence[float]]:
        """Return the steps that are taken, those whose examples have weight, and their rates."""
        if self.empty is None or not self.empty.any():
            return self, rates
        if self.empty.all():
            return Part(self.data, np.arange(0), 0), []
        rows = np.arange(self.data.n_samples) if self.order is None else self.order
        taken = np.repeat(~self.empty, batch_size)[: len(rows)]
        kept = [rate for rate, empty in zip(rates, self.empty, strict=True) if not empty]
        return Part(self.data, rows[taken], len(kept)), kept


def is_zero_weight(data: Data, batch_size: int, rows: Any = None) -> Any:
    """Return on the host which examples have weight 0; None where they cannot make up a batch.

    ``rows`` are those that an epoch takes, by default all.
    """
    weight = data.sample_weight
    device = device_of(weight)
    if weight is None or device is None:
        return None
    n_samples = data.n_samples if rows is None else len(rows)
    n_last = n_samples % batch_size or min(batch_size, n_samples)
    if rows is None and int((weight == 0).sum()) < n_last:
        return None
    is_zero = device.to_numpy(weight) == 0
    if rows is not None and int(is_zero[rows].sum()) < n_last:
        return None
    return is_zero


def empty_steps(is_zero: Any, order: Any, batch_size: int) -> Any:
    """Return which steps have nothing but examples of weight 0; None where there is none.

    Parameters
    ----------
    is_zero : NumPy array (n_samples,) of bool or None
        The result of ``is_zero_weight``.
    order, batch_size
        As for ``Part``.
    """
    if is_zero is None:
        return None
    taken = is_zero if order is None else is_zero[order]
    empty = np.logical_and.reduceat(taken, np.arange(0, len(taken), batch_size))
    return empty if empty.any() else None


class Examples(Protocol):
    """The interface of the data of a training."""

    @property
    def n_samples(self) -> int:
        """Examples of an epoch."""

    def __len__(self) -> int:
        """Return the number of steps of an epoch."""

    def parts(
        self,
        rng: np.random.Generator,
        first_step: int = 0,
        while_waiting: Callable[[], None] | None = None,
    ) -> Generator[Part, None, None]:
        """Yield an epoch from some step on; ``rng`` draws as for the whole epoch, at once.

        While a part is not ready, call ``while_waiting``, which may raise to end the epoch.
        """

    def digest(self, to_numpy: Callable[[Any], Any]) -> str:
        """Return a digest of these examples; ``to_numpy`` reads the device's arrays."""


class Orders(ABC):
    """A callable for ``shuffle`` that is known to return all row numbers in some order."""

    @abstractmethod
    def __call__(self) -> Any:
        """Return the order of an epoch (n_samples,)."""


class Resident:
    """Examples in the device's memory, all of them.

    Parameters
    ----------
    data : Data
        The examples.
    batch_size : int
        Examples per step.
    shuffle : bool or callable
        As for ``train``.
    rows : NumPy array (n_samples,) of int, optional
        The rows of the data that an epoch takes, some perhaps more than once; by default all.

    Attributes
    ----------
    data, batch_size
        As given.
    """

    def __init__(
        self,
        data: Data,
        batch_size: int,
        shuffle: bool | Callable[[], Any],
        rows: Any = None,
    ) -> None:
        self.data, self.batch_size, self._shuffle = data, batch_size, shuffle
        self._rows = rows
        self._every = np.arange(self.n_samples) if callable(shuffle) else None
        # A full batch has some weight, which was checked before.
        self._is_zero = None if len(self) == 1 else is_zero_weight(data, batch_size, rows)

    @property
    def n_without_weight(self) -> int:
        """The number of examples of weight 0, where they may make up a batch; else 0."""
        if self._is_zero is None:
            return 0
        is_zero = self._is_zero if self._rows is None else self._is_zero[self._rows]
        return int(is_zero.sum())

    @property
    def n_samples(self) -> int:
        """The number of examples."""
        return self.data.n_samples if self._rows is None else len(self._rows)

    def __len__(self) -> int:
        return math.ceil(self.n_samples / self.batch_size)

    def draw(self, rng: np.random.Generator) -> Any:
        """Return the order of an epoch; None where the rows stay as they are."""
        order = None
        if callable(self._shuffle):
            order = self._called()
        elif self._shuffle and len(self) > 1:
            order = rng.permutation(self.n_samples)
        # The order within a full batch does not matter.
        if len(self) == 1:
            order = None
        if self._rows is None:
            return order
        return self._rows if order is None else self._rows[order]

    def orders(self, rng: np.random.Generator, n_epochs: int) -> list[Any] | None:
        """Return the orders of epochs; None where the rows stay as they are."""
        first = self.draw(rng)
        if first is None and not callable(self._shuffle):
            return None
        orders = [first, *(self.draw(rng) for _ in range(n_epochs - 1))]
        return None if first is None else orders

    def _called(self) -> Any:
        if isinstance(self._shuffle, Orders):
            return self._shuffle()
        with callers_errors():
            order = np.asarray(self._shuffle())  # type: ignore[operator]
        n = self.n_samples
        # A permutation: anything else would leave rows out, or read beyond the data.
        if order.shape != (n,) or not (np.sort(order) == self._every).all():
            raise InputError(
                f"expected the callable to return the numbers 0 to {n - 1} in some order, "
                f"got an array of shape {order.shape}",
                argument="shuffle",
            )
        return order

    def digest(self, to_numpy: Callable[[Any], Any]) -> str:
        """Return the SHA-256 of all examples."""
        return data_digest(self.data, to_numpy)

    def parts(
        self,
        rng: np.random.Generator,
        first_step: int = 0,
        while_waiting: Callable[[], None] | None = None,
    ) -> Generator[Part, None, None]:
        """Yield one part: the epoch from some step on."""
        del while_waiting
        order = self.draw(rng)
        empty = empty_steps(self._is_zero, order, self.batch_size)
        whole = Part(self.data, order, len(self), empty)
        yield whole.steps(first_step, len(self), self.batch_size)


def data_digest(data: Data, to_numpy: Callable[[Any], Any]) -> str:
    """Return the SHA-256 of examples: of shapes, dtypes and all numbers."""
    digest = hashlib.sha256()
    for x in (data.X, data.y, data.sample_weight):
        if x is None:
            digest.update(b"none")
            continue
        digest.update(f"{tuple(x.shape)} {x.dtype}".encode())
        for rows in _blocks(x):
            digest.update(np.ascontiguousarray(to_numpy(rows)).data)
    return digest.hexdigest()


def _blocks(x: Any) -> Iterator[Any]:
    """Yield an array's rows, a few at a time."""
    row = max(1, math.prod(x.shape[1:]) * x.dtype.itemsize)
    size = max(1, _HASHED_BYTES // row)
    for start in range(0, x.shape[0], size):
        yield x[start : start + size, ...]


@dataclass(frozen=True)
class Data:
    """Examples on the device, in the form that the core takes.

    Attributes
    ----------
    X, y, sample_weight : array
        The arrays that ``Objective.value`` takes.
    streams : bool
        Whether ``X`` is a NumPy array in the host's memory, for want of room on the device: then
        engines copy the rows of a batch.
    """

    X: Array
    y: Array
    sample_weight: Array | None = None
    streams: bool = False

    @property
    def n_samples(self) -> int:
        """The number of rows."""
        return int(self.X.shape[0])

    @property
    def arrays(self) -> tuple[Array, Array, Array | None]:
        """X, y and sample_weight, in the order in which the core takes them."""
        return self.X, self.y, self.sample_weight

    def take(self, rows: Any) -> Data:
        """Return a copy of some rows, whose numbers (n,) are a NumPy array of int."""

        def taken(x: Array | None) -> Array | None:
            device = device_of(x)
            return None if device is None else device.xp.take(x, device.place(rows), axis=0)

        X, y, weight = map(taken, self.arrays)
        return Data(X, y, weight, self.streams)

    def rows(self, start: int, stop: int) -> Data:
        """Return some of the rows, as views where the library's slices are views."""
        X, y, weight = (
            None if x is None else x[start:stop, ...] for x in (self.X, self.y, self.sample_weight)
        )
        return Data(X, y, weight, self.streams)
