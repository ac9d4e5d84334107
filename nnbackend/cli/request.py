"""The options that were typed for a run, as JSON stores them, and the experiment they make."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnbackend.checks import lookup
from nnbackend.cli.experiment import OPTIONS, Experiment
from nnbackend.cli.naming import option_name
from nnbackend.cli.options import DATA_FIELDS, FIELDS, fields_of, is_plain
from nnbackend.cli.presets import DEFAULTS, PRESETS, SCHEDULES, TABLE
from nnbackend.core.optimizers import Optimizer, optimizer
from nnbackend.core.schedules import Schedule
from nnbackend.data.datasets import DATASETS, load_dataset
from nnbackend.errors import InputError
from nnbackend.training.tabular import Tabular

if TYPE_CHECKING:
    from nnbackend.data.datasets import Dataset

__all__ = ["Request"]


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
        return cls(fields_of(options))

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
            name in FIELDS and is_plain(name, value) for name, value in fields.items()
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
            for name in DATA_FIELDS:
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
        preset = dict(TABLE)
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
