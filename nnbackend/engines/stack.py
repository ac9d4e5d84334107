"""Do the tasks of many networks as one stack: arrays with an axis more, one product for all."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import fields, replace
from itertools import pairwise
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from nnbackend.core.propagation import CACHED_ELEMENTS
from nnbackend.core.regularization import dropout_mask
from nnbackend.core.types import Array, Namespace
from nnbackend.engines.base import Done, Steps
from nnbackend.engines.column import number_of_each
from nnbackend.engines.driving import one_by_one
from nnbackend.engines.steps import (
    LEAST_ROWS,
    Batch,
    Variables,
    data_loss,
    end_epoch,
    host_dtype,
    take_step,
)
from nnbackend.engines.tracing.formulas import coefficient_table, is_own

if TYPE_CHECKING:
    from nnbackend.core.optimizers import Optimizer
    from nnbackend.device import Device
    from nnbackend.engines.base import Evaluation, Problem, Task

__all__ = ["Stacks", "kind_of_network"]

_T = TypeVar("_T")

_LOGGER = logging.getLogger("nnbackend")

# The elements of a stack's largest array, of activations or parameters. On a GPU only memory limits
# them: a trace and the states are some ten such arrays, each a sixteenth of a gigabyte at most.
_GPU_ELEMENTS = 2**24
# On the CPU a stack saves calls of functions, but beyond the caches more than it saves is lost:
# networks of more than half of this are faster one by one.
_CPU_ELEMENTS = CACHED_ELEMENTS


def kind_of_network(problem: Problem, device: Device, dtype: Any) -> Hashable:
    """Return what networks of a stack have in common; None for one that is no part of any.

    Formulas of a user's own may read a whole array, so they see that of their own network alone.
    """
    objective, optimizer = problem.objective, problem.optimizer
    structure = objective.structure
    formulas: tuple[Any, ...] = (*structure.hidden, objective.loss, optimizer)
    if not all(is_own(formula) for formula in formulas):
        return None
    choices = tuple(
        getattr(optimizer, entry.name)
        for entry in fields(optimizer)  # type: ignore[arg-type]
        if entry.name not in _number_names(optimizer) and entry.name != "learning_rate"
    )
    return (
        device, dtype, problem.precision, problem.loss_by_rows,
        structure.layer_sizes, structure.hidden, structure.output,
        tuple(rate > 0.0 for rate in structure.dropout),
        objective.loss, objective.penalty_per_sample,
        type(optimizer), optimizer.state_names, choices,
        problem.clip_value is None, problem.clip_norm is None,
    )  # fmt: skip


class Stacks:
    """A crew that does all its tasks when it is asked for some, those of like networks at once."""

    has_threads = False

    def __init__(self) -> None:
        self._tasks: list[Task] = []
        # For kinds of tasks whose stack has failed, how many one may have.
        self._most: dict[Hashable, int] = {}

    def take(self, task: Task) -> None:
        """Take a task over."""
        self._tasks.append(task)

    def done(self, seconds: float) -> list[tuple[Task, Done]]:
        """Do all tasks, if there is time."""
        if seconds <= 0:
            return []
        tasks, self._tasks = self._tasks, []
        return list(zip(tasks, self.do(tasks), strict=True))

    def close(self) -> None:
        """Forget the tasks."""
        self._tasks.clear()

    def do(self, tasks: Sequence[Task]) -> list[Done]:
        """Do tasks of reference engines, those that can as stacks, the others one by one."""
        groups: dict[Hashable, list[int]] = {}
        for place, task in enumerate(tasks):
            groups.setdefault(_kind_of_task(task) or place, []).append(place)
        outcomes: dict[int, Done] = {}
        for kind, places in groups.items():
            most = min(_most(tasks[places[0]]), self._most.get(kind, len(places)))
            for some in _split(places, most):
                done = self._do([tasks[place] for place in some], kind)
                outcomes.update(zip(some, done, strict=True))
        return [outcomes[place] for place in range(len(tasks))]

    def _do(self, tasks: Sequence[Any], kind: Hashable) -> Sequence[Done]:
        """Do tasks of a kind as one stack."""
        if len(tasks) == 1:
            return one_by_one(tasks)
        start, device = perf_counter(), tasks[0].engine.device
        try:
            with (
                device.activate(),
                np.errstate(over="ignore", invalid="ignore", divide="ignore"),
            ):
                values = _run(tasks) if isinstance(tasks[0], Steps) else _losses(tasks)
        except Exception as error:  # noqa: BLE001 - a task at fault raises it alone, too
            done = one_by_one(tasks)
            if all(entry.error is None for entry in done):
                self._limit(kind, len(tasks), error)
            return done
        seconds = (perf_counter() - start) / len(tasks)
        return [Done(value, None, seconds) for value in values]

    def _limit(self, kind: Hashable, n: int, error: Exception) -> None:
        """Make smaller stacks, or none, where one has failed that no member is to blame for."""
        self._most[kind] = most = max(1, n // 2) if isinstance(error, MemoryError) else 1
        _LOGGER.warning(
            "nnbackend: a stack of %d networks failed (%s: %s): they are trained %s, and slower",
            n, type(error).__name__, error, "one by one" if most == 1 else f"{most} at a time",
        )  # fmt: skip


def _kind_of_task(task: Task) -> Hashable:
    """Return what tasks of a stack have in common; None for one that is no part of any."""
    engine: Any = task.engine
    data, kind = task.data, engine.kind
    if kind is None or data.streams:
        return None
    if not isinstance(task, Steps):
        return "loss", kind, id(data)
    if len(task.rates) != 1:
        return None
    totals, is_weighted = engine.variables.totals, data.sample_weight is not None
    n_before = None
    if totals is not None:
        n_before = totals[1] if isinstance(totals[1], float) else "weights"
        # A checkpoint has the sums as floats, which the first step turns into arrays.
        if isinstance(totals[0], float) or is_weighted != (n_before == "weights"):
            return None
    X, y = data.X, data.y
    is_in_order = task.orders is None
    return (
        "steps", kind, _n_rows(task), engine.problem.batch_size, len(task.rates[0]), task.ends,
        is_in_order, n_before, is_weighted, X.dtype, y.dtype, y.shape[1:],
    )  # fmt: skip


def _n_rows(task: Steps) -> int:
    """Return how many rows a task takes, with repetitions."""
    return task.data.n_samples if task.orders is None else len(task.orders[0])


def _most(task: Task) -> int:
    """Return how many networks like a task's one stack may have."""
    engine: Any = task.engine
    structure, is_host = engine.problem.objective.structure, engine.device.kind == "cpu"
    if isinstance(task, Steps):
        rows = _n_rows(task)
        if len(task.rates[0]) > 1:
            rows = min(rows, engine.problem.batch_size)
    else:
        # Blocks bound the memory of an evaluation, but are larger than caches.
        rows = task.data.n_samples if is_host else min(LEAST_ROWS, task.data.n_samples)
    largest: int = max(rows * max(structure.layer_sizes), structure.n_parameters)
    return max(1, (_CPU_ELEMENTS if is_host else _GPU_ELEMENTS) // largest)


def _split(sequence: Sequence[_T], most: int) -> Iterator[Sequence[_T]]:
    """Yield parts of equal length, up to one, and of ``most`` entries at most."""
    n_parts = math.ceil(len(sequence) / most)
    ends = [len(sequence) * part // n_parts for part in range(n_parts + 1)]
    for start, stop in pairwise(ends):
        yield sequence[start:stop]


def _losses(tasks: Sequence[Evaluation]) -> list[Any]:
    """Return the loss of each network on the data of all."""
    engines: list[Any] = [task.engine for task in tasks]
    device = engines[0].device
    parameters = device.xp.stack([engine.parameters for engine in engines])
    losses = data_loss(engines[0].problem, device, parameters, tasks[0].data)
    return list(device.to_numpy(losses))


def _run(tasks: Sequence[Steps]) -> list[tuple[Any, Any]]:
    """Run the steps of all networks; return losses and whether all is finite, on the host."""
    engines: list[Any] = [task.engine for task in tasks]
    generators = [engine.dropout.bit_generator for engine in engines]
    has_dropout = engines[0].problem.objective.structure.has_dropout
    states = [generator.state for generator in generators] if has_dropout else []
    try:
        stack = _Stack(engines)
        stack.run(tasks)
        nothing = np.empty(0), np.asarray(True)
        values = stack.end_epoch() if tasks[0].ends else [nothing] * len(tasks)
    except BaseException:
        for generator, state in zip(generators, states, strict=False):
            generator.state = state
        raise
    stack.write_back(len(tasks[0].rates[0]))
    return values


class _Stack:
    """Networks that take steps at once.

    Parameters
    ----------
    engines : sequence of ReferenceEngine
        The engines of the networks, which keep their variables until ``write_back``.
    """

    def __init__(self, engines: Sequence[Any]) -> None:
        self._engines, first = engines, engines[0]
        self._device, self._xp = first.device, first.device.xp
        self._dtype = host_dtype(first.parameters)
        self._problem = self._joined_problem()
        self._variables = self._joined_variables().begin_epoch()

    def _number(self, numbers: Sequence[float]) -> Any:
        return number_of_each(numbers, self._device, self._dtype)

    def _joined_problem(self) -> Problem:
        """Return the problem of all, with columns for the numbers in which they differ."""
        problems = [engine.problem for engine in self._engines]
        first = problems[0]
        objectives = [problem.objective for problem in problems]
        rates = zip(*(objective.structure.dropout for objective in objectives), strict=True)
        structure = replace(
            first.objective.structure, dropout=tuple(self._number(rates_) for rates_ in rates)
        )
        objective = replace(
            first.objective,
            structure=structure,
            l1=self._number([objective.l1 for objective in objectives]),
            l2=self._number([objective.l2 for objective in objectives]),
        )
        clips: dict[str, Any] = {
            name: self._number([getattr(problem, name) for problem in problems])
            for name in ("clip_value", "clip_norm")
        }
        # Its own checks take floats alone.
        optimizer = copy.copy(first.optimizer)
        for name in _number_names(optimizer):
            number = self._number([getattr(problem.optimizer, name) for problem in problems])
            object.__setattr__(optimizer, name, number)
        joined: Problem = replace(first, objective=objective, optimizer=optimizer, **clips)
        return joined

    def _joined_variables(self) -> Variables:
        each = [engine.variables for engine in self._engines]
        stack = self._xp.stack
        totals = None
        if each[0].totals is not None:
            sums, weights = zip(*(own.totals for own in each if own.totals), strict=True)
            is_count = isinstance(weights[0], float)
            totals = stack(sums), weights[0] if is_count else stack(weights)
        states = zip(*(own.state for own in each), strict=True)
        return Variables(
            stack([own.parameters for own in each]),
            stack([own.finite for own in each]) if totals is not None else None,
            tuple(map(stack, states)),
            totals,
        )

    def run(self, tasks: Sequence[Steps]) -> None:
        """Take the steps of tasks."""
        n_steps = len(tasks[0].rates[0])
        coefficients = self._coefficients([task.rates for task in tasks])
        rows = _Rows(tasks, self._xp, self._device)
        size = rows.n if n_steps == 1 else self._problem.batch_size
        for step in range(n_steps):
            batch = rows.batch(step * size, min((step + 1) * size, rows.n))
            self._variables = take_step(
                self._xp, self._problem, self._variables, batch,
                self._draw_masks(batch.n_rows), tuple(column[step] for column in coefficients),
            )  # fmt: skip

    def _coefficients(self, rates: Sequence[Sequence[Sequence[float]]]) -> list[Any]:
        """Return for each of the optimizer's coefficients a sequence of those of the steps."""
        tables: dict[Hashable, Any] = {}
        each = []
        for engine, own in zip(self._engines, rates, strict=True):
            optimizer = engine.problem.optimizer
            key = optimizer, engine.step, tuple(own[0])
            if key not in tables:
                tables[key] = coefficient_table(optimizer, own, engine.step)
            each.append(tables[key])
        if len(tables) == 1:
            return list(zip(*each[0].tolist(), strict=True))
        # (n_coefficients, n_steps, n_networks, 1)
        table = np.stack(each).transpose(2, 1, 0)[..., None]
        found = []
        for column in table:
            if (column == column[:, :1]).all():
                found.append(column[:, 0, 0].tolist())
            else:
                placed = self._device.place(column.astype(self._dtype))
                found.append([placed[step, ...] for step in range(len(column))])
        return found

    def _draw_masks(self, n_rows: int) -> list[Array | None] | None:
        """Draw a batch's masks, those of each network by its own generator."""
        structure = self._problem.objective.structure
        if not structure.has_dropout:
            return None
        masks: list[Array | None] = []
        dtype = self._dtype.type
        for rate, width in zip(structure.dropout, structure.layer_sizes[1:-1], strict=True):
            if not rate:
                masks.append(None)
                continue
            uniform = np.empty((len(self._engines), n_rows, width), dtype)
            for engine, own in zip(self._engines, uniform, strict=True):
                engine.dropout.random(out=own, dtype=dtype)
            masks.append(dropout_mask(self._xp, self._device.place(uniform), rate))
        return masks

    def end_epoch(self) -> list[tuple[Any, Any]]:
        """End the epoch; return each network's loss (1,), and whether all is finite, on the host.

        There is one transfer for all.
        """
        xp = self._xp
        self._variables, loss, is_finite = end_epoch(xp, self._variables)
        both = self._device.to_numpy(xp.stack([loss, xp.astype(is_finite, loss.dtype)]))
        losses, finite = both[0], both[1] != 0
        return [(losses[k : k + 1], finite[k]) for k in range(len(self._engines))]

    def write_back(self, n_steps: int) -> None:
        """Give each engine its row of the variables."""
        parameters, finite, state, totals = self._variables
        for k, engine in enumerate(self._engines):
            own = None
            if totals is not None:
                loss, weight = totals
                own = loss[k, ...], weight if isinstance(weight, float) else weight[k, ...]
            engine.variables = Variables(
                parameters[k, ...], finite[k, ...], tuple(array[k, ...] for array in state), own
            )
            engine.step += n_steps


class _Rows:
    """The rows of data that networks take, each by its own order.

    Parameters
    ----------
    tasks : sequence of Steps
        Tasks of a kind.
    xp : namespace
        The namespace of the data.
    device : Device
        The device.

    Attributes
    ----------
    n : int
        The number of rows that each network takes.
    """

    def __init__(self, tasks: Sequence[Steps], xp: Namespace, device: Device) -> None:
        self._xp, self._all = xp, [task.data for task in tasks]
        # Networks with the same data take their rows at once.
        self._is_same = all(data is self._all[0] for data in self._all)
        self._orders, self.n = None, self._all[0].n_samples
        if tasks[0].orders is not None:
            orders = np.stack([task.orders[0] for task in tasks if task.orders is not None])
            self._orders, self.n = device.place(orders), orders.shape[1]

    def batch(self, start: int, stop: int) -> Batch:
        """Return the examples of a step, with the stack's axis unless all have the same."""
        arrays = zip(*(data.arrays for data in self._all), strict=True)
        X, y, weight = (self._take(own, slice(start, stop)) for own in arrays)
        if weight is not None and weight.ndim == 1:
            # Each network has a sum of its own.
            weight = self._xp.broadcast_to(weight, (len(self._all), *weight.shape))
        return Batch(X, y, weight, stop - start)

    def _take(self, arrays: Sequence[Any], rows: slice) -> Any:
        """Return some rows of X, of y or of the weights, given those of each network's data."""
        xp, orders, x = self._xp, self._orders, arrays[0]
        if x is None:
            return None
        if orders is None:
            return x[rows, ...] if self._is_same else xp.stack([own[rows, ...] for own in arrays])
        if not self._is_same:
            own_rows = enumerate(arrays)
            return xp.stack([xp.take(own, orders[k, rows], axis=0) for k, own in own_rows])
        taken = xp.take(x, xp.reshape(orders[:, rows], (-1,)), axis=0)
        return xp.reshape(taken, (len(arrays), -1, *x.shape[1:]))


def _number_names(optimizer: Optimizer) -> list[str]:
    """Return the names of an optimizer's numbers, without the learning rate."""
    names = [entry.name for entry in fields(optimizer)]  # type: ignore[arg-type]
    return [
        name
        for name in names
        if name != "learning_rate" and isinstance(getattr(optimizer, name), float)
    ]
