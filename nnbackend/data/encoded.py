"""A source whose columns of text, dates and gaps become inputs of a network as they are read."""

from __future__ import annotations

from typing import Any

import numpy as np

from nnbackend.data.encoding import TableEncoding
from nnbackend.data.source import Rows, Source
from nnbackend.data.typed import Table

__all__ = ["Encoded"]


class Encoded(Source):
    """The rows of a source, encoded: what ``nb.TableEncoder.transform`` returns for one.

    Targets and weights are those of the source, of which nothing but the columns that the encoding
    uses is read.

    Parameters
    ----------
    source : Source
        The rows as they are.
    encoding : TableEncoding
        What each column becomes.
    dtype : float32 or float64, default float64
        The dtype of X.

    Raises
    ------
    InputError
        If a column is missing; on reading, if one is of another kind than in training, or holds an
        infinite number.
    """

    def __init__(self, source: Source, encoding: TableEncoding, dtype: Any = np.float64) -> None:
        super().__init__(buffer_bytes=source.buffer_bytes)
        self._source, self._encoding, self._dtype = source, encoding, np.dtype(dtype)
        needed = encoding.feature_names
        has_needed = set(needed) <= set(source.feature_names or ())
        # Without those names the columns go by position, and there have to be all of them.
        self._needed = frozenset(needed) if has_needed else None
        self.feature_names = encoding.output_names
        # What is missing is said now.
        self._chosen(next(source.tables(0, 1, self._needed)).X)

    @property
    def origin(self) -> Source:
        """The source that reads."""
        return self._source.origin

    @property
    def n_samples(self) -> int:
        """The number of rows."""
        return self._source.n_samples

    @property
    def n_features(self) -> int:
        """The number of columns of X."""
        return self._encoding.n_outputs

    @property
    def block_rows(self) -> int:
        """How many rows are best read at once: as of the source."""
        return self._source.block_rows

    def read(self, start: int, stop: int) -> Rows:
        """Return the rows ``start`` to ``stop - 1``, encoded."""
        X = np.empty((stop - start, self.n_features), self._dtype)
        labels: list[tuple[Any, ...]] = []
        end = 0
        for table, *label in self._source.tables(start, stop, self._needed):
            begin, end = end, end + table.n_rows
            self._encoding.apply(self._chosen(table), out=X[begin:end])
            # The source may read the next rows into the same arrays.
            labels.append(tuple(x if x is None else np.array(x) for x in label))
        y, weight = (
            None if parts[0] is None else np.concatenate(parts)
            for parts in zip(*labels, strict=True)
        )
        return Rows(X, y, weight)

    def _chosen(self, table: Table) -> Table:
        """Return the columns that the encoding takes."""
        if self._needed is not None:
            return table.only(self._encoding.feature_names)
        return self._encoding.chosen(table, is_named=self._source.feature_names is not None)
