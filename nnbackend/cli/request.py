"""The options of ``nnbackend train``: declared, collected as fields, and stored as JSON."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnbackend.checks import lookup
from nnbackend.cli.experiment import OPTIONS, Experiment
from nnbackend.cli.naming import option_name
from nnbackend.cli.parser import add_na, add_target
from nnbackend.cli.presets import DEFAULTS, PRESETS, SCHEDULES, for_table
from nnbackend.core.activations import ACTIVATIONS
from nnbackend.core.distributions import LEVELS
from nnbackend.core.initializers import INITIALIZERS
from nnbackend.core.losses import LOSSES
from nnbackend.core.optimizers import OPTIMIZERS, Optimizer, optimizer
from nnbackend.core.schedules import Schedule
from nnbackend.data.datasets import DATASETS, load_dataset
from nnbackend.errors import InputError
from nnbackend.training.tabular import Tabular

if TYPE_CHECKING:
    from nnbackend.data.datasets import Dataset

__all__ = ["FIELDS", "Request", "add_options", "texts_of"]


# Fields of the data that are lists of texts, and those that are texts.
_LISTS = ("drop", "columns", "na")
_DATA = ("data", "dataset", "target", "task", "weight", "group", "order", "encoding", *_LISTS)

# What --columns says of a column; the file is read by the kinds that a table has.
_COLUMN_KINDS = ("number", "category", "boolean", "date", "drop")

# Fields of the optimizer besides its name.
_OPTIMIZER = {"learning_rate": float, "weight_decay": float, "schedule": str}

# All fields of a request.
FIELDS = (*_DATA, *OPTIONS, *_OPTIMIZER)


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
            default = for_table(1).get(name, OPTIONS[name].default)
        if isinstance(default, tuple):
            default = ",".join(map(str, default))
        # Each data set has its own optimizer, with its own rate and decay.
        varies = name in for_table(1) or any(name in preset for preset in PRESETS.values())
        varies = varies or name in _OPTIMIZER
        shown = f"({default:g}" if isinstance(default, float) else f"({default}"
        self._group.add_argument(
            option_name(name),
            metavar=metavar,
            type=kind or _OPTIMIZER.get(name) or OPTIONS[name].kind,
            help=f"{text} {shown}{' *' if varies else ''})".strip(),
        )


@dataclass(frozen=True)
class Request:
    """The options that were typed for a run.

    Attributes
    ----------
    fields : mapping of str to object
        Values by name, as JSON can hold them, of the options that were typed.
    """

    fields: Mapping[str, Any]

    @classmethod
    def from_options(cls, options: argparse.Namespace) -> Request:
        """Collect the fields from parsed options.

        Raises
        ------
        InputError
            If a text cannot be converted.
        """
        fields = {name: value for name, value in vars(options).items() if name in FIELDS}
        for name, convert in _CONVERSIONS.items():
            if name in fields:
                fields[name] = convert(fields[name])
        return cls(fields)

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any], parser: argparse.ArgumentParser) -> Request:
        """Read the fields that a run was begun with.

        Parameters
        ----------
        stored : mapping
            The content of a run's ``command.json``. Version 0.1.0 stored the ``arguments`` as they
            were typed, which the parser reads.
        parser : ArgumentParser
            A parser with the options of ``add_options``.

        Raises
        ------
        ValueError, TypeError
            If it cannot be read.
        """
        if "options" not in stored:
            request = cls.from_options(_parsed(list(map(str, stored["arguments"])), parser))
            return cls(
                {**request.fields, **({"encoding": "none"} if "data" in request.fields else {})}
            )
        fields = stored["options"]
        if isinstance(fields, dict) and "data" in fields:
            # There was no other in versions that did not write it.
            fields = {"encoding": "none", **fields}
        if not isinstance(fields, dict) or not all(
            name in FIELDS and _is_plain(name, value) for name, value in fields.items()
        ):
            raise ValueError(f"expected options of train, got {fields!r}")
        return cls(fields)

    def stored(self) -> dict[str, Any]:
        """Return the fields to store, with an absolute path, to resume from any folder."""
        data = self.fields.get("data")
        if data is None:
            return dict(self.fields)
        return {**self.fields, "data": os.path.abspath(data), "encoding": self.encoding}

    @property
    def encoding(self) -> str:
        """How the columns become features: "table" or "none"."""
        is_array = self.fields.get("data", "").lower().endswith((".npy", ".npz"))
        default = "none" if is_array else "table"
        return str(self.fields.get("encoding", default))

    @property
    def column_kinds(self) -> dict[str, str]:
        """What ``--columns`` says, by name."""
        return dict(text.rsplit("=", 1) for text in self.fields.get("columns", []))

    def replaced(self, other: Request) -> Request:
        """Return a request in which the fields of another override these."""
        return Request({**self.fields, **other.fields})

    def dataset(self) -> Dataset:
        """Read the data.

        Raises
        ------
        InputError
            If they cannot be read, or if options contradict each other.
        """
        data, dataset, target = (self.fields.get(name) for name in ("data", "dataset", "target"))
        if self.fields.get("loss") == "poisson":
            raise InputError(
                "'poisson' is for counts, which the command does not train on yet",
                argument="--loss",
            )
        if data is None:
            if target is not None:
                raise InputError(
                    "expected a DATA file with that column, got none", argument="--target"
                )
            for name in _DATA:
                if name != "dataset" and self.fields.get(name, "auto") not in ("auto", []):
                    raise InputError(
                        "expected a DATA file to apply it to, got none", argument=option_name(name)
                    )
            return load_dataset(dataset or "breast_cancer")
        if data in DATASETS and not Path(data).exists():
            raise InputError(
                f"no such file {data!r}; did you mean --dataset {data}?", argument="DATA"
            )
        if dataset is not None:
            raise InputError(
                f"expected either DATA or --dataset, got both {data!r} and {dataset!r}",
                argument="--dataset",
            )
        from nnbackend.data.user_data import read_dataset

        kinds = self.column_kinds
        if kinds and self.encoding == "none":
            raise InputError(
                "expected --encoding table along with it, since without an encoding all columns "
                "are numbers",
                argument="--columns",
            )
        return read_dataset(
            data,
            target,
            drop=self.fields.get("drop", []),
            task=self.fields.get("task", "auto"),
            weight=self.fields.get("weight"),
            group=self.fields.get("group"),
            order=self.fields.get("order"),
            columns=kinds,
            na=self.fields.get("na"),
            as_numbers=self.encoding == "none",
        )

    def experiment(self, n_rows: int) -> Experiment:
        """Return the experiment: the typed options, and defaults that suit the data.

        Parameters
        ----------
        n_rows : int
            The number of rows of the data.

        Raises
        ------
        InputError
            If an option is not as expected.
        """
        given = {name: value for name, value in self.fields.items() if name in OPTIONS}
        if "data" not in self.fields:
            preset = PRESETS[self.fields.get("dataset") or "breast_cancer"]
        elif self.encoding == "none":
            preset = {}
        else:
            return self._experiment_on_table(n_rows, given)
        suited = preset.get("optimizer", DEFAULTS["optimizer"])
        return Experiment.of({**preset, **given, "optimizer": self._optimizer(suited)})

    def _experiment_on_table(self, n_rows: int, given: Mapping[str, Any]) -> Experiment:
        # A validation part and patience come together.
        preset = for_table(1)
        if given.get("validation"):
            preset["patience"] = DEFAULTS["patience"]
        elif given.get("patience") and "validation" not in given:
            preset["validation"] = OPTIONS["validation"].default
        shares = Experiment.of({**preset, **given}).split
        n_others = round(n_rows * shares.held_out) + round(n_rows * shares.validation)
        suited = Tabular(max(1, n_rows - n_others))
        experiment = Experiment.of(
            {**preset, "epochs": suited.epochs, "batch_size": suited.batch_size, **given}
        )
        options = experiment.training
        optimizer = suited.optimizer(
            options.epochs,
            options.batch_size or suited.n_rows,
            self.fields.get("learning_rate"),
        )
        return replace(experiment, training=replace(options, optimizer=self._optimizer(optimizer)))

    def settled(self, experiment: Experiment) -> Request:
        """Return the request with what its experiment's number of epochs has decided.

        So a run goes on with what it began with, for however many epochs.
        """
        if "data" not in self.fields or self.encoding == "none" or "weight_decay" in self.fields:
            return self
        decay = getattr(experiment.training.optimizer, "weight_decay", None)
        return self if decay is None else Request({**self.fields, "weight_decay": decay})

    def _optimizer(self, suited: Optimizer) -> Optimizer:
        """Return the optimizer, by default ``suited``, with the rate and decay that are given."""
        fields = self.fields
        chosen: Any = optimizer(fields["optimizer"]) if "optimizer" in fields else suited
        rate = fields.get("learning_rate")
        if "schedule" in fields:
            if rate is None:
                # A schedule's own learning_rate is the number it starts from or rises to.
                rate = getattr(chosen.learning_rate, "learning_rate", chosen.learning_rate)
            rate = lookup("--schedule", fields["schedule"], SCHEDULES)(rate)
        elif rate is not None and isinstance(chosen.learning_rate, Schedule):
            schedule: Any = chosen.learning_rate
            rate = replace(schedule, learning_rate=rate)
        if rate is not None:
            chosen = replace(chosen, learning_rate=rate)
        if "weight_decay" in fields:
            chosen = replace(chosen, weight_decay=fields["weight_decay"])
        result: Optimizer = chosen
        return result


def _parsed(arguments: list[str], parser: argparse.ArgumentParser) -> argparse.Namespace:
    silence = io.StringIO()
    try:
        with contextlib.redirect_stderr(silence), contextlib.redirect_stdout(silence):
            return parser.parse_args(arguments)
    except SystemExit as error:
        raise ValueError(f"expected arguments of train, got {arguments!r}") from error


def _is_plain(name: str, value: Any) -> bool:
    """Whether a stored value has its field's type; the value itself is checked later."""
    if name in ("hidden", "quantiles", *_LISTS):
        kind = {"hidden": int, "quantiles": float}.get(name, str)
        return isinstance(value, list) and all(type(entry) is kind for entry in value)
    if name == "batch_size" and value is None:
        return True
    is_text = name in _DATA or (_OPTIMIZER.get(name) or OPTIONS[name].kind) is str
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


def texts_of(texts: list[str]) -> list[str]:
    """Return the texts of an option that is repeated, or has commas."""
    return [name for text in texts for name in text.split(",")]


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
