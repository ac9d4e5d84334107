"""A stack of networks, computed at once along leading axes, equals its networks one by one."""

from __future__ import annotations

import numpy as np
import pytest
from backends import ROUNDING_UNITS, WHOLE_NETWORKS, assert_close, network

from nnbackend.core import dense, losses
from nnbackend.core.activations import ACTIVATIONS, OUTPUTS
from nnbackend.core.objective import Objective
from nnbackend.core.optimizers import SGD, Adagrad, Adam, AdamW, RMSprop
from nnbackend.core.regularization import clip_by_global_norm, clip_by_value, penalty

N, SIZES = 6, [4, 5, 3]
STACKS = pytest.mark.parametrize("stack", [(5,), (2, 3)], ids=["one_axis", "two_axes"])


def assert_equals_one_by_one(backend, stack, function, *arguments):
    """Compare ``function`` of stacked arguments with that of each network's own, by NumPy.

    That a single network is computed alike by every backend is shown next to this file. An argument
    marked ``Shared`` has no stack axes; results are arrays or sequences of arrays.
    """
    at_once = _flat(backend.call(function, *(_unwrap(x) for x in arguments)))
    singles = {}
    for index in np.ndindex(stack):
        own = [x.array if isinstance(x, Shared) else _take(x, index) for x in arguments]
        singles[index] = _flat(function(np, *backend.exact(own)))
    for position, actual in enumerate(at_once):
        one_by_one = [np.asarray(results[position]) for results in singles.values()]
        expected = np.reshape(np.stack(one_by_one), (*stack, *one_by_one[0].shape))
        assert_close(backend, actual, expected)
        # The networks differ, so that one result for all would not pass.
        assert len({single.tobytes() for single in one_by_one}) == len(one_by_one)


class Shared:
    """An argument that is the same for all the networks."""

    def __init__(self, array):
        self.array = array


def _unwrap(x):
    return x.array if isinstance(x, Shared) else x


def _take(tree, index):
    if type(tree) in (list, tuple):
        return type(tree)(_take(x, index) for x in tree)
    return tree[index] if isinstance(tree, np.ndarray) else tree


def _flat(result):
    if type(result) in (list, tuple):
        return [leaf for part in result for leaf in _flat(part)]
    return [] if result is None else [result]


def random(stack, *shape, seed=0):
    return np.random.default_rng(seed).normal(size=(*stack, *shape))


LOSSES = {
    "binary": (losses.BinaryCrossEntropy(), "sigmoid"),
    "classes": (losses.SoftmaxCrossEntropy(label_smoothing=0.1), "softmax"),
    "squares_of_sigmoid": (losses.SquaredError(), "sigmoid"),
    "absolute": (losses.AbsoluteError(), "identity"),
    "huber": (losses.Huber(0.5), "identity"),
    "poisson": (losses.Poisson(), "exp"),
}


def targets(loss, stack, seed=2):
    rng = np.random.default_rng(seed)
    if loss.name == "softmax_cross_entropy":
        return rng.integers(0, 3, (*stack, N))
    return rng.integers(0, 2, (*stack, N, 3)).astype(float)


@pytest.mark.parametrize("case", ["classes", "squares_of_sigmoid"])
@pytest.mark.parametrize(
    ("stack", "data"), [((5,), "shared"), ((5,), "own"), ((2, 3), "own")], ids=str
)
@pytest.mark.parametrize("backend", WHOLE_NETWORKS, indirect=True)
def test_objective_and_gradient(backend, stack, data, case):
    loss, output = LOSSES[case]
    structure, weights, biases = network(SIZES, ["tanh"], output, stack=stack)
    objective = Objective(structure, loss, 0.01, 0.1)
    flat = structure.flatten(np, weights, biases)
    if data == "shared":
        own = [Shared(x) for x in (random((), N, 4), targets(loss, ()))]
    else:
        masks = [2.0 * (random(stack, N, 5, seed=4) > 0)]
        weight = np.abs(random(stack, N, seed=3)) + 0.1
        own = [random(stack, N, 4), targets(loss, stack), weight, masks]
    assert_equals_one_by_one(backend, stack, objective.value_and_gradient, flat, *own)


@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("case", LOSSES)
@STACKS
@pytest.mark.parametrize("backend", WHOLE_NETWORKS, indirect=True)
def test_losses(backend, stack, case, weighted):
    loss, _ = LOSSES[case]
    weight = np.abs(random(stack, N, seed=3)) if weighted else None
    if weighted:
        weight[(0,) * len(stack)] = 0.0  # a network whose examples all have weight zero
    own = (random(stack, N, 3), targets(loss, stack), weight)
    assert_equals_one_by_one(backend, stack, loss.value_and_gradient, *own)


@pytest.mark.parametrize("data", ["shared", "own"])
@STACKS
@pytest.mark.parametrize("backend", WHOLE_NETWORKS, indirect=True)
def test_dense_layer(backend, stack, data):
    A = Shared(random((), N, 4)) if data == "shared" else random(stack, N, 4)
    W, b, dZ = random(stack, 4, 3, seed=1), random(stack, 3, seed=2), random(stack, N, 3, seed=3)
    assert_equals_one_by_one(backend, stack, dense.forward, A, W, b)
    assert_equals_one_by_one(backend, stack, dense.backward, dZ, A, W)


