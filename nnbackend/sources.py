"""``nb.sources``: sources of rows that are read a block at a time, for data larger than memory."""

from __future__ import annotations

from nnbackend.data.parquet import Parquet
from nnbackend.data.source import BUFFER_BYTES, Rows, Source, digest
from nnbackend.data.sources import Arrays, as_source

__all__ = ["BUFFER_BYTES", "Arrays", "Parquet", "Rows", "Source", "as_source", "digest"]
