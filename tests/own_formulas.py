"""Formulas of a user's own: some cannot be recorded, and some change in a training."""

from types import SimpleNamespace

import numpy as np
from devices import to_host

import nnbackend as nb

__all__ = [
    "LEAKING",
    "SWAPPED",
    "Cautious",
    "Exploding",
    "HeavyBall",
    "Lopsided",
    "Pinball",
    "assert_follows",
    "follows",
    "slope",
]

SWAPPED = nb.register_activation(
    "test_swapped",
    # Branches on data, so it cannot be recorded.
    lambda xp, Z: xp.tanh(Z) if xp.all(xp.isfinite(Z)) else Z,
    lambda xp, Z, _A: 1.0 - xp.tanh(Z) ** 2,
)


class Lopsided(nb.losses.SquaredError):
    """A loss that cannot be recorded."""

    def elements(self, xp, Z, Y):
        element, derivative = super().elements(xp, Z, Y)
        return (element, derivative) if float(xp.max(xp.abs(Z))) >= 0 else (Z, Z)


class Cautious(nb.SGD):
    """An optimizer that cannot be recorded."""

    def update(self, xp, parameters, gradient, state, coefficients):
        new, state = super().update(xp, parameters, gradient, state, coefficients)
        return (new, state) if bool(xp.all(xp.isfinite(new))) else (parameters, state)


class Exploding(nb.schedules.Schedule):
    """A small rate, and from the third epoch on one that overflows."""

    def rate(self, clock, state=None):
        del state
        return 0.1 if clock.epoch < 2 else np.float64(1e308)


class HeavyBall(nb.SGD):
    """Keeps the last parameters as its state."""

    @property
    def state_names(self):
        return ("last",)

    def init(self, xp, parameters):
        return (xp.asarray(parameters, copy=True),)

    def update(self, xp, parameters, gradient, state, coefficients):
        del xp
        new = parameters - coefficients[0] * gradient + 0.5 * (parameters - state[0])
        return new, (parameters,)


slope = SimpleNamespace(value=0.1)

LEAKING = nb.register_activation(
    "test_leaking",
    lambda xp, Z: xp.where(Z > 0, Z, slope.value * Z),
    lambda xp, Z, _A: xp.where(Z > 0, xp.ones_like(Z), slope.value),
)


class Pinball(nb.losses.Loss):
    """The loss of a quantile, an attribute."""

    name, output = "test_pinball", "identity"

    def __init__(self, quantile):
        self.quantile = quantile

    def elements(self, xp, Z, Y):
        over = Z - Y
        weight = xp.where(over > 0, (1.0 - self.quantile) * xp.ones_like(Z), -self.quantile)
        return weight * over, weight


def follows(engine, device="cpu", **options):
    """Train with one slope, then with another, then with some that a callback sets.

    Returns the parameters and losses of the three trainings.
    """
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((40, 6)), rng.standard_normal((40, 3))
    results = []

    def change(state):
        # The first epochs as before, and some after it with each of two values.
        if state.epoch in (2, 4):
            slope.value, loss.quantile = 0.3 * state.epoch, 0.9 - 0.1 * state.epoch

    loss = Pinball(0.3)
    for value, quantile, callbacks in ((0.1, 0.3, ()), (0.5, 0.8, ()), (0.1, 0.3, (change,))):
        slope.value, loss.quantile = value, quantile
        net = nb.Network([6, 5, 3], hidden=LEAKING, dtype="float64", seed=1, device=device,
                         output="identity", dropout=options.get("dropout", 0.0))  # fmt: skip
        history = nb.train(
            net, X, Y, loss=loss, optimizer=nb.Adam(0.01), epochs=6, batch_size=16, engine=engine,
            callbacks=callbacks, validation_data=(X[:9], Y[:9]), seed=3,
        )  # fmt: skip
        results.append((net, history))
    return results


def assert_follows(expected, found):
    """Compare two results of ``follows``, and see that the changes mattered."""
    for (net, said), (other, history) in zip(expected, found, strict=True):
        np.testing.assert_allclose(
            to_host(other.parameters), net.parameters, rtol=1e-10, atol=1e-12
        )
        np.testing.assert_allclose(history.loss, said.loss, rtol=1e-10)
        np.testing.assert_allclose(history.validation_loss, said.validation_loss, rtol=1e-10)
    first, second, third = (net.parameters for net, _ in expected)
    # The slopes and quantiles matter.
    assert np.abs(first - second).max() > 1e-3
    assert np.abs(first - third).max() > 1e-3
