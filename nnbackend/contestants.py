"""What a contestant of ``nnbackend bench`` is; this package, and the limit.

All of them take the same network, initial parameters, mean loss, optimizer and batches: every epoch
visits the rows in a new order, each step takes the next batch, and the mean loss is read once per
epoch. A library is imported by ``load``, in the contestant's own process.
"""

from __future__ import annotations

import contextlib
import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from nnbackend.device import Device, get_device
from nnbackend.engines import ENGINES, default_engine, get_engine
from nnbackend.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    from nnbackend.benchmark import Workload
    from nnbackend.training import TrainingState

__all__ = [
    "Contestant",
    "Limit",
    "NNBackend",
    "NotInstalledError",
    "Parameters",
    "UnsupportedError",
    "own_contestants",
    "own_name",
    "with_engine",
]

Parameters = tuple[list[Any], list[Any]]


class NotInstalledError(Exception):
    """The contestant's library is not there."""


class UnsupportedError(Exception):
    """The contestant's library does not have what the workload asks for, or not on this device."""


class Contestant(ABC):
    """One way to train the network of a workload.

    Parameters
    ----------
    workload : Workload
        What is trained.
    device : str
        ``"cpu"`` or ``"cuda:N"``.
    """

    title: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]] = ("cpu",)
    package: ClassVar[str] = "numpy"

    def __init__(self, workload: Workload, device: str) -> None:
        self.workload = workload
        self.device = device

    @property
    def epochs_per_call(self) -> int:
        """The least number of epochs that ``run`` takes, and what it has to be a multiple of."""
        return 1

    def load(self) -> None:
        """Import the library and wake up the device."""
        self.import_module(self.package)

    def versions(self) -> dict[str, str]:
        """Return the version of every package that does the work."""
        found = {}
        for package in {"numpy", self.package}:
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                found[package] = "unknown"
        return found

    @abstractmethod
    def prepare(self, X: Any, y: Any, parameters: Parameters) -> None:
        """Build the network with the given parameters, and place the data on the device."""

    @abstractmethod
    def reset(self) -> None:
        """Go back to the initial parameters, optimizer state and order of batches."""

    @abstractmethod
    def run(self, epochs: int) -> float:
        """Train for some epochs, to the end on the device; return the last one's mean loss."""

    @abstractmethod
    def parameters(self) -> Parameters:
        """Return weights (n_in, n_out) and biases (n_out,) as NumPy arrays."""

    def run_until(self, is_done: Callable[[], bool], max_epochs: int) -> tuple[float, int]:
        """Train until ``is_done()`` after an epoch; return seconds without it, and the epochs."""
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
        """Begin the random orders of rows anew."""
        # As nnbackend.train draws them.
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


class NNBackend(Contestant):
    """nnbackend, through its public door."""

    title = "nnbackend"
    kinds = ("cpu", "cuda")
    package = "nnbackend"
    engine: ClassVar[str] = "auto"

    def load(self) -> None:
        """Import what a training needs."""
        import nnbackend as nb

        self._nb = nb
        self._train = nb.train
        self._place = get_device(self.device)
        self._place.place(np.zeros(1, np.float32))
        # Timed for a short while, it is still to show what a long training is.
        self._engine = default_engine(self._place) if self.engine == "auto" else self.engine

    def versions(self) -> dict[str, str]:
        """Return the version of the array library, too."""
        import nnbackend as nb

        xp = self._place.xp
        return {"nnbackend": nb.__version__, xp.__name__.rpartition(".")[2]: xp.__version__}

    def prepare(self, X: Any, y: Any, parameters: Parameters) -> None:
        """Place everything on the device, so that only training is timed."""
        self._initial = parameters
        self._net = self.workload.network(self.device)
        self._X, self._y = self._place.place(X), self._place.place(y)
        self.reset()

    def reset(self) -> None:
        """Set the initial parameters; the rest starts anew with every training."""
        self._net.set_parameters(*self._initial)

    def _fit(self, epochs: int, **options: Any) -> Any:
        workload = self.workload
        return self._train(
            self._net,
            self._X,
            self._y,
            optimizer=workload.optimizer,
            epochs=epochs,
            batch_size=workload.batch_size,
            engine=self._engine,
            **options,
        )

    def run(self, epochs: int) -> float:
        """Train with no callbacks."""
        history = self._fit(epochs)
        self._place.synchronize()
        return float(history.loss[-1])

    def run_until(self, is_done: Callable[[], bool], max_epochs: int) -> tuple[float, int]:
        """Train once, with a callback that stops it."""
        checking = 0.0

        def check(state: TrainingState) -> None:
            nonlocal checking
            start = perf_counter()
            if is_done():
                state.stop()
            checking += perf_counter() - start

        start = perf_counter()
        history = self._fit(max_epochs, callbacks=check)
        self._place.synchronize()
        return perf_counter() - start - checking, history.n_epochs

    def parameters(self) -> Parameters:
        """Return the network's own, on the host."""
        to_numpy = self._place.to_numpy
        return [to_numpy(W) for W in self._net.weights], [to_numpy(b) for b in self._net.biases]


