"""The errors that nnbackend raises on purpose; everything else is a bug."""

from __future__ import annotations

from typing import Any

__all__ = [
    "DeviceError",
    "DeviceMemoryError",
    "DistributedError",
    "GradientMismatchError",
    "InputError",
    "MissingDependencyError",
    "ModelFileError",
    "NNBackendError",
    "UnusableModelError",
]


class NNBackendError(Exception):
    """Base of all errors of this package; the text is one sentence for the user.

    Parameters
    ----------
    message : str
        What was expected, what came, and what to do.
    argument : str, optional
        The name of the argument that the error is about; the text begins with it.

    Attributes
    ----------
    message, argument
        As given.
    """

    def __init__(self, message: str = "", argument: str | None = None) -> None:
        super().__init__(message if argument is None else f"{argument}: {message}")
        self.message, self.argument = message, argument

    def __reduce__(self) -> tuple[Any, ...]:
        """Let the error cross process borders with its attributes."""
        return type(self), (self.message, self.argument), self.__dict__


class InputError(NNBackendError, ValueError):
    """An argument is invalid: the message names it, what was expected, what came, what to do."""


class ModelFileError(InputError):
    """A model file is missing, damaged, or not one of nnbackend's."""


class UnusableModelError(ModelFileError):
    """A model file is undamaged but cannot be used, for example because a package is missing."""


class DeviceError(NNBackendError, RuntimeError):
    """The machine, or the Python environment, does not have the device that was asked for."""


class DeviceMemoryError(DeviceError, MemoryError):
    """A device's memory does not suffice; the message says how much was needed and is there."""


class DistributedError(NNBackendError, RuntimeError):
    """A data-parallel training ended because of another process, or because the data differ.

    Attributes
    ----------
    rank : int or None
        The process that caused the error, if it was a single one.
    """

    def __init__(self, message: str, rank: int | None = None) -> None:
        super().__init__(message)
        self.rank = rank

    def __reduce__(self) -> tuple[type, tuple[str, int | None]]:
        """Let the error cross process borders with its rank."""
        return type(self), (str(self), self.rank)


class MissingDependencyError(NNBackendError, ImportError):
    """A package that this operation needs is not installed."""


class GradientMismatchError(NNBackendError, AssertionError):
    """Analytic gradients differ from central differences."""
