"""Optimizers with torch's semantics, as pure functions of explicit state.

An optimizer updates all parameters at once, as one flat vector (..., n_parameters):

    state = optimizer.init(xp, parameters)
    for step in 1, 2, ...:
        coefficients = optimizer.coefficients(learning_rate, step)
        parameters, state = optimizer.update(xp, parameters, gradient, state, coefficients)

``coefficients`` computes the scalars of a step (rates, bias corrections) on the host. They are
Python floats, which never change a dtype; for many steps at once, they are arrays with one entry
per step. ``update`` uses only element-wise arithmetic, in which an optimizer's own numbers stand on
the left of arrays: those of a stack's networks may be objects that arrays do not know.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeAlias

from nnbackend.checks import lookup, real
from nnbackend.core.schedules import Schedule
from nnbackend.core.types import Array, Namespace
from nnbackend.errors import InputError

__all__ = [
    "OPTIMIZERS",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Optimizer",
    "OptimizerState",
    "RMSprop",
    "optimizer",
]

State: TypeAlias = tuple[Array, ...]
Coefficients: TypeAlias = tuple[Any, ...]

_FRACTION = {"minimum": 0.0, "below": 1.0}
_NOT_NEGATIVE = {"minimum": 0.0}
_POSITIVE = {"above": 0.0}


class OptimizerState(NamedTuple):
    """The state of an optimizer between two steps, from which a later training can continue.

    Attributes
    ----------
    step : int
        The number of steps taken.
    arrays : tuple of arrays (n_parameters,)
        The arrays that ``Optimizer.state_names`` names.
    """

    step: int
    arrays: State


class Optimizer(ABC):
    """The rule by which a gradient changes the parameters.

    Attributes
    ----------
    learning_rate : float or Schedule
        The learning rate.
    name : str
        The name by which ``train(optimizer=...)`` knows it.
    state_names : tuple of str
        One name for each array of the state.
    """

    name: ClassVar[str]
    learning_rate: float | Schedule

    @property
    @abstractmethod
    def state_names(self) -> tuple[str, ...]:
        """One name for each array of the state."""

    def init(self, xp: Namespace, parameters: Array) -> State:
        """Return the state before the first step: arrays like ``parameters``."""
        return tuple(xp.zeros_like(parameters) for _ in self.state_names)

    @abstractmethod
    def coefficients(self, learning_rate: Any, step: Any) -> Coefficients:
        """Return the scalars of step number ``step``, counted from 1.

        Given arrays (n_steps,) of rates and step numbers, return for each scalar an array
        (n_steps,), or a float if it is the same for all steps.
        """

    @abstractmethod
    def update(
        self,
        xp: Namespace,
        parameters: Array,
        gradient: Array,
        state: State,
        coefficients: Coefficients,
    ) -> tuple[Array, State]:
        """Return new parameters and state; all arrays are (..., n_parameters) of one dtype."""

    def _check(self, **bounds: dict[str, float]) -> None:
        if not isinstance(self.learning_rate, Schedule):
            rate = real("learning_rate", self.learning_rate, above=0.0)
            object.__setattr__(self, "learning_rate", rate)
        for name, bound in bounds.items():
            object.__setattr__(self, name, real(name, getattr(self, name), **bound))


@dataclass(frozen=True)
class SGD(Optimizer):
    """Gradient descent; with mini-batches, stochastic gradient descent.

    With weight decay g := g + weight_decay W; then W := W - learning_rate g, or with momentum

        v := momentum v + (1 - dampening) g        (v := g at the first step)
        W := W - learning_rate v                   (Nesterov: g + momentum v in place of v)

    Parameters
    ----------
    learning_rate : float or Schedule, default 1e-3
        The step length alpha.
    momentum, dampening : float in [0, 1), default 0.0
        As in the formula.
    nesterov : bool, default False
        Look ahead along the velocity (Sutskever et al. 2013); needs momentum and no dampening.
    weight_decay : float, default 0.0
        Added to every gradient, in units of the parameters.

    Examples
    --------
    >>> import numpy as np
    >>> sgd, W = SGD(0.5), np.asarray([1.0, 2.0])
    >>> sgd.update(np, W, np.asarray([1.0, -1.0]), (), sgd.coefficients(0.5, step=1))[0]
    array([0.5, 2.5])
    """

    name: ClassVar[str] = "sgd"
    learning_rate: float | Schedule = 1e-3
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        self._check(momentum=_FRACTION, dampening=_FRACTION, weight_decay=_NOT_NEGATIVE)
        if not isinstance(self.nesterov, bool):
            raise InputError(f"expected True or False, got {self.nesterov!r}", argument="nesterov")
        if self.nesterov and (self.momentum == 0.0 or self.dampening != 0.0):
            raise InputError(
                "expected momentum > 0 and dampening 0 with nesterov=True, got "
                f"momentum={self.momentum!r} and dampening={self.dampening!r}",
                argument="nesterov",
            )

    @property
    def state_names(self) -> tuple[str, ...]:
        """The velocity, if there is momentum."""
        return ("velocity",) if self.momentum else ()

    def coefficients(self, learning_rate: Any, step: Any) -> Coefficients:
        """Return the learning rate and the share of the gradient in the velocity."""
        return learning_rate, 1.0 - self.dampening * (step > 1)

    def update(
        self,
        xp: Namespace,
        parameters: Array,
        gradient: Array,
        state: State,
        coefficients: Coefficients,
    ) -> tuple[Array, State]:
        """Return new parameters and velocity."""
        del xp
        learning_rate, share = coefficients
        if self.weight_decay:
            gradient = gradient + self.weight_decay * parameters
        if not self.momentum:
            return parameters - learning_rate * gradient, state
        velocity = self.momentum * state[0] + share * gradient
        direction = gradient + self.momentum * velocity if self.nesterov else velocity
        return parameters - learning_rate * direction, (velocity,)


@dataclass(frozen=True)
class RMSprop(Optimizer):
    """Divide the gradient by a running root mean square of itself (Hinton's lecture 6e).

        s := decay s + (1 - decay) g^2,        d = g / (sqrt(s) + epsilon)
        W := W - learning_rate d               (momentum: v := momentum v + d in place of d)

    Parameters
    ----------
    learning_rate : float or Schedule, default 1e-2
        The step length.
    decay : float in [0, 1), default 0.99
        torch's ``alpha``.
    epsilon : float, default 1e-8
        Keeps the division finite.
    momentum : float in [0, 1), default 0.0
        As in the formula.
    centered : bool, default False
        Use the variance in place of the mean square: s minus the squared running mean of g.
    weight_decay : float, default 0.0
        Added to every gradient, in units of the parameters.
    """

    name: ClassVar[str] = "rmsprop"
    learning_rate: float | Schedule = 1e-2
    decay: float = 0.99
    epsilon: float = 1e-8
    momentum: float = 0.0
    centered: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        self._check(
            decay=_FRACTION, epsilon=_POSITIVE, momentum=_FRACTION, weight_decay=_NOT_NEGATIVE
        )

    @property
    def state_names(self) -> tuple[str, ...]:
        """The mean square; the mean, if centered; the velocity, if there is momentum."""
        mean = ("mean",) if self.centered else ()
        velocity = ("velocity",) if self.momentum else ()
        return ("mean_square", *mean, *velocity)

    def coefficients(self, learning_rate: Any, step: Any) -> Coefficients:
        """Return the learning rate."""
        del step
        return (learning_rate,)

    def update(
        self,
        xp: Namespace,
        parameters: Array,
        gradient: Array,
        state: State,
        coefficients: Coefficients,
    ) -> tuple[Array, State]:
        """Return new parameters and running means."""
        (learning_rate,) = coefficients
        if self.weight_decay:
            gradient = gradient + self.weight_decay * parameters
        mean_square, *rest = state
        mean_square = self.decay * mean_square + (1.0 - self.decay) * gradient * gradient
        new_state = [mean_square]
        spread = mean_square
        if self.centered:
            mean = self.decay * rest.pop(0) + (1.0 - self.decay) * gradient
            new_state.append(mean)
            # Rounding can push a variance near zero below it.
            spread = xp.maximum(mean_square - mean * mean, xp.zeros_like(mean))
        direction = gradient / (self.epsilon + xp.sqrt(spread))
        if self.momentum:
            direction = self.momentum * rest.pop(0) + direction
            new_state.append(direction)
        return parameters - learning_rate * direction, tuple(new_state)


@dataclass(frozen=True)
class Adagrad(Optimizer):
    """Divide the gradient by the root of the sum of its squares (Duchi et al. 2011).

        s := s + g^2,        W := W - learning_rate / (1 + (t - 1) decay) g / (sqrt(s) + epsilon)

    Parameters
    ----------
    learning_rate : float or Schedule, default 1e-2
        The step length.
    decay : float, default 0.0
        torch's ``lr_decay``: how fast the rate falls with the step number t.
    initial_accumulator : float, default 0.0
        The value of s before the first step.
    epsilon : float, default 1e-10
        Keeps the division finite.
    weight_decay : float, default 0.0
        Added to every gradient, in units of the parameters.
    """

    name: ClassVar[str] = "adagrad"
    learning_rate: float | Schedule = 1e-2
    decay: float = 0.0
    initial_accumulator: float = 0.0
    epsilon: float = 1e-10
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        self._check(
            decay=_NOT_NEGATIVE,
            initial_accumulator=_NOT_NEGATIVE,
            epsilon=_POSITIVE,
            weight_decay=_NOT_NEGATIVE,
        )

    @property
    def state_names(self) -> tuple[str, ...]:
        """The sum of squares."""
        return ("sum_of_squares",)

    def init(self, xp: Namespace, parameters: Array) -> State:
        """Return the initial accumulator."""
        return (self.initial_accumulator * xp.ones_like(parameters),)

    def coefficients(self, learning_rate: Any, step: Any) -> Coefficients:
        """Return the decayed learning rate."""
        return (learning_rate / (1.0 + (step - 1) * self.decay),)

    def update(
        self,
        xp: Namespace,
        parameters: Array,
        gradient: Array,
        state: State,
        coefficients: Coefficients,
    ) -> tuple[Array, State]:
        """Return new parameters and sum of squares."""
        (learning_rate,) = coefficients
        if self.weight_decay:
            gradient = gradient + self.weight_decay * parameters
        total = state[0] + gradient * gradient
        return parameters - learning_rate * gradient / (self.epsilon + xp.sqrt(total)), (total,)


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adaptive moment estimation (Kingma and Ba 2015, arXiv:1412.6980).

        m := beta1 m + (1 - beta1) g,        v := beta2 v + (1 - beta2) g^2
        W := W - learning_rate / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) + epsilon)

    Parameters
    ----------
    learning_rate : float or Schedule, default 1e-3
        The step length alpha.
    beta1, beta2 : float in [0, 1), default 0.9 and 0.999
        Decay of the running means of the gradient and of its square.
    epsilon : float, default 1e-8
        Keeps the division finite.
    weight_decay : float, default 0.0
        Added to every gradient, in units of the parameters; ``AdamW`` decouples it from them.

    Examples
    --------
    The first step moves every parameter by the learning rate, whatever the gradient's size:

    >>> import numpy as np
    >>> adam, W = Adam(0.1), np.asarray([1.0, 2.0])
    >>> gradient, state = np.asarray([1e-3, -1e3]), adam.init(np, W)
    >>> W, state = adam.update(np, W, gradient, state, adam.coefficients(0.1, step=1))
    >>> W.round(4)
    array([0.9, 2.1])
    """

    name: ClassVar[str] = "adam"
    learning_rate: float | Schedule = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        self._check(beta1=_FRACTION, beta2=_FRACTION, epsilon=_POSITIVE, weight_decay=_NOT_NEGATIVE)

    @property
    def state_names(self) -> tuple[str, ...]:
        """The running means of the gradient and of its square."""
        return ("mean", "mean_square")

    def coefficients(self, learning_rate: Any, step: Any) -> Coefficients:
        """Return learning_rate / (1 - beta1^t), 1 / sqrt(1 - beta2^t) and the learning rate."""
        correction1 = 1.0 - self.beta1**step
        correction2 = (1.0 - self.beta2**step) ** -0.5
        return learning_rate / correction1, correction2, learning_rate

    def update(
        self,
        xp: Namespace,
        parameters: Array,
        gradient: Array,
        state: State,
        coefficients: Coefficients,
    ) -> tuple[Array, State]:
        """Return new parameters and running means."""
        if self.weight_decay:
            gradient = gradient + self.weight_decay * parameters
        return self._moments(xp, parameters, gradient, state, coefficients)

    def _moments(
        self,
        xp: Namespace,
        parameters: Array,
        gradient: Array,
        state: State,
        coefficients: Coefficients,
    ) -> tuple[Array, State]:
        length, correction2, _ = coefficients
        mean = self.beta1 * state[0] + (1.0 - self.beta1) * gradient
        mean_square = self.beta2 * state[1] + (1.0 - self.beta2) * gradient * gradient
        scale = self.epsilon + xp.sqrt(mean_square) * correction2
        return parameters - length * mean / scale, (mean, mean_square)


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101).

    W := (1 - learning_rate weight_decay) W, then Adam's step with the plain gradient.

    Parameters
    ----------
    learning_rate : float or Schedule, default 1e-3
        The step length alpha.
    beta1, beta2, epsilon : float
        As for ``Adam``.
    weight_decay : float, default 1e-2
        The decay per step, in units of the learning rate.
    """

    name: ClassVar[str] = "adamw"
    weight_decay: float = 1e-2

    def update(
        self,
        xp: Namespace,
        parameters: Array,
        gradient: Array,
        state: State,
        coefficients: Coefficients,
    ) -> tuple[Array, State]:
        """Return new parameters and running means."""
        kept = 1.0 - self.weight_decay * coefficients[2]
        return self._moments(xp, kept * parameters, gradient, state, coefficients)


OPTIMIZERS: dict[str, type[Optimizer]] = {
    cls.name: cls for cls in (SGD, RMSprop, Adagrad, Adam, AdamW)
}


def optimizer(value: Any, **options: Any) -> Optimizer:
    """Return ``value`` if it is an optimizer, or build the one it names with ``options``."""
    if isinstance(value, Optimizer):
        return value
    if isinstance(value, type) and issubclass(value, Optimizer):
        raise InputError(
            f"expected an instance, got the class {value.__name__}; did you mean "
            f"{value.__name__}()?",
            argument="optimizer",
        )
    return lookup("optimizer", value, OPTIMIZERS)(**options)
