"""What a caller gave as X, y or weights, looked at once: its library, device and column names."""

from __future__ import annotations

import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nnbackend.core.types import Array
from nnbackend.data.columns import (
    arrow_numbers,
    join,
    numbers,
    pandas_numbers,
    polars_numbers,
)
from nnbackend.data.source import Source
from nnbackend.data.stored_chunks import stored_chunks
from nnbackend.device import Device, device_of, in_library_of, is_native
from nnbackend.errors import InputError

__all__ = ["Given", "look", "to_array"]


# The names of the dtypes of real numbers that NumPy and CuPy know, in any library.
_REAL = re.compile(r"bool|u?int(8|16|32|64)|float(16|32|64)")


_HOST = Device("cpu")


class Given(ABC):
    """An array, sequence or data frame as it came, before its numbers are read.

    Attributes
    ----------
    name : str
        What the caller calls it.
    value : Any
        What was given; it is only to be read.
    device : Device or None
        Where it is; None for lists and data frames, which go with arrays on any device.
    columns : tuple or None
        The labels of a data frame's columns, whatever they are.
    """

    __slots__ = ("device", "name", "value")

    columns: tuple[Any, ...] | None = None

    def __init__(self, name: str, value: Any, device: Device | None = None) -> None:
        self.name, self.value, self.device = name, value, device

    @property
    def n_rows(self) -> int:
        """The number of rows; 1 where it has none."""
        try:
            shape = getattr(self.value, "shape", None)
        except RuntimeError:  # a nested tensor has none
            return 1
        if shape is None:
            return len(self.value) if hasattr(self.value, "__len__") else 1
        return int(shape[0]) if shape else 1

    @property
    def feature_names(self) -> tuple[str, ...] | None:
        """The names by which a network may know the columns: strings, all of them different."""
        names = self.columns
        if names is None or not all(isinstance(name, str) for name in names):
            return None
        return names if len(set(names)) == len(names) else None

    @property
    def two_axes_hint(self) -> str:
        """How to make a table of it where it has one axis."""
        return f"for one example use numpy.atleast_2d({self.name})"

    def array(self, device: Device | None = None, names: Sequence[str] | None = None) -> Array:
        """Return it as a NumPy or CuPy array of real numbers, in the same memory where it can be.

        Parameters
        ----------
        device : Device, optional
            The network's: an array on a GPU has to be there.
        names : sequence of str, optional
            Read these columns of a data frame, in this order; by default all, as they are. Other
            arrays have no names, and go by position.

        Raises
        ------
        InputError
            If it holds anything but real numbers, lacks a column, or is on another device.
        """
        home = self.device
        if home is not None and home.kind == "cuda" and device not in (None, home):
            raise InputError(
                f"{self.name}: expected an array on {device}, the network's device, got one on "
                f"{home}; move the network with .to({home.name!r}) or the array"
            )
        x = self._read(names)
        if x.dtype.kind not in "biuf":
            raise self._no_numbers(x)
        return x

    @abstractmethod
    def _read(self, names: Sequence[str] | None) -> Array:
        """Return a NumPy or CuPy array of whatever dtype."""

    def labels(self, names: Sequence[str] | None) -> Sequence[Any] | None:
        """Return what the columns of ``array(names=names)`` are called; None without names."""
        return None if self.columns is None else names or self.columns

    def _no_numbers(self, x: Array) -> InputError:
        if x.dtype.kind in "US":
            return InputError(
                f"{self.name}: expected real numbers, got dtype {x.dtype} (text); number classes "
                "from 0, for example names, y = numpy.unique(y, return_inverse=True), and encode "
                "text features"
            )
        return InputError(
            f"{self.name}: expected real numbers, got dtype {x.dtype}; {self._conversion()}"
        )

    def _conversion(self) -> str:
        if hasattr(self.value, "collect"):
            return f"a lazy frame has none yet, pass {self.name}.collect()"
        return f"convert it, for example with numpy.asarray({self.name}, 'float32')"

    def returned(self, result: Array) -> Array:
        """Return a result, which is where this is, as an array of its library."""
        return result


class _Native(Given):
    """An array of NumPy or CuPy."""

    __slots__ = ()

    @property
    def two_axes_hint(self) -> str:
        return "for one example use X[None, :]"

    def _read(self, names: Sequence[str] | None) -> Array:
        del names
        if isinstance(self.value, np.ma.MaskedArray) and np.ma.is_masked(self.value):
            raise InputError(
                f"{self.name}: expected an array without missing values, got a masked array with "
                f"{int(np.ma.getmaskarray(self.value).sum())} masked; fill them first"
            )
        return self.value

    def _conversion(self) -> str:
        return "convert it to float, for example with .astype('float32')"


