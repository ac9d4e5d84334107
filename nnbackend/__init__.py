"""nnbackend: fully connected neural networks, one mathematics on NumPy (CPU) and CuPy (CUDA)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnbackend import sources
    from nnbackend.core import losses, schedules
    from nnbackend.core.activations import Activation, register_activation
    from nnbackend.core.optimizers import SGD, Adagrad, Adam, AdamW, RMSprop
    from nnbackend.device import devices
    from nnbackend.errors import (
        CheckpointError,
        DeviceError,
        DeviceMemoryError,
        DistributedError,
        DivergenceError,
        GradientMismatchError,
        InputError,
        MissingDependencyError,
        ModelFileError,
        NNBackendError,
    )
    from nnbackend.estimators import MLPClassifier, MLPRegressor
    from nnbackend.gradient_check import GradientReport, check_gradients
    from nnbackend.interchange import from_sklearn, from_torch, to_sklearn, to_torch
    from nnbackend.network import Gradients, Network
    from nnbackend.onnx_export import export_onnx
    from nnbackend.persistence import load, save
    from nnbackend.rate_finder import RateFinder, find_learning_rate
    from nnbackend.summary import Summary
    from nnbackend.training import EarlyStopping, History, TrainingState, train

__version__ = "0.1.0"

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
    "GradientMismatchError",
    "GradientReport",
    "Gradients",
    "History",
    "InputError",
    "MLPClassifier",
    "MLPRegressor",
    "MissingDependencyError",
    "ModelFileError",
    "NNBackendError",
    "Network",
    "RMSprop",
    "RateFinder",
    "Summary",
    "TrainingState",
    "__version__",
    "check_gradients",
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
    "sources",
    "to_sklearn",
    "to_torch",
    "train",
]

# Where each public name lives; it is imported when it is first used (PEP 562).
_HOMES = {
    "nnbackend.core.activations": ("Activation", "register_activation"),
    "nnbackend.core.optimizers": ("SGD", "Adagrad", "Adam", "AdamW", "RMSprop"),
    "nnbackend.device": ("devices",),
    "nnbackend.errors": (
        "CheckpointError",
        "DeviceError",
        "DeviceMemoryError",
        "DistributedError",
        "DivergenceError",
        "GradientMismatchError",
        "InputError",
        "MissingDependencyError",
        "ModelFileError",
        "NNBackendError",
    ),
    "nnbackend.estimators": ("MLPClassifier", "MLPRegressor"),
    "nnbackend.gradient_check": ("GradientReport", "check_gradients"),
    "nnbackend.interchange": ("from_sklearn", "from_torch", "to_sklearn", "to_torch"),
    "nnbackend.network": ("Gradients", "Network"),
    "nnbackend.onnx_export": ("export_onnx",),
    "nnbackend.persistence": ("load", "save"),
    "nnbackend.rate_finder": ("RateFinder", "find_learning_rate"),
    "nnbackend.summary": ("Summary",),
    "nnbackend.training": ("EarlyStopping", "History", "TrainingState", "train"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
_MODULES = {
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