def with_engine(name: str) -> type[NNBackend]:
    """Return the contestant that trains with an engine of that name."""

    class Chosen(NNBackend):
        title = f"nnbackend {name}"
        engine = name

    return Chosen


def own_contestants(device: Device) -> dict[str, str]:
    """Return the contestants of this package that differ on a device, with their engines' names."""
    default = default_engine(device)
    found = {own_name("auto"): default}
    for name in ENGINES:
        with contextlib.suppress(InputError, MissingDependencyError):
            if get_engine(name, "float32", device) is not get_engine(default, "float32", device):
                found[own_name(name)] = name
    return found


def own_name(engine: str) -> str:
    """Return what the contestant with an engine is called."""
    return "nnbackend" if engine == "auto" else f"nnbackend-{engine}"


class Limit(Contestant):
    """The matrix products of a step alone, into existing arrays: what no step can do without."""

    title = "products alone"
    kinds = ("cpu", "cuda")

    def load(self) -> None:
        """Take the device's namespace."""
        self._place = get_device(self.device)
        self._xp = self._place.xp
        self._place.place(np.zeros(1, np.float32))

    def prepare(self, X: Any, y: Any, parameters: Parameters) -> None:
        """Make the operands and the results of all products."""
        del y
        weights, _ = parameters
        batch = self.workload.batch_size
        rng = np.random.default_rng(0)
        place = self._place.place
        W = [place(w) for w in weights]
        A = [place(X[:batch])]
        A += [place(rng.standard_normal((batch, w.shape[1]), dtype=np.float32)) for w in weights]
        # For each layer a gradient of its own, so that operands lie where a real step's would.
        dZ = [place(rng.standard_normal((batch, w.shape[1]), dtype=np.float32)) for w in weights]
        last = range(len(W))[::-1]
        pairs = [(A[i], W[i]) for i in range(len(W))]
        pairs += [
            pair for i in last for pair in [(A[i].T, dZ[i]), (dZ[i], W[i].T)][: 2 if i else 1]
        ]
        with self._place.activate():
            self._products = [
                (a, b, self._xp.empty((a.shape[0], b.shape[1]), dtype=self._xp.float32))
                for a, b in pairs
            ]

    def reset(self) -> None:
        """Products have no state."""

    def run(self, epochs: int) -> float:
        """Compute the products of every step."""
        matmul = self._matmul()
        with self._place.activate():
            for _ in range(epochs * self.workload.n_batches):
                for a, b, out in self._products:
                    matmul(a, b, out=out)
        self._place.synchronize()
        return math.nan

    def _matmul(self) -> Callable[..., Any]:
        # The library's own function: the compatibility layer may wrap it.
        return np.matmul if self._place.kind == "cpu" else self._xp.matmul

    def parameters(self) -> Parameters:
        """Products learn nothing."""
        raise UnsupportedError("learns nothing")
