"""The loss on validation data, of which each process of a team takes a part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nnbackend.data.examples import Data
from nnbackend.engines.base import Engine
from nnbackend.parallel.team import Share

if TYPE_CHECKING:
    from nnbackend.parallel.team import Team

__all__ = ["Validation"]


class Validation:
    """Validation data of a training.

    Parameters
    ----------
    engine : Engine
        Computes the loss.
    data : Data
        All of the validation data.
    team : Team, optional
        The processes that share it.
    """

    def __init__(self, engine: Engine, data: Data, team: Team | None = None) -> None:
        self._engine, self._team, self._data, self._weight = engine, team, data, 0.0
        if team is not None:
            share = Share.of(team, data.n_samples)
            # At least one row, which an idle process does not count.
            self._data = own = data.rows(share.rows.start, share.rows.stop)
            if not share.is_idle:
                weight = own.sample_weight
                self._weight = float(own.n_samples if weight is None else weight.sum())

    def own_loss(self) -> Any:
        """Return the loss of the current parameters on this process's part, 0-d, on the device."""
        return self._engine.data_loss(self._data)

    def loss_of_all(self, own_loss: float) -> float:
        """Return the loss on all of the data, given what every process found on its part."""
        if self._team is None:
            return own_loss
        weighted = self._weight * own_loss if self._weight else 0.0
        total, total_weight = self._team.total([weighted, self._weight])
        return total / total_weight