class _Foreign(Given):
    """An array of another library that DLPack reads."""

    __slots__ = ()

    @property
    def two_axes_hint(self) -> str:
        return "for one example use X[None, :]"

    def returned(self, result: Array) -> Array:
        return in_library_of(self.value, result)

    def _read(self, names: Sequence[str] | None) -> Array:
        del names
        name, x, home, kind = self.name, self.value, self.device, _kind(self.value)
        if "Tracer" in kind:
            raise InputError(
                f"{name}: expected an array, got {kind}, which holds no numbers inside jax.jit, "
                "grad and vmap; call nnbackend outside of them"
            )
        if home is None:
            raise InputError(
                f"{name}: expected an array in the host's memory or on one CUDA GPU, got {kind} "
                f"{_whereabouts(x)}"
            )
        dtype = getattr(x, "dtype", "float64")
        if not _REAL.fullmatch(str(dtype).rpartition(".")[2]):
            raise InputError(
                f"{name}: expected real numbers, got dtype {dtype}; convert it to float32 or "
                "float64"
            )
        if "sparse" in str(getattr(x, "layout", "")):
            raise InputError(
                f"{name}: expected a dense array, got the sparse {kind}; convert it with "
                ".to_dense()"
            )
        if getattr(x, "requires_grad", False):
            raise InputError(
                f"{name}: expected an array without a gradient, got {kind} that requires grad, and "
                "none flows back through nnbackend; pass .detach()"
            )
        if hasattr(x, "is_neg") and x.is_neg():
            # Of such a tensor DLPack hands out numbers of the wrong sign.
            raise InputError(
                f"{name}: expected an array, got a negated view, {kind}; pass .resolve_neg()"
            )
        try:
            return home.share(x)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"{name}: expected an array that can be read where it is, got {kind} "
                f"({_one_line(error)})"
            ) from error


class _Sequence(Given):
    """Nested sequences of numbers, or what NumPy converts by itself."""

    __slots__ = ()

    def _read(self, names: Sequence[str] | None) -> Array:
        del names
        return self._converted(self.value)

    def _converted(self, x: Any) -> Array:
        if hasattr(x, "toarray"):
            raise InputError(
                f"{self.name}: expected a dense array, got the sparse {_kind(x)}; convert it with "
                ".toarray()"
            )
        try:
            array = np.asarray(x)
        except (RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"{self.name}: expected an array or rows of equal length, got {_kind(x)} that "
                f"NumPy cannot convert ({_one_line(error)})"
            ) from error
        stored = stored_chunks(self.name, x) if array.dtype.kind in "biuf" and array.size else None
        if stored is not None:
            stored.require(0, array, "pass the array's numbers, array[:]")
        return array


class _Column(Given):
    """One column of a library of data frames: a Series, an Arrow array."""

    __slots__ = ("_numbers",)

    def __init__(self, name: str, value: Any, numbers_of: Any) -> None:
        super().__init__(name, value)
        self._numbers = numbers_of

    @property
    def two_axes_hint(self) -> str:
        hint = ".to_frame()" if hasattr(self.value, "to_frame") else ".to_numpy().reshape(-1, 1)"
        return f"for one feature use {self.name}{hint}"

    def _read(self, names: Sequence[str] | None) -> Array:
        del names
        return numbers(self.name, "", self._numbers(self.value))


class _Frame(_Sequence):
    """A data frame of a library that is not known here: has columns, and is an array to NumPy."""

    __slots__ = ("columns",)

    def __init__(self, name: str, value: Any, columns: Any) -> None:
        super().__init__(name, value)
        self.columns = tuple(columns)

    def _read(self, names: Sequence[str] | None) -> Array:
        positions = self._positions(names)
        if positions is None:
            return self._converted(self.value)
        return self._converted(self.value[list(names or ())])

    def _positions(self, names: Sequence[str] | None) -> list[int] | None:
        """Return where the columns of these names are; None where they are all, in this order."""
        columns = self.columns or ()
        if names is None or columns == tuple(names):
            return None
        places: dict[Any, list[int]] = {}
        for i, column in enumerate(columns):
            places.setdefault(column, []).append(i)
        missing = [name for name in names if name not in places]
        if missing:
            raise InputError(
                f"{self.name}: expected a data frame with the network's feature_names, the column "
                f"{missing[0]!r} is missing; {self._renaming(names)}"
            )
        twice = [name for name in names if len(places[name]) > 1]
        if twice:
            raise InputError(
                f"{self.name}: expected each of the network's feature_names once, got "
                f"{len(places[twice[0]])} columns {twice[0]!r}; {self._renaming(names)}"
            )
        return [places[name][0] for name in names]

    def _renaming(self, names: Sequence[str]) -> str:
        """Return how the columns can be taken by position, or why they cannot."""
        columns = self.columns or ()
        if len(columns) == len(names):
            return f"to go by position, pass numpy.asarray({self.name})"
        shown = ", ".join(map(repr, columns[:8])) + (", ..." if len(columns) > 8 else "")
        return f"it has {shown or 'none'}: pass one that has every column once"


