"""Training steps run from Python: NumPy's products, compiled kernels on all threads."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from nnbackend.core.activations import Activation
from nnbackend.core.propagation import output_elements
from nnbackend.core.regularization import dropout_mask
from nnbackend.engines import driver
from nnbackend.engines.program import Kernels, hidden_kinds

if TYPE_CHECKING:
    from nnbackend.core.types import Namespace
    from nnbackend.engines import Problem

__all__ = ["Steps"]

_Array = np.ndarray[Any, Any]
_Kernel = Callable[..., Any]

# Elements that a thread must have to be worth waking: about 30 us of work.
_ELEMENTS_PER_THREAD = 2**16
_MAX_THREADS = 8


class Steps:
    """Where the driver's functions, run in Python, find their kernels.

    Parameters
    ----------
    problem : Problem
        What is to be trained, and how.
    xp : namespace
        NumPy's array API namespace, for formulas that could not be recorded: they run as they
        stand.
    kernels : Kernels
        What was recorded.
    module : module
        Compiled from it.
    dropout_rng : numpy.random.Generator
        Draws the dropout masks.

    Attributes
    ----------
    is_updating : bool
        Whether the parameters are between two steps: some are updated, and some are not.
    """

    def __init__(
        self,
        problem: Problem,
        xp: Namespace,
        kernels: Kernels,
        module: Any,
        dropout_rng: np.random.Generator,
    ) -> None:
        self._problem = problem
        self._labels = kernels.labels
        self._xp = xp
        self._dropout_rng = dropout_rng
        self._threads = _Threads()
        self.is_updating = False
        self._activations: list[tuple[_Kernel, _Kernel]] = []
        for number, (activation, drops) in enumerate(hidden_kinds(problem)):
            formulas = _HiddenFormulas(xp, activation, drops=drops)
            self._activations.append(
                tuple(
                    formula if name in kernels.unrecorded else getattr(module, name)
                    for name, formula in (
                        (f"activate_{number}", formulas.activate),
                        (f"pull_back_{number}", formulas.pull_back),
                    )
                )  # type: ignore[arg-type]
            )
        unrecorded = kernels.unrecorded
        self.output_loss: _Kernel = (
            self._loss if "output_loss" in unrecorded else module.output_loss
        )
        self._update_range: _Kernel | None = (
            None if "update_range" in unrecorded else module.update_range
        )
        self.penalize: _Kernel = module.penalize
        self.clip: _Kernel = module.clip
        self.all_finite: _Kernel = module.all_finite
        self.total: _Kernel = module.total
        self.copy: _Kernel = module.copy
        self.is_finite = math.isfinite

    def run(self, *arguments: Any) -> tuple[int, bool]:
        """Run ``driver.run``."""
        result: tuple[int, bool] = driver.run(self, *arguments)
        return result

    def propagate(self, *arguments: Any) -> None:
        """Run ``driver.propagate``."""
        driver.propagate(self, *arguments)

    @staticmethod
    def product(A: _Array, B: _Array, out: _Array) -> None:
        """Write the matrix product; one over a single inner index is no work for a BLAS."""
        if A.shape[1] == 1:
            np.multiply(A, B, out=out)
        else:
            np.matmul(A, B, out=out)

    @staticmethod
    def take(x: _Array, rows: _Array, out: _Array) -> None:
        """Write the given rows of an array, all of them within it."""
        # With mode="raise" NumPy would write into a buffer first.
        np.take(x, rows, axis=0, out=out[: rows.shape[0]], mode="clip")

    def drop(self, trains: bool, n: int, M: Sequence[_Array]) -> None:
        """Draw the masks in the order and of the sizes of the reference engine."""
        for mask, rate in zip(M, self._problem.objective.structure.dropout, strict=False):
            if rate and not trains:
                mask[:n] = 1.0
            elif rate:
                uniform = self._dropout_rng.random((n, mask.shape[1]), dtype=mask.dtype.type)
                mask[:n] = dropout_mask(self._xp, uniform, rate)

    def activate(
        self, kind: int, n: int, Z: _Array, b: _Array, A: _Array, H: _Array, M: _Array
    ) -> None:
        """Add the bias, activate, and drop."""
        self._threads.over(self._activations[kind][0], n, Z.shape[1], (Z, b, A, H, M))

    def pull_back(
        self, kind: int, n: int, D: _Array, Z: _Array, A: _Array, M: _Array, gb: _Array
    ) -> None:
        """Make dZ of dA, in place, and its column sums."""
        self._threads.over(self._activations[kind][1], n, D.shape[1], (D, Z, A, M), total=gb)

    def update(
        self, parameters: _Array, gradient: _Array, state: Any, c: _Array, hyper: _Array
    ) -> None:
        """Take the optimizer's step."""
        self.is_updating = True
        if self._update_range is not None:
            arguments = (parameters, gradient, state, c, hyper)
            self._threads.over(self._update_range, parameters.shape[0], 1, arguments)
        else:
            optimizer = self._problem.optimizer
            new, new_state = optimizer.update(
                self._xp, parameters, gradient, state[: len(optimizer.state_names)], tuple(c)
            )
            parameters[:] = new
            for entry, value in zip(state, new_state, strict=False):
                entry[:] = value
        self.is_updating = False

    def _loss(
        self, n: int, Z: _Array, b: _Array, y: _Array, weight: _Array, scale: float, L: _Array,
        gb: _Array,
    ) -> float:  # fmt: skip
        """Do what the kernel of that name would."""
        objective = self._problem.objective
        Z[:n] += b
        if self._labels:
            y = y[:, 0]
        L[:n], Z[:n] = output_elements(
            self._xp, objective.structure.output, objective.loss, Z[:n], y
        )
        share = weight * Z.dtype.type(scale)
        Z[:n] *= share
        np.sum(Z[:n], axis=0, out=gb)
        return float(np.sum(L[:n] * share))


