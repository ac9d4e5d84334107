"""The errors that nnbackend raises on purpose; everything else is a bug."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnbackend.training import History

__all__ = [
    "DeviceError",
    "DeviceMemoryError",
    "DivergenceError",
    "GradientMismatchError",
    "InputError",
    "MissingDependencyError",
    "ModelFileError",
    "NNBackendError",
]


class NNBackendError(Exception):
    """Base of all errors of this package; the message is one sentence for the user."""


class InputError(NNBackendError, ValueError):
    """An argument is not what was expected: the message names it, what came, and what to do."""


class ModelFileError(InputError):
    """A model file is missing, damaged, or not one of nnbackend's."""


class DeviceError(NNBackendError, RuntimeError):
    """A device was asked for that this machine, or this Python environment, does not have."""


class DeviceMemoryError(DeviceError, MemoryError):
    """A device's memory does not suffice: the message says what was needed, and what there is."""


class MissingDependencyError(NNBackendError, ImportError):
    """A package that is needed for what was asked is not installed."""


class GradientMismatchError(NNBackendError, AssertionError):
    """Analytic gradients differ from central differences."""


class DivergenceError(NNBackendError, ArithmeticError):
    """Training stopped because the loss or a parameter became NaN or infinite.

    Attributes
    ----------
    history : History
        The epochs before the one that failed. The network holds the parameters that the last of
        them ended with.
    """

    def __init__(self, message: str, history: History) -> None:
        super().__init__(message)
        self.history = history

    def __reduce__(self) -> tuple[type, tuple[str, History]]:
        """Let the error cross process borders with its history."""
        return type(self), (str(self), self.history)
