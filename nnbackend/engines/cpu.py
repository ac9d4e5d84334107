"""The CPU engine: a whole epoch in one compiled call."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from functools import cache
from importlib.machinery import SourceFileLoader
from typing import TYPE_CHECKING, Any

import numpy as np

from nnbackend.core.regularization import dropout_mask
from nnbackend.core.types import Array
from nnbackend.engines.program import (
    buffer_names,
    epoch_source,
    is_label_target,
    keeps_pre_activation,
)
from nnbackend.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    from nnbackend.device import Device
    from nnbackend.engines import Data, Problem

__all__ = ["CpuEngine"]


class CpuEngine:
    """Products into planned buffers, all else fused by Numba; the numbers of the reference engine.

    The arguments are those of ``ReferenceEngine``.

    Raises
    ------
    InputError
        If a formula of the problem, such as a user's activation, cannot be recorded.
    MissingDependencyError
        If Numba or SciPy is not installed.
    """

    def __init__(
        self,
        problem: Problem,
        device: Device,
        parameters: Array,
        data: Data,
        dropout_rng: np.random.Generator,
    ) -> None:
        self._problem = problem
        self._device = device
        self._data = data
        self._dropout_rng = dropout_rng
        self._parameters = np.array(parameters)
        self._gradient = np.empty_like(self._parameters)
        self._state = tuple(
            np.array(x) for x in problem.optimizer.init(device.xp, self._parameters)
        ) or (np.empty(0, self._parameters.dtype),)
        self._step = 0
        self._programs: dict[tuple[bool, bool], Any] = {}
        dtype = self._parameters.dtype
        self._X, self._y = (_plain(x) for x in (data.X, data.y))
        weighted = data.sample_weight is not None
        self._weight = _plain(data.sample_weight) if weighted else np.empty(0, dtype)
        labels = is_label_target(problem, self._y.ndim)
        self._run = self._program(weighted=weighted, labels=labels).run
        self._sizes = np.asarray(problem.objective.structure.layer_sizes)
        self._buffers = self._plan(dtype)

    def _plan(self, dtype: np.dtype[Any]) -> dict[str, np.ndarray[Any, Any]]:
        """Allocate every array that a step needs."""
        problem, structure = self._problem, self._problem.objective.structure
        buffers: dict[str, np.ndarray[Any, Any]] = {}
        for name, layer in buffer_names(problem):
            if name.startswith("A") and not keeps_pre_activation(structure.hidden[layer - 1]):
                buffers[name] = buffers[f"Z{layer}"]
                continue
            gathers = name != "X0" or problem.batch_size < self._data.n_samples
            rows = problem.batch_size if gathers else 0
            buffers[name] = np.empty((rows, structure.layer_sizes[layer]), dtype)
        return buffers

    @property
    def parameters(self) -> Array:
        """The current flat parameter vector."""
        return self._parameters

    def run_epoch(self, order: Array | None, rates: Sequence[float]) -> Array:
        """Take one step per rate over the rows in ``order``; return the mean objective, 0-d."""
        optimizer = self._problem.optimizer
        coefficients = np.asarray(
            [
                optimizer.coefficients(rate, step)
                for step, rate in enumerate(rates, start=self._step + 1)
            ],
            dtype=self._parameters.dtype,
        )
        self._step += len(rates)
        shuffled = order is not None
        rows = np.empty(0, np.int64) if order is None else np.asarray(order, np.int64)
        if not self._problem.objective.structure.has_dropout:
            loss, weight = self._call(rows, shuffled, 0, coefficients)
        else:
            loss = weight = 0.0
            for first in range(len(rates)):
                self._draw_masks(first)
                part, part_weight = self._call(
                    rows, shuffled, first, coefficients[first : first + 1]
                )
                loss, weight = loss + part, weight + part_weight
        mean = loss / weight if weight else 0.0
        return np.asarray(mean, dtype=self._parameters.dtype)

    def _call(
        self, rows: Any, shuffled: bool, first: int, coefficients: Any
    ) -> tuple[float, float]:
        result: tuple[float, float] = self._run(
            self._parameters,
            self._gradient,
            self._state,
            self._X,
            self._y,
            self._weight,
            rows,
            shuffled,
            self._sizes,
            self._problem.batch_size,
            first,
            coefficients,
            tuple(self._buffers.values()),
        )
        return result

    def _draw_masks(self, batch: int) -> None:
        """Draw the masks of a batch in the order and of the sizes of the reference engine."""
        problem, structure = self._problem, self._problem.objective.structure
        start = batch * problem.batch_size
        n_samples = min(problem.batch_size, self._data.n_samples - start)
        for layer, rate in enumerate(structure.dropout, start=1):
            if rate:
                mask = self._buffers[f"M{layer}"]
                uniform = self._dropout_rng.random(
                    (n_samples, mask.shape[1]), dtype=mask.dtype.type
                )
                mask[:n_samples] = dropout_mask(self._device.xp, uniform, rate)

    def snapshot(self) -> Any:
        """Return a copy of the current parameters."""
        return self._parameters.copy()

    def restore(self, snapshot: Any) -> None:
        """Go back to the parameters of a snapshot."""
        self._parameters[...] = snapshot

    def data_loss(self, data: Data) -> Array:
        """Return the loss of the current parameters on ``data`` without penalties, 0-d.

        It runs in compiled code, too: NumPy and Numba call two BLAS libraries, whose threads, once
        woken, spin for a while and would hold up each other's products.
        """
        weighted = data.sample_weight is not None
        X, y = _plain(data.X), _plain(data.y)
        weight = _plain(data.sample_weight) if weighted else self._weight[:0]
        labels = is_label_target(self._problem, y.ndim)
        loss, total = self._program(weighted=weighted, labels=labels).evaluate(
            self._parameters,
            X,
            y,
            weight,
            self._sizes,
            self._problem.batch_size,
            tuple(self._buffers.values()),
        )
        return np.asarray(loss / total if total else 0.0, dtype=self._parameters.dtype)

    def _program(self, *, weighted: bool, labels: bool) -> Any:
        """Return the compiled program for a form of data; recording it anew costs milliseconds."""
        if (weighted, labels) not in self._programs:
            self._programs[weighted, labels] = self._generated(weighted=weighted, labels=labels)
        return self._programs[weighted, labels]

    def _generated(self, *, weighted: bool, labels: bool) -> Any:
        dtype = self._parameters.dtype.name
        try:
            source = epoch_source(self._problem, dtype, weighted=weighted, labels=labels)
        # A formula that is not made of what can be recorded fails in whatever way it likes.
        except Exception as error:
            raise InputError(
                f"engine: expected formulas of arithmetic and of the array API's element-wise "
                f"functions for engine='cpu', got one that cannot be recorded ({error}); use "
                "engine='reference'"
            ) from error
        return _module(source)


def _plain(x: Any) -> np.ndarray[Any, Any]:
    """Return a writeable, C-contiguous array: what the compiled code is compiled for."""
    array = np.ascontiguousarray(x)
    return array if array.flags.writeable else array.copy()


def _cache_folder() -> str:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "nnbackend", "kernels")


def _module(source: str) -> Any:
    """Return a generated module, whose functions are compiled when they are first called.

    Numba caches machine code beside the file a function comes from, so the source is written to a
    file named by its hash: in the user's cache folder, or, where that cannot be written, in a
    temporary one that ends with the process.
    """
    _require_numba()
    name = f"nnbackend_kernel_{hashlib.sha256(source.encode()).hexdigest()[:24]}"
    if name not in sys.modules:
        try:
            path = _written(os.path.join(_cache_folder(), f"{name}.py"), source)
        except OSError:
            path = _written(os.path.join(_temporary_folder(), f"{name}.py"), source)
        loader = SourceFileLoader(name, path)
        spec = importlib.util.spec_from_file_location(name, path, loader=loader)
        if spec is None:
            raise ImportError(f"cannot import the generated {path}")
        module = importlib.util.module_from_spec(spec)
        # Numba finds the cached code of a function by the name of its module.
        sys.modules[name] = module
        loader.exec_module(module)
    return sys.modules[name]


def _written(path: str, source: str) -> str:
    """Return the path of a file that holds ``source``, written whole if it does not yet."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    try:
        with open(path, encoding="utf-8") as file:
            is_there = file.read() == source
    except (OSError, UnicodeDecodeError):
        is_there = False
    if not is_there:
        temporary = f"{path}.{os.urandom(8).hex()}.tmp"
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(source)
        os.replace(temporary, path)
    return path


@cache
def _temporary_folder() -> str:
    import atexit
    import shutil
    import tempfile

    folder = tempfile.mkdtemp(prefix="nnbackend-kernels-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def _require_numba() -> None:
    for package in ("numba", "scipy"):
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(
                f"engine='cpu' needs {package}, which is not installed; install it with: pip "
                f"install {package}, or use engine='reference'"
            )
