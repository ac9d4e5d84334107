"""The options of ``nnbackend train``: what can be typed, and the fields that it becomes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from nnbackend.cli.experiment import OPTIONS
from nnbackend.cli.naming import option_name
from nnbackend.cli.parser import add_na, add_target, texts_of
from nnbackend.cli.presets import DEFAULTS, PRESETS, SCHEDULES, TABLE
from nnbackend.core.activations import ACTIVATIONS
from nnbackend.core.distributions import LEVELS
from nnbackend.core.initializers import INITIALIZERS
from nnbackend.core.losses import LOSSES
from nnbackend.core.optimizers import OPTIMIZERS
from nnbackend.data.datasets import DATASETS
from nnbackend.errors import InputError
from nnbackend.training.tabular import Tabular

__all__ = ["DATA_FIELDS", "FIELDS", "add_options", "fields_of", "is_plain"]


# Fields of the data that are lists of texts, and those that are texts.
_LISTS = ("drop", "columns", "na")
DATA_FIELDS = ("data", "dataset", "target", "task", "weight", "group", "order", "encoding", *_LISTS)

# What --columns says of a column; the file is read by the kinds that a table has.
_COLUMN_KINDS = ("number", "category", "boolean", "date", "drop")

# Fields of the optimizer besides its name.
_OPTIMIZER = {"learning_rate": float, "weight_decay": float, "schedule": str}

# All fields of a request.
FIELDS = (*DATA_FIELDS, *OPTIONS, *_OPTIMIZER)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options that become a request's fields.

    The parser needs ``argument_default=SUPPRESS``: an option that is not typed is no field.
    """
    parser.add_argument(
        "data",
        nargs="?",
        metavar="DATA",
        help="CSV, TSV, Parquet, Feather, Excel, NPY or NPZ file (needs --target)",
    )
    parser.add_argument(
        "--dataset", metavar="NAME", help=f"data that comes along: {', '.join(DATASETS)}"
    )
    add_target(parser)
    parser.add_argument("--drop", metavar="COL", action="append", help="columns to leave out: A,B")
    parser.add_argument(
        "--task",
        choices=["auto", "classification", "regression"],
        help="auto (default): text, booleans and whole numbers of at most 20 distinct values are "
        "classes",
    )
    parser.add_argument(
        "--columns",
        metavar="COL=KIND",
        action="append",
        help=f"what columns are, where the file does not show it: A={_COLUMN_KINDS[0]},"
        f"B={_COLUMN_KINDS[1]} ({', '.join(_COLUMN_KINDS)})",
    )
    add_na(parser)
    parser.add_argument(
        "--encoding",
        choices=["table", "none"],
        help="table: numbers are scaled, gaps filled, categories and dates encoded; none: columns "
        "are numbers, and standardized (table; none for NPY and NPZ)",
    )
    parser.add_argument("--weight", metavar="COL", help="the column of the examples' weights")
    parser.add_argument(
        "--group", metavar="COL", help="split by this column: none of its values is in two parts"
    )
    parser.add_argument(
        "--order",
        metavar="COL",
        help="split by this column, such as a date: the last rows are held out",
    )
    add = _Declarations(parser.add_argument_group("network"))
    add("hidden", "16,8", "hidden units by layer, or 'none'", kind=str)
    add("activation", "NAME", ", ".join(ACTIVATIONS))
    add("initializer", "NAME", ", ".join(INITIALIZERS), default="by activation")
    add("dropout", "RATE", "of hidden units")
    add("dtype", "NAME", "float32, float64")
    add("device", "NAME", "cpu, cuda, cuda:N, auto")
    add = _Declarations(parser.add_argument_group("training"))
    losses = ", ".join(name for name in LOSSES if name != "poisson")
    add("loss", "NAME", losses, kind=str, default="by task")
    add("quantiles", "Q,Q", "levels, with --loss quantile", kind=str, default=LEVELS)
    add("optimizer", "NAME", ", ".join(OPTIMIZERS), kind=str, default=DEFAULTS["optimizer"].name)
    add("learning_rate", "RATE", default=Tabular.learning_rate)
    add("weight_decay", "STRENGTH", default="by the number of steps")
    add("schedule", "NAME", ", ".join(SCHEDULES), default="cosine")
    add("epochs", "N", "at most", default="100; more of a few rows, fewer of many")
    add("batch_size", "N", "examples per step, or 'full'", kind=str, default="32; 128 of many rows")
    add(
        "patience",
        "N",
        "epochs without a lower validation loss (training loss with --validation 0) that end the "
        "training; 0: no early stopping",
        default="20 with --validation, else 0",
    )
    add("l1", "STRENGTH", "penalty")
    add("l2", "STRENGTH", "penalty")
    add("clip_norm", "NORM", default="no clipping")
    add("engine", "NAME", "auto, native, cuda, reference")
    add("precision", "NAME", "of products, with --engine cuda: float32, tf32, bfloat16")
    add("seed", "N", "of the split and the training")
    add("validation", "SHARE", "of all rows")
    add("held_out", "SHARE", "of all rows")


