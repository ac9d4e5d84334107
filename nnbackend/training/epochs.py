"""Who runs the epochs of a training: whole ones, many in a call, or parts of one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import closing
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nnbackend.core.schedules import Clock, as_schedule
from nnbackend.data.examples import Examples, Part, Resident
from nnbackend.engines.base import Engine, Problem

if TYPE_CHECKING:
    from nnbackend.parallel.team import Team
    from nnbackend.training.checkpoint_folder import Keeper

__all__ = ["EpochRunner", "Epochs"]

# Ctrl-C, a checkpoint and the history wait that long at most, or for one step.
SECONDS_PER_CALL = 0.1


class Epochs(NamedTuple):
    """What was run.

    Attributes
    ----------
    losses : array (n,)
        The mean objective of each epoch, the bad one included, on the device.
    is_finite : array () of bool
        Whether all were good.
    rates : list of float
        The learning rate of the last step of each epoch that was asked for.
    """

    losses: Any
    is_finite: Any
    rates: list[float]


class EpochRunner:
    """Asks an engine for epochs.

    Parameters
    ----------
    engine : Engine
        Takes the steps.
    problem : Problem
        What is trained, and how.
    examples : Examples
        The data.
    epochs : int
        How many there are in all, which schedules depend on.
    shuffle : numpy.random.Generator
        Draws the orders.
    team : Team, optional
        The processes that share every step.

    Attributes
    ----------
    steps : int
        Steps of an epoch.
    position : int
        Steps of the current epoch that are done.
    order_state : dict
        Where the generator of the orders stood when the current epoch began.
    keeper : Keeper or None
        Writes checkpoints: calls end where one is due.
    """

    def __init__(
        self,
        engine: Engine,
        problem: Problem,
        examples: Examples,
        epochs: int,
        shuffle: np.random.Generator,
        team: Team | None = None,
    ) -> None:
        self._engine, self._examples, self._team = engine, examples, team
        self._batch_size = problem.batch_size
        self._n_epochs, self._shuffle = epochs, shuffle
        self._schedule = as_schedule(problem.optimizer.learning_rate)
        self._schedule_state = self._schedule.start()
        self.steps = len(examples)
        self.position, self.order_state = 0, shuffle.bit_generator.state
        self.keeper: Keeper | None = None
        self._seconds_per_epoch = math.inf
        self._steps_per_call = self._epochs_per_call = 1

    @property
    def watches_losses(self) -> bool:
        """Whether the rates of an epoch depend on the losses before."""
        return self._schedule.observes

    def observe(self, loss: float) -> None:
        """Let the schedule know the watched loss of an epoch."""
        self._schedule_state = self._schedule.observe(self._schedule_state, loss)

    def resume(self, position: int, order_state: Mapping[str, Any]) -> None:
        """Go on within the epoch that began with this state of the generator of the orders."""
        self.position, self.order_state = position, order_state
        self._shuffle.bit_generator.state = order_state

    def steps_done(self, epoch: int) -> int:
        """Return how many steps were taken in all, ``epoch`` whole epochs among them."""
        return epoch * self.steps + self.position

    def run(
        self,
        epoch: int,
        *,
        is_watched: bool,
        pause: Callable[[], None],
        while_waiting: Callable[[], None],
    ) -> Epochs:
        """Run the epoch after ``epoch`` finished ones, and more of them if nobody looks on.

        Parameters
        ----------
        epoch : int
            The number of finished epochs.
        is_watched : bool
            Whether something is done after each epoch.
        pause : callable
            Is called between two parts of an epoch; may raise, which breaks the epoch off.
        while_waiting : callable
            Is called while a part of an epoch is not there yet; may raise as well.
        """
        resident = self._whole(epoch)
        if resident is None:
            rates = [self._rates(epoch)]
            losses, is_finite = self._run_parts(epoch, rates[0], pause, while_waiting)
        else:
            count = 1 if is_watched or self.watches_losses else self._epochs_at_once(epoch)
            rates = [self._rates(number) for number in range(epoch, epoch + count)]
            orders = resident.orders(self._shuffle, count)
            losses, is_finite = self._engine.run(resident.data, orders, rates)
        return Epochs(losses, is_finite, [epoch_rates[-1] for epoch_rates in rates])

    def begin_next(self, seconds_per_epoch: float) -> None:
        """Note where the next epoch begins, and how long those took that were run and read."""
        self.order_state = self._shuffle.bit_generator.state
        self._seconds_per_epoch = seconds_per_epoch

    def _whole(self, epoch: int) -> Resident | None:
        """Return the examples, if nothing has to be done between the steps of the next epoch."""
        if not isinstance(self._examples, Resident) or self._team is not None:
            return None
        if not self._engine.runs_parts:
            return self._examples
        if self._examples.n_without_weight:
            return None
        if self.keeper is None:
            return self._examples
        is_short = self._seconds_per_epoch <= SECONDS_PER_CALL
        is_due_within = self.keeper.steps_to_go(self.steps_done(epoch)) < self.steps
        return self._examples if is_short and not is_due_within else None

    def _run_parts(
        self,
        epoch: int,
        rates: list[float],
        pause: Callable[[], None],
        while_waiting: Callable[[], None],
    ) -> tuple[Any, Any]:
        """Run an epoch from where it stands, pausing between its parts."""
        parts = self._examples.parts(self._shuffle, self.position, while_waiting)
        with closing(parts):
            for part in parts:
                self._run_part(epoch, part, rates, pause)
        self.position = 0
        # Not with the last part: only after it is it known whether the epoch was whole.
        return self._engine.run(part.data, [np.arange(0)], [[]])

    def _run_part(
        self, epoch: int, part: Part, rates: list[float], pause: Callable[[], None]
    ) -> None:
        """Run the steps of a part, in as many calls as are asked for."""
        done = 0
        while done < part.n_steps:
            n = min(part.n_steps - done, self._steps_at_once(epoch))
            stop = self.position + n
            piece = part.steps(done, done + n, self._batch_size)
            piece, taken = piece.with_weight(rates[self.position : stop], self._batch_size)
            start = perf_counter()
            if piece.n_steps:
                orders = None if piece.order is None else [piece.order]
                self._engine.run(piece.data, orders, [taken], ends=False)
            self._pace(n, perf_counter() - start)
            done += n
            self.position = stop
            if stop < self.steps:
                pause()

    def _pace(self, n_steps: int, seconds: float) -> None:
        """Make the next call last as long as one may."""
        wanted = int(n_steps * SECONDS_PER_CALL / max(seconds, 1e-9))
        self._steps_per_call = max(1, min(wanted, 16 * n_steps))

    def _steps_at_once(self, epoch: int) -> int:
        """Return how many steps the next call may run: a process of a team looks after each."""
        if self._team is not None:
            return 1
        if self.keeper is None:
            return self.steps
        return min(self._steps_per_call, self.keeper.steps_to_go(self.steps_done(epoch)))

    def _epochs_at_once(self, epoch: int) -> int:
        """Return how many epochs the next call may run: as many as take ``SECONDS_PER_CALL``."""
        if math.isinf(self._seconds_per_epoch):
            return 1
        wanted = int(SECONDS_PER_CALL / max(self._seconds_per_epoch, 1e-9))
        if self.keeper is not None:
            wanted = min(wanted, self.keeper.steps_to_go(self.steps_done(epoch)) // self.steps)
        self._epochs_per_call = max(1, min(wanted, 16 * self._epochs_per_call))
        most = min(self._engine.max_epochs_per_call, self._n_epochs - epoch)
        return min(self._epochs_per_call, most)

    def _rates(self, epoch: int) -> list[float]:
        clock = Clock(epoch * self.steps, self.steps, self.steps * self._n_epochs)
        return self._schedule.rates(clock, self.steps, self._schedule_state)
