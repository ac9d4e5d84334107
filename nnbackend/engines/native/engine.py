"""The native engine: whole epochs in one call of the C library."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from nnbackend.core.optimizers import OptimizerState
from nnbackend.core.propagation import output_elements
from nnbackend.core.types import Array
from nnbackend.engines.base import Done, EngineState, Steps
from nnbackend.engines.native import interface
from nnbackend.engines.native.formulas import Formulas, record
from nnbackend.engines.native.interface import (
    NO_CALLBACK,
    PLAIN,
    SECONDS_PER_CALL,
    WRONG_ROWS,
    Functions,
    Mode,
    Question,
    address,
    address_of,
    aligned,
)
from nnbackend.engines.native.library import library
from nnbackend.engines.native.pool import Pool
from nnbackend.engines.native.table import program_table
from nnbackend.engines.native.threads import threads_worth
from nnbackend.engines.tracing.formulas import coefficient_table, is_label_target
from nnbackend.parallel import Share

if TYPE_CHECKING:
    from nnbackend.core.types import Namespace
    from nnbackend.data.examples import Data
    from nnbackend.device import Device
    from nnbackend.engines.base import Crew, Engine, Problem, Start, Task
    from nnbackend.parallel import Team

__all__ = ["Call", "NativeEngine"]

_Array = np.ndarray[Any, Any]

# With fewer examples, rows of a layer's units fill vectors as well.
_LEAST_BATCH_OF_NARROW = 32


class NativeEngine:
    """Runs whole epochs in the C library; what cannot be recorded runs on NumPy in between.

    The numbers equal those of the reference engine up to rounding. They do not depend on the number
    of threads.

    Parameters
    ----------
    start : Start
        The problem, its data, and the initial parameters.
    """

    max_epochs_per_call = 2**20
    runs_parts = True

    def __init__(self, start: Start) -> None:
        problem, parameters, data = start.problem, start.parameters, start.data
        self._problem, self._team, self._device = problem, start.team, start.device
        self._random = interface.Random()
        self._random.dictionary = start.dropout.bit_generator.state
        self._xp, self._dtype = start.device.xp, np.dtype(str(parameters.dtype))
        self._labels = is_label_target(problem.objective, data.y.ndim)
        structure = problem.objective.structure
        own = library()
        if own is None:
            raise RuntimeError("the native library is missing")
        self._functions: Functions = interface.functions(own, self._dtype.name)
        formulas = record(problem, self._dtype.name, labels=self._labels)
        self._allocate(problem, start)
        self._calls = _Calls(problem, self._xp, self._dtype, self._vectors, start.team)
        self._callback = NO_CALLBACK
        self._needs_calls = bool(formulas.unrecorded) or start.team is not None
        if self._needs_calls:
            self._callback = _callback(self._calls, self._labels)
        self._network = self._new(problem, formulas)
        self._step = 0
        self._totals, self._no_totals = np.zeros(2), np.zeros(2)
        self._totals_address = address_of(self._totals)
        self._no_totals_address = address_of(self._no_totals)
        self._sizes = structure.layer_sizes
        finalizer = weakref.finalize(self, self._functions.free, self._network)
        # When Python ends, a daemon thread may still be in the library.
        finalizer.atexit = False
        self._columns_of: list[tuple[Data, interface.Run, Any]] = []

    def _allocate(self, problem: Problem, start: Start) -> None:
        n = problem.objective.structure.n_parameters
        self._parameters, self._gradient, self._finite = (aligned(n, self._dtype) for _ in "pgf")
        self._parameters[:] = self._finite[:] = start.parameters
        self._state = []
        for initial in problem.optimizer.init(self._xp, self._parameters):
            if np.shape(initial) == (n,) and initial.dtype == self._dtype:
                array = aligned(n, self._dtype)
                array[:] = initial
            else:
                array = np.array(initial)
            self._state.append(array)
        self._vectors = self._parameters, self._gradient, self._state

    def _new(self, problem: Problem, formulas: Formulas) -> int:
        """Make the library's network; keep alive what it refers to."""
        structure, dtype = problem.objective.structure, self._dtype
        sizes, batch = structure.layer_sizes, problem.batch_size
        programs = program_table(formulas, self._functions, dtype)
        layers = (interface.LayerSpec * len(structure.weight_shapes))()
        for index, (n_in, n_out) in enumerate(structure.weight_shapes):
            layers[index].n_in, layers[index].n_out = n_in, n_out
            if index < len(structure.hidden):
                rate = structure.dropout[index]
                kind = structure.hidden[index], rate > 0.0
                layer = layers[index]
                layer.activate, layer.pull_back, layer.in_place = programs.hidden[kind]
                layer.dropout = rate
        is_narrow = max(sizes) <= interface.NARROW and batch >= _LEAST_BATCH_OF_NARROW
        n = structure.n_parameters
        # An update that is not recorded may have any state.
        own_state = self._state if formulas.update is not None else []
        state = (ctypes.c_void_p * max(len(own_state), 1))(
            *(address(array, dtype, (n,), writes=True) for array in own_state)
        )
        vectors = self._parameters, self._gradient, self._finite
        spec = interface.Spec(
            n_layers=len(layers),
            batch=batch,
            n_targets=0 if self._labels else structure.n_targets,
            labels=self._labels,
            features_major=is_narrow and not (self._needs_calls or structure.has_dropout),
            layers=ctypes.addressof(layers),
            programs=ctypes.addressof(programs.specs),
            n_programs=len(programs.specs),
            loss=programs.loss,
            penalize=programs.penalize,
            update=programs.update,
            n_clips=len(formulas.clips),
            clips=ctypes.addressof(programs.clips),
            penalty_per_sample=problem.objective.penalty_per_sample,
            by_rows=problem.loss_by_rows,
            n_state=len(own_state),
            n_coefficients=len(problem.optimizer.coefficients(1.0, 1)),
            parameters=address(vectors[0], dtype, (n,), writes=True),
            gradient=address(vectors[1], dtype, (n,), writes=True),
            finite=address(vectors[2], dtype, (n,), writes=True),
            state=ctypes.addressof(state),
            random=ctypes.addressof(self._random),
        )
        self._kept = programs, layers, state
        # Only one thread may call Python, or fill a tile.
        is_alone = formulas.unrecorded or spec.features_major
        self._n_threads = 1 if is_alone else threads_worth(structure, batch)
        network = self._functions.new(ctypes.byref(spec), self._n_threads)
        if not network:
            raise MemoryError("the training's buffers do not fit the memory")
        return int(network)

    def _columns(self, data: Data) -> interface.Run:
        """Return a run on data; it holds the addresses of the arrays, and its owner the arrays."""
        for known, run, _ in self._columns_of:
            if known is data:
                return run
        n, dtype = data.n_samples, self._dtype
        X = np.require(data.X, None, PLAIN)
        y = np.require(data.y, np.int64 if self._labels else dtype, PLAIN)
        run = interface.Run(
            X=address(X, dtype, (n, self._sizes[0])),
            n_rows=n,
            call=self._callback,
        )
        if self._labels:
            run.label = address(y, np.int64, (n,))
        else:
            n_targets = self._problem.objective.structure.n_targets
            run.y = address(y, dtype, (n, n_targets) if y.ndim == 2 else (n,))
        weight = None
        if data.sample_weight is not None:
            weight = np.require(data.sample_weight, None, PLAIN)
            run.weight = address(weight, dtype, (n,))
        # The training data, and the data of validation.
        self._columns_of = [*self._columns_of[-1:], (data, run, (X, y, weight))]
        return run

    @property
    def device(self) -> Device:
        """The device of all arrays."""
        return self._device

    @property
    def parameters(self) -> Array:
        """The current flat parameter vector."""
        return self._parameters

    @property
    def state(self) -> EngineState:
        """A copy of the state between two steps."""
        loss, weight = self._totals.tolist()
        return EngineState(
            self._parameters.copy(),
            self._finite.copy(),
            self.optimizer_state,
            (loss, weight),
            self._random.dictionary,
        )

    @property
    def optimizer_state(self) -> OptimizerState:
        """A copy of the optimizer's part of the state."""
        return OptimizerState(self._step, tuple(array.copy() for array in self._state))

    def set_state(self, state: EngineState) -> None:
        """Continue from a state; call this before the first step."""
        self._parameters[:], self._finite[:] = state.parameters, state.finite
        self._step = state.optimizer.step
        for own, given in zip(self._state, state.optimizer.arrays, strict=True):
            own[...] = given
        self._totals[:] = state.totals or 0.0
        if state.dropout is not None:
            self._random.dictionary = state.dropout

    def current(self) -> Engine:
        """Return this engine."""
        return self

    def run(
        self,
        data: Data,
        orders: Sequence[Any] | None,
        rates: Sequence[Sequence[float]],
        *,
        ends: bool = True,
    ) -> tuple[Array, Array]:
        """Run whole epochs, or a part of one; see ``Engine.run``."""
        if self._team is None or not rates[0]:
            return self._finish(self._begin_steps(data, orders, rates, ends=ends))
        return self._run_shares(data, orders, rates, ends=ends)

    def _begin_steps(
        self, data: Data, orders: Any, rates: Sequence[Sequence[float]], *, ends: bool
    ) -> Call:
        rows, table = self._rows_and_coefficients(data, orders, rates)
        return self._begin(Mode.TRAIN, data, rows, np.empty(len(rates)), table, ends=ends)

    def _rows_and_coefficients(
        self, data: Data, orders: Any, rates: Sequence[Sequence[float]]
    ) -> tuple[_Array | None, _Array]:
        """Return the orders as one array, and the optimizer's coefficients for all steps."""
        table = coefficient_table(self._problem.optimizer, rates, self._step, self._dtype)
        rows = None
        if orders is not None:
            rows = np.asarray(orders[0] if len(orders) == 1 else orders, np.int64, order="C")
            rows = rows.reshape(len(rates), -1)
        self._check_rates(data.n_samples if rows is None else rows.shape[1], rates)
        return rows, table

    def _check_rates(self, n_samples: int, rates: Sequence[Sequence[float]]) -> None:
        """Require a rate for each step: the library reads so many."""
        n_steps = math.ceil(n_samples / self._problem.batch_size)
        if any(len(epoch_rates) != n_steps for epoch_rates in rates):
            found = list(map(len, rates))
            raise ValueError(f"expected {n_steps} rates for each epoch, got {found}")

    def _run_shares(
        self, data: Data, orders: Any, rates: Sequence[Sequence[float]], *, ends: bool
    ) -> tuple[Array, Array]:
        """Run this process's part of each step; processes of a team stop together, after a step."""
        assert self._team is not None  # noqa: S101
        rows, coefficients = self._rows_and_coefficients(data, orders, rates)
        every = np.arange(data.n_samples) if rows is None else rows[0]
        size = len(every) if len(coefficients) == 1 else self._problem.batch_size
        losses, result = np.empty(1), (np.empty(0), np.asarray(True))
        for number, row in enumerate(coefficients, 1):
            batch = every[(number - 1) * size : number * size]
            self._calls.share = part = Share.of(self._team, len(batch))
            is_end = ends and number == len(coefficients)
            own = batch[None, part.rows]
            result = self._finish(
                self._begin(Mode.TRAIN, data, own, losses, row[None], ends=is_end)
            )
        return result

    def _begin(
        self,
        mode: int,
        data: Data,
        rows: _Array | None,
        losses: _Array,
        coefficients: _Array,
        *,
        ends: bool = True,
    ) -> Call:
        """Return a call of the library that has taken no step yet."""
        run, n_epochs = self._columns(data), len(losses)
        n_samples = data.n_samples if rows is None else rows.shape[1]
        run.mode, run.n_samples, run.n_epochs, run.ends = mode, n_samples, n_epochs, ends
        run.order = None if rows is None else address(rows, np.int64, (n_epochs, n_samples))
        run.losses, run.coefficients = address_of(losses), address_of(coefficients)
        run.totals = self._totals_address if mode == Mode.TRAIN else self._no_totals_address
        run.n_threads, run.seconds, run.spent = self._n_threads, SECONDS_PER_CALL, 0.0
        run.epoch = run.start = run.step = run.is_over = run.has_failed = 0
        calls = self._calls
        calls.coefficients, share = coefficients, calls.share if mode == Mode.TRAIN else None
        run.reduces = share is not None
        if share is not None:
            run.batch_rows, run.first_row = share.n, share.rows.start
        return Call(run, losses, ends, self._step, (rows, coefficients))

    def _finish(self, call: Call) -> tuple[Array, Array]:
        """Run the library until a call is over; return its result."""
        run, function = call.run, self._functions.run
        # A signal's handler may raise between two calls.
        while not (run.is_over or run.has_failed):
            try:
                function(self._network, run)
            finally:
                self.count_steps(call)
        return self._result(call)

    def count_steps(self, call: Call) -> None:
        """Count the steps that a call has taken."""
        if call.run.mode == Mode.TRAIN:
            self._step = call.steps_before + call.run.step

    def _result(self, call: Call) -> tuple[Array, Array]:
        """Return the losses of a call that is over, and whether all is finite."""
        run = call.run
        if run.has_failed:
            self._raise(run.has_failed)
        return call.losses[: run.epoch if call.ends else 0], np.asarray(bool(run.is_finite))

    @staticmethod
    def crew(most: int) -> Crew:
        """Return a crew that does each task in one of several threads."""
        return Pool(most)

    @property
    def n_threads(self) -> int:
        """The number of threads that run a step of this network alone."""
        return self._n_threads

    def is_alone_with(self, task: Task) -> bool:
        """Whether a task needs Python, in which only one thread at a time can be."""
        return self._needs_calls or self._labels != is_label_target(
            self._problem.objective, task.data.y.ndim
        )

    def begin(self, task: Task) -> Call:
        """Return the call that does a task in a single thread."""
        if isinstance(task, Steps):
            call = self._begin_steps(task.data, task.orders, task.rates, ends=task.ends)
        else:
            call = self._begin_loss(task.data)
        call.run.n_threads = 1
        return call

    def outcome(self, task: Task, call: Call) -> Done:
        """Return the outcome of a task whose call is over."""
        self.count_steps(call)
        try:
            losses, is_finite = self._result(call)
        except Exception as error:  # noqa: BLE001 - it ends the task's training, no other
            return Done(None, error, call.run.spent)
        value = (losses, is_finite) if isinstance(task, Steps) else losses[0, ...]
        return Done(value, None, call.run.spent)

    @property
    def handle(self) -> tuple[int | None, int]:
        """The address of the function that goes on with a call, and of the library's network."""
        return self._functions.go_on, self._network

    def _raise(self, reason: int) -> NoReturn:
        """Raise what an answer to the library raised, or what the library refused."""
        if reason == WRONG_ROWS:
            raise IndexError("an order names rows that the data lacks")
        error, self._calls.error = self._calls.error, None
        if self._calls.is_updating:
            self.restore(self._finite)
            self._calls.is_updating = False
        if error is None:
            # Only a signal's handler raises where an answer cannot catch it.
            self._callback, self._columns_of = _callback(self._calls, self._labels), []
            raise KeyboardInterrupt
        try:
            raise error
        finally:
            # The error refers to this frame, and the frame to the engine.
            del error

    def restore_finite(self) -> None:
        """Restore the parameters after the last epoch without a NaN or infinity."""
        self._parameters[...] = self._finite

    def snapshot(self) -> Any:
        """Return a copy of the current parameters."""
        return self._parameters.copy()

    def restore(self, snapshot: Any) -> None:
        """Restore the parameters of a snapshot."""
        self._parameters[...] = snapshot

    def data_loss(self, data: Data) -> Array:
        """Return the loss of the current parameters on ``data`` without penalties, as 0-d array."""
        objective = self._problem.objective
        if is_label_target(objective, data.y.ndim) != self._labels:
            # The programs take only the form of the training targets, either labels or rows.
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                return objective.data_loss(
                    self._xp, self._parameters, data.X, data.y, data.sample_weight
                )
        return self._finish(self._begin_loss(data))[0][0, ...]

    def _begin_loss(self, data: Data) -> Call:
        self._no_totals[:] = 0.0
        nothing = np.empty((0, 0), self._dtype)
        return self._begin(Mode.LOSS, data, None, np.empty(1), nothing)

    def value_and_gradient(self, data: Data) -> tuple[float, Array]:
        """Return the objective of the current parameters on ``data``, and its gradient.

        They are without dropout and clipping. The gradient is memory of the engine: the next call
        changes it. All rows, of which there are no more than in a batch, count as one batch.
        """
        if not 0 < data.n_samples <= self._problem.batch_size:
            raise ValueError(f"expected 1 to {self._problem.batch_size} rows, got {data.n_samples}")
        value = np.empty(1)
        no_rates = np.empty((0, 0), self._dtype)
        self._finish(self._begin(Mode.GRADIENT, data, None, value, no_rates, ends=False))
        return float(value[0]), self._gradient


