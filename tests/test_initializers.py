"""Initial weights have the distribution that their name promises.

They are drawn on the host for every device, so they are tested with NumPy alone.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from nnbackend.core.initializers import INITIALIZERS

# fan_in and fan_out differ, so that a formula in the wrong one fails.
FAN_IN, FAN_OUT = 300, 200
SIZE = FAN_IN * FAN_OUT

# name: claimed variance, kind, torch's initializer of the same distribution
DISTRIBUTIONS = {
    "normal": (1e-4, "normal", lambda init, w: init.normal_(w, std=0.01)),
    "glorot_normal": (2 / (FAN_IN + FAN_OUT), "normal", lambda init, w: init.xavier_normal_(w)),
    "glorot_uniform": (2 / (FAN_IN + FAN_OUT), "uniform", lambda init, w: init.xavier_uniform_(w)),
    "he_normal": (
        2 / FAN_IN,
        "normal",
        lambda init, w: init.kaiming_normal_(w, nonlinearity="relu"),
    ),
    "he_uniform": (
        2 / FAN_IN,
        "uniform",
        lambda init, w: init.kaiming_uniform_(w, nonlinearity="relu"),
    ),
    "lecun_normal": (
        1 / FAN_IN,
        "normal",
        lambda init, w: init.kaiming_normal_(w, nonlinearity="linear"),
    ),
    "lecun_uniform": (
        1 / FAN_IN,
        "uniform",
        lambda init, w: init.kaiming_uniform_(w, nonlinearity="linear"),
    ),
}


def draw(name, shape, seed=0):
    return INITIALIZERS[name](np, np.random.default_rng(seed), shape)


def test_every_initializer_is_tested():
    assert set(INITIALIZERS) == {*DISTRIBUTIONS, "zeros", "orthogonal"}


@pytest.mark.parametrize("name", INITIALIZERS)
@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (1, 1), (3, 7, 5), (2, 3, 5, 7)])
def test_shape_is_as_asked_and_the_same_seed_gives_the_same_bits(name, shape):
    W = draw(name, shape)
    assert W.shape == shape
    assert W.dtype == np.float64
    np.testing.assert_array_equal(W, draw(name, shape))
    assert (name == "zeros") == np.array_equal(W, draw(name, shape, seed=1)) or shape == (1, 1)


@pytest.mark.parametrize("name", INITIALIZERS)
def test_a_stack_is_the_successive_draws_of_its_networks(name):
    rng = np.random.default_rng(0)
    one_by_one = [INITIALIZERS[name](np, rng, (7, 5)) for _ in range(3)]
    # Draws are the same bits; the QR factorization of a stack may round otherwise: entries <= 1.
    np.testing.assert_allclose(draw(name, (3, 7, 5)), one_by_one, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_mean_and_variance_are_as_claimed(name):
    variance, kind, _ = DISTRIBUTIONS[name]
    W = draw(name, (FAN_IN, FAN_OUT))
    # Five standard errors: a right initializer fails for one seed in 1.7 million. That of a sample
    # variance is variance * sqrt((kurtosis - 1) / n), with kurtosis 3 (normal) or 9/5 (uniform).
    kurtosis = {"normal": 3.0, "uniform": 1.8}[kind]
    assert abs(W.mean()) < 5 * math.sqrt(variance / SIZE)
    assert abs(W.var() / variance - 1) < 5 * math.sqrt((kurtosis - 1) / SIZE)


@pytest.mark.parametrize("name", [n for n, row in DISTRIBUTIONS.items() if row[1] == "uniform"])
def test_uniform_weights_fill_their_interval_to_the_limit(name):
    limit = math.sqrt(3 * DISTRIBUTIONS[name][0])
    largest = np.abs(draw(name, (FAN_IN, FAN_OUT))).max()
    # That n uniform numbers all miss the outer share 20 / n of the interval has probability e^-20.
    assert limit * (1 - 20 / SIZE) < largest <= limit


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_distribution_is_that_of_torch(torch, name):
    # torch's weight is (fan_out, fan_in).
    theirs = torch.empty(FAN_OUT, FAN_IN, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        DISTRIBUTIONS[name][2](torch.nn.init, theirs)
    ours = draw(name, (FAN_IN, FAN_OUT))
    # Equal distributions fail in one of a million; 10% in the scale gives a p-value below 1e-9.
    assert stats.ks_2samp(ours.ravel(), theirs.numpy().ravel()).pvalue > 1e-6
    assert stats.ks_2samp(1.1 * ours.ravel(), theirs.numpy().ravel()).pvalue < 1e-6


@pytest.mark.parametrize("stack", [(), (4,), (2, 3)])
@pytest.mark.parametrize("shape", [(8, 3), (3, 8), (5, 5), (1, 4), (4, 1)])
def test_orthogonal_weights_have_orthonormal_rows_or_columns_whichever_are_fewer(stack, shape):
    W = draw("orthogonal", (*stack, *shape))
    gram = W.mT @ W if shape[0] >= shape[1] else W @ W.mT
    # Householder's Q is orthonormal to a few eps * sqrt(8).
    np.testing.assert_allclose(
        gram, np.broadcast_to(np.eye(min(shape)), gram.shape), rtol=0, atol=1e-14
    )


@pytest.mark.parametrize("shape", [(3, 2), (2, 3), (2, 2)])
def test_orthogonal_weights_favour_no_sign(shape):
    # Without the correction by R's signs, LAPACK's Q has a first entry of nearly one sign only.
    count = 2000
    positive = (draw("orthogonal", (count, *shape)) > 0).sum(axis=0)
    # Five standard deviations of a fair coin.
    assert np.all(np.abs(positive - count / 2) < 5 * math.sqrt(count) / 2)


def test_orthogonal_weights_are_uniform_as_those_of_torch(torch):
    count = 2000
    ours = draw("orthogonal", (count, 4, 3))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        empty = (torch.empty(3, 4, dtype=torch.float64) for _ in range(count))
        theirs = np.stack([torch.nn.init.orthogonal_(w).numpy().T for w in empty])
    for i, j in np.ndindex(4, 3):
        # Twelve comparisons at one in a million each.
        assert stats.ks_2samp(ours[:, i, j], theirs[:, i, j]).pvalue > 1e-6


def test_zeros_are_zeros_and_draw_nothing():
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    W = INITIALIZERS["zeros"](np, rng, (2, 3, 4))
    np.testing.assert_array_equal(W, np.zeros((2, 3, 4)))
    assert rng.bit_generator.state == before
