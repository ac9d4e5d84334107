"""What a caller gave as X, y or weights: arrays of any library, and what NumPy converts."""

from __future__ import annotations

import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nnbackend.core.types import Array
from nnbackend.data.classify import Place, typed_array
from nnbackend.data.stored_chunks import stored_chunks
from nnbackend.data.typed import Table, TypedColumn
from nnbackend.device import Device, in_library_of
from nnbackend.errors import InputError

__all__ = ["Foreign", "Given", "Native", "Nested", "Typed"]


# The names of the dtypes of real numbers that NumPy and CuPy know, in any library.
_REAL = re.compile(r"bool|u?int(8|16|32|64)|float(16|32|64)")


class Given(ABC):
    """An array, sequence or data frame as it came, before its numbers are read.

    Attributes
    ----------
    name : str
        The name of the argument, for messages.
    value : Any
        The argument, which is only read.
    device : Device or None
        Its device. None for lists and data frames, which fit any device.
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
        """A hint on how to make a one-dimensional array two-dimensional."""
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
                f"expected an array on {device}, the network's device, got one on "
                f"{home}; move the network with .to({home.name!r}) or the array",
                argument=self.name,
            )
        x = self._read(names)
        if x.dtype.kind not in "biuf":
            raise self._no_numbers(x)
        return x

    def table(self, names: Sequence[str] | None = None) -> Table:
        """Return it as a table of typed columns; those of an array are called x0, x1, ...

        Parameters
        ----------
        names : sequence of str, optional
            Return these columns alone, in this order, and look at no others; by default all.

        Raises
        ------
        InputError
            If it is on a GPU or no table, if two columns have one name, or one is missing, or
            holds anything but numbers, booleans, text and dates. The message names the column.
        """
        if self.device is not None and self.device.kind != "cpu":
            raise InputError(
                f"expected a table in the host's memory, got an array on {self.device}; move it "
                "to the host first, for example with cupy.asnumpy or .cpu()",
                argument=self.name,
            )
        labels, column = self._columns()
        places: dict[str, int] = {}
        for i, label in enumerate(map(str, labels)):
            if places.setdefault(label, i) != i:
                raise InputError(
                    f"expected distinct column names, got {label!r} twice; rename one",
                    argument=self.name,
                )
        chosen = list(places) if names is None else [name for name in names if name in places]
        columns = {name: column(Place(self.name, name), places[name]) for name in chosen}
        n_rows = max((len(each.values) for each in columns.values()), default=self.n_rows)
        table = Table(columns, n_rows, self.name)
        return table if names is None else table.only(names)

    def _columns(self) -> tuple[Sequence[Any], Callable[[Place, int], TypedColumn]]:
        """Return the labels of a table's columns, and what reads the one at an index."""
        return self._columns_of(self._objects())

    def _columns_of(
        self, values: Any, labels: Sequence[Any] | None = None
    ) -> tuple[Sequence[Any], Callable[[Place, int], TypedColumn]]:
        """Return ``_columns`` of a NumPy array."""
        if values.ndim == 1 and values.dtype.names:
            fields = values.dtype.names
            return fields, lambda place, i: typed_array(place, values[fields[i]])
        if values.ndim != 2:
            shown = f"shape {values.shape}" if values.ndim else _kind(self.value)
            hint = self.two_axes_hint if values.ndim == 1 else self._conversion()
            if isinstance(self.value, list | tuple | dict):
                hint = "pass rows of equal length, or a data frame such as pandas.DataFrame"
            raise InputError(
                f"expected a table (n_rows, n_columns), got {shown}. Reshape your data: {hint}",
                argument=self.name,
            )
        labels = labels or [f"x{i}" for i in range(values.shape[1])]
        return labels, lambda place, i: typed_array(place, values[:, i])

    def _objects(self) -> Any:
        """Return a NumPy array in which values of different kinds are as they came."""
        return self._read(None)

    @abstractmethod
    def _read(self, names: Sequence[str] | None) -> Array:
        """Return a NumPy or CuPy array of whatever dtype."""

    def labels(self, names: Sequence[str] | None) -> Sequence[Any] | None:
        """Return what the columns of ``array(names=names)`` are called; None without names."""
        return None if self.columns is None else names or self.columns

    def _no_numbers(self, x: Array) -> InputError:
        if x.dtype.kind in "US":
            return InputError(
                f"expected real numbers, got dtype {x.dtype} (text); number classes "
                "from 0, for example names, y = numpy.unique(y, return_inverse=True), and encode "
                "text features",
                argument=self.name,
            )
        return InputError(
            f"expected real numbers, got dtype {x.dtype}; {self._conversion()}", argument=self.name
        )

    def _conversion(self) -> str:
        if hasattr(self.value, "collect"):
            return f"a lazy frame has none yet, pass {self.name}.collect()"
        return f"convert it, for example with numpy.asarray({self.name}, 'float32')"

    def returned(self, result: Array) -> Array:
        """Return a result, which is where this is, as an array of its library."""
        return result


