"""One experiment from data to a run folder: split, standardize, train, measure, write."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from nnbackend.checks import nearest
from nnbackend.core.optimizers import Optimizer
from nnbackend.datasets import Dataset, class_name
from nnbackend.errors import CheckpointError, DivergenceError, InputError, NNBackendError
from nnbackend.files import write_atomically
from nnbackend.network import Network
from nnbackend.persistence import to_bytes
from nnbackend.terminal import csv_text, to_json
from nnbackend.training import Callback, EarlyStopping, History, train

if TYPE_CHECKING:
    from nnbackend.run_folder import RunFolder

__all__ = [
    "Experiment",
    "Result",
    "Split",
    "class_indices",
    "evaluate",
    "finite_predictions",
    "split",
]


@dataclass(frozen=True)
class Split:
    """Row indices of the training, validation and held-out part of a data set."""

    training: np.ndarray[Any, Any]
    validation: np.ndarray[Any, Any]
    held_out: np.ndarray[Any, Any]


def split(dataset: Dataset, validation: float, held_out: float, seed: int) -> Split:
    """Split rows at random, each part with the same share of every class where that is possible.

    Parameters
    ----------
    dataset : Dataset
        What is split.
    validation, held_out : float in [0, 1)
        Their shares of all rows; the rest, at least one row, is for training.
    seed : int
        Draws the parts.

    Raises
    ------
    InputError
        If a part would be empty that should not be.
    """
    from sklearn.model_selection import train_test_split

    if not 0 <= seed < 2**32:
        raise InputError(f"seed: expected an integer from 0 to {2**32 - 1}, got {seed!r}")
    n_samples = len(dataset.y)
    sizes = [round(n_samples * share) for share in (held_out, validation)]
    wanted = [share > 0 for share in (held_out, validation)]
    if sum(sizes) >= n_samples or any(
        w and size == 0 for w, size in zip(wanted, sizes, strict=True)
    ):
        raise InputError(
            f"DATA: expected enough rows for a training, a validation ({validation:g}) and a "
            f"held-out part ({held_out:g}), got {n_samples}; change --validation and --held-out"
        )
    parts = [np.arange(n_samples)]
    for size in sizes:
        rest = parts.pop()
        if size == 0:
            parts += [rest[:0], rest]
            continue
        strata = None
        if dataset.class_names is not None:
            counts = np.bincount(dataset.y[rest])
            n_classes = int((counts > 0).sum())
            if counts[counts > 0].min() >= 2 and n_classes <= min(size, len(rest) - size):
                strata = dataset.y[rest]
        rest, part = train_test_split(rest, test_size=size, random_state=seed, stratify=strata)
        parts += [part, rest]
    chosen, checked, training = parts
    return Split(training, checked, chosen)


def evaluate(net: Network, X: Any, y: np.ndarray[Any, Any]) -> dict[str, float]:
    """Return the metrics of a network's predictions.

    Parameters
    ----------
    net : Network
        With one target.
    X : array (n_samples, n_features)
        Features.
    y : array (n_samples,)
        Class indices, or values.

    Returns
    -------
    dict of str to float
        ``n_samples``; ``accuracy``, ``macro_f1`` and ``log_loss`` for classes; ``r2`` (of two or
        more examples), ``rmse`` and ``mae`` for values, the latter two in units of the target.

    Raises
    ------
    InputError
        If a prediction is not finite.
    """
    from sklearn import metrics

    predicted = finite_predictions(net, X)
    if net.output in ("sigmoid", "softmax"):
        probability = net.predict_proba(X).astype(np.float64)
        probability /= probability.sum(axis=1, keepdims=True)
        labels = np.arange(probability.shape[1])
        scores = {
            "accuracy": metrics.accuracy_score(y, predicted),
            "macro_f1": metrics.f1_score(
                y, predicted, labels=np.unique(y), average="macro", zero_division=0.0
            ),
            "log_loss": metrics.log_loss(y, probability, labels=labels),
        }
    else:
        # A power of two changes no digit, and keeps squares from over- and underflowing.
        largest = max(np.abs(y).max(), np.abs(predicted).max())
        exponent = int(np.frexp(largest)[1])
        y, predicted = (np.ldexp(x.astype(np.float64), -exponent) for x in (y, predicted))
        errors = (
            metrics.root_mean_squared_error(y, predicted),
            metrics.mean_absolute_error(y, predicted),
        )
        with np.errstate(over="ignore"):
            rmse, mae = np.ldexp(errors, exponent)
        scores = {
            **({"r2": metrics.r2_score(y, predicted)} if len(y) > 1 else {}),
            "rmse": rmse,
            "mae": mae,
        }
    return {"n_samples": len(y), **{name: float(score) for name, score in scores.items()}}


def finite_predictions(net: Network, X: Any) -> np.ndarray[Any, Any]:
    """Return ``net.predict(X)``; raise an InputError if one of the values is not finite."""
    predicted: np.ndarray[Any, Any] = net.predict(X)
    bad = np.argwhere(~np.isfinite(predicted))
    if len(bad):
        raise InputError(
            f"DATA: expected features for which the model's numbers stay finite, got the "
            f"prediction {predicted[tuple(bad[0])]} in row {bad[0][0]} ({len(bad)} such values): "
            f"too large for {net.dtype}; correct the features, or train a model with "
            "--dtype float64"
        )
    return predicted


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
        import nnbackend

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
                "nnbackend": nnbackend.__version__,
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
        from nnbackend import plots

        dataset, net = self.dataset, self.network
        title = f"{dataset.name}: {net.layer_sizes}"
        yield "model.safetensors", to_bytes(net)
        yield "history.json", to_json(self.to_dict()).encode()
        yield "held_out.csv", _csv(dataset, self.rows.held_out)
        pictures = {
            "curves.png": lambda: plots.loss_curves(
                self.history,
                title,
                penalized=self.experiment.l1 > 0 or self.experiment.l2 > 0,
                unit="standardized target" if dataset.class_names is None else None,
            )
        }
        if dataset.class_names is not None and dataset.X.shape[1] == 2:
            pictures["decision_boundary.png"] = lambda: plots.decision_boundary(
                net, dataset.X, dataset.y, title
            )
        for name, draw in pictures.items():
            yield name, plots.drawn(name, draw)


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


def class_indices(net: Network, column: str, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return a target column as the class indices that ``net`` was trained with."""
    names = net.class_names or tuple(str(i) for i in range(max(2, net.layer_sizes[-1])))
    index = {name: i for i, name in enumerate(names)}
    given = [class_name(value) for value in values.tolist()]
    unknown = sorted({name for name in given if name not in index})
    if unknown:
        raise InputError(
            f"--target: column {column!r} holds the class {unknown[0]!r}, which the model does not "
            f"know{nearest(unknown[0], names)}"
        )
    return np.asarray([index[name] for name in given])
