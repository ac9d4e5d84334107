"""What each column of a table becomes as inputs of a network: learnt once, kept with the model."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from nnbackend.checks import listed
from nnbackend.core.encoding import DATE_PARTS, CategoryEncoding, DateEncoding, NumberEncoding
from nnbackend.core.types import Array, Namespace
from nnbackend.data.given import Given
from nnbackend.data.target import class_name
from nnbackend.data.text_columns import KIND_WORDS, as_kind
from nnbackend.data.typed import NO_DATE, Table, TypedColumn
from nnbackend.errors import InputError

__all__ = [
    "Categories",
    "ColumnEncoding",
    "Dates",
    "Dropped",
    "Numbers",
    "TableEncoding",
]

_Array = np.ndarray[Any, Any]

# Rows that are encoded at once, to keep what is computed in between in a cache.
_ROWS_PER_BLOCK = 2**14


@dataclass(frozen=True)
class ColumnEncoding(ABC):
    """What a column of the training table becomes.

    Attributes
    ----------
    name : str
        The column's name.
    kind : {"number", "boolean", "text", "date"}
        What the column holds.
    """

    name: str
    kind: str

    #: What the column becomes, as ``columns=`` of ``TableEncoder`` spells it.
    becomes: ClassVar[str]

    @property
    @abstractmethod
    def output_names(self) -> tuple[str, ...]:
        """The names of the inputs of the network that the column becomes."""

    def given(self, column: TypedColumn) -> _Array:
        """Return the array that ``apply`` takes, of a column of the right kind."""
        return column.values

    @abstractmethod
    def apply(self, xp: Namespace, given: Array) -> Array:
        """Return the inputs (n_rows, len(output_names)) of float64."""

    @property
    @abstractmethod
    def description(self) -> str:
        """What the column becomes, in a few words."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return what was learnt, as JSON can hold it."""

    def of(self, table: Table) -> _Array:
        """Return the array that ``apply`` takes, of a table.

        Raises
        ------
        InputError
            If the table's column is of another kind, or holds an infinite number.
        """
        return self.given(converted(self.name, table, self.kind))


def converted(name: str, table: Table, kind: str) -> TypedColumn:
    """Return a table's column as one of a kind: gaps as any, text as what all of it spells.

    Raises
    ------
    InputError
        If a value is not of that kind, or is an infinite number.
    """
    column = table.columns[name]
    try:
        column = as_kind(name, table.name, column, kind, first_row=table.first_row)
    except InputError as error:
        raise InputError(error.message, table.name) from error
    if kind == "number" and np.isinf(column.values).any():
        row = int(np.argmax(np.isinf(column.values)))
        raise InputError(
            f"expected finite numbers or gaps in column {name!r}, got {column.values[row]} in "
            f"row {table.first_row + row}; make it a gap, or correct it",
            argument=table.name,
        )
    return column


@dataclass(frozen=True)
class Numbers(ColumnEncoding):
    """A column of numbers or booleans as one input, and one for its gaps if it had any.

    A boolean becomes -1 or 1, and 0 where it is missing.
    """

    encoding: NumberEncoding

    @property
    def becomes(self) -> str:  # type: ignore[override]
        """``"number"`` or ``"boolean"``."""
        return self.kind

    @property
    def output_names(self) -> tuple[str, ...]:
        """The column's name, and that of its gaps."""
        return (self.name, f"{self.name}=missing")[: self.encoding.n_outputs]

    def apply(self, xp: Namespace, given: Array) -> Array:
        """Return the inputs."""
        return self.encoding.apply(xp, given)

    @property
    def description(self) -> str:
        """What the column becomes, in a few words."""
        return f"{self.becomes}{', with gaps' if self.encoding.marks_gaps else ''}"

    def facts(self) -> dict[str, Any]:
        """Return what was learnt."""
        return self.encoding._asdict()


