"""nnbackend: fully connected neural networks, one mathematics on NumPy (CPU) and CuPy (CUDA)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nnbackend._version import __version__

if TYPE_CHECKING:
    from nnbackend import sources
    from nnbackend.core import losses, schedules
    from nnbackend.core.activations import Activation, register_activation
    from nnbackend.core.optimizers import SGD, Adagrad, Adam, AdamW, RMSprop
    from nnbackend.device import devices
    from nnbackend.errors import (
        DeviceError,
        DeviceMemoryError,
        DistributedError,
        GradientMismatchError,
        InputError,
        MissingDependencyError,
        ModelFileError,
        NNBackendError,
    )
    from nnbackend.estimators.ensemble import EnsembleClassifier, EnsembleRegressor
    from nnbackend.estimators.loading import load
    from nnbackend.estimators.meeting import side_by_side
    from nnbackend.estimators.mlp import MLPClassifier, MLPRegressor
    from nnbackend.estimators.searches import (
        GridSearchCV,
        RandomizedSearchCV,
        cross_val_predict,
        cross_val_score,
        cross_validate,
    )
    from nnbackend.estimators.table_encoder import TableEncoder
    from nnbackend.estimators.tabular import tabular
    from nnbackend.io.models import save
    from nnbackend.io.onnx import export_onnx
    from nnbackend.io.sklearn import from_sklearn, to_sklearn
    from nnbackend.io.torch import from_torch, to_torch
    from nnbackend.model.gradient_check import GradientReport, check_gradients
    from nnbackend.model.network import Gradients, Network
    from nnbackend.model.summary import Summary
    from nnbackend.training.errors import CheckpointError, DivergenceError
    from nnbackend.training.history import EarlyStopping, History, TrainingState
    from nnbackend.training.many import train_many
    from nnbackend.training.rate_finder import RateFinder, find_learning_rate
    from nnbackend.training.train import train

__all__ = [
    "SGD",
    "Activation",
    "Adagrad",
    "Adam",
    "AdamW",
    "CheckpointError",
    "DeviceError",
    "DeviceMemoryError",
    "DistributedError",
    "DivergenceError",
    "EarlyStopping",
    "EnsembleClassifier",
    "EnsembleRegressor",
    "GradientMismatchError",
    "GradientReport",
    "Gradients",
    "GridSearchCV",
    "History",
    "InputError",
    "MLPClassifier",
    "MLPRegressor",
    "MissingDependencyError",
    "ModelFileError",
    "NNBackendError",
    "Network",
    "RMSprop",
    "RandomizedSearchCV",
    "RateFinder",
    "Summary",
    "TableEncoder",
    "TrainingState",
    "__version__",
    "check_gradients",
    "cross_val_predict",
    "cross_val_score",
    "cross_validate",
    "devices",
    "export_onnx",
    "find_learning_rate",
    "from_sklearn",
    "from_torch",
    "load",
    "losses",
    "register_activation",
    "save",
    "schedules",
    "side_by_side",
    "sources",
    "tabular",
    "to_sklearn",
    "to_torch",
    "train",
    "train_many",
]

# The module of each public name, imported when the name is first used (PEP 562).
_HOMES = {
    "nnbackend.core.activations": (
        "Activation",
        "register_activation",
    ),
    "nnbackend.core.optimizers": (
        "SGD",
        "Adagrad",
        "Adam",
        "AdamW",
        "RMSprop",
    ),
    "nnbackend.device": ("devices",),
    "nnbackend.errors": (
        "DeviceError",
        "DeviceMemoryError",
        "DistributedError",
        "GradientMismatchError",
        "InputError",
        "MissingDependencyError",
        "ModelFileError",
        "NNBackendError",
    ),
    "nnbackend.estimators.ensemble": (
        "EnsembleClassifier",
        "EnsembleRegressor",
    ),
    "nnbackend.estimators.loading": ("load",),
    "nnbackend.estimators.meeting": ("side_by_side",),
    "nnbackend.estimators.mlp": (
        "MLPClassifier",
        "MLPRegressor",
    ),
    "nnbackend.estimators.searches": (
        "GridSearchCV",
        "RandomizedSearchCV",
        "cross_val_predict",
        "cross_val_score",
        "cross_validate",
    ),
    "nnbackend.estimators.table_encoder": ("TableEncoder",),
    "nnbackend.estimators.tabular": ("tabular",),
    "nnbackend.io.models": ("save",),
    "nnbackend.io.onnx": ("export_onnx",),
    "nnbackend.io.sklearn": (
        "from_sklearn",
        "to_sklearn",
    ),
    "nnbackend.io.torch": (
        "from_torch",
        "to_torch",
    ),
    "nnbackend.model.gradient_check": (
        "GradientReport",
        "check_gradients",
    ),
    "nnbackend.model.network": (
        "Gradients",
        "Network",
    ),
    "nnbackend.model.summary": ("Summary",),
    "nnbackend.training.errors": (
        "CheckpointError",
        "DivergenceError",
    ),
    "nnbackend.training.history": (
        "EarlyStopping",
        "History",
        "TrainingState",
    ),
    "nnbackend.training.many": ("train_many",),
    "nnbackend.training.rate_finder": (
        "RateFinder",
        "find_learning_rate",
    ),
    "nnbackend.training.train": ("train",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
_MODULES = {
    # Above all that imports this module, and so not among its imports for type checkers.
    "accel": "nnbackend.accel",
    "losses": "nnbackend.core.losses",
    "schedules": "nnbackend.core.schedules",
    "sources": "nnbackend.sources",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _MODULES:
        value: Any = import_module(_MODULES[name])
    elif name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module 'nnbackend' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