class _HiddenFormulas:
    """The two kernels of a hidden layer on NumPy."""

    def __init__(self, xp: Namespace, activation: Activation, *, drops: bool) -> None:
        self._xp = xp
        self._activation = activation
        self._drops = drops

    def activate(
        self, first: int, last: int, Z: _Array, b: _Array, A: _Array, H: _Array, M: _Array
    ) -> None:
        rows = slice(first, last)
        Z[rows] += b
        A[rows] = self._activation.function(self._xp, Z[rows])
        if self._drops:
            np.multiply(A[rows], M[rows], out=H[rows])

    def pull_back(
        self, first: int, last: int, D: _Array, Z: _Array, A: _Array, M: _Array, gb: _Array
    ) -> None:
        rows = slice(first, last)
        if self._drops:
            D[rows] *= M[rows]
        D[rows] *= self._activation.derivative(self._xp, Z[rows], A[rows])
        np.sum(D[rows], axis=0, out=gb)


class _Threads:
    """Gives each of as many threads as the BLAS uses its share of a kernel's rows.

    They are Python's own threads: those of OpenMP would spin after each kernel and slow down the
    products, and Numba's abort the process when two threads of a program use them at once.
    """

    @cached_property
    def count(self) -> int:
        """The number of threads, this one included."""
        from threadpoolctl import threadpool_info

        try:
            cores = len(os.sched_getaffinity(0))
        except AttributeError:
            cores = os.cpu_count() or 1
        blas: list[int] = [
            pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"
        ]
        return min([cores, _MAX_THREADS, *blas])

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.count - 1, thread_name_prefix="nnbackend")

    def over(
        self, kernel: _Kernel, n: int, width: int, arguments: tuple[Any, ...],
        total: _Array | None = None,
    ) -> None:  # fmt: skip
        """Call ``kernel(first, last, *arguments)`` over the rows 0 to ``n`` in all.

        With ``total``, each part has an array like it as last argument, and their sum is put there.
        """
        parts = n * width // _ELEMENTS_PER_THREAD
        if parts > 1:
            parts = min(parts, self.count)
        if parts <= 1:
            kernel(0, n, *arguments, *(() if total is None else (total,)))
            return
        bounds = [n * part // parts for part in range(parts + 1)]
        sums = None if total is None else np.empty((parts, *total.shape), total.dtype)
        calls = [
            (kernel, bounds[part], bounds[part + 1], *arguments)
            + (() if sums is None else (sums[part],))
            for part in range(parts)
        ]
        futures = [self._pool.submit(*call) for call in calls[1:]]
        try:
            calls[0][0](*calls[0][1:])
        finally:
            for future in futures:
                future.result()
        if sums is not None:
            np.sum(sums, axis=0, out=total)