@dataclass(frozen=True)
class Categories(ColumnEncoding):
    """A column of text, numbers or booleans as one input per value.

    Attributes
    ----------
    values : tuple of str, or of float
        The values with an input of their own, booleans as 0.0 and 1.0.
    rare : tuple of the same
        The values that share an input; empty if there are none.
    marks_gaps : bool
        Whether a gap has an input.
    """

    values: tuple[Any, ...]
    rare: tuple[Any, ...] = ()
    marks_gaps: bool = False

    becomes: ClassVar[str] = "category"

    @property
    def output_names(self) -> tuple[str, ...]:
        """The column's name with each value."""
        names = [*map(self.spelled, self.values)]
        names += ["(rare)"] * bool(self.rare) + ["(missing)"] * self.marks_gaps
        return tuple(f"{self.name}={value}" for value in names)

    def spelled(self, value: Any) -> str:
        """Return a value as a name shows it."""
        return str(bool(value)) if self.kind == "boolean" else class_name(value)

    @cached_property
    def codes(self) -> dict[Any, int]:
        """The index of the input that each value has."""
        index = {value: i for i, value in enumerate(self.values)}
        return index | dict.fromkeys(self.rare, len(self.values))

    @property
    def missing_code(self) -> int:
        """The index of the input that a gap has; -1 if it has none."""
        return len(self.values) + bool(self.rare) if self.marks_gaps else -1

    def given(self, column: TypedColumn) -> _Array:
        """Return the index of the input that each row has; -1 for a value that is not known."""
        codes, missing = self.codes, self.missing_code
        if self.kind == "text":
            table = np.asarray([*(codes.get(word, -1) for word in column.words), missing], np.int64)
            return table[column.values]
        known = np.asarray(sorted(codes), np.float64)
        index = np.asarray([codes[value] for value in known.tolist()], np.int64)
        place = np.minimum(np.searchsorted(known, column.values), len(known) - 1)
        result = np.where(known[place] == column.values, index[place], -1)
        return np.where(np.isnan(column.values), missing, result)

    def apply(self, xp: Namespace, given: Array) -> Array:
        """Return the inputs."""
        return CategoryEncoding(len(self.output_names)).apply(xp, given)

    @property
    def description(self) -> str:
        """What the column becomes, in a few words."""
        n_values = f"{len(self.values)} value{'s' * (len(self.values) != 1)}"
        rare = f" and {len(self.rare)} rare ones together" if self.rare else ""
        if len(self.rare) == 1:
            rare = " and 1 rare one"
        return f"category of {n_values}{rare}{', with gaps' if self.marks_gaps else ''}"

    def facts(self) -> dict[str, Any]:
        """Return what was learnt."""
        return {
            "values": list(self.values),
            "rare": list(self.rare),
            "marks_gaps": self.marks_gaps,
        }


@dataclass(frozen=True)
class Dates(ColumnEncoding):
    """A column of dates or times as the numbers that ``DateEncoding`` makes of it."""

    encoding: DateEncoding

    becomes: ClassVar[str] = "date"

    @property
    def output_names(self) -> tuple[str, ...]:
        """The column's name with each part."""
        names = []
        for part in self.encoding.parts:
            whole = part in ("year", "trend")
            names += [part] if whole else [f"sin({part})", f"cos({part})"]
        names += ["missing"] * self.encoding.marks_gaps
        return tuple(f"{self.name}={name}" for name in names)

    def apply(self, xp: Namespace, given: Array) -> Array:
        """Return the inputs."""
        return self.encoding.apply(xp, given)

    @property
    def description(self) -> str:
        """What the column becomes, in a few words."""
        parts = f": {', '.join(self.encoding.parts)}" if self.encoding.parts else ""
        return f"date{parts}{', with gaps' if self.encoding.marks_gaps else ''}"

    def facts(self) -> dict[str, Any]:
        """Return what was learnt."""
        return {
            "parts": list(self.encoding.parts),
            "year": self.encoding.year._asdict(),
            "trend": self.encoding.trend._asdict(),
            "marks_gaps": self.encoding.marks_gaps,
        }


@dataclass(frozen=True)
class Dropped(ColumnEncoding):
    """A column that is left out, and why."""

    reason: str

    becomes: ClassVar[str] = "drop"

    @property
    def output_names(self) -> tuple[str, ...]:
        """No names."""
        return ()

    def given(self, column: TypedColumn) -> _Array:
        """Return nothing of the column."""
        return np.empty((len(column.values), 0))

    def apply(self, xp: Namespace, given: Array) -> Array:
        """Return no inputs."""
        del xp
        return given

    @property
    def description(self) -> str:
        """Why the column is left out."""
        return f"dropped: {self.reason}"

    def facts(self) -> dict[str, Any]:
        """Return the reason."""
        return {"reason": self.reason}


