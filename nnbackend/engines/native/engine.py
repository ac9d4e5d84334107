"""The CPU engine: products into allocated buffers, and everything else in compiled kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nnbackend.core.optimizers import OptimizerState
from nnbackend.core.propagation import CACHED_ELEMENTS as _BLOCK_ELEMENTS
from nnbackend.core.types import Array
from nnbackend.engines.base import EngineState
from nnbackend.engines.native.kernel_cache import load_kernels
from nnbackend.engines.native.kernels import Kernels
from nnbackend.engines.native.steps import Steps
from nnbackend.engines.tracing.formulas import (
    coefficient_table,
    hidden_kinds,
    is_in_place,
    is_label_target,
)
from nnbackend.parallel import Share

if TYPE_CHECKING:
    from nnbackend.data.examples import Data
    from nnbackend.device import Device
    from nnbackend.engines.base import Problem, Start

__all__ = ["CpuEngine"]

_Array = np.ndarray[Any, Any]

# Steps with fewer operations than this are compiled, since Python's calls would cost more than a
# tenth of such a step. Larger products run on several threads. The threads of SciPy's BLAS, which
# compiled code calls, and those of NumPy's, which a callback may call, spin for a while after each
# product: if both are used, a step takes four times as long.
_COMPILED_FLOPS = 5e6


class CpuEngine:
    """Computes products into allocated buffers, and everything else in kernels fused by Numba.

    The numbers equal those of the reference engine up to rounding. A small network's epochs are one
    compiled call. A large network's steps run in Python, with products in NumPy's BLAS. A formula
    that cannot be recorded, such as a user's activation that branches on data, runs on NumPy.

    Parameters
    ----------
    start : Start
        The problem, its data, and the initial parameters.
    """

    max_epochs_per_call = 2**20
    runs_parts = True

    def __init__(self, start: Start) -> None:
        problem, device, parameters, data = (
            start.problem, start.device, start.parameters, start.data,
        )  # fmt: skip
        self._problem, self._team, self._dropout_rng = problem, start.team, start.dropout
        self._dtype = np.dtype(str(parameters.dtype))
        self._step = 0
        self._xp = device.xp
        self._labels = is_label_target(problem.objective, data.y.ndim)
        kernels = Kernels(problem, self._dtype.name, labels=self._labels)
        self._steps: Steps | None = None
        self._program: Callable[..., tuple[int, bool]]
        if _is_small(problem) and not kernels.unrecorded and start.team is None:
            self._program = load_kernels(kernels.compiled_source()).run
        else:
            module = load_kernels(kernels.source())
            self._steps = Steps(problem, device.xp, kernels, module, start.dropout, start.team)
            self._program = self._steps.run
        self._hyper = np.asarray(kernels.hyperparameters, self._dtype)
        self._allocate(problem, data, device, parameters)
        self._data = data, self._columns(data)
        self._validation: tuple[Data, Any] | None = None
        self._totals = np.zeros(2)

    def _allocate(self, problem: Problem, data: Data, device: Device, parameters: Array) -> None:
        """Allocate every array that a step needs."""
        structure, dtype, rows = problem.objective.structure, self._dtype, problem.batch_size
        sizes = structure.layer_sizes
        self._parameters, self._gradient, self._finite = (
            np.empty(structure.n_parameters, dtype) for _ in range(3)
        )
        self._parameters[:] = self._finite[:] = parameters
        # Numba cannot infer a type for an empty tuple.
        nothing = np.empty((0, 0), dtype)
        initial = problem.optimizer.init(device.xp, self._parameters)
        self._state = tuple(map(np.array, initial)) or (np.empty(0, dtype),)
        self._W, self._b = map(tuple, structure.unflatten(np, self._parameters))
        self._gW, self._gb = map(tuple, structure.unflatten(np, self._gradient))
        self._Z = tuple(np.empty((rows, width), dtype) for width in sizes[1:])
        self._L = np.empty_like(self._Z[-1])
        kinds = hidden_kinds(problem)
        A, H, M, D, numbers = [], [], [], [], []
        for layer, kind in enumerate(zip(structure.hidden, structure.dropout, strict=True)):
            activation, rate = kind
            Z = self._Z[layer]
            A.append(Z if is_in_place(activation, dtype.name) else np.empty_like(Z))
            H.append(np.empty_like(Z) if rate else A[-1])
            M.append(np.empty_like(Z) if rate else nothing)
            D.append(np.empty_like(Z))
            numbers.append(kinds.index((activation, rate > 0.0)))
        self._A, self._H, self._M, self._D = (tuple(x) or (nothing,) for x in (A, H, M, D))
        self._kinds = np.asarray(numbers, np.int64)
        gathered = 0 if rows == data.n_samples and self._team is None else rows
        self._X0 = np.empty((gathered, sizes[0]), dtype)
        self._y0 = np.empty((gathered, *_column(data.y).shape[1:]), data.y.dtype)
        self._w0 = np.ones((rows, 1), dtype)
        self._block = _rows_per_block(sizes, rows)

    def _columns(self, data: Data) -> tuple[_Array, _Array, _Array]:
        """Return the data in the form that the kernels take."""
        weight = np.empty(0, self._dtype) if data.sample_weight is None else data.sample_weight
        # Steps in Python pass X only to NumPy, which takes any array.
        X = data.X if self._steps is not None else _plain(data.X)
        return X, _plain(_column(data.y)), _plain(_column(weight))

    @property
    def parameters(self) -> Array:
        """The current flat parameter vector."""
        return self._parameters

    @property
    def state(self) -> EngineState:
        """A copy of the state between two steps."""
        names = self._problem.optimizer.state_names
        arrays = tuple(array.copy() for array in self._state[: len(names)])
        loss, weight = self._totals.tolist()
        return EngineState(
            self._parameters.copy(),
            self._finite.copy(),
            OptimizerState(self._step, arrays),
            (loss, weight),
            self._dropout_rng.bit_generator.state,
        )

    def set_state(self, state: EngineState) -> None:
        """Continue from a state; call this before the first step."""
        self._parameters[:], self._finite[:] = state.parameters, state.finite
        self._step = state.optimizer.step
        for own, given in zip(self._state, state.optimizer.arrays, strict=False):
            own[...] = given
        self._totals[:] = state.totals or 0.0
        if state.dropout is not None:
            self._dropout_rng.bit_generator.state = state.dropout

    def run(
        self,
        data: Data,
        orders: Sequence[Any] | None,
        rates: Sequence[Sequence[float]],
        *,
        ends: bool = True,
    ) -> tuple[Array, Array]:
        """Run whole epochs, or a part of one; see ``Engine.run``."""
        columns = self._data[1] if data is self._data[0] else self._columns(data)
        rows = None
        if orders is not None:
            rows = np.stack([np.asarray(order, np.int64) for order in orders])
        if self._team is None or self._steps is None or not rates[0]:
            losses = np.empty(len(rates))
            done, is_finite = self._train(columns, rows, rates, losses, ends=ends)
        else:
            # In a team, a call is one epoch or a part of one, so that processes stop together.
            losses, (epoch_rates,) = np.empty(1), rates
            every = np.arange(data.n_samples) if rows is None else rows[0]
            size = len(every) if len(epoch_rates) == 1 else self._problem.batch_size
            for number, rate in enumerate(epoch_rates, 1):
                batch = every[(number - 1) * size : number * size]
                self._steps.share = part = Share.of(self._team, len(batch))
                is_end = ends and number == len(epoch_rates)
                done, is_finite = self._train(
                    columns, batch[None, part.rows], [[rate]], losses, ends=is_end
                )
        return losses[: done if ends else 0], np.asarray(is_finite)

    def _train(
        self,
        columns: tuple[_Array, _Array, _Array],
        order: _Array | None,
        rates: Sequence[Sequence[float]],
        losses: _Array,
        *,
        ends: bool,
    ) -> tuple[int, bool]:
        """Run ``driver.run`` and count the steps."""
        if self._steps is not None:
            self._steps.n_updates = 0
        table = coefficient_table(self._problem.optimizer, rates, self._step)
        with np.errstate(over="ignore"):
            coefficients = table.astype(self._dtype)
        if order is None:
            order = np.empty((0, 0), np.int64)
        try:
            result = self._run(
                True, columns, order, self._w0, coefficients, losses, self._totals, ends
            )
        except BaseException:
            if self._steps is not None:
                self._step += self._steps.n_updates
                if self._steps.is_updating:
                    self.restore(self._finite)
            raise
        self._step += len(table)
        return result

    def _run(
        self, trains: bool, columns: tuple[_Array, _Array, _Array], order: _Array, w0: _Array,
        coefficients: _Array, losses: _Array, totals: _Array, ends: bool,
    ) -> tuple[int, bool]:  # fmt: skip
        # Do not warn here: the training reports a loss that diverges.
        by_rows = trains and self._problem.loss_by_rows
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            return self._program(
                trains, *columns, order, self._X0, self._y0, w0, by_rows, coefficients, losses,
                totals, ends, self._parameters, self._gradient, self._state, self._finite, self._W,
                self._b, self._gW, self._gb, self._Z, self._A, self._H, self._M, self._D, self._L,
                self._kinds, self._hyper, self._block,
            )  # fmt: skip

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
        """Return the loss of the current parameters on ``data`` without penalties, as 0-d array.

        Use the engine's own kernels and BLAS: the threads of two BLAS libraries, which spin for a
        while after each product, would slow each other down.
        """
        objective = self._problem.objective
        if is_label_target(objective, data.y.ndim) != self._labels:
            # The kernels take only the form of the training targets, either labels or rows.
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                return objective.data_loss(
                    self._xp, self._parameters, data.X, data.y, data.sample_weight
                )
        if self._validation is None or self._validation[0] is not data:
            self._validation = data, self._columns(data)
        no_order, no_coefficients = np.empty((0, 0), np.int64), np.empty((0, 0), self._dtype)
        losses = np.empty(1)
        ones = np.ones_like(self._w0)
        self._run(
            False, self._validation[1], no_order, ones, no_coefficients, losses, np.zeros(2), True
        )
        return losses[0, ...]


def _is_small(problem: Problem) -> bool:
    structure = problem.objective.structure
    flops = sum(6 * problem.batch_size * n_in * n_out for n_in, n_out in structure.weight_shapes)
    # NumPy draws dropout masks between the steps, which compiled code cannot.
    return flops < _COMPILED_FLOPS and not structure.has_dropout


def _rows_per_block(layer_sizes: Sequence[int], batch_size: int) -> int:
    """Return how many rows to propagate at once.

    A layer's activations should stay in the second-level cache from product to kernel to product.
    If the weights exceed that cache, read them once for all rows instead.
    """
    width = max(layer_sizes)
    rows = _BLOCK_ELEMENTS // width
    return rows if width <= rows < batch_size else batch_size


def _column(x: Any) -> _Array:
    """Return a vector as a column, and other arrays unchanged."""
    array = np.asarray(x)
    return array[:, None] if array.ndim == 1 else array


def _plain(x: Any) -> _Array:
    """Return a writeable, C-contiguous array, for which the code is compiled."""
    array = np.ascontiguousarray(x)
    return array if array.flags.writeable else array.copy()
