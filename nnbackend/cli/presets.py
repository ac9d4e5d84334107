"""Defaults of ``nnbackend train``, in general and for each data set."""

from __future__ import annotations

from typing import Any

from nnbackend.core import schedules
from nnbackend.core.optimizers import SGD, AdamW
from nnbackend.core.schedules import Cosine
from nnbackend.training.tabular import Tabular

__all__ = ["DEFAULTS", "PRESETS", "SCHEDULES", "TABLE"]


# Defaults for a table that do not depend on its rows; ``Tabular`` has the others. All epochs are
# planned, so that no rows are needed to tell when to stop.
TABLE: dict[str, Any] = {
    "hidden": Tabular.hidden,
    "activation": Tabular.activation,
    "dropout": Tabular.dropout,
    "validation": 0.0,
    "patience": 0,
}


# The command's defaults that differ from the library's, for arrays and data that come along.
DEFAULTS: dict[str, Any] = {
    "hidden": (64, 32),
    "optimizer": AdamW(1e-3),
    "epochs": 200,
    "batch_size": 32,
    "patience": 20,
}


# Defaults for each data set that comes along.
PRESETS: dict[str, dict[str, Any]] = {
    "breast_cancer": {"hidden": (16, 8), "optimizer": AdamW(3e-3, weight_decay=3.0)},
    "digits": {
        "hidden": (256,),
        "activation": "gelu",
        "dropout": 0.2,
        "optimizer": AdamW(Cosine(3e-3), weight_decay=0.3),
        "epochs": 60,
    },
    "diabetes": {"hidden": (32,), "optimizer": AdamW(3e-3, weight_decay=3.0)},
    # The two-layer network of the textbook, with its full-batch gradient descent.
    "planar": {
        "hidden": (4,),
        "activation": "tanh",
        "initializer": "he_normal",
        "optimizer": SGD(1.2),
        "epochs": 5000,
        "patience": 2000,
        "batch_size": None,
    },
}


# The schedules that need only a rate.
SCHEDULES: dict[str, Any] = {
    name: schedules.SCHEDULES[name]
    for name in ("constant", "cosine", "inverse_scaling", "one_cycle", "reduce_on_plateau")
}
