"""The errors that a training ends with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnbackend.errors import NNBackendError

if TYPE_CHECKING:
    from nnbackend.training.history import History

__all__ = ["CheckpointError", "DivergenceError"]


class CheckpointError(NNBackendError, RuntimeError):
    """A checkpoint cannot be written, or a training cannot go on from those that there are.

    Attributes
    ----------
    history : History or None
        Of a training that ended with this error, the finished epochs: the network holds what it
        learnt in them.
    """

    history: History | None = None


class DivergenceError(NNBackendError, ArithmeticError):
    """Training stopped because the loss or a parameter became NaN or infinite.

    Attributes
    ----------
    history : History
        The epochs before the one that failed. The network holds the parameters that the last of
        them ended with; with ``EarlyStopping(restore_best=True)``, those of the best one.
    what : str
        What became NaN or infinite, and in which epoch.
    """

    def __init__(self, message: str, history: History, what: str = "") -> None:
        super().__init__(message)
        self.history = history
        self.what = what

    def __reduce__(self) -> tuple[type, tuple[str, History, str]]:
        """Let the error cross process borders with its history."""
        return type(self), (str(self), self.history, self.what)
