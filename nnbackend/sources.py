"""``nb.sources``: sources of rows that are read a block at a time, for data larger than memory."""

from __future__ import annotations

from nnbackend.data.parquet import Parquet
from nnbackend.data.sources import BUFFER_BYTES, Arrays, Rows, Source, as_source

__all__ = ["BUFFER_BYTES", "Arrays", "Parquet", "Rows", "Source", "as_source"]
