"""The training loop: what it computes, when it stops, and what it leaves alone."""

import inspect
import json
import math
from dataclasses import fields
from functools import partial

import factories
import numpy as np
import pytest
from devices import needs_cuda, on_each_device, to_host

import nnbackend as nb
from nnbackend.device import Device
from nnbackend.engines.reference import ReferenceEngine
from nnbackend.errors import InputError
from nnbackend.training.errors import DivergenceError
from nnbackend.training.options import TrainingOptions

OPTIMIZERS = {
    "SGD": nb.SGD(0.01),
    "SGD with momentum": nb.SGD(0.01, momentum=0.9, nesterov=True, weight_decay=0.01),
    "RMSprop": nb.RMSprop(0.001),
    "centered RMSprop": nb.RMSprop(0.001, momentum=0.5, centered=True, weight_decay=0.01),
    "Adagrad": nb.Adagrad(0.01, decay=0.1, initial_accumulator=0.1),
    "Adam": nb.Adam(0.001),
    "AdamW": nb.AdamW(0.001),
}


def planar(n_samples=200, seed=0):
    """Return two intertwined flower-shaped classes in the plane."""
    rng = np.random.default_rng(seed)
    label = np.arange(n_samples) % 2
    angle = rng.uniform(0, np.pi, n_samples) + np.pi * label
    radius = 4 * np.sin(4 * angle) + 0.2 * rng.normal(size=n_samples)
    return np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=1), label


