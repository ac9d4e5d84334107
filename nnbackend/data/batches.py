"""Where the batches of an epoch come from: arrays, or an iterable that the caller brings.

Each is asked for the parts of an epoch, in which an engine runs some steps on the examples of one
``Data``. An epoch that was broken off is taken up again at any step.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from nnbackend.data.examples import Part, empty_steps, is_zero_weight
from nnbackend.data.preparation import Preparation
from nnbackend.data.validation import no_weight_error
from nnbackend.device import device_of
from nnbackend.errors import InputError
from nnbackend.floating_point import callers_items

if TYPE_CHECKING:
    from nnbackend.core.losses import Loss

__all__ = ["Feed"]


class Feed:
    """The batches of an epoch, checked and placed one by one.

    Parameters
    ----------
    preparation : Preparation
        The preparation of the network that they are for.
    batches : iterable
        Yields tuples (X, y) or (X, y, sample_weight); it has a length, and each pass over it is an
        epoch.
    loss : Loss
        Decides which targets are allowed.

    Attributes
    ----------
    n_samples : int
        Examples in the last whole pass.
    """

    def __init__(self, preparation: Preparation, batches: Any, loss: Loss) -> None:
        is_array = device_of(batches) is not None or hasattr(batches, "__array__")
        if is_array or not hasattr(batches, "__iter__"):
            raise InputError(
                "expected an array, got None; pass it, or for X an iterable of batches (X, y): "
                f"it is {type(batches).__name__}",
                argument="y",
            )
        try:
            is_empty = len(batches) == 0
        except TypeError as error:  # a DataLoader of an iterable data set has a __len__ that raises
            raise InputError(
                "expected batches that have a length and can be read again for every epoch, "
                f"such as a DataLoader or a list, got {type(batches).__name__}; a generator ends "
                "after one pass: give a class its __iter__ and a __len__",
                argument="X",
            ) from error
        if is_empty:
            raise InputError("expected at least one batch, got none", argument="X")
        self._preparation, self._batches, self._loss = preparation, batches, loss
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
                    f"expected a batch (X, y) or (X, y, sample_weight), got "
                    f"{type(batch).__name__}{size}; if X is data, pass y",
                    argument=f"X[{number}]",
                )
            if number == len(self):
                raise InputError(
                    f"expected {number} batches in every epoch, as its length says, got more",
                    argument="X",
                )
            X, y, weight = (*batch, None)[:3]
            names = (f"X[{number}][0]", f"X[{number}][1]", f"X[{number}][2]")
            data = self._preparation.examples(X, y, self._loss, weight, names, is_whole=False)
            n_samples += data.n_samples
            empty = empty_steps(is_zero_weight(data, data.n_samples), None, data.n_samples)
            has_weight = has_weight or empty is None
            yield Part(data, None, 1, empty)
        if number + 1 != len(self):
            raise InputError(
                f"expected {len(self)} batches in every epoch, as its length says, got "
                f"{number + 1}",
                argument="X",
            )
        if not has_weight:
            raise no_weight_error("X", "batches of nothing but weights of 0")
        if first_step == 0:
            self.n_samples = n_samples
