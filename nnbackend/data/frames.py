"""Data frames and their columns as a caller gave them: read by name, column by column."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nnbackend.core.types import Array
from nnbackend.data.classify import Place
from nnbackend.data.columns import arrow_numbers, join, numbers, pandas_numbers, polars_numbers
from nnbackend.data.given import Given, Nested
from nnbackend.data.library_columns import typed_arrow, typed_pandas, typed_polars
from nnbackend.data.typed import TypedColumn
from nnbackend.errors import InputError

__all__ = ["ArrowTable", "Column", "Frame", "PandasFrame", "PolarsFrame"]


class Column(Given):
    """One column of a library of data frames: a Series, an Arrow array."""

    __slots__ = ("_numbers",)

    def __init__(self, name: str, value: Any, numbers_of: Callable[[Any], Array]) -> None:
        super().__init__(name, value)
        self._numbers = numbers_of

    @property
    def two_axes_hint(self) -> str:
        """A hint on how to make a table of it."""
        hint = ".to_frame()" if hasattr(self.value, "to_frame") else ".to_numpy().reshape(-1, 1)"
        return f"for one feature use {self.name}{hint}"

    def _read(self, names: Sequence[str] | None) -> Array:
        del names
        return numbers(self.name, "", self._numbers(self.value))

    def _objects(self) -> Any:
        # A column is no table, which is said before its values are looked at.
        return np.empty(self.n_rows)


class Frame(Nested):
    """A data frame of a library that is not known here: has columns, and is an array to NumPy."""

    __slots__ = ("columns",)

    def __init__(self, name: str, value: Any, columns: Any) -> None:
        super().__init__(name, value)
        self.columns = tuple(columns)

    def _columns(self) -> tuple[Sequence[Any], Callable[[Place, int], TypedColumn]]:
        return self._columns_of(self._converted(self.value), self.columns)

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
            others = [column for column in columns if column not in names]
            # By position, names that are known would be taken for others.
            in_place = all(i in places.get(name, [i]) for i, name in enumerate(names))
            advice = self._renaming(names)
            if len(columns) == len(names) and not in_place:
                advice = "pass one that has every column once"
                if others:
                    advice = f"rename {others[0]!r}, which is none of {list(names)[:8]}"
            raise InputError(
                f"expected a data frame with the network's feature_names, the column "
                f"{missing[0]!r} is missing; {advice}",
                argument=self.name,
            )
        twice = [name for name in names if len(places[name]) > 1]
        if twice:
            raise InputError(
                f"expected each of the network's feature_names once, got "
                f"{len(places[twice[0]])} columns {twice[0]!r}; {self._renaming(names)}",
                argument=self.name,
            )
        return [places[name][0] for name in names]

    def _renaming(self, names: Sequence[str]) -> str:
        """Return how the columns can be taken by position, or why they cannot."""
        columns = self.columns or ()
        if len(columns) == len(names):
            return f"to go by position, pass numpy.asarray({self.name})"
        shown = ", ".join(map(repr, columns[:8])) + (", ..." if len(columns) > 8 else "")
        return f"it has {shown or 'none'}: pass one that has every column once"


class _Table(Frame):
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

    def _columns(self) -> tuple[Sequence[Any], Callable[[Place, int], TypedColumn]]:
        return self.columns or (), self._typed

    @abstractmethod
    def _typed(self, place: Place, position: int) -> TypedColumn:
        """Return a column as it is."""

    @abstractmethod
    def _column(self, position: int) -> np.ndarray[Any, Any]:
        """Return a column as an array of whatever dtype, its gaps as NaN or None."""

    def _is_uniform(self) -> bool:
        """Whether NumPy makes the right array of all columns at once."""
        return False


class PandasFrame(_Table):
    """A data frame of pandas."""

    __slots__ = ()

    def _column(self, position: int) -> np.ndarray[Any, Any]:
        return pandas_numbers(self.value.iloc[:, position])

    def _typed(self, place: Place, position: int) -> TypedColumn:
        return typed_pandas(place, self.value.iloc[:, position])

    def _is_uniform(self) -> bool:
        dtypes = set(self.value.dtypes)
        dtype = dtypes.pop() if dtypes else None
        return not dtypes and isinstance(dtype, np.dtype) and dtype.kind in "biuf"

    def _renaming(self, names: Sequence[str]) -> str:
        return _assignment(self, names) or super()._renaming(names)


class PolarsFrame(_Table):
    """A data frame of polars."""

    __slots__ = ()

    def _column(self, position: int) -> np.ndarray[Any, Any]:
        return polars_numbers(self.value.to_series(position))

    def _typed(self, place: Place, position: int) -> TypedColumn:
        return typed_polars(place, self.value.to_series(position))

    def _renaming(self, names: Sequence[str]) -> str:
        return _assignment(self, names) or super()._renaming(names)


class ArrowTable(_Table):
    """A table or record batch of Arrow."""

    __slots__ = ()

    def _column(self, position: int) -> np.ndarray[Any, Any]:
        return arrow_numbers(self.value.column(position))

    def _typed(self, place: Place, position: int) -> TypedColumn:
        return typed_arrow(place, self.value.column(position))

    def _renaming(self, names: Sequence[str]) -> str:
        if len(names) != len(self.columns or ()):
            return super()._renaming(names)
        return f"to go by position, pass {self.name}.rename_columns(list(net.feature_names))"


def _assignment(frame: Frame, names: Sequence[str]) -> str:
    if len(names) != len(frame.columns or ()):
        return ""
    return f"to go by position, set {frame.name}.columns = list(net.feature_names)"
