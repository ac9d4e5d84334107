"""Learning-rate schedules, which compute the rate of each step as a float on the host.

Lengths are in epochs, so a schedule means the same at every batch size. It is evaluated at every
step, at the time step / steps_per_epoch, which includes fractions of an epoch. With one step per
epoch, the rates equal those of the torch scheduler that each class names.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

from nnbackend.checks import positive_integer, real

__all__ = [
    "SCHEDULES",
    "Clock",
    "Constant",
    "Cosine",
    "Exponential",
    "InverseScaling",
    "LinearWarmup",
    "OneCycle",
    "ReduceOnPlateau",
    "Schedule",
    "StepDecay",
    "as_schedule",
]


class Clock(NamedTuple):
    """The progress of a training: steps done, steps per epoch, and steps of the whole run."""

    step: int
    steps_per_epoch: int = 1
    total_steps: int = 1

    @property
    def epoch(self) -> float:
        """The epochs since the start, including a fraction."""
        return self.step / self.steps_per_epoch


class Schedule(ABC):
    """A learning rate over time, with explicit state if it needs any.

    Call ``state = schedule.start()`` before training, ``schedule.rate(clock, state)`` at every
    step, and ``state = schedule.observe(state, loss)`` after every epoch.
    """

    def start(self) -> Any:
        """Return the state before the first step."""
        return None

    @abstractmethod
    def rate(self, clock: Clock, state: Any = None) -> float:
        """Return the learning rate of the step at ``clock``."""

    def rates(self, clock: Clock, n_steps: int, state: Any = None) -> list[float]:
        """Return the learning rates of ``n_steps`` steps, beginning with the one at ``clock``."""
        steps = range(clock.step, clock.step + n_steps)
        # Convert NumPy floats, which a user's schedule may return and which would widen float32.
        return [float(self.rate(clock._replace(step=step), state)) for step in steps]

    def observe(self, state: Any, loss: float) -> Any:
        """Return the state after an epoch that ended with the (validation) loss ``loss``."""
        del loss
        return state

    @property
    def observes(self) -> bool:
        """Whether rates depend on the losses of earlier epochs."""
        return type(self).observe is not Schedule.observe

    def _check(self, **bounds: dict[str, float]) -> None:
        """Replace each named field by a checked Python float; ``epochs`` may be None."""
        for name, bound in bounds.items():
            value = getattr(self, name)
            if value is not None or name != "epochs":
                object.__setattr__(self, name, real(name, value, **bound))


def _length_in_steps(epochs: float | None, clock: Clock) -> float:
    return clock.total_steps if epochs is None else epochs * clock.steps_per_epoch


@dataclass(frozen=True)
class Constant(Schedule):
    """The same rate throughout, as for a learning rate that is a plain number."""

    learning_rate: float

    def __post_init__(self) -> None:
        self._check(learning_rate={"above": 0.0})

    def rate(self, clock: Clock, state: Any = None) -> float:
        """Return the learning rate."""
        del clock, state
        return self.learning_rate

    def rates(self, clock: Clock, n_steps: int, state: Any = None) -> list[float]:
        """Return the learning rate ``n_steps`` times."""
        del clock, state
        return [self.learning_rate] * n_steps


@dataclass(frozen=True)
class StepDecay(Schedule):
    """Multiply the rate by ``factor`` after every ``every`` epochs (torch's ``StepLR``).

    Examples
    --------
    >>> schedule = StepDecay(0.1, every=10, factor=0.5)
    >>> [schedule.rate(Clock(step=epoch)) for epoch in (0, 9, 10, 20)]
    [0.1, 0.1, 0.05, 0.025]
    """

    learning_rate: float
    every: float
    factor: float = 0.1

    def __post_init__(self) -> None:
        self._check(
            learning_rate={"above": 0.0},
            every={"above": 0.0},
            factor={"above": 0.0, "maximum": 1.0},
        )

    def rate(self, clock: Clock, state: Any = None) -> float:
        """Return learning_rate * factor ** floor(epoch / every)."""
        del state
        # Count in steps, with some tolerance: 0.3 / 0.1 is 2.9999999999999996.
        decays = math.floor(clock.step / (self.every * clock.steps_per_epoch) + 1e-9)
        return self.learning_rate * self.factor**decays


@dataclass(frozen=True)
class Exponential(Schedule):
    """Multiply the rate by ``factor`` per epoch, smoothly (torch's ``ExponentialLR``)."""

    learning_rate: float
    factor: float

    def __post_init__(self) -> None:
        self._check(learning_rate={"above": 0.0}, factor={"above": 0.0, "maximum": 1.0})

    def rate(self, clock: Clock, state: Any = None) -> float:
        """Return learning_rate * factor ** epoch."""
        del state
        return float(self.learning_rate * self.factor**clock.epoch)


@dataclass(frozen=True)
class Cosine(Schedule):
    """Anneal the rate to ``minimum`` along half a cosine (torch's ``CosineAnnealingLR``).

    Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts.

    Parameters
    ----------
    learning_rate : float
        The rate at the start.
    epochs : float, optional
        The length of the descent, after which the rate stays constant; by default the whole
        training.
    minimum : float, default 0.0
        The rate at the end.
    """

    learning_rate: float
    epochs: float | None = None
    minimum: float = 0.0

    def __post_init__(self) -> None:
        self._check(learning_rate={"above": 0.0}, epochs={"above": 0.0}, minimum={"minimum": 0.0})

    def rate(self, clock: Clock, state: Any = None) -> float:
        """Return minimum + (learning_rate - minimum) (1 + cos(pi t)) / 2, t from 0 to 1."""
        del state
        t = min(clock.step / _length_in_steps(self.epochs, clock), 1.0)
        return self.minimum + (self.learning_rate - self.minimum) * 0.5 * (
            1.0 + math.cos(math.pi * t)
        )


@dataclass(frozen=True)
class LinearWarmup(Schedule):
    """Rise linearly to a rate, or into another schedule (torch's ``LinearLR``).

    Multiply the rate of ``learning_rate`` by a factor that rises from ``start_factor`` to 1 over
    the first ``epochs`` epochs.

    Examples
    --------
    >>> schedule = LinearWarmup(Cosine(0.4, epochs=20), epochs=4, start_factor=0.5)
    >>> [round(schedule.rate(Clock(step=epoch)), 3) for epoch in (0, 4, 10, 20)]
    [0.2, 0.362, 0.2, 0.0]
    """

    learning_rate: float | Schedule
    epochs: float
    start_factor: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "learning_rate", as_schedule(self.learning_rate))
        object.__setattr__(self, "epochs", real("epochs", self.epochs, above=0.0))
        self._check(start_factor={"minimum": 0.0, "maximum": 1.0})

    @property
    def _inner(self) -> Schedule:
        return as_schedule(self.learning_rate)

    def start(self) -> Any:
        """Return the first state of the inner schedule."""
        return self._inner.start()

    def rate(self, clock: Clock, state: Any = None) -> float:
        """Return the inner rate times start_factor + (1 - start_factor) min(epoch / epochs, 1)."""
        progress = min(clock.epoch / self.epochs, 1.0)
        factor = self.start_factor + (1.0 - self.start_factor) * progress
        return factor * self._inner.rate(clock, state)

    def observe(self, state: Any, loss: float) -> Any:
        """Return the state of the inner schedule after an epoch."""
        return self._inner.observe(state, loss)


@dataclass(frozen=True)
class OneCycle(Schedule):
    """One cycle up to ``learning_rate`` and far down, along cosines (torch's ``OneCycleLR``).

    Smith and Topin 2018, arXiv:1708.07120.

    Parameters
    ----------
    learning_rate : float
        The highest rate.
    epochs : float, optional
        The length of the cycle; by default the whole training.
    rising_fraction : float in (0, 1), default 0.3
        The part of the cycle in which the rate rises.
    initial_divisor : float, default 25.0
        The rate starts at learning_rate / initial_divisor.
    final_divisor : float, default 1e4
        The rate ends at learning_rate / (initial_divisor final_divisor).
    """

    learning_rate: float
    epochs: float | None = None
    rising_fraction: float = 0.3
    initial_divisor: float = 25.0
    final_divisor: float = 1e4

    def __post_init__(self) -> None:
        self._check(
            learning_rate={"above": 0.0},
            epochs={"above": 0.0},
            rising_fraction={"above": 0.0, "below": 1.0},
            initial_divisor={"above": 0.0},
            final_divisor={"above": 0.0},
        )

    def rate(self, clock: Clock, state: Any = None) -> float:
        """Return the rate on the rising or the falling half cosine."""
        del state
        initial = self.learning_rate / self.initial_divisor
        final = initial / self.final_divisor
        length = _length_in_steps(self.epochs, clock)
        # Place the extremes on steps: the first, the one before the falling part, and the last.
        top = self.rising_fraction * length - 1.0
        last = length - 1.0
        if clock.step <= top:
            begin, end, t = initial, self.learning_rate, clock.step / top if top else 1.0
        else:
            begin, end = self.learning_rate, final
            t = min((clock.step - top) / (last - top), 1.0) if last > top else 1.0
        return end + (begin - end) * 0.5 * (1.0 + math.cos(math.pi * t))


@dataclass(frozen=True)
class InverseScaling(Schedule):
    """Lower the rate with a power of time: learning_rate / (1 + epoch / period) ** power.

    With ``period = 1 / n_samples``, time counts samples as in scikit-learn's ``"invscaling"``.

    Parameters
    ----------
    learning_rate : float
        The rate at the start.
    power : float, default 0.5
        The exponent.
    period : float, default 1.0
        The unit of time, in epochs.
    """

    learning_rate: float
    power: float = 0.5
    period: float = 1.0

    def __post_init__(self) -> None:
        self._check(learning_rate={"above": 0.0}, power={"minimum": 0.0}, period={"above": 0.0})

    def rate(self, clock: Clock, state: Any = None) -> float:
        """Return learning_rate / (1 + epoch / period) ** power."""
        del state
        return float(self.learning_rate / (1.0 + clock.epoch / self.period) ** self.power)


class _PlateauState(NamedTuple):
    rate: float
    best: float = math.inf
    bad_epochs: int = 0
    cooldown: int = 0


@dataclass(frozen=True)
class ReduceOnPlateau(Schedule):
    """Lower the rate when the loss has stopped falling (torch's ``ReduceLROnPlateau``).

    The schedule watches the validation loss if there is validation data, else the training loss.
    Unlike torch's, it makes reductions of any size, and requires a negative loss to fall, too.

    Parameters
    ----------
    learning_rate : float
        The rate at the start.
    factor : float in (0, 1), default 0.1
        The factor of each reduction.
    patience : int, default 10
        The number of epochs without improvement to allow; the next one lowers the rate.
    threshold : float, default 1e-4
        An improvement is a loss below (1 - threshold) times the best so far.
    cooldown : int, default 0
        The number of epochs after a reduction that do not count as epochs without improvement.
    minimum : float, default 0.0
        The lowest rate.
    """

    learning_rate: float
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    cooldown: int = 0
    minimum: float = 0.0

    def __post_init__(self) -> None:
        self._check(
            learning_rate={"above": 0.0},
            factor={"above": 0.0, "below": 1.0},
            threshold={"minimum": 0.0, "below": 1.0},
            minimum={"minimum": 0.0},
        )
        for name in ("patience", "cooldown"):
            object.__setattr__(self, name, positive_integer(name, getattr(self, name), minimum=0))

    def start(self) -> _PlateauState:
        """Return the initial rate and no observed loss."""
        return _PlateauState(self.learning_rate)

    def rate(self, clock: Clock, state: _PlateauState | None = None) -> float:
        """Return the rate that follows from the losses observed so far."""
        del clock
        return self.learning_rate if state is None else state.rate

    def observe(self, state: _PlateauState, loss: float) -> _PlateauState:
        """Return the state after an epoch."""
        rate, best, bad_epochs, cooldown = state
        # torch compares with best * (1 - threshold), which would let a negative loss rise.
        if math.isinf(best) or loss < best - self.threshold * abs(best):
            best, bad_epochs = loss, 0
        else:
            bad_epochs += 1
        if cooldown > 0:
            cooldown, bad_epochs = cooldown - 1, 0
        if bad_epochs > self.patience:
            rate = max(rate * self.factor, self.minimum)
            cooldown, bad_epochs = self.cooldown, 0
        return _PlateauState(rate, best, bad_epochs, cooldown)


def as_schedule(learning_rate: float | Schedule) -> Schedule:
    """Return a schedule unchanged, and a number as a constant schedule."""
    if isinstance(learning_rate, Schedule):
        return learning_rate
    return Constant(learning_rate)


SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "step": StepDecay,
    "exponential": Exponential,
    "cosine": Cosine,
    "linear_warmup": LinearWarmup,
    "one_cycle": OneCycle,
    "inverse_scaling": InverseScaling,
    "reduce_on_plateau": ReduceOnPlateau,
}
