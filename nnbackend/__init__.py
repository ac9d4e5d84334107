"""nnbackend: fully connected neural networks, one mathematics on NumPy (CPU) and CuPy (CUDA)."""

from nnbackend.core import losses, schedules
from nnbackend.core.activations import Activation, register_activation
from nnbackend.core.optimizers import SGD, Adagrad, Adam, AdamW, RMSprop
from nnbackend.device import devices
from nnbackend.errors import (
    DeviceError,
    DivergenceError,
    GradientMismatchError,
    InputError,
    MissingDependencyError,
    ModelFileError,
    NNBackendError,
)
from nnbackend.gradient_check import GradientReport, check_gradients
from nnbackend.network import Gradients, Network
from nnbackend.persistence import load, save
from nnbackend.training import EarlyStopping, History, TrainingState, train

__version__ = "0.1.0"

__all__ = [
    "SGD",
    "Activation",
    "Adagrad",
    "Adam",
    "AdamW",
    "DeviceError",
    "DivergenceError",
    "EarlyStopping",
    "GradientMismatchError",
    "GradientReport",
    "Gradients",
    "History",
    "InputError",
    "MissingDependencyError",
    "ModelFileError",
    "NNBackendError",
    "Network",
    "RMSprop",
    "TrainingState",
    "__version__",
    "check_gradients",
    "devices",
    "load",
    "losses",
    "register_activation",
    "save",
    "schedules",
    "train",
]
