"""A user's file as data to train on: features, target, weights, and what decides the split."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nnbackend.checks import listed
from nnbackend.data.datasets import Dataset
from nnbackend.data.tables import FileTable, file_suffix, read_table
from nnbackend.data.target import Target
from nnbackend.data.typed import KINDS, Table
from nnbackend.errors import InputError

__all__ = ["read_dataset"]


def read_dataset(
    path: str,
    target: str | None,
    *,
    drop: Sequence[str] = (),
    task: str = "auto",
    weight: str | None = None,
    group: str | None = None,
    order: str | None = None,
    columns: Mapping[str, str] | None = None,
    na: Sequence[str] | None = None,
    as_numbers: bool = False,
) -> Dataset:
    """Read a file and split it into features and target; leave out rows without a target.

    Parameters
    ----------
    path : str
        As for ``read_table``.
    target : str or None
        The target column: its name; for NPY its index, negative ones from the end; for NPZ the key
        of the vector. None: NPZ's ``y``.
    drop : sequence of str, optional
        Columns to leave out.
    task : {"auto", "classification", "regression"}, default "auto"
        As for ``Target.decide``.
    weight, group, order : str, optional
        The columns of weights and of groups, which are no features, and of what the rows are
        ordered by.
    columns : mapping of str to str, optional
        What columns are, by name: "number", "boolean", "date", "category" or "drop".
    na : sequence of str, optional
        As for ``read_table``.
    as_numbers : bool, default False
        Whether the features are to be a matrix of finite numbers instead of a table.

    Raises
    ------
    InputError
        If the file, or one of the columns, is not as expected.
    """
    if group is not None and order is not None:
        raise InputError(
            f"expected one of --group and --order, got both {group!r} and {order!r}",
            argument="--order",
        )
    told = dict(columns or {})
    kinds = {name: kind for name, kind in told.items() if kind in KINDS and name != target}
    table = read_table(path, kinds, na, keep=target)
    if target is None:
        target = table.target
    if target is None:
        raise InputError(
            f"expected the column to learn, one of {listed(list(table.columns))}",
            argument="--target",
        )
    target = table.column("--target", target)
    used = {"--weight": weight, "--group": group, "--order": order}
    named = _named(table, target, used)
    features = _features(table, target, named, drop, told)
    column = table.columns[target]
    decided, reason = Target.decide(target, column, table.spelling(target), task)
    present = ~column.is_missing
    whole = bool(present.all())
    X: Any
    if as_numbers:
        X = table.numbers(features)
        X = X if whole else X[present]
    else:
        # Now, as the rows of the parts that are drawn of it have other numbers.
        table.require_finite(features)
        X = Table({name: table.columns[name] for name in features}, table.n_rows, path)
        X = X if whole else X.take(present)
    spelled = table.spelling(target) if decided.kind == "text" else None
    y = decided.encode(target, (spelled or column).take(present), path)
    read = {option: table.columns[name].take(present) for option, name in named.items()}
    facts = [
        ("file", ", ".join(table.detected)),
        ("rows", f"{table.n_rows:,}{_left_out(target, present)}"),
        ("target", f"{target!r}, {reason}"),
        *((f"{option[2:]}", repr(name)) for option, name in named.items()),
        ("missing", _missing(table, features)),
        ("left out", ", ".join(f"{name!r} ({kind})" for name, kind in table.unreadable.items())),
    ]
    return Dataset(
        name=os.path.basename(path)[: -len(file_suffix(path) or "")],
        X=X,
        y=y,
        feature_names=tuple(features),
        target_name=target,
        class_names=decided.class_names,
        target=replace(
            decided,
            na=None if na is None else tuple(na),
            facts=tuple((what, text) for what, text in facts if text),
        ),
        weight=_weights(named["--weight"], read["--weight"]) if weight is not None else None,
        groups=_codes(read["--group"]) if group is not None else None,
        order=_ranks(named["--order"], read["--order"]) if order is not None else None,
    )


def _named(table: FileTable, target: str, used: Mapping[str, str | None]) -> dict[str, str]:
    """Return the columns of weights, of groups and of the order by option; they have no gaps."""
    named = {
        option: table.column(option, name) for option, name in used.items() if name is not None
    }
    for option, name in named.items():
        if name == target:
            raise InputError(
                f"expected another column than the target, got {name!r}", argument=option
            )
        table.require_complete([name], option)
    return named


def _features(
    table: FileTable,
    target: str,
    named: Mapping[str, str],
    drop: Sequence[str],
    told: Mapping[str, str],
) -> list[str]:
    """Return the columns that are features: neither dropped nor used for anything else."""
    for name in told:
        if table.column("--columns", name) == target:
            raise InputError(
                f"expected a feature, got the target {name!r}; what it is follows from --task",
                argument="--columns",
            )
    dropped = {table.column("--drop", name) for name in drop}
    dropped |= {name for name, kind in told.items() if kind == "drop"}
    others = {target, *dropped, named.get("--weight"), named.get("--group")}
    features = [name for name in table.columns if name not in others]
    if not features:
        raise InputError(
            f"expected at least one feature column in {table.name}, got none", argument="DATA"
        )
    return features


def _missing(table: Table, names: Sequence[str], most: int = 8) -> str:
    """Return which of the columns have gaps, and how many."""
    counts = {name: int(table.columns[name].is_missing.sum()) for name in names}
    found = [f"{name!r} ({counts[name]:,})" for name in names if counts[name]]
    more = f" and in {len(found) - most} more columns" if len(found) > most else ""
    return f"values in {', '.join(found[:most])}{more}" if found else ""


def _left_out(target: str, present: np.ndarray[Any, Any]) -> str:
    count = int((~present).sum())
    if not count:
        return ""
    return f", {count:,} of them without {target!r}: left out"


def _weights(name: str, column: Any) -> np.ndarray[Any, Any]:
    values: np.ndarray[Any, Any] = column.values
    if column.kind not in ("number", "boolean"):
        raise InputError(
            f"expected numbers in column {name!r}, got {column.shown(0)}", argument="--weight"
        )
    bad = ~np.isfinite(values) | (values < 0)
    if bad.any() or not values.any():
        shown = values[int(np.argmax(bad))]
        raise InputError(
            f"expected finite numbers >= 0, not all of them 0, got {shown:g} in column {name!r}",
            argument="--weight",
        )
    return values


def _codes(column: Any) -> np.ndarray[Any, Any]:
    codes: np.ndarray[Any, Any] = np.unique(column.values, return_inverse=True)[1]
    return codes.reshape(-1).astype(np.int64)


def _ranks(name: str, column: Any) -> np.ndarray[Any, Any]:
    if column.kind not in ("number", "date"):
        raise InputError(
            f"expected numbers or dates (such as 2024-12-31) in column {name!r}, got "
            f"{column.shown(0)}",
            argument="--order",
        )
    values: np.ndarray[Any, Any] = column.values
    return values
