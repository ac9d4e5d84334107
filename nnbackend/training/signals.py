"""Note the signals that end a training, so that it can end between two steps."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["Interruption"]

_LOGGER = logging.getLogger("nnbackend")


class Interruption:
    """Notes SIGINT (Ctrl-C) and SIGTERM within its context.

    A second signal of the same kind acts at once, as it would without the context. Only the main
    thread can have handlers, so in other threads nothing is noted. An ignored signal stays ignored.

    Attributes
    ----------
    number : int or None
        The signal that came; SIGTERM if both did.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._came: set[int] = set()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                # None stands for a handler that was not installed from Python.
                if handler not in (None, signal.SIG_IGN):
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Restore the previous handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number in self._came:
            self._act(number, frame)
        self._came.add(number)
        self.number = signal.SIGTERM if signal.SIGTERM in self._came else number

    def _act(self, number: int, frame: FrameType | None) -> None:
        handler = self._previous.get(number)
        if callable(handler):
            handler(number, frame)
        else:
            # Use the exit code that shells report. Unlike the default action, this runs ``finally``
            # blocks.
            raise SystemExit(128 + number)

    def forward(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Pass a noted signal on to its previous handler, or end the process.

        Call this like ``__exit__``, after everything else is done. If there is an error, log it,
        since the process ends before the error is shown.
        """
        del kind, trace
        if self.number is None or not (error is None or isinstance(error, Exception)):
            return
        if error is not None:
            _LOGGER.error("nnbackend: %s", error)
        self._act(self.number, None)