class Native(Given):
    """An array of NumPy or CuPy."""

    __slots__ = ()

    @property
    def two_axes_hint(self) -> str:
        """A hint on how to make a one-dimensional array two-dimensional."""
        return "for one example use X[None, :]"

    def _read(self, names: Sequence[str] | None) -> Array:
        del names
        # Asking for it would load numpy.ma, and where it is not loaded, there is no such array.
        ma = sys.modules.get("numpy.ma")
        if ma is not None and isinstance(self.value, ma.MaskedArray) and ma.is_masked(self.value):
            raise InputError(
                f"expected an array without missing values, got a masked array with "
                f"{int(ma.getmaskarray(self.value).sum())} masked; fill them first",
                argument=self.name,
            )
        return self.value

    def _objects(self) -> Any:
        ma = sys.modules.get("numpy.ma")
        if ma is not None and isinstance(self.value, ma.MaskedArray):
            values = ma.getdata(self.value).astype(object)
            values[ma.getmaskarray(self.value)] = None
            return values
        return self.value

    def _conversion(self) -> str:
        return "convert it to float, for example with .astype('float32')"


class Foreign(Given):
    """An array of another library that DLPack reads."""

    __slots__ = ()

    @property
    def two_axes_hint(self) -> str:
        """A hint on how to make a one-dimensional array two-dimensional."""
        return "for one example use X[None, :]"

    def returned(self, result: Array) -> Array:
        """Return a result, which is where this is, as an array of its library."""
        return in_library_of(self.value, result)

    def _read(self, names: Sequence[str] | None) -> Array:
        del names
        name, x, home, kind = self.name, self.value, self.device, _kind(self.value)
        if "Tracer" in kind:
            raise InputError(
                f"expected an array, got {kind}, which holds no numbers inside jax.jit, "
                "grad and vmap; call nnbackend outside of them",
                argument=name,
            )
        if home is None:
            raise InputError(
                f"expected an array in the host's memory or on one CUDA GPU, got {kind} "
                f"{_whereabouts(x)}",
                argument=name,
            )
        dtype = getattr(x, "dtype", "float64")
        if not _REAL.fullmatch(str(dtype).rpartition(".")[2]):
            raise InputError(
                f"expected real numbers, got dtype {dtype}; convert it to float32 or float64",
                argument=name,
            )
        if "sparse" in str(getattr(x, "layout", "")):
            raise InputError(
                f"expected a dense array, got the sparse {kind}; convert it with .to_dense()",
                argument=name,
            )
        if getattr(x, "requires_grad", False):
            raise InputError(
                f"expected an array without a gradient, got {kind} that requires grad, and "
                "none flows back through nnbackend; pass .detach()",
                argument=name,
            )
        if hasattr(x, "is_neg") and x.is_neg():
            # Of such a tensor DLPack hands out numbers of the wrong sign.
            raise InputError(
                f"expected an array, got a negated view, {kind}; pass .resolve_neg()", argument=name
            )
        try:
            return home.share(x)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"expected an array that can be read where it is, got {kind} ({_one_line(error)})",
                argument=name,
            ) from error


class Nested(Given):
    """Nested sequences of numbers, or what NumPy converts by itself."""

    __slots__ = ()

    def _read(self, names: Sequence[str] | None) -> Array:
        del names
        return self._converted(self.value)

    def _objects(self) -> Any:
        if isinstance(self.value, list | tuple):
            # NumPy would make text of numbers beside text, and numbers of booleans.
            try:
                return np.asarray(self.value, object)
            except (RuntimeError, TypeError, ValueError):
                pass  # what NumPy says then is the error
        return self._converted(self.value)

    def _converted(self, x: Any) -> Array:
        if hasattr(x, "toarray"):
            raise InputError(
                f"expected a dense array, got the sparse {_kind(x)}; convert it with .toarray()",
                argument=self.name,
            )
        try:
            array = np.asarray(x)
        except (RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"expected an array or rows of equal length, got {_kind(x)} that "
                f"NumPy cannot convert ({_one_line(error)})",
                argument=self.name,
            ) from error
        stored = stored_chunks(self.name, x) if array.dtype.kind in "biuf" and array.size else None
        if stored is not None:
            stored.require(0, array, "pass the array's numbers, array[:]")
        return array


class Typed(Given):
    """A table of typed columns, such as a file is read as."""

    __slots__ = ("columns",)

    def __init__(self, name: str, value: Table) -> None:
        super().__init__(name, value)
        self.columns = tuple(value.columns)

    @property
    def n_rows(self) -> int:
        """The number of rows."""
        return int(self.value.n_rows)

    def table(self, names: Sequence[str] | None = None) -> Table:
        """Return the table, or its columns of these names."""
        table: Table = self.value
        return table if names is None else table.only(names)

    def _read(self, names: Sequence[str] | None) -> Array:
        table = self.table(names)
        for name, column in table.columns.items():
            if column.kind not in ("number", "boolean"):
                raise InputError(
                    f"expected numbers in column {name!r}, got {column.kind}; give the network an "
                    "encoder, net.encode_with(nb.TableEncoder().fit(X))",
                    argument=self.name,
                )
        columns = [column.values for column in table.columns.values()]
        return np.stack(columns, axis=1) if columns else np.empty((table.n_rows, 0))


def _kind(x: Any) -> str:
    return f"{type(x).__module__.partition('.')[0]}.{type(x).__name__}"


def _whereabouts(x: Any) -> str:
    try:
        return f"on {x.device}"
    except (AttributeError, RuntimeError) as error:  # JAX raises the latter for a deleted array
        return f"({_one_line(error)})"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
