"""The errors that nnbackend raises on purpose; everything else is a bug."""

from __future__ import annotations

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
    """Base of all errors of this package; the message is one sentence for the user."""


class InputError(NNBackendError, ValueError):
    """An argument is not what was expected: the message names it, what came, and what to do."""


class ModelFileError(InputError):
    """A model file is missing, damaged, or not one of nnbackend's."""


class UnusableModelError(ModelFileError):
    """A model file is not damaged, and cannot be used: as it stands, or with what is here."""


class DeviceError(NNBackendError, RuntimeError):
    """A device was asked for that this machine, or this Python environment, does not have."""


class DeviceMemoryError(DeviceError, MemoryError):
    """A device's memory does not suffice: the message says what was needed, and what there is."""


class DistributedError(NNBackendError, RuntimeError):
    """A data-parallel training ended because of another process, or because the data differ.

    Attributes
    ----------
    rank : int or None
        The process that was the cause, where there is a single one.
    """

    def __init__(self, message: str, rank: int | None = None) -> None:
        super().__init__(message)
        self.rank = rank

    def __reduce__(self) -> tuple[type, tuple[str, int | None]]:
        """Let the error cross process borders with its rank."""
        return type(self), (str(self), self.rank)


class MissingDependencyError(NNBackendError, ImportError):
    """A package that is needed for what was asked is not installed."""


class GradientMismatchError(NNBackendError, AssertionError):
    """Analytic gradients differ from central differences."""
