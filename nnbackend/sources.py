"""Data larger than memory: sources of rows, read a block at a time."""

from __future__ import annotations

from nnbackend.data.parquet import Parquet
from nnbackend.data.sources import BUFFER_BYTES, Arrays, Rows, Source, as_source, digest

__all__ = ["BUFFER_BYTES", "Arrays", "Parquet", "Rows", "Source", "as_source", "digest"]
