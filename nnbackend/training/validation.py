"""Validation: compute the loss on validation data, each process of a team on a part of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnbackend.data.examples import Data
from nnbackend.engines import Engine, Evaluation
from nnbackend.parallel import Share

if TYPE_CHECKING:
    from nnbackend.parallel import Team

__all__ = ["Validation"]


class Validation:
    """The validation data of a training, and its loss.

    Parameters
    ----------
    engine : Engine
        The engine that computes the loss.
    data : Data
        All of the validation data.
    team : Team, optional
        The processes that share it.
    """

    def __init__(self, engine: Engine, data: Data, team: Team | None = None) -> None:
        self._engine, self._team, self._data, self._weight = engine, team, data, 0.0
        if team is not None:
            share = Share.of(team, data.n_samples)
            # Every process has at least one row; an idle process gives it no weight.
            self._data = own = data.rows(share.rows.start, share.rows.stop)
            if not share.is_idle:
                weight = own.sample_weight
                self._weight = float(own.n_samples if weight is None else weight.sum())

    def evaluation(self) -> Evaluation:
        """Return the task to compute the loss on this process's part."""
        return Evaluation(self._engine, self._data)

    def loss_of_all(self, own_loss: float) -> float:
        """Return the loss on all data, given the loss of this process's part; collective."""
        if self._team is None:
            return own_loss
        weighted = self._weight * own_loss if self._weight else 0.0
        total, total_weight = self._team.total([weighted, self._weight])
        return total / total_weight
