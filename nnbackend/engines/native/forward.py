"""Forward propagation in the C library, for predictions."""

from __future__ import annotations

import ctypes
import weakref
from functools import lru_cache
from typing import Any

import numpy as np

from nnbackend.core.activations import Activation
from nnbackend.core.propagation import CACHED_ELEMENTS
from nnbackend.core.structure import Structure
from nnbackend.engines.native import interface
from nnbackend.engines.native.formulas import activation_program
from nnbackend.engines.native.interface import (
    PLAIN,
    SECONDS_PER_CALL,
    Mode,
    address,
    address_of,
)
from nnbackend.engines.native.library import library
from nnbackend.engines.native.threads import threads_worth
from nnbackend.engines.tracing.formulas import is_own

__all__ = ["forward", "logits"]

_Array = np.ndarray[Any, Any]
_ROWS_PER_THREAD = 64


def logits(structure: Structure, parameters: _Array, X: _Array) -> _Array | None:
    """Return Z of the output layer (n_samples, n_outputs); None if the library cannot compute it.

    Parameters
    ----------
    structure : Structure
        The structure of the network.
    parameters : array (n_parameters,)
        The flat parameter vector.
    X : array (n_samples, n_features)
        The examples, in the dtype of the parameters.
    """
    found = library()
    if found is None or not all(map(is_own, structure.hidden)) or not len(X):
        return None
    batch = _rows_at_once(structure)
    # The limits may have changed since the last call.
    n_threads = threads_worth(structure, batch) if len(X) >= _ROWS_PER_THREAD else 1
    functions = interface.functions(found, parameters.dtype.name)
    pool = forward(structure, functions, n_threads)
    # Each thread has buffers of its own. Another one may take the last between two questions.
    try:
        own = pool.pop()
    except IndexError:
        own = _Forward(structure, parameters.dtype, functions, batch, n_threads)
    try:
        return own(parameters, X)
    finally:
        pool.append(own)


@lru_cache(maxsize=16)
def forward(structure: Structure, functions: interface.Functions, n_threads: int) -> list[_Forward]:
    """Return the networks of a structure that no thread uses."""
    del structure, functions, n_threads
    return []


def _rows_at_once(structure: Structure) -> int:
    """Return a batch that is enough for several threads, and for the tiles of narrow networks."""
    rows = 4 * (CACHED_ELEMENTS // max(structure.layer_sizes[1:]) // 16 * 16)
    return min(max(256, rows), 4096)


class _Forward:
    """A network that predicts, whatever its parameters are."""

    def __init__(
        self,
        structure: Structure,
        dtype: Any,
        functions: interface.Functions,
        batch: int,
        n_threads: int,
    ) -> None:
        self._dtype = np.dtype(dtype)
        self._functions, self._threads = functions, n_threads
        self._sizes = sizes = structure.layer_sizes
        self._n_parameters = structure.n_parameters
        programs: dict[Activation, tuple[int, interface.ProgramSpec]] = {}
        layers = (interface.LayerSpec * (len(sizes) - 1))()
        kept: list[Any] = [layers]
        for index, (n_in, n_out) in enumerate(structure.weight_shapes):
            layers[index].n_in, layers[index].n_out = n_in, n_out
            if index < len(structure.hidden):
                activation = structure.hidden[index]
                if activation not in programs:
                    program = activation_program(activation, self._dtype.name)
                    entry, arrays = interface.program_spec(program, self._functions, self._dtype)
                    programs[activation] = len(programs), entry
                    kept.append(arrays)
                layers[index].activate, layers[index].in_place = programs[activation][0], True
        table = (interface.ProgramSpec * max(len(programs), 1))(
            *(entry for _, entry in programs.values())
        )
        kept.append(table)
        self._kept = kept
        spec = interface.Spec(
            n_layers=len(layers),
            batch=batch,
            features_major=max(sizes) <= interface.NARROW,
            layers=ctypes.addressof(layers),
            programs=ctypes.addressof(table),
            n_programs=len(programs),
            loss=-1,
            penalize=-1,
            update=-1,
        )
        self._network = self._functions.new(ctypes.byref(spec), self._threads)
        if not self._network:
            raise MemoryError("the buffers of a prediction do not fit the memory")
        finalizer = weakref.finalize(self, self._functions.free, self._network)
        # When Python ends, a daemon thread may still be in the library.
        finalizer.atexit = False

    def __call__(self, parameters: _Array, X: _Array) -> _Array:
        """Return the logits of examples."""
        n, dtype = len(X), self._dtype
        X, parameters = (np.require(array, None, PLAIN) for array in (X, parameters))
        Z = np.empty((n, self._sizes[-1]), dtype)
        unused = np.empty(2)
        run = interface.Run(
            mode=Mode.LOGITS,
            X=address(X, dtype, (n, self._sizes[0])),
            n_rows=n,
            n_samples=n,
            n_epochs=1,
            losses=address_of(unused),
            totals=address_of(unused),
            parameters=address(parameters, dtype, (self._n_parameters,)),
            logits=address(Z, dtype, Z.shape, writes=True),
            n_threads=min(self._threads, 1 + n // _ROWS_PER_THREAD),
            seconds=SECONDS_PER_CALL,
        )
        while not run.is_over:
            self._functions.run(self._network, run)
        return Z
