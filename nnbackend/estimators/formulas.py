"""scikit-learn's optimizers and losses, where they differ from nnbackend's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from nnbackend.core import losses
from nnbackend.core.activations import sigmoid, softmax
from nnbackend.core.losses import Loss
from nnbackend.core.optimizers import Adam, Coefficients, Optimizer, State
from nnbackend.core.schedules import Clock, Schedule
from nnbackend.core.types import Array, Namespace

__all__ = [
    "BinaryLogLoss",
    "EpochRate",
    "MeanSquaredError",
    "PoissonDeviance",
    "SklearnAdam",
    "SklearnSGD",
    "SoftmaxLogLoss",
]


@dataclass(frozen=True)
class SklearnSGD(Optimizer):
    """scikit-learn's: the rate is a part of the velocity, v := momentum v - rate g."""

    name: ClassVar[str] = "sgd"
    learning_rate: float | Schedule
    momentum: float
    nesterov: bool

    @property
    def state_names(self) -> tuple[str, ...]:
        """The velocity alone."""
        return ("velocity",)

    def coefficients(self, learning_rate: Any, step: Any) -> Coefficients:
        """Return the rate."""
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
        """Return the parameters after a step, and the new velocity."""
        del xp
        descent = coefficients[0] * gradient
        velocity = self.momentum * state[0] - descent
        change = self.momentum * velocity - descent if self.nesterov else velocity
        return parameters + change, (velocity,)


class SklearnAdam(Adam):
    """scikit-learn's: as in section 2 of the paper, epsilon is added to the uncorrected root."""

    def coefficients(self, learning_rate: Any, step: Any) -> Coefficients:
        """Return the corrected rate, and what multiplies the root and the decay."""
        length = learning_rate * (1.0 - self.beta2**step) ** 0.5 / (1.0 - self.beta1**step)
        return length, 1.0, learning_rate


@dataclass(frozen=True)
class MeanSquaredError(Loss):
    """Half the squared error: its value a mean over the outputs, its gradient that of their sum."""

    name: ClassVar[str] = "squared_error"
    output: ClassVar[str] = "identity"
    n_outputs: int

    def elements(self, xp: Namespace, Z: Array, Y: Array) -> tuple[Array, Array]:
        """Return (Z - Y)^2 / 2 divided by the number of outputs, and Z - Y."""
        del xp
        residual = Z - Y
        return 0.5 * residual * residual / float(self.n_outputs), residual


@dataclass(frozen=True)
class PoissonDeviance(losses.Poisson):
    """Half the Poisson deviance: the loss without its constant, which depends on Y alone."""

    def elements(self, xp: Namespace, Z: Array, Y: Array) -> tuple[Array, Array]:
        """Return exp(Z) - Y Z + Y log(Y) - Y and exp(Z) - Y."""
        element, derivative = super().elements(xp, Z, Y)
        one = xp.ones_like(Y)
        is_positive = Y > 0
        constant = xp.where(is_positive, Y * xp.log(xp.where(is_positive, Y, one)) - Y, 0.0 * one)
        return element + constant, derivative


def _clipped(xp: Namespace, A: Array, epsilon: float) -> Array:
    """Return probabilities within [epsilon, 1 - epsilon], whose logarithms are taken in float64.

    scikit-learn does so. Printed kernels stay in the dtype of the network.
    """
    one = xp.ones_like(A)
    return xp.astype(xp.minimum(xp.maximum(A, epsilon * one), (1.0 - epsilon) * one), xp.float64)


@dataclass(frozen=True)
class BinaryLogLoss(losses.BinaryCrossEntropy):
    """Binary cross-entropy whose value, not gradient, is that of clipped probabilities.

    Attributes
    ----------
    epsilon : float
        The least probability that the value knows, of the true class and of the other.
    """

    epsilon: float

    def elements(self, xp: Namespace, Z: Array, Y: Array) -> tuple[Array, Array]:
        """Return -(Y log P + (1 - Y) log(1 - P)) with P = sigmoid(Z) clipped, and sigmoid(Z) - Y.

        In the tails log(1 - P) has few digits, as it has there: such values say when to stop.
        """
        A = sigmoid(xp, Z)
        P = _clipped(xp, A, self.epsilon)
        return -(Y * xp.log(P) + (1.0 - Y) * xp.log(1.0 - P)), A - Y


@dataclass(frozen=True, kw_only=True)
class SoftmaxLogLoss(losses.SoftmaxCrossEntropy):
    """Cross-entropy whose value, not gradient, is that of clipped probabilities.

    With label smoothing both are those of the smoothed targets.

    Attributes
    ----------
    epsilon : float
        The least probability that the value knows.
    """

    epsilon: float

    def elements(self, xp: Namespace, Z: Array, Y: Array) -> tuple[Array, Array]:
        """Return -Y log P with P = softmax(Z) clipped, and softmax(Z) - Y."""
        A = softmax(xp, Z)
        return -Y * xp.log(_clipped(xp, A, self.epsilon)), A - Y


class EpochRate(Schedule):
    """The rate of the coming epoch, which whoever watches the training sets."""

    def __init__(self, value: float) -> None:
        self.value = value

    def rate(self, clock: Clock, state: Any = None) -> float:
        """Return the rate that is set."""
        del clock, state
        return self.value

    def rates(self, clock: Clock, n_steps: int, state: Any = None) -> list[float]:
        """Return it for some steps."""
        del clock, state
        return [self.value] * n_steps