def blobs(n_samples=40, n_features=3, seed=0):
    """Return a small noisy binary problem."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n_samples, n_features))
    return X, (X @ np.arange(1, n_features + 1) + rng.normal(size=n_samples) > 0).astype(int)


small_network = partial(factories.network, (3, 8, 1), seed=0)


class Recorder:
    """A callback that keeps a copy of the parameters of every epoch."""

    def __init__(self):
        self.parameters = []
        self.states = []

    def __call__(self, state):
        self.parameters.append(to_host(state.network.parameters))
        self.states.append(
            (state.epoch, state.epochs, state.history.n_epochs, state.stop_requested)
        )


# Learning


@on_each_device
def test_gradient_descent_lowers_the_loss_of_the_two_layer_network_at_every_iteration(device):
    X, y = planar()
    net = nb.Network([2, 4, 1], hidden="tanh", dtype="float64", device=device, seed=1)
    history = nb.train(net, X, y, optimizer=nb.SGD(0.05), epochs=100, batch_size=None)
    assert history.n_epochs == 100
    assert (np.diff(history.loss) < 0).all()


@on_each_device
def test_gradient_descent_lowers_the_loss_of_the_l_layer_network_at_every_iteration(device):
    from sklearn.datasets import load_breast_cancer

    X, y = load_breast_cancer(return_X_y=True)
    net = nb.Network([30, 20, 7, 5, 1], hidden="relu", dtype="float64", device=device, seed=1)
    net.standardize(X)
    history = nb.train(net, X, y, optimizer=nb.SGD(0.0075), epochs=100, batch_size=None)
    assert history.n_epochs == 100
    assert (np.diff(history.loss) < 0).all()


@on_each_device
def test_softmax_learns_to_read_digits(device):
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    net = nb.Network([64, 32, 10], output="softmax", device=device).standardize(X[:1400])
    nb.train(net, X[:1400], y[:1400], optimizer=nb.Adam(3e-3), epochs=15, batch_size=64)
    # Logistic regression reads 91 of 100 of these, this network 90 to 92 by its seed, guessing 10.
    assert np.mean(net.predict(X[1400:]) == y[1400:]) > 0.85


LEARNING_TASKS = {
    "multilabel": ("sigmoid", None, lambda X: X > 0),
    "labels": ("softmax", None, lambda X: X.argmax(axis=1)),
    "smoothed labels": (
        "softmax",
        nb.losses.SoftmaxCrossEntropy(label_smoothing=0.1),
        lambda X: X.argmax(axis=1),
    ),
    "class probabilities": ("softmax", None, lambda X: np.exp(X) / np.exp(X).sum(1)[:, None]),
    "counts": ("exp", None, lambda X: np.random.default_rng(0).poisson(np.exp(X))),
    "numbers": ("identity", None, np.sin),
    "numbers by absolute error": ("identity", "absolute_error", np.sin),
    "numbers by Huber's loss": ("identity", nb.losses.Huber(0.5), np.sin),
    "labels by squared error": ("sigmoid", "squared_error", lambda X: X > 0),
    "classes by absolute error": ("softmax", "absolute_error", lambda X: np.eye(3)[X.argmax(1)]),
}


@on_each_device
@pytest.mark.parametrize("task", sorted(LEARNING_TASKS))
def test_every_kind_of_target_is_learnt(task, device):
    output, loss, target = LEARNING_TASKS[task]
    X = np.random.default_rng(1).normal(size=(200, 3))
    y = target(X)
    net = nb.Network([3, 16, 3], output=output, device=device)
    before = float(net.loss_and_gradients(X, y, loss=loss)[0])
    history = nb.train(net, X, y, loss=loss, optimizer=nb.Adam(0.01), epochs=40, batch_size=50)
    assert history.loss[-1] < history.loss[0]
    # Cross-entropies keep the entropy of their targets, so not all can fall far.
    assert float(net.loss_and_gradients(X, y, loss=loss)[0]) < before - 0.2 * abs(before)


@on_each_device
def test_standardized_targets_are_predicted_in_their_own_units(device):
    X, _ = blobs(300)
    y = 5000 + 800 * np.sin(X[:, 0])
    net = nb.Network([3, 32, 1], hidden="tanh", output="identity", device=device).standardize(X, y)
    history = nb.train(net, X, y, optimizer=nb.Adam(0.01), epochs=100, batch_size=32)
    # In units of the deviation the loss of predicting the mean is 1/2.
    assert history.loss[-1] < 0.05
    assert np.abs(net.predict(X) - y).mean() < 0.25 * y.std()


# The same numbers


def options_with_everything():
    """Return training options that use every source of randomness."""
    return {
        "optimizer": nb.Adam(0.01),
        "epochs": 4,
        "batch_size": 7,
        "validation_data": blobs(15, seed=9),
        "l2": 1e-3,
    }


def trained(device="cpu", seed=0, **options):
    net = nb.Network([3, 8, 8, 1], dropout=[0.5, 0.25], device=device)
    history = nb.train(net, *blobs(), seed=seed, **{**options_with_everything(), **options})
    return to_host(net.parameters), history


@on_each_device
def test_one_seed_gives_the_same_bits_twice(device):
    first, first_history = trained(device)
    second, second_history = trained(device)
    np.testing.assert_array_equal(first, second)
    for name in ("loss", "validation_loss", "learning_rate"):
        assert getattr(first_history, name) == getattr(second_history, name)


@pytest.mark.parametrize("options", [{"dropout": 0.0}, {"shuffle": False}])
def test_the_seed_decides_the_order_and_the_dropout_masks_each_on_its_own(options):
    dropout = options.pop("dropout", 0.5)

    def run(seed):
        net = small_network(dropout=dropout)
        nb.train(net, *blobs(), epochs=2, batch_size=7, seed=seed, **options)
        return to_host(net.parameters)

    np.testing.assert_array_equal(run(1), run(1))
    assert (run(1) != run(2)).any()
    assert (run(None) != run(None)).any()


def test_without_shuffling_and_dropout_the_seed_makes_no_difference():
    runs = []
    for seed in (1, 2):
        net = small_network()
        nb.train(net, *blobs(), epochs=2, batch_size=7, shuffle=False, seed=seed)
        runs.append(to_host(net.parameters))
    np.testing.assert_array_equal(*runs)


def test_training_in_two_dtypes_begins_with_the_same_batches():
    losses = [
        nb.train(small_network(dtype=dtype), *blobs(), epochs=3, batch_size=7).loss
        for dtype in ("float32", "float64")
    ]
    # float32 rounding, 6e-8 relative per operation, over 18 small steps.
    np.testing.assert_allclose(*losses, rtol=1e-5)


@on_each_device
@pytest.mark.parametrize("batch_size", [40, 41, 10**9])
def test_a_batch_of_all_examples_is_full_batch_gradient_descent(batch_size, device):
    runs = []
    for size in (None, batch_size):
        net = small_network(device=device)
        history = nb.train(net, *blobs(), epochs=5, batch_size=size)
        runs.append((to_host(net.parameters), history.loss))
    np.testing.assert_array_equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]


def epoch_orders(seed, n_samples):
    """Yield the order of the examples in every epoch, as ``train`` documents and draws it."""
    rng = np.random.default_rng(np.random.SeedSequence(seed).spawn(2)[0])
    while True:
        yield rng.permutation(n_samples)


def batches(order, size):
    return [order[start : start + size] for start in range(0, len(order), size)]


@on_each_device
@pytest.mark.parametrize(
    ("optimizer", "name", "torch_options"),
    [
        (nb.SGD(0.1), "SGD", {"lr": 0.1}),
        (
            nb.SGD(0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
            "SGD",
            {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
        ),
        (nb.Adam(0.01), "Adam", {"lr": 0.01}),
        (nb.AdamW(0.01, weight_decay=0.1), "AdamW", {"lr": 0.01, "weight_decay": 0.1}),
    ],
    ids=["SGD", "SGD with momentum", "Adam", "AdamW"],
)
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
def test_mini_batch_training_is_the_torch_loop_on_the_same_batches(
    optimizer, name, torch_options, weighted, device
):
    torch = pytest.importorskip("torch", reason="torch is the oracle of this test")
    X, y = blobs(40)
    weight = np.random.default_rng(5).uniform(0.1, 2, 40) if weighted else None
    net = small_network(device=device)
    layers = [torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)]
    model = torch.nn.Sequential(*layers).double()
    with torch.no_grad():
        for layer, W, b in zip(layers[::2], net.weights, net.biases, strict=True):
            layer.weight.copy_(torch.tensor(to_host(W).T.copy()))
            layer.bias.copy_(torch.tensor(to_host(b)))
    history = nb.train(
        net, X, y, optimizer=optimizer, epochs=5, batch_size=12, seed=3, sample_weight=weight
    )
    stepper = getattr(torch.optim, name)(model.parameters(), **torch_options)
    losses = []
    shares = np.ones(40) if weight is None else weight
    for _, order in zip(range(5), epoch_orders(3, 40), strict=False):
        total = 0.0
        for rows in batches(order, 12):
            stepper.zero_grad()
            w = torch.tensor(shares[rows] / shares[rows].sum())
            loss = (
                torch.nn.functional.binary_cross_entropy_with_logits(
                    model(torch.tensor(X[rows]))[:, 0],
                    torch.tensor(y[rows], dtype=torch.float64),
                    reduction="none",
                )
                * w
            ).sum()
            loss.backward()
            stepper.step()
            total += loss.item() * shares[rows].sum()
        losses.append(total / shares.sum())
    # 20 float64 steps of O(0.1) along gradients that agree to rounding, 1e-16.
    np.testing.assert_allclose(history.loss, losses, rtol=1e-10)
    for layer, W, b in zip(layers[::2], net.weights, net.biases, strict=True):
        np.testing.assert_allclose(to_host(W).T, layer.weight.detach().numpy(), atol=1e-10)
        np.testing.assert_allclose(to_host(b), layer.bias.detach().numpy(), atol=1e-10)


@needs_cuda
def test_the_gpu_gives_the_parameters_of_the_cpu_in_float64():
    runs = []
    for device in ("cpu", "cuda"):
        net = nb.Network([3, 16, 16, 1], dtype="float64", dropout=0.2, device=device)
        nb.train(net, *blobs(80), optimizer=nb.Adam(0.01), epochs=20, batch_size=16)
        runs.append(to_host(net.parameters))
    # 100 steps of Adam: sums of products in another order, 1e-16 each, grown by the division by
    # small second moments.
    np.testing.assert_allclose(runs[1], runs[0], atol=1e-8)


@needs_cuda
def test_the_gpu_gives_the_losses_of_the_cpu_in_float32():
    losses = []
    for device in ("cpu", "cuda"):
        net = nb.Network([3, 16, 16, 1], device=device)
        losses.append(nb.train(net, *blobs(80), epochs=20, batch_size=16).loss)
    # float32 rounding, 6e-8 relative, over 100 steps.
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


# Batches, weights and what the history holds


@on_each_device
@pytest.mark.parametrize(
    ("n_samples", "batch_size", "sizes"),
    [
        (40, 12, [12, 12, 12, 4]),
        (40, 10, [10] * 4),
        (40, 39, [39, 1]),
        (3, 1, [1, 1, 1]),
        (1, 128, [1]),
    ],
)
def test_every_example_is_seen_once_per_epoch_in_batches_of_the_size_asked_for(
    n_samples, batch_size, sizes, device, monkeypatch
):
    seen = []
    take_step = ReferenceEngine._take_step

    def record(self, batch, *rest):
        seen.append(to_host(batch.X)[:, 0])
        return take_step(self, batch, *rest)

    monkeypatch.setattr(ReferenceEngine, "_take_step", record)
    X = np.zeros((n_samples, 3))
    X[:, 0] = np.arange(n_samples)
    net = small_network(device=device)
    nb.train(net, X, np.arange(n_samples) % 2, epochs=2, batch_size=batch_size, engine="reference")
    assert [len(batch) for batch in seen] == sizes * 2
    for epoch in (seen[: len(sizes)], seen[len(sizes) :]):
        np.testing.assert_array_equal(np.sort(np.concatenate(epoch)), np.arange(n_samples))


def test_without_shuffling_the_batches_follow_the_rows():
    net, twin = small_network(), small_network()
    X, y = blobs(20)
    nb.train(net, X, y, optimizer=nb.SGD(0.1), epochs=1, batch_size=6, shuffle=False)
    for rows in batches(np.arange(20), 6):
        nb.train(twin, X[rows], y[rows], optimizer=nb.SGD(0.1), epochs=1, batch_size=None)
    # The same operations on the same numbers, up to the alignment that BLAS sees.
    np.testing.assert_allclose(net.parameters, twin.parameters, rtol=1e-13)


@on_each_device
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
def test_history_loss_is_the_mean_over_examples_also_with_a_short_last_batch(weighted, device):
    X, y = blobs(40)
    weight = np.random.default_rng(5).uniform(0.1, 2, 40) if weighted else None
    net = small_network(device=device)
    expected = float(net.loss_and_gradients(X, y, sample_weight=weight)[0])
    # With a vanishing rate the parameters stay, and the mean of the batches is that of all.
    history = nb.train(
        net, X, y, optimizer=nb.SGD(1e-300), epochs=2, batch_size=12, sample_weight=weight
    )
    np.testing.assert_allclose(history.loss, expected, rtol=1e-13)


@on_each_device
def test_loss_by_rows_counts_a_batch_by_its_rows_if_any_has_weight(device):
    X, y = blobs(40)
    weight = np.random.default_rng(5).uniform(0.1, 2, 40)
    weight[12:24] = 0.0
    net = small_network(device=device)
    parts = [slice(0, 12), slice(24, 36), slice(36, 40)]
    losses = [
        float(net.loss_and_gradients(X[rows], y[rows], sample_weight=weight[rows])[0])
        for rows in parts
    ]
    history = nb.train(
        net, X, y, optimizer=nb.SGD(1e-300), epochs=2, batch_size=12, sample_weight=weight,
        shuffle=False, loss_by_rows=True, validation_data=(X, y, weight),
    )  # fmt: skip
    np.testing.assert_allclose(history.loss, np.average(losses, weights=[12, 12, 4]), rtol=1e-13)
    # Validation has no batches.
    whole = float(net.loss_and_gradients(X, y, sample_weight=weight)[0])
    np.testing.assert_allclose(history.validation_loss, whole, rtol=1e-13)


@on_each_device
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_integer_weights_are_repetitions(optimizer, device):
    X, y = blobs(20)
    weight = np.random.default_rng(2).integers(0, 4, 20)
    weighted, repeated = small_network(device=device), small_network(device=device)
    first = nb.train(
        weighted, X, y, optimizer=optimizer, epochs=30, batch_size=None, sample_weight=weight
    )
    second = nb.train(
        repeated,
        np.repeat(X, weight, axis=0),
        np.repeat(y, weight),
        optimizer=optimizer,
        epochs=30,
        batch_size=None,
    )
    # The same sums in another order, over 30 float64 steps.
    np.testing.assert_allclose(first.loss, second.loss, rtol=1e-12)
    np.testing.assert_allclose(
        to_host(weighted.parameters), to_host(repeated.parameters), atol=1e-11
    )


def test_a_batch_whose_weights_are_all_zero_teaches_nothing():
    X, y = blobs(12)
    weight = np.ones(12)
    weight[:6] = 0
    net, twin = small_network(), small_network()
    options = {"optimizer": nb.SGD(0.1), "epochs": 1}
    history = nb.train(net, X, y, batch_size=6, shuffle=False, sample_weight=weight, **options)
    other = nb.train(twin, X[6:], y[6:], batch_size=None, **options)
    np.testing.assert_allclose(net.parameters, twin.parameters, rtol=1e-13)
    assert history.loss == pytest.approx(other.loss, rel=1e-13)


@on_each_device
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
def test_validation_loss_is_the_loss_after_the_epoch_without_penalty_and_dropout(weighted, device):
    validation = (*blobs(15, seed=9), *([np.linspace(0, 1, 15)] if weighted else []))
    net = small_network(dropout=0.5, device=device)
    recomputed = []

    def recompute(state):
        X, y, weight = (*validation, None)[:3]
        recomputed.append(float(state.network.loss_and_gradients(X, y, sample_weight=weight)[0]))

    history = nb.train(
        net,
        *blobs(),
        epochs=4,
        batch_size=7,
        l2=0.1,
        validation_data=validation,
        callbacks=recompute,
    )
    np.testing.assert_allclose(history.validation_loss, recomputed, rtol=1e-13)


def test_validation_data_is_standardized_as_the_training_data_is():
    X, y = blobs()
    net, twin = small_network(), small_network()
    net.standardize(100 + 5 * X)
    twin.standardize(X)
    first = nb.train(net, 100 + 5 * X, y, epochs=2, validation_data=(100 + 5 * X[:9], y[:9]))
    second = nb.train(twin, X, y, epochs=2, validation_data=(X[:9], y[:9]))
    # 100 + 5 X rounds away 1e-16 of 100, which is 1e-15 of a deviation.
    np.testing.assert_allclose(first.validation_loss, second.validation_loss, rtol=1e-12)


def test_validation_changes_nothing_in_the_training():
    runs = []
    for validation in (None, blobs(15, seed=9)):
        net = small_network(dropout=0.5)
        nb.train(net, *blobs(), epochs=3, batch_size=7, validation_data=validation)
        runs.append(to_host(net.parameters))
    np.testing.assert_array_equal(*runs)


@on_each_device
def test_history_has_one_entry_per_epoch_and_fits_into_json(device):
    net = small_network(device=device)
    history = nb.train(net, *blobs(), epochs=3, validation_data=blobs(9))
    for name in ("loss", "validation_loss", "learning_rate", "epoch_seconds"):
        entries = getattr(history, name)
        assert len(entries) == 3
        assert {type(entry) for entry in entries} == {float}
    assert history.n_epochs == 3
    assert history.n_samples == 40
    assert (history.stopped, history.best_epoch) == ("completed", None)
    assert history.samples_per_second == 120 / sum(history.epoch_seconds)
    assert json.loads(json.dumps(history.to_dict()))["loss"] == history.loss


def test_a_history_without_epochs_has_no_throughput():
    assert math.isnan(nb.History().samples_per_second)
    assert nb.History().n_epochs == 0


# The objective and its options


@on_each_device
@pytest.mark.parametrize(("l1", "l2"), [(0.1, 0.0), (0.0, 0.2), (0.1, 0.2)])
def test_penalties_are_part_of_the_loss_and_of_the_step(l1, l2, device):
    X, y = blobs()
    net = small_network(device=device)
    weights = [to_host(W) for W in net.weights]
    plain = float(net.loss_and_gradients(X, y)[0])
    penalty = sum(l1 * np.abs(W).sum() + l2 / 2 * (W**2).sum() for W in weights)
    gradient = net.loss_and_gradients(X, y)[1].weights
    history = nb.train(
        net,
        X,
        y,
        optimizer=nb.SGD(0.1),
        epochs=1,
        batch_size=None,
        l1=l1,
        l2=l2,
        validation_data=(X, y),
    )
    np.testing.assert_allclose(history.loss, plain + penalty, rtol=1e-13)
    for W, before, dW in zip(net.weights, weights, gradient, strict=True):
        step = to_host(dW) + l1 * np.sign(before) + l2 * before
        np.testing.assert_allclose(to_host(W), before - 0.1 * step, rtol=1e-12, atol=1e-14)
    assert history.validation_loss[0] == pytest.approx(
        float(net.loss_and_gradients(X, y)[0]), rel=1e-13
    )


@on_each_device
def test_a_step_with_dropout_goes_through_units_that_were_kept_and_scaled_up(device):
    X, y = blobs()
    net = nb.Network([3, 8, 1], hidden="tanh", dropout=0.25, dtype="float64", device=device)
    (W1, W2), (b1, b2) = map(to_host, net.weights), map(to_host, net.biases)
    rng = np.random.default_rng(np.random.SeedSequence(6).spawn(2)[1])
    mask = (rng.random((40, 8)) >= 0.25) / 0.75
    assert 0 < np.mean(mask == 0) < 0.5
    history = nb.train(net, X, y, optimizer=nb.SGD(0.1), epochs=1, batch_size=None, seed=6)
    a1 = np.tanh(X @ W1 + b1)
    a2 = 1 / (1 + np.exp(-((a1 * mask) @ W2 + b2)))[:, 0]
    dz2 = (a2 - y)[:, None] / 40
    dz1 = (dz2 @ W2.T) * mask * (1 - a1**2)
    loss = -np.mean(y * np.log(a2) + (1 - y) * np.log(1 - a2))
    np.testing.assert_allclose(history.loss, loss, rtol=1e-13)
    # One float64 step of sums over 40 examples of size one.
    for found, expected in zip(
        [*net.weights, *net.biases],
        [
            W1 - 0.1 * X.T @ dz1,
            W2 - 0.1 * (a1 * mask).T @ dz2,
            b1 - 0.1 * dz1.sum(axis=0),
            b2 - 0.1 * dz2.sum(axis=0),
        ],
        strict=True,
    ):
        np.testing.assert_allclose(to_host(found), expected, atol=1e-14)


def one_step(device="cpu", **clip):
    """Return how far one step of rate 1 moves the parameters: the gradient as it was clipped."""
    X, y = blobs()
    net = small_network(output="identity", device=device)
    before = to_host(net.parameters)
    nb.train(net, X, 100.0 * y, optimizer=nb.SGD(1.0), epochs=1, batch_size=None, **clip)
    return before - to_host(net.parameters)


@on_each_device
def test_clip_value_bounds_every_element_of_the_gradient(device):
    plain = one_step(device)
    assert np.abs(plain).max() > 1, "there has to be something to clip"
    # before - after rounds relative to the parameters, which are of size one.
    np.testing.assert_allclose(one_step(device, clip_value=0.5), plain.clip(-0.5, 0.5), atol=1e-14)


@on_each_device
def test_clip_norm_bounds_the_norm_of_the_whole_gradient(device):
    plain = one_step(device)
    norm = np.linalg.norm(plain)
    assert norm > 2, "there has to be something to clip"
    expected = plain * 2.0 / (norm + 1e-6)
    np.testing.assert_allclose(one_step(device, clip_norm=2.0), expected, atol=1e-13)
    np.testing.assert_allclose(one_step(device, clip_norm=2 * norm), plain, atol=1e-12)


def test_clip_value_comes_before_clip_norm():
    both, clipped = one_step(clip_value=0.5, clip_norm=1.0), one_step(clip_value=0.5)
    expected = clipped / (np.linalg.norm(clipped) + 1e-6)
    np.testing.assert_allclose(both, expected, atol=1e-13)


@on_each_device
@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_float32_stays_float32_in_parameters_and_optimizer_state(name, device, monkeypatch):
    engines = []
    initialize = ReferenceEngine.__init__

    def remember(self, *arguments):
        initialize(self, *arguments)
        engines.append(self)

    monkeypatch.setattr(ReferenceEngine, "__init__", remember)
    net = nb.Network([3, 8, 1], dropout=0.2, device=device)
    net.standardize(blobs()[0])
    nb.train(
        net,
        *blobs(),
        optimizer=OPTIMIZERS[name],
        epochs=2,
        batch_size=12,
        sample_weight=np.linspace(0, 1, 40),
        l1=np.float64(1e-3),
        l2=np.float64(1e-3),
        clip_value=np.float64(1.0),
        clip_norm=np.float64(1.0),
        engine="reference",
    )
    (engine,) = engines
    assert engine.parameters.dtype == np.float32
    arrays = engine.optimizer_state.arrays
    assert len(arrays) == len(OPTIMIZERS[name].state_names)
    assert all(array.dtype == np.float32 for array in arrays)
    assert {net.parameters.dtype, net.weights[0].dtype} == {np.dtype("float32")}


@pytest.mark.parametrize(
    "learning_rate",
    [np.float64(0.01), np.float32(0.01), nb.schedules.Cosine(np.float64(0.01)), 1],
    ids=repr,
)
def test_the_type_of_the_rate_does_not_change_the_dtype(learning_rate):
    net = nb.Network([3, 4, 1])
    history = nb.train(net, *blobs(), optimizer=nb.SGD(learning_rate), epochs=2)
    assert net.parameters.dtype == np.float32
    assert type(history.learning_rate[0]) is float


# Schedules


@on_each_device
@pytest.mark.parametrize(
    ("schedule", "rate"),
    [
        (0.1, lambda _step: 0.1),
        (nb.schedules.StepDecay(0.1, every=1, factor=0.5), lambda step: 0.1 * 0.5 ** (step // 4)),
        (nb.schedules.Exponential(0.1, 0.5), lambda step: 0.1 * 0.5 ** (step / 4)),
        (nb.schedules.Cosine(0.1), lambda step: 0.05 * (1 + math.cos(math.pi * step / 12))),
        (
            nb.schedules.LinearWarmup(0.1, epochs=2, start_factor=0.5),
            lambda step: 0.1 * min(0.5 + 0.5 * step / 8, 1),
        ),
        (nb.schedules.InverseScaling(0.1), lambda step: 0.1 / math.sqrt(1 + step / 4)),
    ],
    ids=["constant", "step", "exponential", "cosine", "warmup", "inverse scaling"],
)
def test_a_schedule_sets_the_rate_of_every_step(schedule, rate, device):
    X, y = blobs(40)
    net, twin = small_network(device=device), small_network(device=device)
    history = nb.train(
        net, X, y, optimizer=nb.SGD(schedule), epochs=3, batch_size=10, shuffle=False
    )
    np.testing.assert_allclose(history.learning_rate, [rate(3), rate(7), rate(11)], rtol=1e-14)
    for step in range(12):
        rows = slice(step % 4 * 10, step % 4 * 10 + 10)
        descend(twin, X[rows], y[rows], rate(step))
    # 12 float64 steps; an element near zero carries the rounding of those of size one.
    np.testing.assert_allclose(to_host(net.parameters), to_host(twin.parameters), atol=1e-13)


def descend(net, X, y, learning_rate):
    """Take one step of gradient descent, W := W - alpha dW, b := b - alpha db."""
    dW, db = net.loss_and_gradients(X, y)[1]
    net.set_parameters(
        [to_host(W) - learning_rate * g for W, g in zip(net.weights, dW, strict=True)],
        [to_host(b) - learning_rate * g for b, g in zip(net.biases, db, strict=True)],
    )


@on_each_device
@pytest.mark.parametrize("validated", [False, True], ids=["training loss", "validation loss"])
def test_the_rate_falls_when_the_watched_loss_stays(validated, device):
    torch = pytest.importorskip("torch", reason="torch is the oracle of this test")
    net = small_network(device=device)
    options = {"factor": 0.5, "patience": 2, "threshold": 0.1, "cooldown": 1}
    history = nb.train(
        net,
        *blobs(),
        optimizer=nb.SGD(nb.schedules.ReduceOnPlateau(0.5, **options, minimum=0.01)),
        epochs=40,
        batch_size=None,
        validation_data=blobs(15, seed=9) if validated else None,
    )
    parameter = torch.nn.Parameter(torch.zeros(1))
    stepper = torch.optim.SGD([parameter], lr=0.5)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(stepper, **options, min_lr=0.01, eps=0)
    rates = []
    for loss in history.validation_loss if validated else history.loss:
        rates.append(stepper.param_groups[0]["lr"])
        scheduler.step(loss)
    assert rates[-1] < rates[0], "the loss has to stay for once"
    np.testing.assert_allclose(history.learning_rate, rates, rtol=1e-14)


# Callbacks


@on_each_device
def test_a_callback_sees_every_epoch_with_the_parameters_it_ended_with(device):
    X, y = blobs()
    net, twin = small_network(device=device), small_network(device=device)
    recorder = Recorder()
    nb.train(net, X, y, optimizer=nb.SGD(0.1), epochs=3, batch_size=None, callbacks=recorder)
    assert recorder.states == [(epoch, 3, epoch, False) for epoch in (1, 2, 3)]
    for parameters in recorder.parameters:
        descend(twin, X, y, 0.1)
        np.testing.assert_allclose(parameters, to_host(twin.parameters), atol=1e-14)
    np.testing.assert_array_equal(recorder.parameters[-1], to_host(net.parameters))


def test_a_callback_gets_the_network_and_the_history_themselves():
    states = []
    net = small_network()
    history = nb.train(net, *blobs(), epochs=1, callbacks=states.append)
    assert states[0].network is net
    assert states[0].history is history


@on_each_device
def test_a_callback_can_stop_the_training_and_the_others_are_still_called(device):
    recorder = Recorder()

    def stop_after_two(state):
        if state.epoch == 2:
            state.stop()

    net = small_network(device=device)
    history = nb.train(net, *blobs(), epochs=5, callbacks=[stop_after_two, recorder])
    assert (history.n_epochs, history.stopped) == (2, "callback")
    assert [state[0] for state in recorder.states] == [1, 2]
    np.testing.assert_array_equal(recorder.parameters[-1], to_host(net.parameters))


def test_callbacks_do_not_change_the_training():
    runs = []
    for callbacks in ((), Recorder()):
        net = small_network(dropout=0.5)
        nb.train(net, *blobs(), epochs=3, batch_size=7, callbacks=callbacks)
        runs.append(to_host(net.parameters))
    np.testing.assert_array_equal(*runs)


def test_an_error_in_a_callback_comes_through_and_leaves_the_parameters_of_its_epoch():
    recorder = Recorder()

    def fail(state):
        if state.epoch == 2:
            raise ZeroDivisionError

    net = small_network()
    with pytest.raises(ZeroDivisionError):
        nb.train(net, *blobs(), epochs=5, callbacks=(recorder, fail))
    assert len(recorder.parameters) == 2
    np.testing.assert_array_equal(net.parameters, recorder.parameters[-1])


# Early stopping


def overfit(device="cpu", epochs=200, **rule):
    """Train on a few noisy examples, until the validation loss has long been rising."""
    recorder = Recorder()
    net = nb.Network([3, 20, 1], dtype="float64", device=device)
    history = nb.train(
        net,
        *blobs(20),
        optimizer=nb.Adam(0.05),
        epochs=epochs,
        batch_size=None,
        validation_data=blobs(50, seed=9),
        early_stopping=nb.EarlyStopping(**rule),
        callbacks=recorder,
    )
    return net, history, recorder


@on_each_device
@pytest.mark.parametrize("patience", [1, 3, 10])
def test_training_stops_after_exactly_patience_epochs_without_improvement(patience, device):
    _, history, _ = overfit(device, patience=patience)
    losses = np.asarray(history.validation_loss)
    assert history.stopped == "early stopping"
    assert history.best_epoch == losses.argmin() + 1
    assert history.n_epochs == history.best_epoch + patience
    assert losses[history.best_epoch :].min() >= losses.min()


@on_each_device
def test_early_stopping_brings_back_the_parameters_of_the_best_epoch(device):
    net, history, recorder = overfit(device, patience=5)
    np.testing.assert_array_equal(
        to_host(net.parameters), recorder.parameters[history.best_epoch - 1]
    )
    loss = float(net.loss_and_gradients(*blobs(50, seed=9))[0])
    assert loss == pytest.approx(min(history.validation_loss), rel=1e-13)


def test_early_stopping_can_leave_the_last_parameters():
    net, history, recorder = overfit(patience=5, restore_best=False)
    assert history.stopped == "early stopping"
    np.testing.assert_array_equal(net.parameters, recorder.parameters[-1])


def test_the_best_parameters_come_back_when_the_epochs_run_out_too():
    net, history, recorder = overfit(patience=1000, epochs=100)
    assert (history.stopped, history.n_epochs) == ("completed", 100)
    assert history.best_epoch < 100
    np.testing.assert_array_equal(net.parameters, recorder.parameters[history.best_epoch - 1])


def test_a_loss_that_stays_equal_is_no_improvement():
    # With a vanishing rate the parameters, and so the losses, stay as they are.
    history = nb.train(
        small_network(),
        *blobs(),
        optimizer=nb.SGD(1e-300),
        epochs=20,
        batch_size=None,
        early_stopping=nb.EarlyStopping(patience=3, monitor="loss"),
    )
    assert history.loss == history.loss[:1] * 4
    assert (history.best_epoch, history.stopped) == (1, "early stopping")


def test_an_improvement_lowers_the_best_loss_by_more_than_min_delta():
    _, history, _ = overfit(patience=4, min_delta=0.1)
    best, best_epoch = math.inf, 0
    for epoch, loss in enumerate(history.validation_loss, start=1):
        if loss < best - 0.1:
            best, best_epoch = loss, epoch
    assert history.best_epoch == best_epoch
    assert history.n_epochs == best_epoch + 4
    assert history.n_epochs < overfit(patience=4)[1].n_epochs


def test_early_stopping_can_watch_the_training_loss():
    recorder = Recorder()
    net = small_network()
    history = nb.train(
        net,
        *blobs(),
        optimizer=nb.SGD(0.01),
        epochs=50,
        batch_size=None,
        early_stopping=nb.EarlyStopping(patience=3, min_delta=1.0, monitor="loss"),
        callbacks=recorder,
    )
    # The first epoch is always an improvement, and no later one is by 1.0.
    assert (history.best_epoch, history.n_epochs) == (1, 4)
    assert history.validation_loss == []
    np.testing.assert_array_equal(net.parameters, recorder.parameters[0])


# Interruption and divergence


@on_each_device
def test_ctrl_c_in_a_callback_returns_what_was_learnt_so_far(device):
    recorder = Recorder()

    def interrupt(state):
        if state.epoch == 3:
            raise KeyboardInterrupt

    net = small_network(device=device)
    history = nb.train(net, *blobs(), epochs=10, batch_size=7, callbacks=[recorder, interrupt])
    assert (history.stopped, history.n_epochs) == ("interrupted", 3)
    assert len(history.learning_rate) == len(history.epoch_seconds) == 3
    np.testing.assert_array_equal(to_host(net.parameters), recorder.parameters[-1])


@on_each_device
def test_ctrl_c_within_an_epoch_keeps_the_steps_that_were_completed(device, monkeypatch):
    X, y = blobs(40)
    take_step = ReferenceEngine._take_step
    steps = []

    def interrupt_the_sixth(self, *arguments):
        steps.append(1)
        if len(steps) == 6:
            raise KeyboardInterrupt
        return take_step(self, *arguments)

    monkeypatch.setattr(ReferenceEngine, "_take_step", interrupt_the_sixth)
    net, twin = small_network(device=device), small_network(device=device)
    history = nb.train(
        net,
        X,
        y,
        optimizer=nb.SGD(0.1),
        epochs=10,
        batch_size=10,
        shuffle=False,
        engine="reference",
    )
    assert (history.stopped, history.n_epochs) == ("interrupted", 1)
    for step in range(5):
        rows = slice(step % 4 * 10, step % 4 * 10 + 10)
        descend(twin, X[rows], y[rows], 0.1)
    np.testing.assert_allclose(to_host(net.parameters), to_host(twin.parameters), atol=1e-14)


def test_ctrl_c_in_an_epoch_that_diverged_keeps_the_last_finite_parameters(monkeypatch):
    take_step = ReferenceEngine._take_step
    steps = []

    def spoil_and_interrupt(self, *arguments):
        steps.append(1)
        take_step(self, *arguments)
        if len(steps) == 6:
            self.restore(np.nan * self.parameters)
            raise KeyboardInterrupt

    monkeypatch.setattr(ReferenceEngine, "_take_step", spoil_and_interrupt)
    recorder = Recorder()
    net = small_network()
    history = nb.train(
        net, *blobs(40), epochs=10, batch_size=10, callbacks=recorder, engine="reference"
    )
    assert (history.stopped, history.n_epochs) == ("interrupted", 1)
    np.testing.assert_array_equal(net.parameters, recorder.parameters[0])


def test_ctrl_c_with_early_stopping_brings_back_the_best_parameters():
    def interrupt(state):
        recorder(state)
        if state.epoch == 100:
            raise KeyboardInterrupt

    recorder = Recorder()
    net = nb.Network([3, 20, 1], dtype="float64")
    history = nb.train(
        net,
        *blobs(20),
        optimizer=nb.Adam(0.05),
        epochs=200,
        validation_data=blobs(50, seed=9),
        early_stopping=nb.EarlyStopping(patience=1000),
        callbacks=interrupt,
    )
    assert (history.stopped, history.n_epochs) == ("interrupted", 100)
    assert history.best_epoch < 100
    np.testing.assert_array_equal(net.parameters, recorder.parameters[history.best_epoch - 1])


@on_each_device
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("batch_size", [None, 7])
def test_divergence_is_reported_with_its_epoch_and_keeps_the_last_finite_parameters(
    batch_size, dtype, device
):
    # Warnings are errors in this test run: none may leak out of the diverging arithmetic.
    X, y = blobs()
    recorder = Recorder()
    net = nb.Network([3, 8, 1], output="identity", dtype=dtype, device=device)
    initial = to_host(net.parameters)
    with pytest.raises(DivergenceError) as caught:
        nb.train(
            net,
            X,
            y,
            optimizer=nb.SGD(20.0),
            epochs=500,
            batch_size=batch_size,
            validation_data=(X, y),
            callbacks=recorder,
        )
    history = caught.value.history
    assert history.stopped == "diverged"
    assert history.n_epochs == len(recorder.parameters) < 500
    assert np.isfinite(history.loss).all()
    assert np.isfinite(history.validation_loss).all()
    kept = recorder.parameters[-1] if recorder.parameters else initial
    np.testing.assert_array_equal(to_host(net.parameters), kept)
    assert np.isfinite(kept).all()
    message = str(caught.value)
    assert f"in epoch {history.n_epochs + 1};" in message
    assert "learning rate (it was 20)" in message
    before = f"after epoch {history.n_epochs}" if history.n_epochs else "before training"
    assert before in message


def test_divergence_with_early_stopping_brings_back_the_best_epoch():
    X, y = blobs()
    recorder = Recorder()
    net = nb.Network([3, 8, 1], output="identity", dtype="float64")
    schedule = nb.schedules.LinearWarmup(100.0, epochs=20, start_factor=1e-4)
    with pytest.raises(DivergenceError) as caught:
        nb.train(
            net,
            X,
            y,
            optimizer=nb.SGD(schedule),
            epochs=500,
            batch_size=None,
            early_stopping=nb.EarlyStopping(patience=500, monitor="loss"),
            callbacks=recorder,
        )
    history = caught.value.history
    assert 1 <= history.best_epoch < history.n_epochs
    assert f"parameters from after epoch {history.best_epoch}:" in str(caught.value)
    np.testing.assert_array_equal(net.parameters, recorder.parameters[history.best_epoch - 1])


def test_a_validation_loss_that_overflows_is_divergence_too():
    X, y = blobs()
    far = np.full((5, 3), 1e38)
    net = nb.Network([3, 8, 1], output="identity")
    with pytest.raises(DivergenceError, match=r"the validation loss became (inf|nan) in epoch 1;"):
        nb.train(net, X, y, validation_data=(far, np.zeros(5)))


# What is left alone


@on_each_device
def test_training_changes_neither_its_data_nor_needs_to_write_to_it(device):
    X, y = blobs()
    weight = np.linspace(0, 1, 40)
    arrays = [X.astype(np.float32), y.astype(np.float32), weight.astype(np.float32)]
    copies = [array.copy() for array in arrays]
    for array in arrays:
        array.flags.writeable = False
    net = nb.Network([3, 8, 1], dropout=0.2, device=device)
    nb.train(
        net,
        arrays[0],
        arrays[1],
        sample_weight=arrays[2],
        epochs=2,
        batch_size=7,
        l1=0.1,
        validation_data=tuple(arrays),
    )
    for array, copied in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copied)


def test_training_a_copy_leaves_the_network():
    net = nb.Network([3, 8, 1])
    before = to_host(net.parameters)
    nb.train(net.copy(), *blobs(), epochs=1)
    np.testing.assert_array_equal(net.parameters, before)


def test_global_state_is_untouched():
    def state():
        name, keys, *rest = np.random.get_state()  # noqa: NPY002
        return name, keys.tolist(), rest, np.geterr(), np.get_printoptions()

    before = state()
    net = nb.Network([3, 8, 1], output="identity", dropout=0.5, seed=None)
    nb.train(net, *blobs(), epochs=2, seed=None)
    with pytest.raises(DivergenceError):
        nb.train(net, *blobs(), optimizer=nb.SGD(1e30), epochs=100)
    with pytest.raises(InputError):
        nb.train(net, *blobs(), epochs=0)
    assert state() == before


@on_each_device
def test_results_are_the_same_under_another_floating_point_error_mode(device):
    runs = []
    for mode in ("warn", "raise"):
        net = small_network(device=device)
        with np.errstate(over=mode, divide=mode, invalid=mode):
            nb.train(net, *blobs(), epochs=2)
        runs.append(to_host(net.parameters))
    np.testing.assert_array_equal(*runs)


@on_each_device
@pytest.mark.parametrize("batch_size", [None, 7])
def test_the_host_reads_from_the_device_once_per_epoch(batch_size, device, monkeypatch):
    reads = []
    to_numpy = Device.to_numpy

    def count(self, x):
        reads.append(tuple(x.shape))
        return to_numpy(self, x)

    net = small_network(dropout=0.2, device=device)
    monkeypatch.setattr(Device, "to_numpy", count)
    nb.train(
        net,
        *blobs(),
        epochs=6,
        batch_size=batch_size,
        sample_weight=np.linspace(0, 1, 40),
        validation_data=blobs(9),
        early_stopping=nb.EarlyStopping(),
        l2=0.1,
        clip_norm=1.0,
    )
    # The training loss, whether all is finite, and the validation loss, in one transfer.
    assert reads == ([] if device == "cpu" else [(3,)] * 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patience": 0}, "patience: .*>= 1.*0"),
        ({"patience": 2.5}, "patience: .*integer.*2.5"),
        ({"patience": True}, "patience: .*True"),
        ({"min_delta": -1.0}, "min_delta: .*>= 0.*-1.0"),
        ({"min_delta": math.nan}, "min_delta: .*finite.*nan"),
        ({"monitor": "accuracy"}, "monitor: .*'validation_loss' or 'loss'.*'accuracy'"),
    ],
    ids=repr,
)
def test_early_stopping_refuses(arguments, message):
    with pytest.raises(InputError, match=message):
        nb.EarlyStopping(**arguments)


def test_an_interrupt_between_two_entries_of_an_epoch_leaves_lists_of_one_length():
    class Interrupting(nb.schedules.Constant):
        def observe(self, state, loss):
            del state, loss
            raise KeyboardInterrupt

    net = nb.Network([2, 1])
    data = ([[0.0, 1.0], [1.0, 0.0]], [0, 1])
    history = nb.train(
        net, *data, optimizer=nb.SGD(Interrupting(0.1)), validation_data=data, epochs=3
    )
    assert history.stopped == "interrupted"
    assert history.loss == history.validation_loss == history.learning_rate == []
    assert history.epoch_seconds == []


def test_the_options_of_train_are_those_that_are_checked(monkeypatch):
    data = {"net", "X", "y", "sample_weight", "validation_data", "communicator"}
    parameters = inspect.signature(nb.train).parameters
    options = {name: entry.default for name, entry in parameters.items() if name not in data}
    assert options == {entry.name: entry.default for entry in fields(TrainingOptions)}
    # And each arrives there.
    given = {name: object() for name in options}

    def checked(**asked):
        assert asked == given
        raise nb.InputError("seen")

    monkeypatch.setattr("nnbackend.training.train.TrainingOptions", checked)
    with pytest.raises(nb.InputError, match="seen"):
        nb.train(nb.Network([2, 1]), [[0.0, 1.0]], [1], **given)


def test_a_warning_names_the_line_that_trains(monkeypatch):
    monkeypatch.setenv("NNBACKEND_VARIANT", "none")
    with pytest.warns(UserWarning, match="slower reference engine") as caught:
        nb.train(nb.Network([2, 1]), [[0.0, 1.0]], [1], epochs=1)
    assert [warning.filename for warning in caught] == [__file__]
