"""Classify what a caller passes as data, once, for all functions that take data."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from nnbackend.core.types import Array
from nnbackend.data.columns import arrow_numbers, pandas_numbers, polars_numbers
from nnbackend.data.frames import ArrowTable, Column, Frame, PandasFrame, PolarsFrame
from nnbackend.data.given import Foreign, Given, Native, Nested, Typed
from nnbackend.data.source import Source
from nnbackend.data.typed import Table
from nnbackend.device import Device, device_of, is_native
from nnbackend.errors import InputError

__all__ = ["look", "to_array"]


_HOST = Device("cpu")


def look(name: str, x: Any) -> Given:
    """Return the argument as a ``Given``, so that later code need not ask for its type.

    Parameters
    ----------
    name : str
        The name of the argument, for messages.
    x : array of any library, nested sequence of numbers, data frame or column, Table
        A ``Given`` is returned as it is.

    Raises
    ------
    InputError
        If it is None or a source.
    """
    if isinstance(x, np.ndarray | np.generic):
        return Native(name, np.asanyarray(x), _HOST)
    if isinstance(x, Given):
        return x
    if x is None:
        raise InputError("expected an array, got None", argument=name)
    if isinstance(x, Source):
        raise InputError(
            "expected an array, got a source, which is for training and standardize; take "
            "its rows block by block, such as source.read(0, 1000).X",
            argument=name,
        )
    if isinstance(x, Table):
        return Typed(name, x)
    for module, classify in _LIBRARIES.items():
        # Its caller has imported it.
        library = sys.modules.get(module)
        given = None if library is None else classify(library, name, x)
        if given is not None:
            return given
    return _of_arrays(name, x)


def _of_arrays(name: str, x: Any) -> Given:
    home = device_of(x)
    if home is not None and is_native(x):
        return Native(name, x, home)
    if hasattr(x, "__dlpack__") or home is not None:
        return Foreign(name, x, home)
    # In this order: a polars LazyFrame, which is no array, warns when it is asked for its columns.
    if hasattr(x, "__array__") and hasattr(x, "columns"):
        return Frame(name, x, x.columns)
    return Nested(name, x)


def _of_pandas(pandas: Any, name: str, x: Any) -> Given | None:
    if isinstance(x, pandas.DataFrame):
        return PandasFrame(name, x, x.columns)
    is_column = isinstance(x, pandas.Series | pandas.Index | pandas.api.extensions.ExtensionArray)
    return Column(name, x, pandas_numbers) if is_column else None


def _of_polars(polars: Any, name: str, x: Any) -> Given | None:
    if isinstance(x, polars.DataFrame):
        return PolarsFrame(name, x, x.columns)
    return Column(name, x, polars_numbers) if isinstance(x, polars.Series) else None


def _of_arrow(arrow: Any, name: str, x: Any) -> Given | None:
    if isinstance(x, arrow.Table | arrow.RecordBatch):
        return ArrowTable(name, x, x.schema.names)
    is_column = isinstance(x, arrow.Array | arrow.ChunkedArray)
    return Column(name, x, arrow_numbers) if is_column else None


_LIBRARIES: dict[str, Callable[[Any, str, Any], Given | None]] = {
    "pandas": _of_pandas,
    "polars": _of_polars,
    "pyarrow": _of_arrow,
}


def to_array(name: str, x: Any, device: Device | None = None) -> Array:
    """Return ``x`` as a NumPy or CuPy array of real numbers, or raise what is wrong with it.

    The parameters are those of ``look`` and ``Given.array``.
    """
    return look(name, x).array(device)
