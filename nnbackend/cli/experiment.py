"""One experiment from data to a run folder: split, standardize, train, measure, write."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from nnbackend._version import __version__
from nnbackend.cli.evaluation import Split, evaluate, split
from nnbackend.cli.terminal import csv_text, to_json
from nnbackend.core.optimizers import Optimizer
from nnbackend.data.datasets import Dataset
from nnbackend.errors import InputError, NNBackendError
from nnbackend.io.files import write_atomically
from nnbackend.io.format import to_bytes
from nnbackend.model.network import Network
from nnbackend.training.errors import CheckpointError, DivergenceError
from nnbackend.training.history import Callback, EarlyStopping, History
from nnbackend.training.train import train

if TYPE_CHECKING:
    from nnbackend.cli.run_folder import RunFolder

__all__ = ["Experiment", "Result"]


@dataclass(frozen=True)
class Experiment:
    """Everything that decides the outcome of a training on a data set.

    Attributes
    ----------
    hidden : tuple of int
        Units of each hidden layer.
    activation, loss, optimizer, initializer, dropout, dtype, device, engine, precision
        As for ``Network`` and ``train``.
    epochs, batch_size, l1, l2, clip_norm, seed
        As for ``train``; the seed draws the split and the weights as well.
    patience : int
        Epochs without a lower validation loss that end the training; 0 for no early stopping.
    validation, held_out : float
        Shares of the rows.
    """

    hidden: tuple[int, ...]
    optimizer: Optimizer
    activation: str = "relu"
    loss: str | None = None
    initializer: str | None = None
    epochs: int = 200
    batch_size: int | None = 32
    patience: int = 20
    l1: float = 0.0
    l2: float = 0.0
    dropout: float = 0.0
    clip_norm: float | None = None
    dtype: str = "float32"
    device: str = "cpu"
    engine: str = "auto"
    precision: str = "float32"
    seed: int = 0
    validation: float = 0.2
    held_out: float = 0.2

    def network(self, dataset: Dataset) -> Network:
        """Return the untrained network for a data set."""
        n_classes = 0 if dataset.class_names is None else len(dataset.class_names)
        output, n_outputs = {0: ("identity", 1), 2: ("sigmoid", 1)}.get(
            n_classes, ("softmax", n_classes)
        )
        net = Network(
            [dataset.X.shape[1], *self.hidden, n_outputs],
            hidden=self.activation,
            output=output,
            initializer=self.initializer,
            dropout=self.dropout,
            dtype=self.dtype,
            device=self.device,
            seed=self.seed,
        )
        net.feature_names, net.class_names = dataset.feature_names, dataset.class_names
        return net

    def run(
        self,
        dataset: Dataset,
        net: Network,
        callbacks: Iterable[Callback] = (),
        *,
        checkpoint: str | None = None,
        checkpoint_every: float | timedelta = timedelta(minutes=1),
        resume: bool = False,
        communicator: Any = None,
    ) -> Result:
        """Train ``net`` on a part of the data set and measure it on the held-out part.

        A training that diverges gives a result, too, with the error in it. The keywords are those
        of ``train``.
        """
        rows = split(dataset, self.validation, self.held_out, self.seed)
        X, y = dataset.X[rows.training], dataset.y[rows.training]
        net.standardize(X, y if dataset.class_names is None else None)
        has_validation = len(rows.validation) > 0
        early_stopping = None
        if self.patience:
            early_stopping = EarlyStopping(
                patience=self.patience, monitor="validation_loss" if has_validation else "loss"
            )
        error: NNBackendError | None = None
        try:
            history = train(
                net,
                X,
                y,
                optimizer=self.optimizer,
                loss=self.loss,
                epochs=self.epochs,
                batch_size=self.batch_size,
                seed=self.seed,
                validation_data=(
                    (dataset.X[rows.validation], dataset.y[rows.validation])
                    if has_validation
                    else None
                ),
                early_stopping=early_stopping,
                callbacks=callbacks,
                l1=self.l1,
                l2=self.l2,
                clip_norm=self.clip_norm,
                engine=self.engine,
                precision=self.precision,
                checkpoint=checkpoint,
                checkpoint_every=checkpoint_every,
                resume=resume,
                communicator=communicator,
            )
        except (DivergenceError, CheckpointError) as caught:
            if caught.history is None:
                raise
            history, error = caught.history, caught
        scores = {}
        if len(rows.held_out) and history.n_epochs:
            try:
                scores = evaluate(net, dataset.X[rows.held_out], dataset.y[rows.held_out])
            except InputError as caught:
                # What was learnt is kept all the same.
                error = error or caught
        return Result(self, dataset, rows, net, history, scores, error)


@dataclass(frozen=True)
class Result:
    """What an experiment gave.

    Attributes
    ----------
    experiment : Experiment
        What was asked for.
    dataset : Dataset
        The data.
    rows : Split
        Its parts.
    network : Network
        Trained.
    history : History
        The training.
    scores : dict of str to float
        Metrics on the held-out part; empty where there is none.
    error : NNBackendError or None
        Why training, or measuring what it gave, failed.
    """

    experiment: Experiment
    dataset: Dataset
    rows: Split
    network: Network
    history: History
    scores: dict[str, float] = field(default_factory=dict)
    error: NNBackendError | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as a dictionary that JSON can hold."""
        net, history = self.network, self.history
        learning_rate = self.experiment.optimizer.learning_rate
        return {
            "dataset": self.dataset.name,
            "samples": {
                "training": len(self.rows.training),
                "validation": len(self.rows.validation),
                "held_out": len(self.rows.held_out),
            },
            "network": {
                "layer_sizes": net.layer_sizes,
                "hidden": list(net.hidden),
                "output": net.output,
                "dtype": net.dtype,
                "device": net.device,
                "n_parameters": net.n_parameters,
            },
            "optimizer": self.experiment.optimizer.name,
            "learning_rate": learning_rate
            if isinstance(learning_rate, float)
            else repr(learning_rate),
            "batch_size": self.experiment.batch_size,
            "seed": self.experiment.seed,
            "options": {
                **{
                    entry.name: getattr(self.experiment, entry.name)
                    for entry in fields(self.experiment)
                    if entry.name not in ("optimizer", "hidden")
                },
                "optimizer": repr(self.experiment.optimizer),
                "target": self.dataset.target_name,
            },
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
        """Write model, history, held-out rows and pictures: all of them, or nothing.

        A picture that cannot be drawn is left out, with a warning.

        Raises
        ------
        InputError
            If the folder cannot be written.
        CheckpointError
            If it was deleted, or is another run's by now.
        DivergenceError, KeyboardInterrupt
            If training ended within its first epoch, so that nothing was learnt.

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
        """Yield names and contents: first what was learnt, last what is drawn of it."""
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
                penalized=self.experiment.l1 > 0 or self.experiment.l2 > 0,
                unit="standardized target" if dataset.class_names is None else None,
            )
        }
        if dataset.class_names is not None and dataset.X.shape[1] == 2:
            pictures["decision_boundary.png"] = lambda: decision_boundary(
                net, dataset.X, dataset.y, title
            )
        for name, draw in pictures.items():
            yield name, drawn(name, draw)


def _csv(dataset: Dataset, rows: np.ndarray[Any, Any]) -> bytes:
    """Return the given rows as CSV, as ``evaluate`` and ``predict`` read them."""
    if len(rows) == 0:
        return b""
    X, y = dataset.X[rows], dataset.y[rows].tolist()
    classes = dataset.class_names
    return csv_text(
        [
            *zip(dataset.feature_names, X.astype(np.float64).T.tolist(), strict=True),
            (dataset.target_name, [float(v) if classes is None else classes[v] for v in y]),
        ]
    ).encode()
