"""Signals that end a training: noted, and acted on between two steps."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["Interruption"]

_LOGGER = logging.getLogger("nnbackend")


class Interruption:
    """Notes SIGINT (Ctrl-C) and SIGTERM while it is entered.

    A second signal of the kind acts at once, as it would have. Handlers belong to the main thread:
    in another, nothing is noted. A signal that was ignored stays ignored.

    Attributes
    ----------
    number : int or None
        The signal that came; SIGTERM, if both did.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._came: set[int] = set()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Begin to note signals."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                # None: a handler that was not installed from Python.
                if handler not in (None, signal.SIG_IGN):
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the signals back."""
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
            # As a shell reports it; ``finally`` blocks run, which the default would not let them.
            raise SystemExit(128 + number)

    def forward(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Pass a signal on that came: to the handler there was, or as the end of the process.

        To be called as ``__exit__`` is, when all is done: of an error the log tells then.
        """
        del kind, trace
        if self.number is None or not (error is None or isinstance(error, Exception)):
            return
        if error is not None:
            _LOGGER.error("nnbackend: %s", error)
        self._act(self.number, None)