class _Declarations:
    """Declares options of a group with the types and defaults of their fields."""

    def __init__(self, group: Any) -> None:
        self._group = group

    def __call__(
        self, name: str, metavar: str, text: str = "", *, kind: Any = None, default: Any = None
    ) -> None:
        if default is None:
            default = TABLE.get(name, OPTIONS[name].default)
        if isinstance(default, tuple):
            default = ",".join(map(str, default))
        # Each data set has its own optimizer, with its own rate and decay.
        varies = name in TABLE or any(name in preset for preset in PRESETS.values())
        varies = varies or name in _OPTIMIZER
        shown = f"({default:g}" if isinstance(default, float) else f"({default}"
        self._group.add_argument(
            option_name(name),
            metavar=metavar,
            type=kind or _OPTIMIZER.get(name) or OPTIONS[name].kind,
            help=f"{text} {shown}{' *' if varies else ''})".strip(),
        )


def fields_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the fields that were typed, by name, as JSON can hold them.

    Raises
    ------
    InputError
        If a text cannot be converted.
    """
    fields = {name: value for name, value in vars(options).items() if name in FIELDS}
    for name, convert in _CONVERSIONS.items():
        if name in fields:
            fields[name] = convert(fields[name])
    return fields


def is_plain(name: str, value: Any) -> bool:
    """Whether a stored value has its field's type; the value itself is checked later."""
    if name in ("hidden", "quantiles", *_LISTS):
        kind = {"hidden": int, "quantiles": float}.get(name, str)
        return isinstance(value, list) and all(type(entry) is kind for entry in value)
    if name == "batch_size" and value is None:
        return True
    is_text = name in DATA_FIELDS or (_OPTIMIZER.get(name) or OPTIONS[name].kind) is str
    return isinstance(value, str) == is_text and isinstance(value, str | bool | int | float)


def _sizes(text: str) -> list[int]:
    if text in ("none", ""):
        return []
    parts = text.split(",")
    # Do not convert more digits than a size can have.
    if not all(part.strip().isdecimal() and len(part) < 20 and int(part) > 0 for part in parts):
        raise InputError(
            f"expected units by layer such as 16,8, or 'none', got {text!r}", argument="--hidden"
        )
    return [int(part) for part in parts]


def _levels(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"expected levels between 0 and 1 such as 0.05,0.5,0.95, got {text!r}",
            argument="--quantiles",
        ) from None


def _column_kinds(texts: list[str]) -> list[str]:
    entries = texts_of(texts)
    for entry in entries:
        name, _, kind = entry.rpartition("=")
        if not name or kind not in _COLUMN_KINDS:
            raise InputError(
                f"expected COL=KIND, where KIND is one of {', '.join(_COLUMN_KINDS)}, got "
                f"{entry!r}",
                argument="--columns",
            )
    return entries


def _batch_size(text: str) -> int | None:
    if text == "full":
        return None
    try:
        return int(text)
    except ValueError:
        raise InputError(
            f"expected an integer or 'full', got {text!r}", argument="--batch-size"
        ) from None


# How typed text becomes a field, where argparse does not convert it.
_CONVERSIONS: dict[str, Callable[[Any], Any]] = {
    "hidden": _sizes,
    "batch_size": _batch_size,
    "quantiles": _levels,
    "drop": texts_of,
    "columns": _column_kinds,
    "na": texts_of,
}
