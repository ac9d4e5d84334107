"""Contestant: the interface of one way to train the network of a workload.

All contestants take the same network, initial parameters, mean loss, optimizer and batches: every
epoch visits the rows in a new order, each step takes the next batch, and the mean loss is read once
per epoch. The data are float32, and ``precision`` says how products of them are computed. ``load``
imports the library in the contestant's own process, which it may set up as it needs.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

if TYPE_CHECKING:
    from nnbackend.bench.workload import Workload

__all__ = ["Contestant", "NotInstalledError", "Parameters", "UnsupportedError"]

Parameters = tuple[list[Any], list[Any]]


class NotInstalledError(Exception):
    """The contestant's library is not installed."""


class UnsupportedError(Exception):
    """The contestant's library cannot train the workload, or not on this device."""


class Contestant(ABC):
    """One way to train the network of a workload.

    Parameters
    ----------
    workload : Workload
        The workload to train.
    device : str
        ``"cpu"`` or ``"cuda:N"``.
    precision : {"float32", "tf32", "bfloat16"}
        The precision of matrix products.
    """

    title: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]] = ("cpu",)
    package: ClassVar[str] = "numpy"

    def __init__(self, workload: Workload, device: str, precision: str = "float32") -> None:
        self.workload = workload
        self.device = device
        self.precision = precision

    @property
    def epochs_per_call(self) -> int:
        """The number of epochs of one compiled call; ``run`` takes multiples of it."""
        return 1

    def load(self) -> None:
        """Import the library and wake up the device."""
        self.import_module(self.package)

    def versions(self) -> dict[str, str]:
        """Return the versions of the packages that do the work."""
        found = {}
        for package in {"numpy", self.package}:
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                found[package] = "unknown"
        return found

    @abstractmethod
    def prepare(self, X: Any, y: Any, parameters: Parameters) -> None:
        """Build the network with these parameters, and copy the data to the device."""

    @abstractmethod
    def reset(self) -> None:
        """Go back to the initial parameters, optimizer state and order of batches."""

    @abstractmethod
    def run(self, epochs: int) -> float:
        """Train for some epochs, wait for the device, and return the last epoch's mean loss."""

    @abstractmethod
    def parameters(self) -> Parameters:
        """Return weights (n_in, n_out) and biases (n_out,) as NumPy arrays."""

    def run_until(self, is_done: Callable[[], bool], max_epochs: int) -> tuple[float, int]:
        """Train until ``is_done()`` is true after an epoch; return seconds and epochs.

        The seconds exclude the calls of ``is_done``.
        """
        seconds = 0.0
        for epoch in range(1, max_epochs + 1):
            start = perf_counter()
            self.run(1)
            seconds += perf_counter() - start
            if is_done():
                return seconds, epoch
        return seconds, max_epochs

    def import_module(self, module: str) -> Any:
        """Import a module of the contestant's package."""
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name == module.partition(".")[0]:
                raise NotInstalledError(
                    f"not installed; install it with: pip install {self.package}"
                ) from error
            raise

    def restart_orders(self) -> None:
        """Start the random orders of rows from the beginning."""
        # Draw them as nnbackend.train does.
        seed = np.random.SeedSequence(0).spawn(2)[0]
        self._order_rng = np.random.default_rng(seed)

    def draw_order(self) -> Any:
        """Return the next epoch's order of rows."""
        return self._order_rng.permutation(self.workload.n_samples)

    def choose(self, table: dict[str, Any]) -> Any:
        """Return the table's entry for the hidden activation."""
        if self.workload.hidden not in table:
            raise UnsupportedError(f"has no {self.workload.hidden!r} activation here")
        return table[self.workload.hidden]
