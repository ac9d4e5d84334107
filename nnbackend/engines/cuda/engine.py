"""The CUDA engine: planned buffers, fused kernels, and steps captured as graphs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from nnbackend.core.optimizers import OptimizerState
from nnbackend.core.types import Array
from nnbackend.engines.base import EngineState
from nnbackend.engines.cuda.kernels import CudaKernels
from nnbackend.engines.cuda.layout import Layout
from nnbackend.engines.cuda.plan import Buffer, Launch
from nnbackend.engines.cuda.planner import Planner
from nnbackend.engines.cuda.runtime import CudaExecutor
from nnbackend.engines.cuda.tiny import TinyPlanner
from nnbackend.engines.driving import Alone
from nnbackend.engines.reference import ReferenceEngine
from nnbackend.engines.steps import data_loss
from nnbackend.engines.tracing.formulas import UnrecordedError, coefficient_table, is_label_target
from nnbackend.errors import InputError

if TYPE_CHECKING:
    from nnbackend.data.examples import Data
    from nnbackend.device import Device
    from nnbackend.engines.base import Crew, Engine, Problem, Start

__all__ = ["CudaEngine", "cuda_engine"]

_LOGGER = logging.getLogger("nnbackend")

# The launches of a graph: enough that the cost of starting it does not matter.
_GRAPH_LAUNCHES = 1024

# Shared memory that a kernel of one block needs in addition to its arrays.
_RESERVED_BYTES = 16 * 1024

# The cycles of a launch within a graph: a guess, to be replaced by a measurement.
_LAUNCH_CYCLES = 2500

# Indices in the buffers ``counters`` and ``status``, as in the kernels.
_DRAWN = 2
_EPOCHS, _IS_BAD = 0, 1


def cuda_engine(start: Start) -> Engine:
    """Return a ``CudaEngine``, or the reference engine if a formula cannot be recorded.

    That is the case if a user's activation, loss or optimizer branches on data or uses functions
    that kernels do not have.
    """
    if start.team is not None:
        raise InputError(
            "expected 'reference' on GPUs with a communicator, got 'cuda', whose steps are "
            "planned for one process",
            argument="engine",
        )
    problem, dtype = start.problem, str(start.parameters.dtype)
    if problem.precision != "float32" and dtype != "float32":
        raise InputError(
            f"expected 'float32' with a network of dtype {dtype}, got "
            f"{problem.precision!r}: it is a way to multiply float32 numbers",
            argument="precision",
        )
    precision = "float64" if dtype == "float64" else problem.precision
    try:
        kernels = CudaKernels(
            problem, dtype, precision, labels=is_label_target(problem.objective, start.data.y.ndim)
        )
    except UnrecordedError as error:
        if problem.precision != "float32":
            raise InputError(
                f"{problem.precision!r} needs kernels, but a formula of this problem "
                f"cannot be made one ({error}); use 'float32'",
                argument="precision",
            ) from error
        _LOGGER.warning(
            "nnbackend: a formula cannot be made a CUDA kernel (%s): training runs on the slower "
            "reference engine",
            error,
        )
        return ReferenceEngine(start)
    return CudaEngine(start, kernels)


class _Program(Protocol):
    """A way to run epochs: by launches of their steps, or all in one kernel."""

    layout: Layout
    buffers: dict[str, Buffer]
    gathers: bool
    max_epochs: int
    source: str
    hyperparameters: list[float]

    def start(self, executor: CudaExecutor, dropout_rng: np.random.Generator) -> None:
        """Prepare the first step."""

    def take_generator(self, executor: CudaExecutor, dropout_rng: np.random.Generator) -> None:
        """Draw dropout masks with a generator's state; call this before the first step."""

    def refresh(self, executor: CudaExecutor) -> None:
        """Follow a change of the parameters that no step made."""

    def run(self, executor: CudaExecutor, n_epochs: int, orders: Sequence[Any] | None) -> None:
        """Run epochs with the coefficients and orders in the buffers, from their beginning."""


