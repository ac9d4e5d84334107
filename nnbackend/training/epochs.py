"""Run the epochs of a training on an engine: one by one, several in a call, or in parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nnbackend.core.schedules import Clock, Constant, as_schedule
from nnbackend.data.examples import Data, Examples, Part, Resident
from nnbackend.engines import Engine, Problem, Steps

if TYPE_CHECKING:
    from nnbackend.parallel import Team
    from nnbackend.training.checkpoint_folder import Keeper

__all__ = ["EpochRunner", "Epochs"]

# Ctrl-C, a checkpoint and the history wait this long at most, or for one step.
SECONDS_PER_CALL = 0.1


class Epochs(NamedTuple):
    """The result of running some epochs.

    Attributes
    ----------
    losses : array (n,)
        The mean objective of each epoch, including one that is not finite, on the device.
    is_finite : array () of bool
        Whether all losses and parameters were finite.
    rates : list of float
        The learning rate of the last step of each requested epoch.
    """

    losses: Any
    is_finite: Any
    rates: list[float]


class EpochRunner:
    """Runs epochs on an engine.

    Parameters
    ----------
    engine : Engine
        The engine that takes the steps.
    problem : Problem
        The training problem.
    examples : Examples
        The data.
    epochs : int
        The number of epochs in all, on which schedules depend.
    shuffle : numpy.random.Generator
        The generator of the orders.
    team : Team, optional
        The processes that share every step.

    Attributes
    ----------
    steps : int
        The number of steps of an epoch.
    position : int
        The number of steps done in the current epoch.
    order_state : dict
        The state that the generator of the orders had when the current epoch began.
    keeper : Keeper or None
        The writer of checkpoints; calls to the engine end where one is due.
    idle : float
        The seconds for which tasks have waited for those of other trainings.
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
        self.idle = 0.0
        self._seconds_per_epoch = math.inf
        self._steps_per_call = self._epochs_per_call = 1

    @property
    def watches_losses(self) -> bool:
        """Whether the learning rates depend on the losses of earlier epochs."""
        return self._schedule.observes

    def observe(self, loss: float) -> None:
        """Pass the watched loss of an epoch to the schedule."""
        self._schedule_state = self._schedule.observe(self._schedule_state, loss)

    def resume(self, position: int, order_state: Mapping[str, Any]) -> None:
        """Continue within an epoch, given the state that the generator of the orders began with."""
        self.position, self.order_state = position, order_state
        self._shuffle.bit_generator.state = order_state

    def steps_done(self, epoch: int) -> int:
        """Return how many steps were taken in ``epoch`` whole epochs and the current one."""
        return epoch * self.steps + self.position

    def run(
        self,
        epoch: int,
        *,
        most: int,
        pause: Callable[[], None],
        while_waiting: Callable[[], None],
    ) -> Generator[Steps, tuple[float, Any], Epochs]:
        """Run the epoch after ``epoch`` finished ones, and further ones in the same call.

        Parameters
        ----------
        epoch : int
            The number of finished epochs.
        most : int
            The number of epochs after which the caller wants to look at them.
        pause : callable
            Called between two parts of an epoch; it may raise to end the epoch there.
        while_waiting : callable
            Called while waiting for a part of an epoch to be read; it may raise as well.
        """
        resident = self._whole(epoch)
        if resident is None:
            rates = [self._rates(epoch)]
            losses, is_finite = yield from self._run_parts(epoch, rates[0], pause, while_waiting)
        else:
            count = 1 if self.watches_losses else min(most, self._epochs_at_once(epoch))
            # A constant rate is the same list, since an epoch may take only a microsecond.
            is_constant = isinstance(self._schedule, Constant)
            rates = (
                [self._rates(epoch)] * count
                if is_constant
                else [self._rates(number) for number in range(epoch, epoch + count)]
            )
            orders = resident.orders(self._shuffle, count)
            losses, is_finite = yield from self._steps(resident.data, orders, rates)
        return Epochs(losses, is_finite, [epoch_rates[-1] for epoch_rates in rates])

    def begin_next(self, seconds_per_epoch: float) -> None:
        """Note the beginning of the next epoch, and how long each of the last ones took."""
        # Only checkpoints need it, and it takes microseconds.
        if self.keeper is not None:
            self.order_state = self._shuffle.bit_generator.state
        self._seconds_per_epoch = seconds_per_epoch

    def _whole(self, epoch: int) -> Resident | None:
        """Return the examples if the next epoch can run without a pause between its steps."""
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
    ) -> Generator[Steps, tuple[float, Any], tuple[Any, Any]]:
        """Run the rest of an epoch, pausing between its parts."""
        parts = self._examples.parts(self._shuffle, self.position, while_waiting)
        with closing(parts):
            for part in parts:
                yield from self._run_part(epoch, part, rates, pause)
        self.position = 0
        # End the epoch by a call without steps: only now is it known that all parts have come.
        return (yield from self._steps(part.data, [np.arange(0)], [[]]))

    def _steps(
        self, data: Data, orders: Any, rates: Any, *, ends: bool = True
    ) -> Generator[Steps, tuple[float, Any], tuple[Any, Any]]:
        """Let the engine run steps."""
        idle, result = yield Steps(self._engine, data, orders, rates, ends)
        self.idle += idle
        losses, is_finite = result
        return losses, is_finite

    def _run_part(
        self, epoch: int, part: Part, rates: list[float], pause: Callable[[], None]
    ) -> Generator[Steps, tuple[float, Any], None]:
        """Run the steps of a part, in calls of limited length."""
        done = 0
        while done < part.n_steps:
            n = min(part.n_steps - done, self._steps_at_once(epoch))
            stop = self.position + n
            piece = part.steps(done, done + n, self._batch_size)
            piece, taken = piece.with_weight(rates[self.position : stop], self._batch_size)
            start = perf_counter() - self.idle
            if piece.n_steps:
                orders = None if piece.order is None else [piece.order]
                yield from self._steps(piece.data, orders, [taken], ends=False)
            self._pace(n, perf_counter() - self.idle - start)
            done += n
            self.position = stop
            if stop < self.steps:
                pause()

    def _pace(self, n_steps: int, seconds: float) -> None:
        """Choose the number of steps so that the next call lasts ``SECONDS_PER_CALL``."""
        wanted = int(n_steps * SECONDS_PER_CALL / max(seconds, 1e-9))
        self._steps_per_call = max(1, min(wanted, 16 * n_steps))

    def _steps_at_once(self, epoch: int) -> int:
        """Return how many steps the next call may run; in a team, signals are checked at each."""
        if self._team is not None:
            return 1
        if self.keeper is None:
            return self.steps
        return min(self._steps_per_call, self.keeper.steps_to_go(self.steps_done(epoch)))

    def _epochs_at_once(self, epoch: int) -> int:
        """Return how many epochs the next call may run within ``SECONDS_PER_CALL``."""
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
