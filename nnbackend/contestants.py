"""What a contestant of ``nnbackend bench`` is; this package, and the limit.

All of them take the same network, initial parameters, mean loss, optimizer and batches: every epoch
visits the rows in a new order, each step takes the next batch, and the mean loss is read once per
epoch. The data are float32, and ``precision`` says how products of them are computed. A library is
imported by ``load``, in the contestant's own process, which it may set up as it needs.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from nnbackend.device import Device, get_device
from nnbackend.engines import ENGINES, EngineFactory, get_engine
from nnbackend.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    from nnbackend.benchmark import Workload
    from nnbackend.engines.cublaslt import CublasLt, Prepared
    from nnbackend.engines.plan import Product
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
    precision : {"float32", "tf32", "bfloat16"}
        How products are computed.
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

        self._train = nb.train
        self._place = get_device(self.device)
        self._place.place(np.zeros(1, np.float32))
        try:
            # Timed for a short while, it is still to show what a long training is.
            self._engine = _long_training(self.engine, self.precision, self._place)
        except InputError as error:
            raise UnsupportedError(str(error)) from error

    def versions(self) -> dict[str, str]:
        """Return the version of the array library, too."""
        import nnbackend as nb

        library = self._place.xp.__name__.rpartition(".")[2]
        return {"nnbackend": nb.__version__, library: sys.modules[library].__version__}

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
            precision=self.precision,
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


def own_contestants(device: Device, precision: str = "float32") -> dict[str, str]:
    """Return the contestants of this package that differ on a device, with their engines' names."""
    found = {}
    with contextlib.suppress(InputError):
        found[own_name("auto")] = _long_training("auto", precision, device)
    return found | {
        own_name(name): name for name in _engines(precision, device) if name not in found.values()
    }


def _engines(precision: str, device: Device) -> dict[str, EngineFactory]:
    """Return the engines that a device has for a precision."""
    found = {}
    for name in ENGINES:
        with contextlib.suppress(InputError, MissingDependencyError):
            found[name] = get_engine(name, precision, device)
    return found


def _long_training(engine: str, precision: str, device: Device) -> str:
    """Return the engine that a name stands for in a long training, or raise as ``get_engine``."""
    chosen = get_engine(engine, precision, device)
    return next(name for name, one in _engines(precision, device).items() if one is chosen)


def own_name(engine: str) -> str:
    """Return what the contestant with an engine is called."""
    return "nnbackend" if engine == "auto" else f"nnbackend-{engine}"