class CudaEngine:
    """Plans steps once and replays them; the numbers equal the reference engine's up to rounding.

    A tiny network's epochs are one kernel (``tiny.py``). The steps of other networks are captured
    as graphs, many short ones in one graph. Without cuBLASLt, products cannot be captured, so
    launches go out one by one. Validation uses the formulas of the reference engine.

    Parameters
    ----------
    start : Start
        The problem, its data, and the initial parameters.
    kernels : CudaKernels
        The kernels of the problem.
    """

    runs_parts = False

    def __init__(self, start: Start, kernels: CudaKernels) -> None:
        problem, device, parameters, data = (
            start.problem, start.device, start.parameters, start.data,
        )  # fmt: skip
        self._problem, self._device, self._xp = problem, device, device.xp
        self._executor = executor = CudaExecutor(device, kernels.precision)
        self._program = program = _choose(problem, kernels, data, executor)
        executor.load(program.source)
        executor.allocate(program.buffers)
        if not data.streams:
            executor.adopt("X", data.X)
        executor.adopt("y", data.y)
        if data.sample_weight is not None:
            executor.adopt("weight", data.sample_weight)
        self._step = 0
        self._dropout_rng = start.dropout
        self._rng_start = start.dropout.bit_generator.state
        self._n_samples = data.n_samples
        self._has_rows_in_order = False
        with executor.ordered():
            executor.upload("hyper", np.asarray(program.hyperparameters))
            self._write("parameters", parameters)
            self._write("finite", parameters)
            for i, entry in enumerate(problem.optimizer.init(self._xp, parameters)):
                self._write(f"state{i}", entry)
            program.start(executor, start.dropout)
            program.refresh(executor)

    @staticmethod
    def crew(most: int) -> Crew:
        """Return a crew that does tasks one by one."""
        del most
        return Alone()

    def current(self) -> Engine:
        """Return this engine."""
        return self

    @property
    def device(self) -> Device:
        """The device of all arrays."""
        return self._device

    @property
    def max_epochs_per_call(self) -> int:
        """The largest number of epochs of one call of ``run``."""
        return self._program.max_epochs

    @property
    def parameters(self) -> Array:
        """A copy of the current flat parameter vector."""
        with self._executor.ordered():
            return self._program.layout.pack(self._xp, self._executor.buffers["parameters"])

    @property
    def state(self) -> EngineState:
        """A copy of the state; this also advances the host's generator of dropout masks."""
        buffers, pack = self._executor.buffers, self._program.layout.pack
        with self._executor.ordered():
            parameters, finite = (
                pack(self._xp, buffers[name]) for name in ("parameters", "finite")
            )
            if self._problem.objective.structure.has_dropout:
                drawn = int(self._device.to_numpy(buffers["counters"])[_DRAWN])
                _advance(self._dropout_rng, self._rng_start, drawn, str(parameters.dtype))
        dropout = self._dropout_rng.bit_generator.state
        return EngineState(parameters, finite, self.optimizer_state, None, dropout)

    @property
    def optimizer_state(self) -> OptimizerState:
        """A copy of the optimizer's part of the state."""
        buffers, pack = self._executor.buffers, self._program.layout.pack
        names = [f"state{i}" for i in range(len(self._problem.optimizer.state_names))]
        with self._executor.ordered():
            arrays = tuple(pack(self._xp, buffers[name]) for name in names)
        return OptimizerState(self._step, arrays)

    def set_state(self, state: EngineState) -> None:
        """Continue from a state; call this before the first step."""
        self._step = state.optimizer.step
        with self._executor.ordered():
            self._write("parameters", state.parameters)
            self._write("finite", state.finite)
            for i, array in enumerate(state.optimizer.arrays):
                self._write(f"state{i}", array)
            self._program.refresh(self._executor)
            if state.dropout is not None:
                self._dropout_rng.bit_generator.state = self._rng_start = state.dropout
                self._program.take_generator(self._executor, self._dropout_rng)

    def run(
        self,
        data: Data,
        orders: Sequence[Any] | None,
        rates: Sequence[Sequence[float]],
        *,
        ends: bool = True,
    ) -> tuple[Array, Array]:
        """Run whole epochs on the engine's own examples; see ``Engine.run``."""
        del data
        if not ends:
            raise NotImplementedError("its steps are planned for whole epochs")
        coefficients = coefficient_table(self._problem.optimizer, rates, self._step)
        executor, n_epochs = self._executor, len(rates)
        with executor.ordered():
            executor.upload("coefficients", coefficients.reshape(-1))
            self._set_order(orders)
            executor.buffers["status"][...] = 0
            self._program.run(executor, n_epochs, orders)
            losses = self._xp.asarray(executor.buffers["losses"][:n_epochs], copy=True)
            status = self._xp.asarray(executor.buffers["status"], copy=True)
        self._step += len(coefficients)
        if n_epochs > 1:
            losses = losses[: int(status[_EPOCHS])]
        return losses, status[_IS_BAD] == 0

    def _set_order(self, orders: Sequence[Any] | None) -> None:
        """Copy the orders of all epochs to the device, one after another."""
        if not self._program.gathers:
            return
        if orders is not None:
            self._executor.upload("order", np.concatenate(orders))
        elif not self._has_rows_in_order:
            rows = np.arange(self._n_samples, dtype=np.int32)
            self._executor.upload("order", np.tile(rows, self.max_epochs_per_call))
        self._has_rows_in_order = orders is None

    def restore_finite(self) -> None:
        """Restore the parameters after the last epoch without a NaN or infinity."""
        with self._executor.ordered():
            buffers = self._executor.buffers
            buffers["parameters"][...] = buffers["finite"]
            self._program.refresh(self._executor)

    def snapshot(self) -> Any:
        """Return a copy of the current parameters."""
        return self.parameters

    def restore(self, snapshot: Any) -> None:
        """Restore the parameters of a snapshot."""
        with self._executor.ordered():
            self._write("parameters", snapshot)
            self._program.refresh(self._executor)

    def data_loss(self, data: Data) -> Array:
        """Return the loss of the current parameters on ``data`` without penalties, as 0-d array."""
        return data_loss(self._problem, self._device, self.parameters, data)

    def _write(self, name: str, packed: Array) -> None:
        self._program.layout.unpack(packed, self._executor.buffers[name])


