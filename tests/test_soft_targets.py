"""Rows of class probabilities that sum to 1 but for rounding are what they stand for."""

from __future__ import annotations

from functools import partial

import factories
import numpy as np
import pytest
from backends import require
from devices import on_each_device, to_host

import nnbackend as nb
from nnbackend.data.sources import Arrays
from nnbackend.data.stream import Stream
from nnbackend.errors import InputError

RNG = np.random.default_rng(0)
N, K = 40, 5
X = RNG.normal(size=(N, 3))
EXACT = RNG.dirichlet(np.ones(K), N)
# Sums from 1 - 9e-4 to 1 + 9e-4, as rounded or truncated probabilities have them.
ROWS = EXACT * np.linspace(1 - 9e-4, 1 + 9e-4, N)[:, None]


network = partial(factories.network, (3, 6, K), output="softmax", seed=0)


def test_loss_and_gradients_are_torchs_of_the_normalized_rows():
    torch = require("torch")
    net = network()
    loss, gradients = net.loss_and_gradients(X, ROWS)
    layers = [torch.nn.Linear(3, 6), torch.nn.Tanh(), torch.nn.Linear(6, K)]
    module = torch.nn.Sequential(*layers).double()
    module.load_state_dict(nb.to_torch(net))
    # In float64, as ours: its own sums of rows.
    targets = torch.from_numpy(ROWS)
    targets = targets / targets.sum(dim=1, keepdim=True)
    expected = torch.nn.CrossEntropyLoss()(module(torch.from_numpy(X)), targets)
    expected.backward()
    assert float(loss) == pytest.approx(expected.item(), rel=1e-14)
    for mine, layer in zip(gradients.weights, module[::2], strict=True):
        np.testing.assert_allclose(mine, layer.weight.grad.numpy().T, rtol=0, atol=1e-15)
    for mine, layer in zip(gradients.biases, module[::2], strict=True):
        np.testing.assert_allclose(mine, layer.bias.grad.numpy(), rtol=0, atol=1e-15)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradients_are_central_differences(smoothing):
    loss = nb.losses.SoftmaxCrossEntropy(label_smoothing=smoothing)
    report = nb.check_gradients(network(), X, ROWS, loss=loss)
    assert report.relative_error < 1e-8
    # By hand: the last bias, which shifts every row's logit.
    net, h = network(), 1e-5
    _, gradients = net.loss_and_gradients(X, ROWS, loss=loss)
    values = []
    for step in (h, -h):
        net.biases[1][2] += step
        values.append(float(net.loss_and_gradients(X, ROWS, loss=loss)[0]))
        net.biases[1][2] -= step
    assert gradients.biases[1][2] == pytest.approx((values[0] - values[1]) / (2 * h), abs=1e-10)


@on_each_device
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_path_divides_rows_by_their_sums_before_they_are_rounded(dtype, device):
    net = network(dtype=dtype, device=device)
    loss = net.objective().loss
    expected = (ROWS / ROWS.sum(axis=1, keepdims=True)).astype(dtype)
    paths = {"arrays": net.preparation.examples(X, ROWS, loss).y}
    stream = Stream(net.preparation, Arrays(X, ROWS), loss, 10, shuffle=False)
    (paths["source"],) = (part.data.y for part in stream.parts(None))
    for name, found in paths.items():
        np.testing.assert_array_equal(to_host(found), expected, err_msg=name)


def trained(*data, **options):
    net = network(dtype="float32")
    history = nb.train(net, *data, epochs=2, shuffle=False, **options)
    return net.parameters, history


def test_training_and_validation_take_them_as_normalized():
    exact = ROWS / ROWS.sum(axis=1, keepdims=True)
    found, history = trained(X, ROWS, validation_data=(X, ROWS), batch_size=20)
    expected, others = trained(X, exact, validation_data=(X, exact), batch_size=20)
    np.testing.assert_array_equal(found, expected)
    assert history.validation_loss == others.validation_loss
    halves = [[(X[:20], y[:20]), (X[20:], y[20:])] for y in (ROWS, exact)]
    (found, _), (expected, _) = (trained(batches) for batches in halves)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("given", ["bool", "int64", "float32", "float64"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_hot_rows_stay_what_they_are(given, dtype):
    net = network(dtype=dtype)
    rows = np.eye(K)[RNG.integers(0, K, N)].astype(given)
    found = net.preparation.examples(X, rows, net.objective().loss).y
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, rows.astype(dtype))


def test_rows_farther_from_1_are_refused_in_either_dtype():
    for dtype in ("float32", "float64"):
        for total in (1 - 1.1e-3, 1 + 1.1e-3):
            with pytest.raises(InputError, match=r"y: .* sum to 1"):
                network(dtype=dtype).loss_and_gradients(X, EXACT * total)


def test_other_losses_take_rows_as_they_are():
    net = network()
    found = net.preparation.examples(X, ROWS, net.objective("squared_error").loss).y
    np.testing.assert_array_equal(found, ROWS)
