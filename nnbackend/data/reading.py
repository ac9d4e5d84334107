"""Blocks of a source, read in a thread that nothing has to wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np

from nnbackend.data.source import Rows, Source, leave

__all__ = ["Reading"]


# Between two looks at whether training is to end, and for a block to come that is no longer wanted.
_SECONDS_PER_LOOK = 0.05


_SECONDS_TO_END = 0.1


class Reading:
    """Some blocks of a source being read.

    The thread is a daemon: neither the end of a training nor that of the process waits for a
    ``read`` that takes long.

    Parameters
    ----------
    source : Source
        The source to read from.
    blocks : sequence of (start, stop)
        Its rows, in this order.
    """

    def __init__(self, source: Source, blocks: Sequence[tuple[int, int]]) -> None:
        self._source, self._blocks = source, blocks
        self._rows: list[Rows] = []
        self._error: BaseException | None = None
        self._ended = False
        # In place of joining the thread, which an interrupt makes look as if it had ended.
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._read, name="nnbackend-reader", daemon=True)

    def start(self) -> None:
        """Begin; from then on ``end`` is to be called, though an interrupt may come in here."""
        self._thread.start()

    def _read(self) -> None:
        try:
            for start, stop in self._blocks:
                # What is read is of no use once the epoch has ended.
                if self._ended:
                    return
                rows = self._source.checked(start, stop)
                # Copies: a source may read the next block into the same arrays.
                y, weight = (x if x is None else np.array(x) for x in rows[1:])
                self._rows.append(Rows(np.array(rows.X), y, weight))
        except BaseException as error:  # noqa: BLE001 - it is raised where the rows are asked for
            self._error = error
        finally:
            self._done.set()

    def result(self, while_waiting: Callable[[], None]) -> list[Rows]:
        """Return the blocks, or raise what their reading did or ``while_waiting`` does."""
        while not self._done.wait(_SECONDS_PER_LOOK):
            while_waiting()
        if self._error is not None:
            raise self._error
        return self._rows

    def end(self) -> None:
        """Read no further block, and leave alone one whose reading takes long."""
        self._ended = True
        if not self._done.wait(_SECONDS_TO_END) and self._thread.is_alive():
            leave(self._source, self._thread, self._done)
