"""Batches that the caller brings: a torch DataLoader, or any other iterable of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from nnbackend.core.types import Array
from nnbackend.device import Device, device_of
from nnbackend.engines import Data, Problem
from nnbackend.engines.reference import ReferenceEngine
from nnbackend.errors import InputError

if TYPE_CHECKING:
    from nnbackend.core.losses import Loss
    from nnbackend.network import Network

__all__ = ["Feed", "FeedEngine"]


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
        Examples in the last pass.
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

    def __iter__(self) -> Iterator[Data]:
        n_samples, number = 0, -1
        for number, batch in enumerate(self._batches):
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
            data = Data(*self._net.prepare(X, y, self._loss, weight, names))
            n_samples += data.n_samples
            yield data
        if number + 1 != len(self):
            raise InputError(
                f"X: expected {len(self)} batches in every epoch, as its length says, got "
                f"{number + 1}"
            )
        self.n_samples = n_samples


class FeedEngine(ReferenceEngine):
    """The reference engine on batches that are brought, in whatever order they come.

    Parameters
    ----------
    problem, device, parameters, dropout_rng
        As for ``ReferenceEngine``.
    feed : Feed
        The batches.
    """

    def __init__(
        self,
        problem: Problem,
        device: Device,
        parameters: Array,
        feed: Feed,
        dropout_rng: np.random.Generator,
    ) -> None:
        nothing = device.xp.empty((0, 0), dtype=parameters.dtype)
        super().__init__(problem, device, parameters, Data(nothing, nothing), dropout_rng)
        self._feed = feed

    def _batches(self, order: Any) -> Iterator[tuple[Array, Array, Array | None]]:
        del order
        for data in self._feed:
            yield data.X, data.y, data.sample_weight
