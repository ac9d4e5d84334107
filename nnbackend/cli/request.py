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
from nnbackend.cli.parser import add_target
from nnbackend.cli.presets import DEFAULTS, PRESETS, SCHEDULES
from nnbackend.core.activations import ACTIVATIONS
from nnbackend.core.initializers import INITIALIZERS
from nnbackend.core.losses import LOSSES
from nnbackend.core.optimizers import OPTIMIZERS, Optimizer, optimizer
from nnbackend.data.datasets import DATASETS, load_dataset
from nnbackend.errors import InputError

if TYPE_CHECKING:
    from nnbackend.data.datasets import Dataset

__all__ = ["FIELDS", "Request", "add_options"]


# Fields of the data: text, except "drop", which is a list of names.
_DATA = ("data", "dataset", "target", "drop", "task")

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
        help="CSV, TSV, Parquet, NPY or NPZ file (needs --target)",
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
    add("optimizer", "NAME", ", ".join(OPTIMIZERS), kind=str, default=DEFAULTS["optimizer"].name)
    add("learning_rate", "RATE", default=DEFAULTS["optimizer"].learning_rate)
    add("weight_decay", "STRENGTH", default=DEFAULTS["optimizer"].weight_decay)
    add("schedule", "NAME", ", ".join(SCHEDULES), default="constant")
    add("epochs", "N", "at most")
    add("batch_size", "N", "examples per step, or 'full'", kind=str)
    add(
        "patience",
        "N",
        "epochs without a lower validation loss (training loss with --validation 0) that end the "
        "training; 0: no early stopping",
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
            default = OPTIONS[name].default
        if isinstance(default, tuple):
            default = ",".join(map(str, default))
        # Each data set has its own optimizer, with its own rate and decay.
        varies = any(name in preset for preset in PRESETS.values()) or name in _OPTIMIZER
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
            return cls.from_options(_parsed([str(text) for text in stored["arguments"]], parser))
        fields = stored["options"]
        if not isinstance(fields, dict) or not all(
            name in FIELDS and _is_plain(name, value) for name, value in fields.items()
        ):
            raise ValueError(f"expected options of train, got {fields!r}")
        return cls(fields)

    def stored(self) -> dict[str, Any]:
        """Return the fields to store, with an absolute path, to resume from any folder."""
        data = self.fields.get("data")
        return {**self.fields, **({} if data is None else {"data": os.path.abspath(data)})}

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
        drop, task = self.fields.get("drop", []), self.fields.get("task", "auto")
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
            for name, is_given in (("drop", bool(drop)), ("task", task != "auto")):
                if is_given:
                    raise InputError(
                        "expected a DATA file to apply it to, got none",
                        argument=f"{option_name(name)}",
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
        from nnbackend.data.tables import read_dataset

        return read_dataset(data, target, drop, task)

    def experiment(self) -> Experiment:
        """Return the experiment: the typed options, and defaults that suit the data.

        Raises
        ------
        InputError
            If an option is not as expected.
        """
        is_file = "data" in self.fields
        preset = {} if is_file else PRESETS[self.fields.get("dataset") or "breast_cancer"]
        given = {name: value for name, value in self.fields.items() if name in OPTIONS}
        suited = preset.get("optimizer", DEFAULTS["optimizer"])
        return Experiment.of({**preset, **given, "optimizer": self._optimizer(suited)})

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
    if name in ("hidden", "drop"):
        kind = int if name == "hidden" else str
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
    "drop": lambda texts: [name for text in texts for name in text.split(",")],
}
