"""Formulas of a user's own that read more than their arguments, and change in a training."""

from types import SimpleNamespace

import numpy as np

import nnbackend as nb

__all__ = ["LEAKING", "Pinball", "follows", "slope"]

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
