"""Chunks of Zarr arrays: what is not stored is read as the fill value, without a word."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np

from nnbackend.errors import InputError

__all__ = ["StoredChunks", "stored_chunks"]


_Array = np.ndarray[Any, Any]


def stored_chunks(name: str, x: Any) -> StoredChunks | None:
    """Return what looks after the chunks of a Zarr array; None for anything else."""
    # The property itself lists all that is stored.
    return StoredChunks(name, x) if hasattr(type(x), "nchunks_initialized") else None


class StoredChunks:
    """Whether the numbers that were read of a Zarr array are stored.

    To count what is stored takes a listing of it all. So it is counted where a chunk is read as
    nothing but the fill value: no other can be missing. Of an array in shards, a whole shard is
    what can be missing.

    Parameters
    ----------
    name : str
        The name of the argument, for messages.
    x : zarr.Array
        The array.
    """

    def __init__(self, name: str, x: Any) -> None:
        self._name, self._x = name, x
        chunks = tuple(x.chunks)
        self._unit: tuple[int, ...] = tuple(getattr(x, "shards", None) or chunks)
        self._chunks_per_unit = math.prod(a // b for a, b in zip(self._unit, chunks, strict=True))
        self._n_units = math.prod(
            -(-n // size) for n, size in zip(x.shape, self._unit, strict=True)
        )
        fill = np.asarray(0 if x.fill_value is None else x.fill_value)
        self._fill = fill.astype(np.dtype(x.dtype))
        # If one of these is lost, its numbers stay the same.
        self._known: set[tuple[int, ...]] = set()

    def require(self, start: int, rows: _Array, advice: str) -> None:
        """Raise an InputError if some of the rows from ``start`` on may not be stored."""
        empty = [unit for unit in self._units(start, rows) if unit not in self._known]
        if not empty:
            return
        n_stored = self._x.nchunks_initialized // self._chunks_per_unit
        if n_stored < self._n_units:
            first = empty[0][0] * self._unit[0]
            last = min(first + self._unit[0], self._x.shape[0]) - 1
            what = "shards" if self._chunks_per_unit > 1 else "chunks"
            raise InputError(
                f"expected a Zarr array whose {what} are all stored, got {n_stored} "
                f"of {self._n_units}, and nothing but the fill value {self._fill} in rows {first} "
                f"to {last}; restore them or, if they hold nothing else, {advice}",
                argument=self._name,
            )
        self._known.update(empty)

    def _units(self, start: int, rows: _Array) -> list[tuple[int, ...]]:
        """Return the units of which the rows have nothing but the fill value."""
        # The first unit may have begun before, and the last may go on.
        offsets = (start, *[0] * (rows.ndim - 1))
        ranges = [
            range(offset // size, (offset + n - 1) // size + 1)
            for offset, n, size in zip(offsets, rows.shape, self._unit, strict=True)
        ]
        found = []
        for unit in product(*ranges):
            part = rows[
                tuple(
                    slice(max(0, i * size - offset), (i + 1) * size - offset)
                    for i, size, offset in zip(unit, self._unit, offsets, strict=True)
                )
            ]
            # Most have another number at once.
            if _is(part.flat[0], self._fill) and bool(np.all(_is(part, self._fill))):
                found.append(unit)
        return found


def _is(x: Any, value: _Array) -> Any:
    return (x == value) | ((x != x) & (value != value))  # noqa: PLR0124 - NaN is NaN here