class Call(NamedTuple):
    """A call of the library.

    Attributes
    ----------
    run : Run
        Where it is.
    losses : array (n_epochs,)
        The losses of its epochs.
    ends : bool
        Whether these end within the call.
    steps_before : int
        The steps that were taken before it.
    arrays : tuple
        What the library reads; it has to live as long.
    """

    run: interface.Run
    losses: _Array
    ends: bool
    steps_before: int
    arrays: tuple[Any, ...]


class _Calls:
    """What the library asks Python for: formulas that are not recorded, and a team's sums.

    Formulas get copies, which they may keep: the library's memory changes, and is freed.

    Attributes
    ----------
    share : Share or None
        With a team, this process's part of the next batch.
    error : BaseException or None
        What an answer raised; the library returns first.
    coefficients : array (n_steps, n_coefficients)
        The coefficients of the steps of this call.
    is_updating : bool
        Whether an update has changed only some of the parameters.
    """

    def __init__(
        self,
        problem: Problem,
        xp: Namespace,
        dtype: Any,
        vectors: tuple[_Array, _Array, list[_Array]],
        team: Team | None,
    ) -> None:
        self._problem, self._xp, self._dtype, self._team = problem, xp, dtype, team
        self._parameters, self._gradient, self._state = vectors
        self.share: Share | None = None
        self.error: BaseException | None = None
        self.coefficients: _Array | None = None
        self.is_updating = False

    def answer(self, request: interface.Request, labels: bool) -> None:
        """Do what the library asks for."""
        what, layer, rows = request.what, request.layer, request.rows
        structure, xp = self._problem.objective.structure, self._xp
        if what == Question.REDUCE:
            self._reduce(request.arrays)
        elif what == Question.UPDATE:
            self._update(layer)
        elif what == Question.OUTPUT_LOSS:
            self._loss(request.arrays, rows, labels=labels)
        else:
            shape = rows, structure.layer_sizes[layer + 1]
            first, second, third, fourth = (
                self._view(request.arrays[k], shape, self._dtype) for k in range(4)
            )
            activation, drops = structure.hidden[layer], structure.dropout[layer] > 0.0
            if what == Question.ACTIVATE:
                Z, A, H, M = first, second, third, fourth
                A[:] = activation.function(xp, Z.copy())
                if drops:
                    np.multiply(A, M, out=H)
            elif what == Question.PULL_BACK:
                D, Z, A, M = first, second, third, fourth
                if drops:
                    D *= M
                D *= activation.derivative(xp, Z.copy(), A.copy())

    @staticmethod
    def _view(memory: int, shape: tuple[int, ...], dtype: Any) -> _Array:
        """Return the array at an address."""
        dtype = np.dtype(dtype)
        kind = ctypes.c_char * (math.prod(shape) * dtype.itemsize)
        return np.frombuffer(kind.from_address(memory), dtype).reshape(shape)

    def _reduce(self, arrays: Any) -> None:
        """Reduce gradient, loss, weight and rows to those of the whole batch."""
        assert self._team is not None and self.share is not None  # noqa: PT018, S101
        loss, weight = (self._view(arrays[k], (1,), np.float64) for k in range(2))
        rows = self._view(arrays[2], (1,), np.intp)
        own = 0.0 if self.share.is_idle else float(weight[0])
        loss[0], weight[0] = self._team.reduce_step(self._gradient, float(loss[0]), own)
        rows[0] = self.share.n

    def _update(self, step: int) -> None:
        optimizer, state = self._problem.optimizer, self._state
        assert self.coefficients is not None  # noqa: S101
        new, new_state = optimizer.update(
            self._xp,
            self._parameters.copy(),
            self._gradient.copy(),
            tuple(array.copy() for array in state),
            tuple(self.coefficients[step]),
        )
        self.is_updating = True
        self._parameters[:] = new
        for entry, value in zip(state, new_state, strict=True):
            entry[...] = value
        self.is_updating = False

    def _loss(self, arrays: Any, rows: int, *, labels: bool) -> None:
        objective = self._problem.objective
        width = objective.structure.layer_sizes[-1]
        Z = self._view(arrays[0], (rows, width), self._dtype)
        if labels:
            target = self._view(arrays[1], (rows,), np.int64)
        else:
            n_targets = objective.structure.n_targets
            target = self._view(arrays[1], (rows, n_targets), self._dtype)
        share = self._view(arrays[2], (rows, 1), self._dtype)
        L, dZ = output_elements(
            self._xp, objective.structure.output, objective.loss, Z.copy(), target.copy()
        )
        self._view(arrays[3], (rows,), self._dtype)[:] = np.sum(L * share, axis=1)
        Z[:] = dZ * share


def _callback(calls: _Calls, labels: bool) -> Any:
    """Return the function that the library calls."""
    answers = _answers(calls, labels)
    next(answers)
    return interface.CALLBACK(answers.send)


def _answers(calls: _Calls, labels: bool) -> Generator[int, int, None]:
    """Answer each request, given its address, by 1; or by 0, and keep the error.

    A signal's handler may raise wherever Python runs, also before a function's first line, or where
    a loop begins anew. A generator goes on within its ``try``.
    """
    result = 1
    while True:
        try:
            while True:
                request = yield result
                result = 1
                calls.answer(interface.Request.from_address(request), labels)
        except GeneratorExit:
            return
        except BaseException as error:  # noqa: BLE001 - it is raised when the library has returned
            calls.error, result = error, 0