def _choose(problem: Problem, kernels: CudaKernels, data: Data, executor: CudaExecutor) -> _Program:
    """Return the faster program, by a rough count of cycles."""
    structure = problem.objective.structure
    itemsize = 8 if kernels.dtype == "float64" else 4
    # At least parameters and gradient have to fit.
    is_small = 2 * structure.n_parameters * itemsize < executor.shared_bytes
    if (
        is_small
        and kernels.precision == kernels.dtype
        and not structure.has_dropout
        and not data.streams
    ):
        tiny = TinyPlanner(
            problem,
            dtype=kernels.dtype,
            n_samples=data.n_samples,
            labels=kernels.labels,
            weighted=data.sample_weight is not None,
        )
        # The smallest number of launches of a step.
        launches = 3 * len(structure.weight_shapes) + 1
        if (
            tiny.shared_bytes + _RESERVED_BYTES <= executor.shared_bytes
            and tiny.step_cycles < launches * _LAUNCH_CYCLES
        ):
            _LOGGER.info("nnbackend: this network's epochs run as one kernel on the GPU")
            return _Tiny(tiny)
    return _Steps(problem, kernels, data, executor)


class _Tiny:
    """Runs all epochs in one kernel; see ``_Program``."""

    def __init__(self, planner: TinyPlanner) -> None:
        self._planner = planner
        self.layout, self.buffers = planner.layout, planner.buffers
        self.gathers, self.max_epochs = planner.gathers, planner.max_epochs
        self.source, self.hyperparameters = planner.source, planner.hyperparameters

    def start(self, executor: CudaExecutor, dropout_rng: np.random.Generator) -> None:
        """Give the kernel its shared memory."""
        del dropout_rng
        executor.allow_shared("run_epochs", self._planner.shared_bytes)

    def take_generator(self, executor: CudaExecutor, dropout_rng: np.random.Generator) -> None:
        """Do nothing, since there is no dropout."""

    def refresh(self, executor: CudaExecutor) -> None:
        """Do nothing, since the kernel reads only the parameters themselves."""

    def run(self, executor: CudaExecutor, n_epochs: int, orders: Sequence[Any] | None) -> None:
        """Run epochs from the beginning of the coefficients and of the order."""
        executor.run([self._planner.epochs(n_epochs, shuffled=orders is not None)])


