"""A source whose tables are encoded as they are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike

from nnbackend.data.source import BLOCK_BYTES, Rows, Source
from nnbackend.data.typed import Table

__all__ = ["Encoded", "Encoding"]

_Array = np.ndarray[Any, Any]


class Encoding(Protocol):
    """What makes numbers of a table."""

    @property
    def n_outputs(self) -> int:
        """The number of columns that it makes."""

    @property
    def feature_names(self) -> Sequence[str]:
        """The columns of the table that it needs."""

    def apply(self, table: Table, dtype: Any) -> Any:
        """Return the numbers (n_rows, n_outputs)."""


class Encoded(Source):
    """Rows of another source, its table encoded.

    Parameters
    ----------
    source : Source
        Gives tables, targets and weights. No column that the encoding does not need is read.
    encoding : Encoding
        Makes X of the tables.
    dtype : dtype, default "float32"
        That of X.

    Notes
    -----
    The columns of X have no names of their own: those of the table are the encoding's.
    """

    def __init__(self, source: Source, encoding: Encoding, dtype: DTypeLike = "float32") -> None:
        super().__init__(buffer_bytes=source.buffer_bytes)
        self._source, self._encoding, self._dtype = source, encoding, np.dtype(dtype)

    @property
    def n_samples(self) -> int:
        """The number of rows."""
        return self._source.n_samples

    @property
    def n_features(self) -> int:
        """The number of columns that the encoding makes."""
        return self._encoding.n_outputs

    @property
    def block_rows(self) -> int:
        """How many rows are best read at once, as the source stores them."""
        names = self._encoding.feature_names
        return min(self._source.block_rows, _table_rows(len(names), self.buffer_bytes))

    def read(self, start: int, stop: int) -> Rows:
        """Return the rows ``start`` to ``stop - 1``."""
        names = list(self._encoding.feature_names)
        X = np.empty((stop - start, self.n_features), self._dtype)
        ends: list[tuple[_Array | None, _Array | None]] = []
        # The table is larger than X where columns are dropped: no more than a part is held.
        step = _table_rows(len(names), self.buffer_bytes)
        for low in range(start, stop, step):
            high = min(stop, low + step)
            table, *others = self._source.read_table(low, high, names)
            X[low - start : high - start] = self._encoding.apply(table, self._dtype)
            # A source may use its arrays again.
            ends.append(tuple(x if x is None else np.array(x) for x in others))  # type: ignore[arg-type]
        y, sample_weight = (
            None if parts[0] is None else np.concatenate(parts) for parts in zip(*ends, strict=True)
        )
        return Rows(X, y, sample_weight)


def _table_rows(n_columns: int, buffer_bytes: int) -> int:
    """Return how many rows of a table, of 8 bytes a value, are read at once."""
    return max(1, max(BLOCK_BYTES, buffer_bytes // 16) // (8 * max(1, n_columns)))