class _Table(_Frame):
    """A data frame of pandas, polars or pyarrow, which is read column by column."""

    __slots__ = ()

    def _read(self, names: Sequence[str] | None) -> Array:
        positions = self._positions(names)
        chosen = range(len(self.columns or ())) if positions is None else positions
        if positions is None and self._is_uniform():
            return np.asarray(self.value)
        return join(
            [
                numbers(self.name, f"column {label!r}", values)
                for label, values in zip(
                    self.labels(names) or (), map(self._column, chosen), strict=True
                )
            ],
            self.n_rows,
        )

    @abstractmethod
    def _column(self, position: int) -> np.ndarray[Any, Any]:
        """Return a column as an array of whatever dtype, its gaps as NaN or None."""

    def _is_uniform(self) -> bool:
        """Whether NumPy makes the right array of all columns at once."""
        return False


class _Pandas(_Table):
    __slots__ = ()

    def _column(self, position: int) -> np.ndarray[Any, Any]:
        return pandas_numbers(self.value.iloc[:, position])

    def _is_uniform(self) -> bool:
        dtypes = set(self.value.dtypes)
        dtype = dtypes.pop() if dtypes else None
        return not dtypes and isinstance(dtype, np.dtype) and dtype.kind in "biuf"

    def _renaming(self, names: Sequence[str]) -> str:
        return _assignment(self, names) or super()._renaming(names)


class _Polars(_Table):
    __slots__ = ()

    def _column(self, position: int) -> np.ndarray[Any, Any]:
        return polars_numbers(self.value.to_series(position))

    def _renaming(self, names: Sequence[str]) -> str:
        return _assignment(self, names) or super()._renaming(names)


class _Arrow(_Table):
    __slots__ = ()

    def _column(self, position: int) -> np.ndarray[Any, Any]:
        return arrow_numbers(self.value.column(position))

    def _renaming(self, names: Sequence[str]) -> str:
        if len(names) != len(self.columns or ()):
            return super()._renaming(names)
        return f"to go by position, pass {self.name}.rename_columns(list(net.feature_names))"


def _assignment(frame: _Frame, names: Sequence[str]) -> str:
    if len(names) != len(frame.columns or ()):
        return ""
    return f"to go by position, set {frame.name}.columns = list(net.feature_names)"


def look(name: str, x: Any) -> Given:
    """Return what was given, classified: nothing asks again what it is.

    Parameters
    ----------
    name : str
        What the caller calls it.
    x : array of any library, nested sequence of numbers, data frame or column
        A ``Given`` is returned as it is.

    Raises
    ------
    InputError
        If it is None or a source.
    """
    if isinstance(x, np.ndarray | np.generic):
        return _Native(name, np.asanyarray(x), _HOST)
    if isinstance(x, Given):
        return x
    if x is None:
        raise InputError(f"{name}: expected an array, got None")
    if isinstance(x, Source):
        raise InputError(
            f"{name}: expected an array, got a source, which is for training and standardize; take "
            "its rows block by block, such as source.read(0, 1000).X"
        )
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
        return _Native(name, x, home)
    if hasattr(x, "__dlpack__") or home is not None:
        return _Foreign(name, x, home)
    # In this order: a polars LazyFrame, which is no array, warns when it is asked for its columns.
    if hasattr(x, "__array__") and hasattr(x, "columns"):
        return _Frame(name, x, x.columns)
    return _Sequence(name, x)


def _of_pandas(pandas: Any, name: str, x: Any) -> Given | None:
    if isinstance(x, pandas.DataFrame):
        return _Pandas(name, x, x.columns)
    is_column = isinstance(x, pandas.Series | pandas.Index | pandas.api.extensions.ExtensionArray)
    return _Column(name, x, pandas_numbers) if is_column else None


def _of_polars(polars: Any, name: str, x: Any) -> Given | None:
    if isinstance(x, polars.DataFrame):
        return _Polars(name, x, x.columns)
    return _Column(name, x, polars_numbers) if isinstance(x, polars.Series) else None


def _of_arrow(arrow: Any, name: str, x: Any) -> Given | None:
    if isinstance(x, arrow.Table | arrow.RecordBatch):
        return _Arrow(name, x, x.schema.names)
    is_column = isinstance(x, arrow.Array | arrow.ChunkedArray)
    return _Column(name, x, arrow_numbers) if is_column else None


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


def _kind(x: Any) -> str:
    return f"{type(x).__module__.partition('.')[0]}.{type(x).__name__}"


def _whereabouts(x: Any) -> str:
    try:
        return f"on {x.device}"
    except (AttributeError, RuntimeError) as error:  # JAX raises the latter for a deleted array
        return f"({_one_line(error)})"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