class _Steps:
    """Runs epochs as launches, captured as graphs; see ``_Program``."""

    def __init__(
        self,
        problem: Problem,
        kernels: CudaKernels,
        data: Data,
        executor: CudaExecutor,
    ) -> None:
        self.source, self.hyperparameters = kernels.source, kernels.hyperparameters
        self._planner = planner = Planner(
            problem,
            dtype=kernels.dtype,
            precision=kernels.precision,
            n_samples=data.n_samples,
            labels=kernels.labels,
            weighted=data.sample_weight is not None,
            streams=data.streams,
            reductions=kernels.reductions,
            n_hyper=len(kernels.hyperparameters),
            offers=executor.offers,
        )
        self.layout, self.buffers = planner.layout, planner.buffers
        self.gathers, self.max_epochs = planner.gathers, planner.max_epochs
        self._has_dropout = problem.objective.structure.has_dropout
        self._size, self._X = problem.batch_size, data.X if data.streams else None
        stages = (0, 1) if data.streams else (0,)
        steps = [planner.step(self._size, stage) for stage in stages]
        last = [planner.step(planner.last_rows, stage) for stage in stages]
        end = planner.end_of_epoch()
        self._full_steps = data.n_samples // self._size
        self._launches: dict[str, list[Launch]] = {"step": steps[0], "end": end}
        if data.streams:
            self._launches |= {"step1": steps[1], "last": last[0], "last1": last[1]}
        elif self._full_steps < planner.steps_per_epoch:
            self._launches["end"] = end = [*last[0], *end]
        self._is_one_graph = len(steps[0]) * self._full_steps + len(end) <= _GRAPH_LAUNCHES
        if self._is_one_graph:
            self._launches["epoch"] = [*steps[0] * self._full_steps, *end]
        self._graphs: dict[tuple[str, int], Callable[[], None]] = {}

    def start(self, executor: CudaExecutor, dropout_rng: np.random.Generator) -> None:
        """Copy the kernels' inputs to the device, with the data in the form that they take."""
        segments = [(bias.offset, bias.offset + bias.size) for bias in self.layout.biases]
        executor.upload("biases", np.asarray(segments).reshape(-1))
        self.take_generator(executor, dropout_rng)
        executor.run(self._planner.preparation())

    def take_generator(self, executor: CudaExecutor, dropout_rng: np.random.Generator) -> None:
        """Draw dropout masks with a generator's state; call this before the first step."""
        if self._has_dropout:
            executor.upload("generator", _generator_words(dropout_rng))

    def refresh(self, executor: CudaExecutor) -> None:
        """Write the parameters as operands of the products."""
        executor.run(self._planner.refresh())

    def run(self, executor: CudaExecutor, n_epochs: int, orders: Sequence[Any] | None) -> None:
        """Run epochs from the beginning of the coefficients and of the order."""
        # Keep the count of random numbers drawn so far.
        executor.buffers["counters"][:_DRAWN] = 0
        executor.buffers["sums"][...] = 0
        if self._X is not None:
            self._stream(executor, None if orders is None else orders[0])
        elif self._is_one_graph:
            self._repeat(executor, "epoch", n_epochs)
        else:
            for _ in range(n_epochs):
                self._repeat(executor, "step", self._full_steps)
                self._repeat(executor, "end", 1)

    def _stream(self, executor: CudaExecutor, order: Any) -> None:
        """Run an epoch with batches from the host, copying one while another is used."""
        for number in range(self._planner.steps_per_epoch):
            rows = slice(number * self._size, (number + 1) * self._size)
            stage = number % 2
            name = "step" if number < self._full_steps else "last"
            with executor.staged(stage, self._X, rows if order is None else order[rows]):
                self._repeat(executor, f"{name}{stage or ''}", 1)
        self._repeat(executor, "end", 1)

    def _repeat(self, executor: CudaExecutor, name: str, count: int) -> None:
        """Run a list of launches many times, by graphs of one, two, four, ... repetitions."""
        launches = self._launches[name]
        # Without graphs, a longer list is not faster.
        most = max(1, _GRAPH_LAUNCHES // len(launches)) if executor.captures else 1
        while count > 0:
            times = 1 << (min(count, most).bit_length() - 1)
            if (name, times) not in self._graphs:
                self._graphs[name, times] = executor.graph(launches * times)
            self._graphs[name, times]()
            count -= times


def _advance(rng: np.random.Generator, start: Any, drawn: int, dtype: str) -> None:
    """Set a generator to its state after drawing numbers from the state ``start``."""
    rng.bit_generator.state = start
    # Two float32 numbers use 64 random bits.
    per_draw = 1 if dtype == "float64" else 2
    rng.bit_generator.advance(drawn // per_draw)  # type: ignore[attr-defined]
    if drawn % per_draw:
        rng.random(dtype=np.float32)


def _generator_words(rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Return state and increment of NumPy's default generator, PCG64, as 64-bit words."""
    state = rng.bit_generator.state["state"]
    words = [part for name in ("state", "inc") for part in divmod(state[name], 2**64)]
    return np.asarray(words, np.uint64)
