"""ParameterVector: a flat vector that a training may write while other threads read it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from nnbackend.core.types import Array, Namespace

__all__ = ["ParameterVector"]

R = TypeVar("R")

# Held while a training writes parameters, so that a fork never copies half-written ones.
_WRITING = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_WRITING.acquire,
        after_in_parent=_WRITING.release,
        after_in_child=_WRITING.release,
    )


class ParameterVector:
    """A flat vector of parameters for one writer and several readers.

    Parameters
    ----------
    xp : namespace
        The array API namespace of the array.
    array : array (n_parameters,)
        The parameters, which ``write`` overwrites in place.
    """

    def __init__(self, xp: Namespace, array: Array) -> None:
        self._xp = xp
        self.array = array
        # This number is odd while the array is being written.
        self._n_writes = 0

    def write(self, flat: Array) -> None:
        """Overwrite the parameters; readers see either all of it or nothing."""
        with _WRITING:
            self._n_writes += 1
            try:
                self.array[...] = flat
            finally:
                self._n_writes += 1

    def read(self, compute: Callable[[Array], R]) -> R:
        """Return ``compute(parameters)``, never with parameters that are partly overwritten."""
        begun = self._n_writes
        result = compute(self.array)
        while begun % 2 or begun != self._n_writes:
            # A training wrote meanwhile. Compute on a copy, which takes no longer than a write.
            time.sleep(0)
            begun = self._n_writes
            copied = self._xp.asarray(self.array, copy=True)
            if begun % 2 == 0 and begun == self._n_writes:
                return compute(copied)
        return result
