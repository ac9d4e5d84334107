"""What is to be learnt: the kind of a target column is decided once, and kept with the model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnbackend.checks import nearest
from nnbackend.data.text_columns import KIND_WORDS, as_kind
from nnbackend.data.typed import TypedColumn
from nnbackend.errors import InputError

__all__ = ["Target", "class_name"]

_Array = np.ndarray[Any, Any]

# A target with more distinct whole numbers than this is taken for a quantity, not for classes.
MAX_INTEGER_CLASSES = 20


@dataclass(frozen=True)
class Target:
    """What a model predicts, and how a file's column of true values is read.

    Attributes
    ----------
    name : str or None
        The column of the training data; None if it is not known.
    task : {"classification", "regression"}
        What it is learnt as.
    kind : {"number", "boolean", "text"}
        The kind that the column is read as, whatever a file's column would be taken for alone.
    class_names : tuple of str or None
        The classes, of text as it was spelled; None for a regression.
    na : tuple of str or None
        What stood for a gap in the training data; None for the usual markers.
    facts : tuple of (str, str)
        What there is to say of the training data: rows, gaps, and why this is the target.
    """

    name: str | None
    task: str
    kind: str
    class_names: tuple[str, ...] | None = None
    na: tuple[str, ...] | None = None
    facts: tuple[tuple[str, str], ...] = ()

    @classmethod
    def decide(
        cls,
        name: str,
        column: TypedColumn,
        spelled: TypedColumn | None = None,
        task: str = "auto",
    ) -> tuple[Target, str]:
        """Return the target that a column makes, and why it is what it is.

        Parameters
        ----------
        name : str
            The column's name.
        column : TypedColumn
            Gaps are left out.
        spelled : TypedColumn, optional
            The column as the words that a file of text has.
        task : {"auto", "classification", "regression"}, default "auto"
            Auto: text, booleans and whole numbers of at most 20 distinct values are classes.

        Raises
        ------
        InputError
            If it is constant, all missing, or text with a value per row; or not of the task's kind.
        """
        present = ~column.is_missing
        column = column.take(present)
        if not present.any():
            raise InputError(
                f"expected values in column {name!r}, got {len(present)} gaps and nothing else; "
                "choose another",
                argument="--target",
            )
        spelled = None if spelled is None else spelled.take(present)
        if column.kind == "date" and spelled is not None and task == "classification":
            column = spelled
        if column.kind == "date":
            raise InputError(
                f"expected numbers, booleans or text in column {name!r}, got dates, such as "
                f"{column.shown(0)}; make a number or classes of them",
                argument="--target",
            )
        if column.kind == "number" and not np.isfinite(column.values).all():
            row = int(np.argmin(np.isfinite(column.values)))
            raise InputError(
                f"column {name!r} holds {column.values[row]}; expected finite numbers",
                argument="--target",
            )
        distinct = np.unique(column.values)
        task, reason = _task(name, column, distinct, task)
        target = cls(name, "regression", "number")
        if task == "classification":
            target = cls(name, task, *_classes(column, distinct, spelled))
        # +1 and 1 are one number, and may be two classes.
        if len(distinct) < 2 and (target.kind != "text" or len(target.class_names or ()) < 2):
            what = "values" if task == "regression" else "classes"
            raise InputError(
                f"expected at least two {what} in column {name!r}, got only "
                f"{_name(column, distinct[0])!r}; choose another",
                argument="--target",
            )
        if task == "regression":
            return target, reason
        count, n_rows = len(target.class_names or ()), len(column.values)
        if (count > 2 and count == n_rows) or (count > 1000 and count > n_rows // 2):
            advice = "choose another"
            if column.kind == "number":
                advice = "use --task regression if they are quantities"
            raise InputError(
                f"expected classes of several rows in column {name!r}, got {count} distinct "
                f"values in {n_rows} rows; {advice}",
                argument="--target",
            )
        return target, f"{count} classes: {reason}"

    @classmethod
    def of_classes(cls, class_names: tuple[str, ...] | None) -> Target:
        """Return the target of a model that does not say more than its classes' names."""
        if class_names is None:
            return cls(None, "regression", "number")
        if tuple(name.lower() for name in class_names) == ("false", "true"):
            return cls(None, "classification", "boolean", class_names)
        is_number = all(_is_plain(name) and class_name(float(name)) == name for name in class_names)
        return cls(None, "classification", "number" if is_number else "text", class_names)

    def encode(self, name: str, column: TypedColumn, path: str) -> _Array:
        """Return a column's class indices as int64, or its values as float64.

        Parameters
        ----------
        name : str
            The column's name.
        column : TypedColumn
            Of any kind that can be read as the target's, without gaps.
        path : str
            The file, for messages.

        Raises
        ------
        InputError
            If it is of another kind, or a class is not known.
        """
        column = as_kind(name, path, column, self.kind)
        if self.class_names is None:
            if not np.isfinite(column.values).all():
                row = int(np.argmin(np.isfinite(column.values)))
                raise InputError(
                    f"column {name!r} holds {column.values[row]} in row {row}; expected finite "
                    "numbers",
                    argument="--target",
                )
            return column.values
        if self.kind == "boolean":
            return column.values.astype(np.int64)
        distinct, inverse = np.unique(column.values, return_inverse=True)
        index = {entry: i for i, entry in enumerate(self.class_names)}
        names = [_name(column, value) for value in distinct]
        unknown = sorted(entry for entry in names if entry not in index)
        if unknown:
            raise InputError(
                f"column {name!r} holds the class {unknown[0]!r}, which the model does not "
                f"know{nearest(unknown[0], self.class_names)}",
                argument="--target",
            )
        codes: _Array = np.asarray([index[entry] for entry in names], np.int64)[inverse]
        return codes.reshape(-1)

    def to_json(self) -> dict[str, Any]:
        """Return what a model file says of it besides the classes' names."""
        na = None if self.na is None else list(self.na)
        facts = [list(pair) for pair in self.facts]
        return {
            "name": self.name, "task": self.task, "kind": self.kind, "na": na, "facts": facts
        }  # fmt: skip

    @classmethod
    def from_json(cls, facts: Any, class_names: tuple[str, ...] | None) -> Target:
        """Read what ``to_json`` returned.

        Raises
        ------
        ValueError
            If it is anything else.
        """
        keys = ("name", "task", "kind", "na", "facts")
        if not isinstance(facts, Mapping) or set(facts) != set(keys):
            raise ValueError(f"expected {', '.join(keys)}")
        name, task, kind, na, said = (facts[key] for key in keys)
        is_class = class_names is not None
        if (
            not isinstance(name, str | None)
            or task != ("classification" if is_class else "regression")
            or kind not in (("number", "boolean", "text") if is_class else ("number",))
            or (kind == "boolean" and len(class_names or ()) != 2)
            or not (na is None or _is_texts(na))
            or not (isinstance(said, list) and all(_is_texts(x) and len(x) == 2 for x in said))
        ):
            raise ValueError(f"expected other values of {', '.join(keys)}")
        pairs = tuple((what, text) for what, text in said)
        return cls(name, task, kind, class_names, None if na is None else tuple(na), pairs)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def class_name(value: Any) -> str:
    """Return the name of the class that a target value stands for: 2.0 and 2 are one class."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def _task(name: str, column: TypedColumn, distinct: _Array, task: str) -> tuple[str, str]:
    """Return the task of a column, and why it is that."""
    if column.kind != "number":
        what = KIND_WORDS[column.kind]
        if task == "regression" and column.kind == "text":
            raise InputError(
                f"column {name!r} holds text, such as {column.shown(0)}; expected numbers for "
                "--task regression",
                argument="--target",
            )
        if task == "regression":
            return "regression", f"a regression on {what}, by --task"
        return "classification", f"{what}"
    count = f"{len(distinct):,} distinct"
    is_whole = bool(np.all(distinct == np.round(distinct)))
    if task == "regression":
        return task, f"a regression on numbers ({count}), by --task"
    if task == "classification":
        return task, "numbers, by --task"
    if is_whole and len(distinct) <= MAX_INTEGER_CLASSES:
        return "classification", "whole numbers of few values; --task regression for quantities"
    what = "whole numbers" if is_whole else "numbers"
    return (
        "regression",
        f"a regression: {what} of many values ({count}); --task classification for classes",
    )


def _classes(
    column: TypedColumn, distinct: _Array, spelled: TypedColumn | None
) -> tuple[str, tuple[str, ...]]:
    """Return the kind of a column of classes and their names, in their order."""
    if column.kind == "boolean":
        names = ("False", "True")
        if spelled is not None and len(spelled.words) == 2:
            names = (spelled.words[1], spelled.words[0])
            if names[0].lower() != "false":
                names = (names[1], names[0])
        return "boolean", names
    if column.kind == "number":
        if spelled is None or all(map(_is_plain, spelled.words)):
            return "number", tuple(_name(column, value) for value in distinct)
        # 1e3, +1 or 007: classes are what the file says.
        column = spelled
    used = np.unique(column.values)
    return "text", tuple(sorted(column.words[int(code)] for code in used))


def _is_plain(word: str) -> bool:
    """Whether a word is a number as everybody writes it: 1, -20, 0.5 and 1.0."""
    if not re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", word):
        return False
    return class_name(float(word)) == re.sub(r"\.0*$", "", word)


def _name(column: TypedColumn, value: Any) -> str:
    if column.kind == "text":
        return column.words[int(value)]
    return str(bool(value)) if column.kind == "boolean" else class_name(float(value))