@dataclass(frozen=True)
class TableEncoding:
    """What each column of a table becomes; immutable, made of text and numbers.

    Attributes
    ----------
    columns : tuple of ColumnEncoding
        One per column of the training table, in its order.
    """

    columns: tuple[ColumnEncoding, ...]

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The names of the columns that predictions take."""
        return tuple(column.name for column in self.used)

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of the inputs of the network, all different.

        A name that a column before has as well gets a number: column "a" with the value "b=c", and
        column "a=b" with the value "c".
        """
        names = [name for column in self.used for name in column.output_names]
        if len(set(names)) < len(names):
            taken = set(names)
            seen: set[str] = set()
            for i, name in enumerate(names):
                if name in seen:
                    number = next(n for n in itertools.count(2) if f"{name} ({n})" not in taken)
                    names[i] = f"{name} ({number})"
                    taken.add(names[i])
                seen.add(names[i])
        return tuple(names)

    @property
    def n_outputs(self) -> int:
        """The number of inputs of the network."""
        return sum(len(column.output_names) for column in self.used)

    @property
    def used(self) -> list[ColumnEncoding]:
        """The columns that predictions take."""
        return [column for column in self.columns if not isinstance(column, Dropped)]

    @property
    def raw_names(self) -> tuple[str, ...]:
        """The names of all columns of the training table, the dropped ones included."""
        return tuple(column.name for column in self.columns)

    @property
    def has_no_names(self) -> bool:
        """Whether the columns are named as those of an array are: x0, x1, ..."""
        return self.raw_names == tuple(f"x{i}" for i in range(len(self.columns)))

    def table(self, given: Given) -> Table:
        """Return what a caller gave as a table of the columns ``feature_names``; see ``chosen``."""
        is_named = given.columns is not None
        # Where one is missing, ``chosen`` says so.
        has_all = is_named and set(self.feature_names) <= set(map(str, given.columns or ()))
        table = given.table(self.feature_names if has_all else None)
        return self.chosen(table, is_named=is_named)

    def chosen(self, table: Table, *, is_named: bool) -> Table:
        """Return the columns ``feature_names`` of a table.

        Parameters
        ----------
        table : Table
            The table.
        is_named : bool
            Whether its columns have names of their own: then it is read by name. An array goes by
            position, and has all columns of the training table; so does a frame if the training
            table had no names.

        Raises
        ------
        InputError
            If a column is missing.
        """
        names = self.raw_names
        if not is_named or (
            self.has_no_names and not set(self.feature_names) <= set(table.columns)
        ):
            if len(table.columns) != len(names):
                raise InputError(
                    f"expected the {len(names)} columns of the training data, got "
                    f"{len(table.columns)}",
                    argument=table.name,
                )
            table = replace(table, columns=dict(zip(names, table.columns.values(), strict=True)))
        return table.only(self.feature_names)

    def apply(self, table: Table, dtype: Any = np.float64, *, out: _Array | None = None) -> _Array:
        """Return the inputs of the network (n_rows, n_outputs).

        Parameters
        ----------
        table : Table
            With the columns ``feature_names``, in any order; others are ignored.
        dtype : float32 or float64, default float64
            The dtype of the result; all is computed in float64.
        out : array (n_rows, n_outputs), optional
            Where to write the result, in its dtype; by default a new array.

        Raises
        ------
        InputError
            If a column is missing, of another kind than in training, or holds an infinite number.
        """
        used = self.used
        table = table.only(column.name for column in used)
        given = [column.of(table) for column in used]
        result = np.empty((table.n_rows, self.n_outputs), dtype) if out is None else out
        widths = [len(column.output_names) for column in used]
        # The largest numbers overflow to infinity, which is squashed.
        with np.errstate(over="ignore"):
            for rows in _blocks(table.n_rows):
                start = 0
                for column, values, width in zip(used, given, widths, strict=True):
                    result[rows, start : start + width] = column.apply(np, values[rows])
                    start += width
        return result

    def to_json(self) -> list[dict[str, Any]]:
        """Return the encoding as JSON can hold it."""
        return [
            {"name": c.name, "kind": c.kind, "becomes": c.becomes, **c.facts()}
            for c in self.columns
        ]

    @classmethod
    def from_json(cls, stored: Any) -> TableEncoding:
        """Return the encoding that ``to_json`` stored.

        Raises
        ------
        ValueError
            If it is anything else; the message says what.
        """
        if not isinstance(stored, list):
            raise ValueError("its columns are no list")  # noqa: TRY004 - as documented
        columns = tuple(map(_column, stored))
        names = [column.name for column in columns]
        _require(len(set(names)) == len(names), "two of its columns have one name")
        return cls(columns)


