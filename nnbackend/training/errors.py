"""The errors that end a training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnbackend.errors import NNBackendError

if TYPE_CHECKING:
    from nnbackend.training.history import History

__all__ = ["CheckpointError", "DivergenceError"]


class CheckpointError(NNBackendError, RuntimeError):
    """A checkpoint cannot be written, or a training cannot resume from the existing ones.

    Attributes
    ----------
    history : History or None
        The finished epochs, if a training ended with this error. The network keeps what it learnt
        in them.
    """

    history: History | None = None


class DivergenceError(NNBackendError, ArithmeticError):
    """Training stopped because the loss or a parameter became NaN or infinite.

    Attributes
    ----------
    history : History
        The epochs before the one that failed. The network has the parameters after the last of
        them; with ``EarlyStopping(restore_best=True)``, those after the best one.
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
