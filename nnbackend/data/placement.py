"""Where a training's data is kept, and what is said when a device has no room for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from nnbackend.data.door import look
from nnbackend.data.examples import Data
from nnbackend.data.preparation import Preparation
from nnbackend.device import Device
from nnbackend.errors import DeviceMemoryError

if TYPE_CHECKING:
    from nnbackend.core.losses import Loss
    from nnbackend.core.objective import Objective
    from nnbackend.core.optimizers import Optimizer

__all__ = ["Memory"]


class Memory:
    """The memory of a network's device, as one training uses it.

    Parameters
    ----------
    preparation : Preparation
        The preparation of the network that is trained.
    objective : Objective
        Its objective.
    optimizer : Optimizer
        The optimizer, whose state takes memory.
    batch_size : int or None
        Examples per step; None: all.
    """

    def __init__(
        self,
        preparation: Preparation,
        objective: Objective,
        optimizer: Optimizer,
        batch_size: int | None,
    ) -> None:
        self._preparation, self._structure = preparation, objective.structure
        self._device = preparation.device
        self._itemsize = preparation.itemsize
        # Parameters, gradient, a finite copy, a snapshot, and the optimizer's state.
        n_vectors = 4 + len(optimizer.state_names)
        self._parameters = n_vectors * self._structure.n_parameters * self._itemsize
        self._batch_size = batch_size
        self._batch = 0
        self._data = 0

    def learn_feature_names(self, names: tuple[str, ...] | None) -> None:
        """Read data frames by the names of the columns that are trained on from now on."""
        self._preparation = self._preparation.knowing(names)

    def prepare(
        self,
        X: Any,
        y: Any,
        loss: Loss,
        sample_weight: Any = None,
        names: tuple[str, str, str] = ("X", "y", "sample_weight"),
    ) -> Data:
        """Return checked data: on the device, or, if that has no room, with X on the host.

        The parameters are those of ``Preparation.examples``.
        """
        X = look(names[0], X)
        home, n_samples = X.device, X.n_rows
        rows = min(self._batch_size or n_samples, n_samples)
        # Each layer needs about three arrays: pre-activations, activations, gradient.
        batch = 3 * rows * sum(self._structure.layer_sizes) * self._itemsize
        self._batch = max(self._batch, batch)
        size = n_samples * self._structure.layer_sizes[0] * self._itemsize
        streams = False
        if self._device.kind != "cpu" and (home is None or home.kind == "cpu"):
            # Standardizing takes copies in float64, checking a flag for each number.
            copies = 1.25 if self._preparation.standardization is None else 5.25
            needed = size * copies + self._parameters + self._batch
            streams = needed > self._device.free_bytes()
        if not streams:
            self._data += size
        where = Device("cpu") if streams else self._device
        return self._preparation.examples(X, y, loss, sample_weight, names, home=where)

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Raise a ``DeviceMemoryError`` where the device's memory does not suffice."""
        try:
            yield
        except self._device.out_of_memory_errors() as error:
            parts = (self._data, self._parameters, self._batch)
            data, parameters, batch = map(_gib, parts)
            raise DeviceMemoryError(
                f"device {self._device.name!r}: out of memory: training needs about "
                f"{_gib(sum(parts))} (data {data}, parameters and optimizer {parameters}, a batch "
                f"{batch}), and {_gib(self._device.free_bytes())} of "
                f"{_gib(self._device.total_bytes())} are free; lower batch_size (now "
                f"{self._batch_size or 'all rows'}), train a smaller network, or end what else "
                "uses the GPU"
            ) from error


def _gib(n_bytes: float) -> str:
    return f"{n_bytes / 2**30:.2f} GiB"
