"""Run an experiment; report its result and write it to a run folder."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nnbackend._version import __version__
from nnbackend.cli.evaluation import Split, evaluate
from nnbackend.cli.table_csv import table_csv
from nnbackend.cli.terminal import to_json
from nnbackend.data.encoding import described
from nnbackend.data.typed import Table, TypedColumn
from nnbackend.errors import InputError, NNBackendError
from nnbackend.io.files import write_atomically
from nnbackend.io.format import to_bytes
from nnbackend.training.errors import CheckpointError, DivergenceError
from nnbackend.training.history import History
from nnbackend.training.train import train

if TYPE_CHECKING:
    from nnbackend.cli.experiment import Experiment
    from nnbackend.cli.run_folder import RunFolder
    from nnbackend.data.datasets import Dataset
    from nnbackend.data.encoding import TableEncoding
    from nnbackend.model.network import Network

__all__ = ["Result", "run"]


@dataclass(frozen=True)
class Result:
    """The result of an experiment.

    Attributes
    ----------
    experiment : Experiment
        Its options.
    dataset : Dataset
        The data.
    rows : Split
        The parts of the data.
    network : Network
        The trained network.
    history : History
        The history of the training.
    scores : dict of str to float
        Metrics on the held-out part; empty if there is none.
    error : NNBackendError or None
        Why training or evaluation failed.
    """

    experiment: Experiment
    dataset: Dataset
    rows: Split
    network: Network
    history: History
    scores: dict[str, float] = field(default_factory=dict)
    error: NNBackendError | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as JSON can hold them."""
        net, history = self.network, self.history
        learning_rate = self.experiment.training.optimizer.learning_rate
        target, encoding = self.dataset.target, net.encoding
        return {
            "dataset": self.dataset.name,
            "samples": {
                "training": len(self.rows.training),
                "validation": len(self.rows.validation),
                "held_out": len(self.rows.held_out),
            },
            **({} if target is None else {"data": dict(target.facts)}),
            **({} if encoding is None else {"columns": dict(described(encoding.columns))}),
            "network": {
                "layer_sizes": net.layer_sizes,
                "hidden": list(net.hidden),
                "output": net.output,
                **({} if net.quantiles is None else {"quantiles": list(net.quantiles)}),
                "dtype": net.dtype,
                "device": net.device,
                "n_parameters": net.n_parameters,
            },
            "optimizer": self.experiment.training.optimizer.name,
            "learning_rate": learning_rate
            if isinstance(learning_rate, float)
            else repr(learning_rate),
            "batch_size": self.experiment.training.batch_size,
            "seed": self.experiment.training.seed,
            "options": {**self.experiment.to_dict(), "target": self.dataset.target_name},
            "held_out": self.scores,
            "samples_per_second": history.samples_per_second if history.n_epochs else None,
            "history": history.to_dict(),
            "versions": {
                "nnbackend": __version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
        }

    def write(self, folder: RunFolder) -> list[str]:
        """Write model, history, held-out rows and pictures: all of them or none.

        If a picture cannot be drawn, warn and leave it out.

        Raises
        ------
        InputError
            If the folder cannot be written.
        CheckpointError
            If the folder was deleted or replaced.
        DivergenceError, KeyboardInterrupt
            If training ended within its first epoch: nothing was learnt.

        Returns
        -------
        list of str
            The names of the files.
        """
        if self.history.n_epochs == 0:
            raise self.error or KeyboardInterrupt
        written: list[str] = []
        try:
            for name, content in self._files():
                if content:
                    folder.require_own()
                    write_atomically(folder.path / name, content)
                    written.append(name)
        except BaseException:
            if folder.is_own:
                for name in written:
                    with contextlib.suppress(OSError):
                        (folder.path / name).unlink()
            raise
        return written

    def _files(self) -> Iterator[tuple[str, bytes | None]]:
        """Yield names and contents: the model first, the pictures last."""
        from nnbackend.cli.boundary import decision_boundary
        from nnbackend.figures import drawn
        from nnbackend.training.curves import loss_curves

        dataset, net = self.dataset, self.network
        title = f"{dataset.name}: {net.layer_sizes}"
        yield "model.safetensors", to_bytes(net)
        yield "history.json", to_json(self.to_dict()).encode()
        yield "held_out.csv", _csv(dataset, self.rows.held_out)
        pictures = {
            "curves.png": lambda: loss_curves(
                self.history,
                title,
                penalized=self.experiment.training.l1 > 0 or self.experiment.training.l2 > 0,
                unit="standardized target" if dataset.class_names is None else None,
            )
        }
        points = _plane(dataset.X, net.encoding) if dataset.class_names is not None else None
        if points is not None:
            table_of = None if net.encoding is None else _tables(net.encoding)
            pictures["decision_boundary.png"] = lambda: decision_boundary(
                net, points, dataset.y, title, table_of
            )
        for name, draw in pictures.items():
            yield name, drawn(name, draw)


def run(
    experiment: Experiment,
    dataset: Dataset,
    rows: Split,
    net: Network,
    communicator: Any = None,
    **how: Any,
) -> Result:
    """Train ``net`` on a part of the data set and measure it on the held-out part.

    If training diverges, or a checkpoint cannot be written, the result is still returned, with
    ``error`` set.

    Parameters
    ----------
    experiment : Experiment
        Its options.
    dataset : Dataset
        The data.
    rows : Split
        Its parts.
    net : Network
        As ``make_network`` returns it.
    communicator : mpi4py.MPI.Intracomm, optional
        As for ``train``.
    **how
        Options of ``train`` that do not change the outcome, such as callbacks.
    """
    X, y, weight = _part(dataset, rows.training)
    is_regression = dataset.class_names is None
    if is_regression or net.encoding is None:
        net.standardize(X, y if is_regression else None)
    if net.encoding is not None:
        # It has scaled the features.
        net.standardization = None
    validation = _part(dataset, rows.validation) if len(rows.validation) else None
    options = replace(experiment.training, **how)
    asked = {entry.name: getattr(options, entry.name) for entry in fields(options)}
    error: NNBackendError | None = None
    try:
        history = train(
            net,
            X,
            y,
            sample_weight=weight,
            validation_data=validation,
            communicator=communicator,
            **asked,
        )
    except (DivergenceError, CheckpointError) as caught:
        if caught.history is None:
            raise
        history, error = caught.history, caught
    scores = {}
    if len(rows.held_out) and history.n_epochs:
        try:
            scores = evaluate(net, dataset.features(rows.held_out), dataset.y[rows.held_out])
        except InputError as caught:
            # Keep what was learnt all the same.
            error = error or caught
    return Result(experiment, dataset, rows, net, history, scores, error)


def _plane(X: Any, encoding: TableEncoding | None) -> np.ndarray[Any, Any] | None:
    """Return the examples as points, if their features are two numbers."""
    if encoding is None:
        return X if X.shape[1] == 2 else None
    columns = [X.columns[name] for name in encoding.feature_names]
    if [column.kind for column in columns] != ["number", "number"]:
        return None
    points = np.stack([column.values for column in columns], axis=1)
    return None if np.isnan(points).any() else points


def _tables(encoding: TableEncoding) -> Callable[[np.ndarray[Any, Any]], Table]:
    """Return the function that makes a table of points."""

    def table_of(points: np.ndarray[Any, Any]) -> Table:
        columns = {
            name: TypedColumn("number", values)
            for name, values in zip(encoding.feature_names, points.T, strict=True)
        }
        return Table(columns, len(points))

    return table_of


def _part(dataset: Dataset, rows: np.ndarray[Any, Any]) -> tuple[Any, Any, Any]:
    """Return features, targets and weights of some rows."""
    weight = None if dataset.weight is None else dataset.weight[rows]
    return dataset.features(rows), dataset.y[rows], weight


def _csv(dataset: Dataset, rows: np.ndarray[Any, Any]) -> bytes:
    """Return rows as CSV that ``evaluate`` and ``predict`` read."""
    if len(rows) == 0:
        return b""
    classes, y = dataset.class_names, dataset.y[rows]
    target = TypedColumn("number", y) if classes is None else TypedColumn("text", y, classes)
    if isinstance(dataset.X, Table):
        features = dataset.X.take(rows).columns
    else:
        columns = dataset.X[rows].astype(np.float64).T
        names = dataset.feature_names
        features = {n: TypedColumn("number", x) for n, x in zip(names, columns, strict=True)}
    return table_csv([*features.items(), (dataset.target_name, target)]).encode()
