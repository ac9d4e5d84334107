"""Excel's files as columns, through pandas."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nnbackend.data.classify import Place, typed_array
from nnbackend.data.text_columns import as_kind, text_column, typed_words
from nnbackend.data.text_files import require_distinct
from nnbackend.data.typed import TypedColumn
from nnbackend.errors import InputError, MissingDependencyError

__all__ = ["read_excel"]

# What deflate can make of one byte at most, and what is read of a file in all.
_DEFLATE_RATIO = 1032
_EXCEL_BYTES = 2**32


def read_excel(
    path: str, kinds: Mapping[str, str], na: Sequence[str]
) -> tuple[dict[str, TypedColumn], int, tuple[str, ...]]:
    """Return the columns of the first sheet, how many rows they have, and which sheet it is.

    Parameters
    ----------
    path : str
        The file; the first row of the sheet has the names.
    kinds : mapping of str to str
        Kinds of columns, by name, in place of what they would be taken for.
    na : sequence of str
        What stands for a gap.

    Raises
    ------
    InputError
        If the sheet is empty, two columns have one name, or one cannot be read as its kind.
    MissingDependencyError
        If pandas or openpyxl is not installed.
    """
    try:
        import openpyxl  # type: ignore[import-untyped]
        import pandas as pd  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingDependencyError(
            "reading .xlsx files needs pandas and openpyxl; install them with: pip install pandas "
            "openpyxl"
        ) from error
    del openpyxl
    _require_archive(path)
    with pd.ExcelFile(path, engine="openpyxl") as book:
        sheets = [str(name) for name in book.sheet_names]
        frame = pd.read_excel(
            book,
            sheet_name=book.sheet_names[0],
            header=None,
            dtype=object,
            keep_default_na=False,
            na_values=[],
        )
    if frame.empty:
        raise InputError(f"expected a table, got an empty sheet in {path!r}", argument="DATA")
    cells = [frame.iloc[:, i].tolist() for i in range(frame.shape[1])]
    names = ["" if _is_gap(column[0], na) else _spelled(column[0]) for column in cells]
    # What was formatted behind the last column has neither a name nor a value.
    used = [i for i, column in enumerate(cells) if not all(_is_gap(cell, na) for cell in column)]
    require_distinct([names[i] for i in used])
    columns = {
        names[i]: _typed_cells(names[i], path, cells[i][1:], kinds.get(names[i]), na) for i in used
    }
    more = "" if len(sheets) == 1 else f", the first of {len(sheets)}"
    return columns, len(frame) - 1, (f"sheet {sheets[0]!r}{more}",)


def _require_archive(path: str) -> None:
    """Compare the sizes that an Excel file claims, an archive, with its own."""
    import zipfile

    with zipfile.ZipFile(path) as archive:
        claimed = sum(member.file_size for member in archive.infolist())
    if claimed > min(_DEFLATE_RATIO * os.path.getsize(path), _EXCEL_BYTES):
        raise InputError(
            f"expected members of at most {_EXCEL_BYTES} bytes, got a claim of {claimed} in "
            f"{path!r}; write it as CSV",
            argument="DATA",
        )


def _is_gap(cell: Any, na: Sequence[str]) -> bool:
    if isinstance(cell, str):
        return cell in na
    # Not equal to itself: NaN and NaT.
    return cell is None or bool(cell != cell)  # noqa: PLR0124


def _spelled(cell: Any) -> str:
    """Return the text of a cell: 2.0 and 2 are one word."""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell)


def _typed_cells(
    name: str, path: str, cells: list[Any], kind: str | None, na: Sequence[str]
) -> TypedColumn:
    """Return Excel's cells, Python objects, as a column."""
    items = [None if _is_gap(cell, na) else cell for cell in cells]
    if kind is not None and any(isinstance(item, str) for item in items):
        words = text_column([None if item is None else _spelled(item) for item in items])
        return as_kind(name, path, words, kind)
    column = typed_array(Place("DATA", name), np.asarray(items, dtype=object))
    if kind is not None:
        return as_kind(name, path, column, kind)
    return typed_words(column) if column.kind == "text" else column
