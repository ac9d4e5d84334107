"""Typed columns as CSV that is read as they are: texts in quotes, gaps without."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from nnbackend.data.typed import TypedColumn

__all__ = ["table_csv"]


def table_csv(columns: Iterable[tuple[str, TypedColumn]]) -> str:
    """Return columns, each a name and its values, as CSV with a header line.

    A text such as NA is in quotes, so that it is no gap; so is every other text.
    """
    names, values = zip(*((_quoted(name), _cells(column)) for name, column in columns), strict=True)
    rows = (",".join(row) for row in zip(*values, strict=True))
    return "".join(f"{row}\n" for row in (",".join(names), *rows))


def _cells(column: TypedColumn) -> list[str]:
    """Return a column's values as text, empty where there is a gap."""
    if column.kind == "text":
        words = [*map(_quoted, column.words), ""]
        return [words[code] for code in column.values]
    if column.kind == "date":
        return ["" if np.isnat(day) else str(day) for day in column.values.view("M8[us]")]
    write = (lambda x: str(bool(x))) if column.kind == "boolean" else _number
    return ["" if is_gap else write(x) for x, is_gap in _pairs(column)]


def _pairs(column: TypedColumn) -> Iterable[tuple[Any, bool]]:
    return zip(column.values.tolist(), column.is_missing.tolist(), strict=True)


def _number(value: float) -> str:
    """Return the shortest decimal that reads back as the same number."""
    text = repr(value)
    return text.removesuffix(".0")


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