@pytest.mark.parametrize("name", sorted(set(ACTIVATIONS) | set(OUTPUTS)))
@STACKS
@pytest.mark.parametrize("backend", WHOLE_NETWORKS, indirect=True)
def test_activations_and_outputs(backend, stack, name):
    Z, dA = random(stack, N, 3), random(stack, N, 3, seed=1)
    if name in ACTIVATIONS:
        entry = ACTIVATIONS[name]
        assert_equals_one_by_one(backend, stack, entry.function, Z)
    if name in OUTPUTS:
        pullback = OUTPUTS[name].pullback
        A = OUTPUTS[name].function(np, Z)
        assert_equals_one_by_one(backend, stack, pullback, dA, A)


@STACKS
@pytest.mark.parametrize("backend", WHOLE_NETWORKS, indirect=True)
def test_penalty(backend, stack):
    weights = [random(stack, 4, 5), random(stack, 5, 3, seed=1)]
    assert_equals_one_by_one(backend, stack, lambda xp, w: penalty(xp, w, 0.1, 0.3), weights)


@STACKS
@pytest.mark.parametrize("backend", WHOLE_NETWORKS, indirect=True)
def test_penalties_per_weight_of_a_batch(backend, stack):
    structure, weights, biases = network(SIZES, ["tanh"], "identity", stack=stack)
    objective = Objective(structure, losses.SquaredError(), 0.1, 0.3, penalty_per_sample=True)
    weight = np.abs(random(stack, N, seed=3))
    weight[(0,) * len(stack)] = 0.0  # a network whose examples all have weight zero
    flat, X, y = structure.flatten(np, weights, biases), random(stack, N, 4), random(stack, N, 3)
    for own in ((X, y, weight), (Shared(X[(0,) * len(stack)]), y, weight), (X, y, None)):
        assert_equals_one_by_one(backend, stack, objective.value_and_gradient, flat, *own)
        assert_equals_one_by_one(backend, stack, objective.value, flat, *own)


@STACKS
@pytest.mark.parametrize("backend", WHOLE_NETWORKS, indirect=True)
def test_clipping(backend, stack):
    # Some of the stack are longer than the largest norm, the others shorter.
    gradient = random(stack, 43) * np.linspace(0.5, 2.0, np.prod(stack)).reshape(*stack, 1)
    norms = np.linalg.norm(gradient, axis=-1)
    assert norms.min() < 6.0 < norms.max()
    for function, limit in ((clip_by_global_norm, 6.0), (clip_by_value, 1.0)):
        assert_equals_one_by_one(
            backend, stack, lambda xp, g, f=function, at=limit: f(xp, g, at), gradient
        )


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
        RMSprop(0.1, momentum=0.5, centered=True),
        Adagrad(0.1, initial_accumulator=0.1),
        Adam(0.1, weight_decay=0.1),
        AdamW(0.1),
    ],
    ids=lambda optimizer: optimizer.name,
)
@STACKS
@pytest.mark.parametrize("backend", WHOLE_NETWORKS, indirect=True)
def test_optimizers(backend, stack, optimizer):
    def two_steps(xp, parameters, gradients):
        state = optimizer.init(xp, parameters)
        for step, gradient in enumerate(gradients, start=1):
            coefficients = optimizer.coefficients(0.1, step)
            parameters, state = optimizer.update(xp, parameters, gradient, state, coefficients)
        return parameters, state

    gradients = [random(stack, 43, seed=seed) for seed in (1, 2)]
    assert_equals_one_by_one(backend, stack, two_steps, random(stack, 43), gradients)


@pytest.mark.parametrize("backend", WHOLE_NETWORKS, indirect=True)
def test_a_stack_of_networks_trains_as_its_networks_do(backend):
    structure, weights, biases = network(SIZES, ["tanh"], "softmax", stack=(5,))
    objective = Objective(structure, losses.SoftmaxCrossEntropy(), 0.01, 0.1)
    optimizer = Adam(0.05)

    def train(xp, parameters, X, y):
        state = optimizer.init(xp, parameters)
        for step in range(1, 11):
            _, gradient = objective.value_and_gradient(xp, parameters, X, y)
            gradient = clip_by_global_norm(xp, gradient, 1.0)
            coefficients = optimizer.coefficients(0.05, step)
            parameters, state = optimizer.update(xp, parameters, gradient, state, coefficients)
        return objective.value(xp, parameters, X, y)

    flat = structure.flatten(np, weights, biases)
    X, y = random((), N, 4), targets(objective.loss, ())
    after = backend.call(train, flat, X, y)
    singles = np.stack([train(np, *backend.exact([flat[i], X, y])) for i in range(5)])
    # Ten steps of Adam divide roundings by root mean squares of gradients, of 1e-3 and more.
    assert_close(backend, after, singles, units=ROUNDING_UNITS * 1000)
    assert np.all(singles < objective.value(np, flat, X, y))
