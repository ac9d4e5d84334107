"""Whole networks, forward and backward, equal hand, textbook and automatic differentiation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from backends import (
    TORCH_OUTPUTS,
    WHOLE_NETWORKS,
    assert_close,
    network,
    require,
    tensors,
    torch_logits,
)

from nnbackend.core import losses, propagation
from nnbackend.core.objective import Objective
from nnbackend.core.optimizers import SGD
from nnbackend.core.regularization import dropout_mask

N = 7

# id: layer sizes, hidden activations, output, loss, torch's loss of each example's outputs
BINARY = (
    losses.BinaryCrossEntropy(),
    lambda t, z, _a, y: t.nn.functional.binary_cross_entropy_with_logits(z, y, reduction="none"),
)
CLASSES = (
    losses.SoftmaxCrossEntropy(),
    lambda t, z, _a, y: t.nn.functional.cross_entropy(z, y, reduction="none"),
)
SQUARES = (losses.SquaredError(), lambda _t, _z, a, y: (a - y) ** 2 / 2)
NETWORKS = {
    "no_hidden_layer": ([4, 1], [], "sigmoid", *BINARY),
    "two_layer_tanh": ([4, 5, 1], ["tanh"], "sigmoid", *BINARY),
    "deep_relu": ([4, 5, 5, 1], ["relu"] * 2, "sigmoid", *BINARY),
    "mixed_classes": ([4, 5, 5, 3], ["silu", "elu"], "softmax", *CLASSES),
    "squares_of_sigmoid": ([4, 5, 3], ["gelu"], "sigmoid", *SQUARES),
    "squares_of_softmax": ([4, 5, 3], ["softplus"], "softmax", *SQUARES),
    "squares_of_exp": ([4, 5, 3], ["sigmoid"], "exp", *SQUARES),
}


def data(name, seed=1):
    """Return X, y, sample weights and dropout masks for a network."""
    sizes, hidden, _, loss, _ = NETWORKS[name]
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(N, sizes[0]))
    if loss.name == "softmax_cross_entropy":
        y = rng.integers(0, sizes[-1], N)
    else:
        y = rng.integers(0, 2, (N, sizes[-1])).astype(float)
    masks = [dropout_mask(np, rng.random((N, width)), 0.4) for width in sizes[1:-1]]
    if len(masks) > 1:
        masks[1] = None  # a hidden layer without dropout among others with it
    assert len(masks) == len(hidden)
    return X, y, rng.uniform(0.1, 2.0, N), masks


@pytest.mark.parametrize("regularized", [False, True], ids=["plain", "weighted_masked_penalized"])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("backend", WHOLE_NETWORKS, indirect=True)
def test_objective_and_gradient_equal_torch_autograd(backend, torch, name, regularized):
    sizes, hidden, output, loss, oracle = NETWORKS[name]
    structure, weights, biases = network(sizes, hidden, output)
    X, y, weight, masks = data(name)
    l1, l2 = (0.01, 0.1) if regularized else (0.0, 0.0)
    if not regularized:
        weight = masks = None

    W, b = tensors(torch, backend.exact([weights, biases]), requires_grad=True)
    z = torch_logits(torch, hidden, W, b, *tensors(torch, backend.exact([X, masks])))
    element = oracle(torch, z, TORCH_OUTPUTS[output](torch, z), tensors(torch, backend.exact(y)))
    per_example = element.sum(-1) if element.ndim == 2 else element
    w = torch.ones(N) if weight is None else tensors(torch, backend.exact(weight))
    J = (w * per_example).sum() / w.sum()
    J = J + sum(l1 * v.abs().sum() + l2 / 2 * (v**2).sum() for v in W)
    expected = [g.numpy() for g in torch.autograd.grad(J, [*W, *b])]

    objective = Objective(structure, loss, l1, l2)
    flat = structure.flatten(np, weights, biases)
    value, gradient = backend.call(objective.value_and_gradient, flat, X, y, weight, masks)
    assert_close(backend, value, J.detach().numpy())
    expected = structure.flatten(np, expected[: len(weights)], expected[len(weights) :])
    assert_close(backend, gradient, expected)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("backend", WHOLE_NETWORKS, indirect=True)
def test_forward_keeps_every_layer_and_its_logits_are_those_of_the_short_cut(backend, torch, name):
    sizes, hidden, output, *_ = NETWORKS[name]
    structure, weights, biases = network(sizes, hidden, output)
    X, *_ = data(name)
    trace = backend.call(
        lambda xp, *args: propagation.forward(xp, structure, *args), weights, biases, X
    )
    expected = torch_logits(torch, hidden, *tensors(torch, backend.exact([weights, biases, X])))
    assert_close(backend, trace.logits, expected.numpy())
    short = backend.call(
        lambda xp, *args: propagation.logits(xp, structure, *args), weights, biases, X
    )
    assert_close(backend, short, backend.host(trace.logits), units=0)
    for layer, width in enumerate(sizes[1:]):
        assert trace.pre_activations[layer].shape == (N, width)
        assert trace.inputs[layer].shape == (N, sizes[layer])
    assert len(trace.activations) == len(hidden)


@pytest.mark.parametrize("backend", WHOLE_NETWORKS, indirect=True)
def test_masks_multiply_the_activations_and_what_is_dropped_learns_nothing(backend):
    structure, weights, biases = network([4, 5, 3], ["tanh"], "identity")
    X = np.random.default_rng(0).normal(size=(N, 4))
    mask = np.asarray([0.0, 2.0, 0.0, 2.0, 2.0]) * np.ones((N, 1))

    def run(xp, weights, biases, X, mask, y):
        trace = propagation.forward(xp, structure, weights, biases, X, [mask])
        _, dW, db = propagation.loss_and_gradients(
            xp, structure, losses.SquaredError(), weights, biases, X, y, masks=[mask]
        )
        return trace, dW, db

    trace, dW, db = backend.call(run, weights, biases, X, mask, np.zeros((N, 3)))
    activations = backend.host(trace.activations[0])
    np.testing.assert_array_equal(backend.host(trace.inputs[1]), activations * mask)
    # The last axis of each is that of the five hidden units.
    for gradient in (backend.host(dW[0]), backend.host(db[0]), backend.host(dW[1]).T):
        np.testing.assert_array_equal(
            np.all(gradient == 0.0, axis=tuple(range(gradient.ndim - 1))), mask[0] == 0.0
        )


@pytest.mark.parametrize("name", ["two_layer_tanh", "deep_relu"])
def test_gradients_equal_those_of_jax(name):
    jax = require("jax")
    sizes, hidden, output, loss, _ = NETWORKS[name]
    structure, weights, biases = network(sizes, hidden, output)
    X, y, _, masks = data(name)
    functions = {"tanh": jax.numpy.tanh, "relu": jax.nn.relu}

    def value_of(weights, biases):
        A = X
        for W, b, activation, mask in zip(weights, biases, hidden, masks, strict=False):
            A = functions[activation](A @ W + b) * (1.0 if mask is None else mask)
        z = A @ weights[-1] + biases[-1]
        return -(y * jax.nn.log_sigmoid(z) + (1 - y) * jax.nn.log_sigmoid(-z)).mean()

    expected, (dW, db) = jax.value_and_grad(value_of, argnums=(0, 1))(weights, biases)
    value, ours_W, ours_b = propagation.loss_and_gradients(
        np, structure, loss, weights, biases, X, y, masks=masks
    )
    # Sums of up to seven products of numbers near one, through four layers: some 100 roundings.
    np.testing.assert_allclose(value, expected, rtol=0, atol=2e-14)
    for actual, gradient in zip([*ours_W, *ours_b], [*dW, *db], strict=True):
        np.testing.assert_allclose(actual, gradient, rtol=0, atol=2e-14)


@pytest.mark.parametrize("name", ["mixed_classes", "deep_relu"])
def test_the_core_can_be_traced_and_differentiated_by_jax(name):
    jax = require("jax")
    sizes, hidden, output, loss, _ = NETWORKS[name]
    structure, weights, biases = network(sizes, hidden, output)
    X, y, weight, _ = data(name)
    objective = Objective(structure, loss, 0.01, 0.1)
    flat = structure.flatten(np, weights, biases)
    value, gradient = objective.value_and_gradient(np, flat, X, y, weight)

    def value_of(flat, y):
        return objective.value(jax.numpy, flat, X, y, weight)

    traced, automatic = jax.jit(jax.value_and_grad(value_of))(flat, y)
    # As above; XLA fuses and so rounds otherwise.
    np.testing.assert_allclose(traced, value, rtol=0, atol=2e-14)
    np.testing.assert_allclose(automatic, gradient, rtol=0, atol=2e-14)


@pytest.mark.parametrize("backend", WHOLE_NETWORKS, indirect=True)
def test_value_is_the_data_loss_plus_the_penalty(backend):
    structure, weights, biases = network([4, 5, 1], ["tanh"], "sigmoid")
    X, y, weight, _ = data("two_layer_tanh")
    flat = structure.flatten(np, weights, biases)
    plain, penalized = (
        Objective(structure, losses.BinaryCrossEntropy(), *p) for p in ((), (0.1, 1))
    )
    data_loss = backend.call(penalized.data_loss, flat, X, y, weight)
    assert_close(
        backend, backend.call(plain.value, flat, X, y, weight), backend.host(data_loss), units=0
    )
    extra = sum(0.1 * np.abs(W).sum() + 0.5 * (W**2).sum() for W in backend.exact(weights))
    value = backend.call(penalized.value, flat, X, y, weight)
    assert_close(backend, value, backend.host(data_loss).astype(float) + extra)
    both, _ = backend.call(penalized.value_and_gradient, flat, X, y, weight)
    assert_close(backend, both, backend.host(value), units=1)


@pytest.mark.parametrize("backend", WHOLE_NETWORKS, indirect=True)
def test_the_flat_vector_holds_each_layer_row_major_and_comes_apart_again(backend):
    structure, weights, biases = network([2, 3, 1], ["tanh"], "sigmoid", stack=(2,))
    flat = backend.call(structure.flatten, weights, biases)
    assert structure.n_parameters == 13
    expected = [
        np.concatenate(
            [
                W[i].ravel() if k == 0 else b[i]
                for W, b in zip(weights, biases, strict=True)
                for k in (0, 1)
            ]
        )
        for i in range(2)
    ]
    assert_close(backend, flat, backend.exact(np.stack(expected)), units=0)
    again = backend.call(structure.unflatten, np.stack(expected))
    for actual, given in zip([*again[0], *again[1]], [*weights, *biases], strict=True):
        assert_close(backend, actual, backend.exact(given), units=0)


def test_parts_of_a_flat_numpy_vector_are_views_of_it():
    structure, weights, biases = network([2, 3, 1], ["tanh"], "sigmoid")
    flat = structure.flatten(np, weights, biases)
    weights, biases = structure.unflatten(np, flat)
    assert all(np.shares_memory(part, flat) for part in (*weights, *biases))


def one_step(xp, structure, parameters, X, y, learning_rate):
    objective, sgd = Objective(structure, losses.BinaryCrossEntropy()), SGD(learning_rate)
    J, gradient = objective.value_and_gradient(xp, parameters, X, y)
    coefficients = sgd.coefficients(learning_rate, 1)
    return J, sgd.update(xp, parameters, gradient, (), coefficients)[0]


@pytest.mark.parametrize("backend", WHOLE_NETWORKS, indirect=True)
def test_one_step_worked_by_hand(backend):
    # W1 = 0, b1 = 0, W2 = (1, -2), b2 = 0; x = (3, -1), y = 1; in columns:
    # z1 = 0, a1 = tanh(0) = 0, z2 = 0, a2 = 1/2, J = log 2, dz2 = a2 - y = -1/2,
    # dW2 = dz2 a1^T = 0, db2 = -1/2, dz1 = W2^T dz2 * (1 - 0) = (-1/2, 1),
    # dW1 = dz1 x^T = ((-3/2, 1/2), (3, -1)), db1 = dz1.
    # With alpha = 1/2: W1 = ((3/4, -1/4), (-3/2, 1/2)), b1 = (1/4, -1/2), W2 = (1, -2), b2 = 1/4.
    structure, *_ = network([2, 2, 1], ["tanh"], "sigmoid")
    start = structure.flatten(
        np, [np.zeros((2, 2)), np.asarray([[1.0], [-2.0]])], [np.zeros(2), np.zeros(1)]
    )
    J, parameters = backend.call(
        lambda xp, p, X, y: one_step(xp, structure, p, X, y, 0.5),
        start,
        np.asarray([[3.0, -1.0]]),
        np.asarray([[1.0]]),
    )
    assert_close(backend, J, math.log(2.0), units=1)
    # In rows W1 is transposed; quarters are exact.
    expected = [0.75, -1.5, -0.25, 0.5, 0.25, -0.5, 1.0, -2.0, 0.25]
    assert_close(backend, parameters, expected, units=0)


@pytest.mark.parametrize("backend", WHOLE_NETWORKS, indirect=True)
def test_one_step_equals_the_textbook_in_columns(backend):
    structure, weights, biases = network([4, 5, 1], ["tanh"], "sigmoid")
    X, y, _, _ = data("two_layer_tanh")
    alpha = 0.3
    x, t = (columns.T for columns in backend.exact([X, y]))
    (W1, W2), (b1, b2) = ([part.T for part in parts] for parts in backend.exact([weights, biases]))
    b1, b2 = b1[:, None], b2[:, None]
    z1 = W1 @ x + b1
    a1 = np.tanh(z1)
    z2 = W2 @ a1 + b2
    a2 = 1 / (1 + np.exp(-z2))
    J = -1 / N * np.sum(t * np.log(a2) + (1 - t) * np.log(1 - a2))
    dz2 = a2 - t
    dz1 = W2.T @ dz2 * (1 - a1**2)
    expected = [
        (W1 - alpha / N * dz1 @ x.T).T,
        (b1 - alpha / N * dz1.sum(axis=1, keepdims=True)).T,
        (W2 - alpha / N * dz2 @ a1.T).T,
        (b2 - alpha / N * dz2.sum(axis=1, keepdims=True)).T,
    ]
    value, parameters = backend.call(
        lambda xp, p, X, y: one_step(xp, structure, p, X, y, alpha),
        structure.flatten(np, weights, biases),
        X,
        y,
    )
    assert_close(backend, value, J)
    assert_close(backend, parameters, np.concatenate([part.ravel() for part in expected]))


@pytest.mark.parametrize("backend", WHOLE_NETWORKS, indirect=True)
def test_units_that_start_equal_stay_equal(backend):
    structure, weights, biases = network([4, 5, 1], ["tanh"], "sigmoid")
    weights = [np.ones_like(W) * 0.5 for W in weights]
    X, y, _, _ = data("two_layer_tanh")
    _, parameters = backend.call(
        lambda xp, p, X, y: one_step(xp, structure, p, X, y, 0.3),
        structure.flatten(np, weights, [0.0 * b for b in biases]),
        X,
        y,
    )
    W1 = backend.host(parameters)[:20].reshape(4, 5)
    # Every column sums the same products in the same order, or within a rounding.
    np.testing.assert_allclose(W1, W1[:, :1] * np.ones(5), rtol=0, atol=4 * backend.eps)
    assert np.all(W1 != 0.5)
