"""``tabular``: a pipeline for a table, with settings that were chosen on many."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.pipeline import make_pipeline

from nnbackend.data.classify import Place, typed_array
from nnbackend.data.target import Target
from nnbackend.errors import InputError
from nnbackend.estimators.mlp import MLPClassifier, MLPRegressor
from nnbackend.estimators.table_encoder import TableEncoder
from nnbackend.training.tabular import Tabular

__all__ = ["tabular"]

_TASKS = ("auto", "classification", "regression")


def tabular(
    y: Any,
    *,
    task: str = "auto",
    columns: Mapping[str, str] | None = None,
    random_state: Any = None,
    device: str | None = None,
    **options: Any,
) -> Any:
    """Return an unfitted pipeline that suits a table: its encoder, and a network.

    Its settings - sizes, activation, dropout, schedule, decay and number of epochs - are those of
    ``nnbackend train``, chosen by nested cross-validation on 28 public tables
    (``benchmarks/tabular_defaults.py``). They depend on the number of rows.

    Parameters
    ----------
    y : array-like (n_samples,)
        The target that the pipeline is to learn; it is only looked at.
    task : {"auto", "classification", "regression"}, default "auto"
        Auto: text, booleans and whole numbers of at most 20 distinct values are classes.
    columns : dict of str to str, optional
        As for ``TableEncoder``.
    random_state, device
        As for ``MLPClassifier``.
    **options
        Further parameters of ``MLPClassifier`` or ``MLPRegressor``, such as
        ``loss="quantile"``; they replace these settings.

    Returns
    -------
    Pipeline
        Of a ``TableEncoder`` and an ``MLPClassifier`` or an ``MLPRegressor``, to fit, search,
        ``nb.save`` and ``nb.export_onnx``. Intervals are the last step's:
        ``model[-1].predict_interval(model[:-1].transform(X))``.

    Raises
    ------
    InputError
        If ``y`` is no target: constant, dates, or text with a value per row.

    Examples
    --------
    >>> import nnbackend as nb
    >>> X = [[size, colour] for size in range(40) for colour in ("red", "blue")]
    >>> y = [size + 10 * (colour == "red") for size, colour in X]
    >>> model = nb.tabular(y, random_state=0).fit(X, y)
    >>> bool(model.score(X, y) > 0.95)
    True
    """
    if task not in _TASKS:
        raise InputError(f"expected one of {', '.join(_TASKS)}, got {task!r}", argument="task")
    values = np.asarray(y)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or len(values) == 0:
        raise InputError(
            f"expected one target for each row (n_samples,), got shape {values.shape}",
            argument="y",
        )
    try:
        target, _ = Target.decide("y", typed_array(Place("y", "y"), values), None, task)
    except InputError as error:
        raise InputError(error.message, argument="y") from error
    suited = Tabular(len(values))
    settings: dict[str, Any] = {
        "hidden_layer_sizes": suited.hidden,
        "activation": suited.activation,
        "dropout": suited.dropout,
        "alpha": 0.0,
        "batch_size": min(suited.batch_size, len(values)),
        "max_iter": suited.epochs,
        # The schedule plans all epochs.
        "n_iter_no_change": math.inf,
        "random_state": random_state,
        "device": device,
    }
    settings |= options
    if "optimizer" not in options:
        settings["optimizer"] = suited.optimizer(settings["max_iter"], settings["batch_size"])
    is_classifier = target.task == "classification"
    if not is_classifier:
        settings = {"standardize_target": settings.get("loss") != "poisson"} | settings
    network = MLPClassifier(**settings) if is_classifier else MLPRegressor(**settings)
    return make_pipeline(TableEncoder(columns, dtype=np.float32), network)
