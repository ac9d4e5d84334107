"""The contestants of this package: ``nnbackend.train`` with each of its engines."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from nnbackend.bench.contestant import Contestant, Parameters, UnsupportedError
from nnbackend.device import Device, get_device
from nnbackend.engines import ENGINES, default_engine, get_engine
from nnbackend.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    from nnbackend.training.history import TrainingState

__all__ = ["NNBackend", "own_contestants", "own_name", "with_engine"]


class NNBackend(Contestant):
    """nnbackend, through its public functions, with the engine that a user gets by default."""

    title = "nnbackend"
    kinds = ("cpu", "cuda")
    package = "nnbackend"
    engine: ClassVar[str] = "auto"

    def load(self) -> None:
        """Import everything that training needs."""
        import nnbackend as nb

        self._train = nb.train
        self._place = get_device(self.device)
        self._place.place(np.zeros(1, np.float32))
        try:
            get_engine(self.engine, self.precision, self._place)
        except InputError as error:
            raise UnsupportedError(str(error)) from error

    def versions(self) -> dict[str, str]:
        """Return the versions of this package and of the array library."""
        import nnbackend as nb

        library = self._place.xp.__name__.rpartition(".")[2]
        return {"nnbackend": nb.__version__, library: sys.modules[library].__version__}

    def prepare(self, X: Any, y: Any, parameters: Parameters) -> None:
        """Copy everything to the device, so that only training is timed."""
        self._initial = parameters
        self._net = self.workload.network(self.device)
        self._X, self._y = self._place.place(X), self._place.place(y)
        self.reset()

    def reset(self) -> None:
        """Set the initial parameters; every training starts with new optimizer state and orders."""
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
            engine=self.engine,
            precision=self.precision,
            **options,
        )

    def run(self, epochs: int) -> float:
        """Train without callbacks."""
        history = self._fit(epochs)
        self._place.synchronize()
        return float(history.loss[-1])

    def run_until(self, is_done: Callable[[], bool], max_epochs: int) -> tuple[float, int]:
        """Train once, with a callback that stops the training."""
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
        """Return the network's parameters, on the host."""
        to_numpy = self._place.to_numpy
        return [to_numpy(W) for W in self._net.weights], [to_numpy(b) for b in self._net.biases]


def with_engine(name: str) -> type[NNBackend]:
    """Return the contestant that trains with the named engine."""

    class Chosen(NNBackend):
        title = f"nnbackend {name}"
        engine = name

    return Chosen


def own_contestants(device: Device, precision: str = "float32") -> dict[str, str]:
    """Return the contestants that run on a device, with their engines' names.

    The first one is the default, unless it lacks the precision.
    """
    default = default_engine(device)
    found = {}
    for name in dict.fromkeys((default, *ENGINES)):
        with contextlib.suppress(InputError, MissingDependencyError):
            get_engine(name, precision, device)
            found[own_name("auto" if name == default else name)] = name
    return found


def own_name(engine: str) -> str:
    """Return the name of the contestant with an engine."""
    return "nnbackend" if engine == "auto" else f"nnbackend-{engine}"