class Limit(Contestant):
    """The matrix products of a step alone, into existing arrays: what no step can do without.

    On a GPU they are launched by a CUDA graph of an epoch, through cuBLASLt, each with the fastest
    algorithm that is proposed for it. Without cuBLASLt, ``cupy.matmul`` launches them one by one;
    ``versions`` says which it was.
    """

    title = "products alone"
    kinds = ("cpu", "cuda")
    # What NVIDIA recommends from Hopper on.
    workspace_bytes: ClassVar[int] = 32 << 20

    @property
    def epochs_per_call(self) -> int:
        """As many full-batch steps on a GPU as make a launch's own cost small."""
        return 64 if self.device != "cpu" and self.workload.n_batches == 1 else 1

    def load(self) -> None:
        """Take the device's namespace and, on a GPU, cuBLASLt."""
        self._place = get_device(self.device)
        self._xp = self._place.xp
        self._place.place(np.zeros(1, np.float32))
        self._how = "numpy.matmul"
        self._lt = self._cublaslt() if self._place.kind == "cuda" else None
        if self._lt is None and self.precision != "float32":
            raise UnsupportedError(f"computes products in {self.precision} with cuBLASLt alone")

    def _cublaslt(self) -> CublasLt | None:
        from nnbackend.engines.cublaslt import CublasLt, CublasLtError

        with self._place.activate():
            self._workspace = self._xp.empty(self.workspace_bytes, dtype=self._xp.uint8)
            try:
                lt = CublasLt(self._workspace.data.ptr, self.workspace_bytes)
            except CublasLtError as error:
                self._how = f"cupy.matmul, launched one by one, since {error}"
                return None
        self._how = f"cuBLASLt {lt.library.cublasLtGetVersion()}, launched by a CUDA graph"
        return lt

    def versions(self) -> dict[str, str]:
        """Return what computes the products, too."""
        library = self._xp.__name__.rpartition(".")[2]
        return {library: sys.modules[library].__version__, "products": self._how}

    def prepare(self, X: Any, y: Any, parameters: Parameters) -> None:
        """Make the operands and the results of all products."""
        del X, y, parameters
        rng = np.random.default_rng(0)
        arrays: dict[str, Any] = {}
        products = self._plan()
        with self._place.activate():
            for product in products:
                for operand in (product.A, product.B):
                    if operand.buffer not in arrays:
                        values = rng.standard_normal((operand.rows, operand.ld), dtype=np.float32)
                        if operand.dtype == "bfloat16":
                            # The upper half of a float32.
                            values = (values.view(np.uint32) >> 16).astype(np.uint16)
                        arrays[operand.buffer] = self._place.place(values)
                shape = (product.out.rows, product.out.ld)
                arrays[product.out.buffer] = self._xp.empty(shape, dtype=self._xp.float32)
            if self._lt is None:
                self._products = [
                    (
                        arrays[each.A.buffer].T if each.transpose_A else arrays[each.A.buffer],
                        arrays[each.B.buffer].T if each.transpose_B else arrays[each.B.buffer],
                        arrays[each.out.buffer],
                    )
                    for each in products
                ]
            else:
                # A graph keeps no array alive.
                self._arrays = arrays
                self._stream = self._xp.cuda.Stream(non_blocking=True)
                self._place.synchronize()
                step = [self._fastest(self._lt, each) for each in products]
                n_steps = self.workload.n_batches * self.epochs_per_call
                self._graph = self._captured(step * n_steps)

    def _plan(self) -> list[Product]:
        """Return the products of a step.

        Each layer has matrices of its own, so that operands lie where a real step's would.
        """
        from nnbackend.engines.plan import Matrix, Product

        batch, precision = self.workload.batch_size, self.precision
        operands = "bfloat16" if precision == "bfloat16" else "float32"
        # Rows that begin at multiples of 16 bytes are faster to read for cuBLASLt.
        multiple = 1 if self._lt is None else 8

        def matrix(name: str, rows: int, columns: int, dtype: str = "float32") -> Matrix:
            return Matrix(name, rows, columns, -(-columns // multiple) * multiple, dtype=dtype)

        forward, backward = [], []
        for layer, (n_in, n_out) in enumerate(pairwise(self.workload.layer_sizes)):
            A = matrix(f"A{layer}", batch, n_in, operands)
            W = matrix(f"W{layer}", n_in, n_out, operands)
            dZ = matrix(f"dZ{layer}", batch, n_out, operands)
            Z, dW = matrix(f"Z{layer}", batch, n_out), matrix(f"dW{layer}", n_in, n_out)
            forward.append(Product(A, W, Z, precision=precision))
            if layer > 0:
                dA = matrix(f"dA{layer}", batch, n_in)
                backward.append(Product(dZ, W, dA, transpose_B=True, precision=precision))
            backward.append(Product(A, dZ, dW, transpose_A=True, precision=precision))
        return [*forward, *backward[::-1]]

    def _fastest(self, lt: CublasLt, product: Product) -> Prepared:
        """Return a product that uses the fastest of the algorithms proposed for it."""
        pointers = {name: array.data.ptr for name, array in self._arrays.items()}
        prepared = lt.prepare(product, pointers)
        if prepared is None:
            raise UnsupportedError(f"cuBLASLt has no algorithm for {product}")

        def seconds(algorithm: int) -> float:
            prepared.choose(algorithm)
            # The first run loads the kernel, which a capture does not allow.
            prepared.run(self._stream.ptr)
            graph = self._captured([prepared] * 20)
            times = []
            for _ in range(3):
                start = perf_counter()
                graph.launch(self._stream)
                self._stream.synchronize()
                times.append(perf_counter() - start)
            return min(times)

        prepared.choose(min(range(prepared.algorithms), key=seconds))
        return prepared

    def _captured(self, launches: Sequence[Prepared]) -> Any:
        with self._stream:
            self._stream.begin_capture()
            for prepared in launches:
                prepared.run(self._stream.ptr)
            return self._stream.end_capture()

    def reset(self) -> None:
        """Products have no state."""

    def run(self, epochs: int) -> float:
        """Compute the products of every step."""
        with self._place.activate():
            if self._lt is None:
                matmul = np.matmul if self._place.kind == "cpu" else self._xp.matmul
                for _ in range(epochs * self.workload.n_batches):
                    for a, b, out in self._products:
                        matmul(a, b, out=out)
                self._place.synchronize()
            else:
                for _ in range(epochs // self.epochs_per_call):
                    self._graph.launch(self._stream)
                self._stream.synchronize()
        return math.nan

    def parameters(self) -> Parameters:
        """Products learn nothing."""
        raise UnsupportedError("learns nothing")
