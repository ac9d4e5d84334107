"""Where the batches of an epoch come from: arrays, or an iterable that the caller brings.

Each is asked for the parts of an epoch, in which an engine runs some steps on the examples of one
``Data``. An epoch that was broken off is taken up again at any step.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from nnbackend.device import device_of
from nnbackend.engines import Data
from nnbackend.errors import InputError
from nnbackend.floating_point import callers_errors, callers_items
from nnbackend.inputs import no_weight_error

if TYPE_CHECKING:
    from nnbackend.core.losses import Loss
    from nnbackend.network import Network

__all__ = [
    "Examples",
    "Feed",
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
            return Part(self.data, self.order, 0), []
        rows = np.arange(self.data.n_samples) if self.order is None else self.order
        taken = np.repeat(~self.empty, batch_size)[: len(rows)]
        kept = [rate for rate, empty in zip(rates, self.empty, strict=True) if not empty]
        return Part(self.data, rows[taken], len(kept)), kept


def is_zero_weight(data: Data, batch_size: int) -> Any:
    """Return on the host which examples have weight 0; None where they cannot make up a batch."""
    weight = data.sample_weight
    device = device_of(weight)
    n_last = data.n_samples % batch_size or min(batch_size, data.n_samples)
    if weight is None or device is None or int((weight == 0).sum()) < n_last:
        return None
    return device.to_numpy(weight) == 0


def empty_steps(is_zero: Any, order: Any, batch_size: int) -> Any:
    """Return which steps have nothing but examples of weight 0; None where there is none.

    Parameters
    ----------
    is_zero : NumPy array (n_samples,) of bool or None
        What ``is_zero_weight`` returns.
    order, batch_size
        As for ``Part``.
    """
    if is_zero is None:
        return None
    taken = is_zero if order is None else is_zero[order]
    empty = np.logical_and.reduceat(taken, np.arange(0, len(taken), batch_size))
    return empty if empty.any() else None


class Examples(Protocol):
    """What training asks of its data."""

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

        Where a part takes long to come, ``while_waiting`` is called, which may end the epoch.
        """

    def digest(self, to_numpy: Callable[[Any], Any]) -> str:
        """Return what tells these examples from others; ``to_numpy`` reads the device's arrays."""


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
    """

    def __init__(self, data: Data, batch_size: int, shuffle: bool | Callable[[], Any]) -> None:
        self.data, self._batch_size, self._shuffle = data, batch_size, shuffle
        # One batch of all has weight: that was checked.
        self._is_zero = None if len(self) == 1 else is_zero_weight(data, batch_size)

    @property
    def n_without_weight(self) -> int:
        """The number of examples of weight 0, where they may make up a batch; else 0."""
        return 0 if self._is_zero is None else int(self._is_zero.sum())

    @property
    def n_samples(self) -> int:
        """The number of examples."""
        return self.data.n_samples

    def __len__(self) -> int:
        return math.ceil(self.n_samples / self._batch_size)

    def draw(self, rng: np.random.Generator) -> Any:
        """Return the order of an epoch; None where the rows stay as they are."""
        # That of a full batch's rows changes nothing.
        if callable(self._shuffle):
            order = self._called()
            return None if len(self) == 1 else order
        return rng.permutation(self.n_samples) if self._shuffle and len(self) > 1 else None

    def _called(self) -> Any:
        with callers_errors():
            order = np.asarray(self._shuffle())  # type: ignore[operator]
        n = self.n_samples
        # A permutation: anything else would leave rows out, or read beyond the data.
        if order.shape != (n,) or not np.array_equal(np.sort(order), np.arange(n)):
            raise InputError(
                f"shuffle: expected the callable to return the numbers 0 to {n - 1} in some order, "
                f"got an array of shape {order.shape}"
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
        empty = empty_steps(self._is_zero, order, self._batch_size)
        whole = Part(self.data, order, len(self), empty)
        yield whole.steps(first_step, len(self), self._batch_size)


class Feed:
    """The batches of an epoch, checked and placed one by one.

    Parameters
    ----------
    net : Network
        What they are for.
    batches : iterable
        Of tuples (X, y) or (X, y, sample_weight); it has a length, and each pass over it is an
        epoch.
    loss : Loss
        Decides which targets are allowed.

    Attributes
    ----------
    n_samples : int
        Examples in the last whole pass.
    """

    def __init__(self, net: Network, batches: Any, loss: Loss) -> None:
        is_array = device_of(batches) is not None or hasattr(batches, "__array__")
        if is_array or not hasattr(batches, "__iter__"):
            raise InputError(
                "y: expected an array, got None; pass it, or for X an iterable of batches (X, y): "
                f"it is {type(batches).__name__}"
            )
        try:
            is_empty = len(batches) == 0
        except TypeError as error:  # a DataLoader of an iterable data set has a __len__ that raises
            raise InputError(
                "X: expected batches that have a length and can be read again for every epoch, "
                f"such as a DataLoader or a list, got {type(batches).__name__}; a generator ends "
                "after one pass: give a class its __iter__ and a __len__"
            ) from error
        if is_empty:
            raise InputError("X: expected at least one batch, got none")
        self._net, self._batches, self._loss = net, batches, loss
        self.n_samples = 0

    def __len__(self) -> int:
        return len(self._batches)

    def digest(self, to_numpy: Callable[[Any], Any]) -> str:
        """Return the number of batches: what they are is seen when they come."""
        del to_numpy
        return f"{len(self)} batches"

    def parts(
        self,
        rng: np.random.Generator,
        first_step: int = 0,
        while_waiting: Callable[[], None] | None = None,
    ) -> Generator[Part, None, None]:
        """Yield a part for each batch, in whatever order they come."""
        # They are made in this thread, so that nothing else can be done meanwhile.
        del rng, while_waiting
        n_samples, number, has_weight = 0, first_step - 1, first_step > 0
        for number, batch in enumerate(
            islice(callers_items(self._batches), first_step, None), first_step
        ):
            is_tuple = isinstance(batch, tuple | list)
            if not is_tuple or len(batch) not in (2, 3):
                size = f" of {len(batch)}" if is_tuple else ""
                raise InputError(
                    f"X[{number}]: expected a batch (X, y) or (X, y, sample_weight), got "
                    f"{type(batch).__name__}{size}; if X is data, pass y"
                )
            if number == len(self):
                raise InputError(
                    f"X: expected {number} batches in every epoch, as its length says, got more"
                )
            X, y, weight = (*batch, None)[:3]
            names = (f"X[{number}][0]", f"X[{number}][1]", f"X[{number}][2]")
            data = Data(*self._net.prepare(X, y, self._loss, weight, names, is_whole=False))
            n_samples += data.n_samples
            empty = empty_steps(is_zero_weight(data, data.n_samples), None, data.n_samples)
            has_weight = has_weight or empty is None
            yield Part(data, None, 1, empty)
        if number + 1 != len(self):
            raise InputError(
                f"X: expected {len(self)} batches in every epoch, as its length says, got "
                f"{number + 1}"
            )
        if not has_weight:
            raise no_weight_error("X", "batches of nothing but weights of 0")
        if first_step == 0:
            self.n_samples = n_samples


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