def _blocks(n_rows: int) -> Iterator[slice]:
    for start in range(0, n_rows, _ROWS_PER_BLOCK):
        yield slice(start, min(start + _ROWS_PER_BLOCK, n_rows))


def _require(condition: object, problem: str) -> None:
    if not condition:
        raise ValueError(problem)


def _column(stored: Any) -> ColumnEncoding:
    """Return the encoding of one column, after checking everything that its use relies on."""
    _require(isinstance(stored, dict), "a column is no object")
    name, kind, becomes = (stored.get(key) for key in ("name", "kind", "becomes"))
    _require(_is_text(name), "a column has no name")
    _require(isinstance(kind, str) and kind in KIND_WORDS, f"the kind of {name!r} is not known")
    if becomes == "drop":
        reason = stored.get("reason")
        _require(_is_text(reason), f"{name!r} is dropped without a reason")
        return Dropped(name, kind, reason)
    marks_gaps = stored.get("marks_gaps")
    _require(isinstance(marks_gaps, bool), f"{name!r} does not say what a gap is")
    if becomes == "category" and kind != "date":
        return _categories(name, kind, stored)
    if becomes == "date" and kind == "date":
        return _dates(name, stored)
    _require(becomes == kind and kind in ("number", "boolean"), f"what {name!r} becomes is odd")
    return Numbers(name, kind, _number(name, stored))


def _categories(name: str, kind: str, stored: Mapping[str, Any]) -> Categories:
    values, rare = stored.get("values"), stored.get("rare")
    _require(isinstance(values, list) and isinstance(rare, list), f"{name!r} has no values")
    every = [*values, *rare]  # type: ignore[misc]
    if kind == "text":
        _require(all(map(_is_text, every)), f"a value of {name!r} is odd")
    else:
        _require(all(map(_is_finite, every)), f"a value of {name!r} is odd")
        values, rare = ([float(value) for value in part] for part in (values, rare))  # type: ignore[union-attr]
        every = [*values, *rare]
    _require(every and len(set(every)) == len(every), f"the values of {name!r} are not distinct")
    return Categories(name, kind, tuple(values), tuple(rare), stored["marks_gaps"])  # type: ignore[arg-type]


def _dates(name: str, stored: Mapping[str, Any]) -> Dates:
    parts = stored.get("parts")
    _require(
        isinstance(parts, list) and parts == [part for part in DATE_PARTS if part in parts],
        f"the parts of the date {name!r} are odd",
    )
    year, trend = (_number(name, stored.get(key)) for key in ("year", "trend"))
    _require(parts or stored["marks_gaps"], f"the date {name!r} becomes nothing")
    encoding = DateEncoding(tuple(parts or ()), year, trend, stored["marks_gaps"], NO_DATE)
    return Dates(name, "date", encoding)


def _number(name: str, stored: Any) -> NumberEncoding:
    _require(isinstance(stored, dict), f"the numbers of {name!r} are missing")
    fill, centre, scale = (stored.get(key) for key in ("fill", "centre", "scale"))
    flags = [stored.get(key) for key in ("squashes", "marks_gaps")]
    _require(
        all(map(_is_finite, (fill, centre, scale)))
        and scale > 0
        and all(isinstance(flag, bool) for flag in flags),
        f"the numbers of {name!r} are odd",
    )
    return NumberEncoding(float(fill), float(centre), float(scale), *flags)


def _is_finite(value: Any) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def _is_text(value: Any) -> bool:
    """Whether a value is text that can be written; JSON may spell halves of a pair."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def described(columns: Sequence[ColumnEncoding], most: int | None = None) -> list[tuple[str, str]]:
    """Return for each thing that columns become, which do: columns alike share a line.

    Of the names of a line, at most ``most`` are told, if it is given, and how many more there are.
    """
    lines: dict[str, list[str]] = {}
    for column in columns:
        lines.setdefault(column.description, []).append(column.name)
    return [(description, listed(names, most, str)) for description, names in lines.items()]
