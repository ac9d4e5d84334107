"""Share: the rows of a batch that one process of a team works on."""

from __future__ import annotations

from typing import NamedTuple

from nnbackend.parallel.team import Team

__all__ = ["Share"]


class Share(NamedTuple):
    """The rows of a batch that a process works on.

    Attributes
    ----------
    n : int
        The number of rows of the batch.
    rows : slice
        The rows of this process, at least one.
    is_idle : bool
        Whether the batch has no row for this process, because it has fewer rows than there are
        processes. It then computes on the first row, with weight 0, to stay in step.
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
