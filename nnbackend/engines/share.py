"""The part of a batch that a process works on."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from nnbackend.distributed import Team

__all__ = ["Share"]


class Share(NamedTuple):
    """Which of a batch's rows.

    Attributes
    ----------
    n : int
        Rows of the batch.
    rows : slice
        Those of this process, at least one.
    is_idle : bool
        Whether it only keeps step, since the batch has fewer rows than there are processes: it
        works on the first row, for nothing.
    """

    n: int
    rows: slice
    is_idle: bool = False

    @classmethod
    def alone(cls, n: int) -> Share:
        """Return the whole batch."""
        return cls(n, slice(0, n))

    @classmethod
    def of(cls, team: Team, n: int) -> Share:
        """Return this process's part."""
        rows = team.rows(n)
        is_idle = rows.start == rows.stop
        return cls(n, slice(0, 1) if is_idle else rows, is_idle)
