"""Optimizers take torch's steps, worked by hand at first, and never change a dtype."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from backends import assert_close, network, tensors, torch_logits

from nnbackend.core import optimizers
from nnbackend.core.losses import SoftmaxCrossEntropy
from nnbackend.core.objective import Objective
from nnbackend.core.optimizers import OPTIMIZERS, SGD, Adagrad, Adam, AdamW, RMSprop
from nnbackend.core.schedules import Clock, Constant, Cosine, as_schedule
from nnbackend.errors import InputError

# id: our optimizer, torch's class, torch's options
CASES = {
    "sgd": (SGD(0.1), "SGD", {"lr": 0.1}),
    "sgd_momentum": (SGD(0.05, momentum=0.9), "SGD", {"lr": 0.05, "momentum": 0.9}),
    "sgd_nesterov": (
        SGD(0.05, momentum=0.9, nesterov=True),
        "SGD",
        {"lr": 0.05, "momentum": 0.9, "nesterov": True},
    ),
    "sgd_dampening": (
        SGD(0.1, momentum=0.8, dampening=0.3),
        "SGD",
        {"lr": 0.1, "momentum": 0.8, "dampening": 0.3},
    ),
    "sgd_weight_decay": (SGD(0.1, weight_decay=0.01), "SGD", {"lr": 0.1, "weight_decay": 0.01}),
    "sgd_all": (
        SGD(0.05, momentum=0.7, nesterov=True, weight_decay=0.02),
        "SGD",
        {"lr": 0.05, "momentum": 0.7, "nesterov": True, "weight_decay": 0.02},
    ),
    "rmsprop": (RMSprop(0.01), "RMSprop", {"lr": 0.01}),
    "rmsprop_momentum": (
        RMSprop(0.005, decay=0.9, momentum=0.5),
        "RMSprop",
        {"lr": 0.005, "alpha": 0.9, "momentum": 0.5},
    ),
    "rmsprop_centered": (RMSprop(0.01, centered=True), "RMSprop", {"lr": 0.01, "centered": True}),
    "rmsprop_all": (
        RMSprop(0.005, epsilon=1e-6, momentum=0.5, centered=True, weight_decay=0.01),
        "RMSprop",
        {"lr": 0.005, "eps": 1e-6, "momentum": 0.5, "centered": True, "weight_decay": 0.01},
    ),
    "adagrad": (Adagrad(0.05), "Adagrad", {"lr": 0.05}),
    "adagrad_all": (
        Adagrad(0.1, decay=0.01, initial_accumulator=0.1, epsilon=1e-7, weight_decay=0.01),
        "Adagrad",
        {
            "lr": 0.1,
            "lr_decay": 0.01,
            "initial_accumulator_value": 0.1,
            "eps": 1e-7,
            "weight_decay": 0.01,
        },
    ),
    "adam": (Adam(0.01), "Adam", {"lr": 0.01}),
    "adam_all": (
        Adam(0.01, beta1=0.8, beta2=0.95, epsilon=1e-6, weight_decay=0.01),
        "Adam",
        {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.01},
    ),
    "adamw": (AdamW(0.01), "AdamW", {"lr": 0.01}),
    "adamw_all": (
        AdamW(0.01, beta1=0.8, beta2=0.95, epsilon=1e-6, weight_decay=0.2),
        "AdamW",
        {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.2},
    ),
}
HIDDEN = ("tanh", "tanh")


def test_every_optimizer_is_held_to_torch():
    assert {type(ours) for ours, _, _ in CASES.values()} == set(OPTIMIZERS.values())


# torch's names of our options, where they differ
TORCH_NAMES = {
    "learning_rate": "lr",
    "epsilon": "eps",
    "initial_accumulator": "initial_accumulator_value",
    ("rmsprop", "decay"): "alpha",
    ("adagrad", "decay"): "lr_decay",
}


@pytest.mark.parametrize("cls", OPTIMIZERS.values())
def test_default_options_are_those_of_torch(torch, cls):
    theirs = getattr(torch.optim, cls.__name__)([torch.zeros(1)]).defaults
    if "betas" in theirs:
        theirs["beta1"], theirs["beta2"] = theirs["betas"]
    for field in dataclasses.fields(cls):
        name = TORCH_NAMES.get(field.name, TORCH_NAMES.get((cls.name, field.name), field.name))
        assert getattr(cls(), field.name) == theirs[name], field.name


@pytest.fixture(scope="module")
def problem():
    """A network and mini-batches, and our objective."""
    structure, weights, biases = network([4, 8, 6, 3], HIDDEN, "softmax")
    rng = np.random.default_rng(1)
    batches = [(rng.normal(size=(10, 4)), rng.integers(0, 3, 10)) for _ in range(5)]
    return Objective(structure, SoftmaxCrossEntropy()), weights, biases, batches


@pytest.mark.parametrize("case", CASES)
def test_parameters_after_200_steps_equal_torch(torch, problem, case):
    ours, name, options = CASES[case]
    objective, weights, biases, batches = problem
    theirs = [tensors(torch, arrays, requires_grad=True) for arrays in (weights, biases)]
    optimizer = getattr(torch.optim, name)([*theirs[0], *theirs[1]], **options)
    start = parameters = objective.structure.flatten(np, weights, biases)
    state = ours.init(np, parameters)
    for step in range(1, 201):
        X, y = batches[step % len(batches)]
        optimizer.zero_grad()
        logits = torch_logits(torch, HIDDEN, *theirs, torch.tensor(X))
        torch.nn.functional.cross_entropy(logits, torch.tensor(y)).backward()
        optimizer.step()
        _, gradient = objective.value_and_gradient(np, parameters, X, y)
        coefficients = ours.coefficients(ours.learning_rate, step)
        parameters, state = ours.update(np, parameters, gradient, state, coefficients)
    final = [[t.detach().numpy() for t in group] for group in theirs]
    # Roundings of 1e-16 per step grow over 200 steps, as much where a gradient is divided by its
    # own tiny root mean square; a wrong formula shows at 1e-3.
    expected = objective.structure.flatten(np, *final)
    np.testing.assert_allclose(parameters, expected, rtol=0, atol=1e-10)
    assert np.abs(parameters - start).max() > 0.1
    assert len(state) == len(ours.state_names)


def three_steps(xp, optimizer, parameters, gradients):
    state = optimizer.init(xp, parameters)
    for step, gradient in enumerate(gradients, start=1):
        rate = as_schedule(optimizer.learning_rate).rate(Clock(step))
        coefficients = optimizer.coefficients(rate, step)
        parameters, state = optimizer.update(xp, parameters, gradient, state, coefficients)
    return parameters, state


@pytest.mark.parametrize("case", CASES)
def test_steps_are_the_same_on_every_backend_and_keep_the_dtype(backend, case):
    optimizer = CASES[case][0]
    rng = np.random.default_rng(2)
    # Gradients of one sign and size: no mean cancels, so that float32 is compared to full accuracy.
    parameters, gradients = rng.normal(size=12), list(rng.uniform(0.5, 2.0, (3, 12)))
    expected, expected_state = three_steps(
        np, optimizer, backend.exact(parameters), backend.exact(gradients)
    )
    actual, state = backend.call(
        lambda xp, p, g: three_steps(xp, optimizer, p, g), parameters, gradients
    )
    assert_close(backend, actual, expected)
    for ours, reference in zip(state, expected_state, strict=True):
        assert_close(backend, ours, reference)


@pytest.mark.parametrize("case", CASES)
def test_a_step_changes_neither_parameters_nor_gradient_nor_state(backend, case):
    optimizer = CASES[case][0]
    W, state = np.ones(12), tuple(np.full(12, 0.5) for _ in optimizer.state_names)
    coefficients = optimizer.coefficients(0.1, step=2)
    # Backend.call compares its inputs, the state among them, before and after.
    after, new_state = backend.call(
        lambda xp, *arrays: optimizer.update(xp, *arrays, coefficients), W, np.full(12, 0.6), state
    )
    assert float(backend.xp.max(after)) < 1.0
    for old, new in zip(state, new_state, strict=True):
        assert not np.array_equal(backend.host(new), old)


def as_numpy_scalars(optimizer):
    return dataclasses.replace(
        optimizer,
        **{
            field.name: np.float64(getattr(optimizer, field.name))
            for field in dataclasses.fields(optimizer)
            if isinstance(getattr(optimizer, field.name), float)
        },
    )


@pytest.mark.parametrize("scheduled", [False, True], ids=["number", "schedule"])
@pytest.mark.parametrize("case", CASES)
def test_hyperparameters_given_as_numpy_float64_leave_float32_as_it_is(backend, case, scheduled):
    optimizer = as_numpy_scalars(CASES[case][0])
    if scheduled:
        rate = Cosine(np.float64(0.1), epochs=np.float64(10.0), minimum=np.float64(0.01))
        optimizer = dataclasses.replace(optimizer, learning_rate=rate)
    gradients = list(np.random.default_rng(2).uniform(0.5, 2.0, (3, 12)))
    parameters, state = backend.call(
        lambda xp, p, g: three_steps(xp, optimizer, p, g), np.ones(12), gradients
    )
    for array in (parameters, *state):
        assert array.dtype == backend.array(np.ones(1)).dtype


@pytest.mark.parametrize("cls", OPTIMIZERS.values())
def test_coefficients_of_many_steps_are_those_of_each(cls):
    optimizer = cls()
    rates = np.asarray([0.1, 0.05, 0.2])
    together = np.broadcast_arrays(*optimizer.coefficients(rates, np.arange(1, 4)))
    for step, rate in enumerate(rates.tolist(), start=1):
        single = optimizer.coefficients(rate, step)
        assert [type(value) for value in single] == [float] * len(single)
        np.testing.assert_allclose([x[step - 1] for x in together], single, rtol=1e-15)


def steps_from_one(optimizer, *gradients):
    W, state, path = np.ones(1), optimizer.init(np, np.ones(1)), []
    for step, gradient in enumerate(gradients, start=1):
        coefficients = optimizer.coefficients(optimizer.learning_rate, step)
        W, state = optimizer.update(np, W, np.asarray([gradient]), state, coefficients)
        path.append(float(W[0]))
    return path


# From W = 1 along the gradients 2 and 1. Some five roundings of numbers near one: 1e-15.
@pytest.mark.parametrize(
    ("optimizer", "path"),
    [
        # v = 2, W = 1 - 0.2; v = 1.8 + 1, W = 0.8 - 0.28
        (SGD(0.1, momentum=0.9), [0.8, 0.52]),
        # 2 + 0.9 * 2 = 3.8, W = 1 - 0.38; v = 2.8, 1 + 0.9 * 2.8 = 3.52, W = 0.62 - 0.352
        (SGD(0.1, momentum=0.9, nesterov=True), [0.62, 0.268]),
        # v = 2, undampened at first; v = 1.8 + 0.5
        (SGD(0.1, momentum=0.9, dampening=0.5), [0.8, 0.57]),
        # g = 2 + 0.5; g = 1 + 0.5 * 0.75
        (SGD(0.1, weight_decay=0.5), [0.75, 0.6125]),
        # m = 0.2, v = 0.004, corrected 2 and 4; m = 0.28, v = 0.004996, corrected by 0.19, 0.001999
        (
            Adam(0.1),
            [
                1 - 0.2 / (2 + 1e-8),
                1 - 0.2 / (2 + 1e-8) - 0.1 * (0.28 / 0.19) / ((0.004996 / 0.001999) ** 0.5 + 1e-8),
            ],
        ),
        # the decay 0.1 * 0.5 of W = 1 comes on top
        (AdamW(0.1, weight_decay=0.5), [0.95 - 0.2 / (2 + 1e-8)]),
        # s = 4; s = 5
        (Adagrad(0.1), [0.9, 0.9 - 0.1 / 5**0.5]),
        # s = 0.04; s = 0.0496
        (RMSprop(0.01), [1 - 0.02 / 0.2, 0.9 - 0.01 / 0.0496**0.5]),
    ],
    ids=lambda value: repr(value) if isinstance(value, optimizers.Optimizer) else "",
)
def test_first_steps_are_those_worked_by_hand(optimizer, path):
    # The hand leaves out epsilon where it is 1e-10 or 1e-8 in a sum with 0.2: it moves W by < 1e-8.
    tolerance = 1e-8 if isinstance(optimizer, Adagrad | RMSprop) else 2e-15
    np.testing.assert_allclose(
        steps_from_one(optimizer, 2.0, 1.0)[: len(path)], path, rtol=0, atol=tolerance
    )


def test_centered_rmsprop_stays_finite_when_the_gradient_is_constant():
    # Then the mean of the squares is the square of the mean, and rounding makes their difference
    # negative now and then: by decay 0.5 within some 24 steps, by 0.99 within some 1600.
    optimizer = RMSprop(0.01, decay=0.5, centered=True)
    gradient = np.asarray([0.1, 0.3, 0.7], dtype=np.float32)
    W = np.ones(3, dtype=np.float32)
    W, _ = three_steps(np, optimizer, W, [gradient] * 100)
    assert np.all(np.isfinite(W))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SGD(-0.1), "learning_rate: .* > 0"),
        (lambda: SGD(0.0), "learning_rate: .* > 0"),
        (lambda: SGD("0.1"), "learning_rate: .* got '0.1'"),
        (lambda: SGD(None), "learning_rate: .* got None"),
        (lambda: SGD(float("inf")), "learning_rate: expected a finite number"),
        (lambda: SGD(momentum=1.0), "momentum: .* < 1"),
        (lambda: SGD(momentum=None), "momentum: .* got None"),
        (lambda: SGD(momentum=0.9, dampening=-0.5), "dampening: .* >= 0"),
        (lambda: SGD(weight_decay=-1.0), "weight_decay: .* >= 0"),
        (lambda: SGD(nesterov=True), "nesterov: expected momentum > 0"),
        (lambda: SGD(momentum=0.9, dampening=0.1, nesterov=True), "nesterov: expected momentum"),
        (lambda: RMSprop(decay=1.0), "decay: .* < 1"),
        (lambda: RMSprop(epsilon=0.0), "epsilon: .* > 0"),
        (lambda: RMSprop(momentum=-0.1), "momentum: .* >= 0"),
        (lambda: Adagrad(decay=-0.1), "decay: .* >= 0"),
        (lambda: Adagrad(initial_accumulator=-0.1), "initial_accumulator: .* >= 0"),
        (lambda: Adam(beta1=1.0), "beta1: .* < 1"),
        (lambda: Adam(beta2=-0.1), "beta2: .* >= 0"),
        (lambda: AdamW(weight_decay=-0.1), "weight_decay: .* >= 0"),
        (lambda: optimizers.optimizer(Adam), r"optimizer: .* got the class Adam; .* Adam\(\)"),
        (lambda: optimizers.optimizer("adm"), "optimizer: unknown name 'adm'; did you mean 'adam'"),
    ],
)
def test_options_out_of_bounds_are_errors_that_name_them(build, message):
    with pytest.raises(InputError, match=message):
        build()


def test_a_name_stands_for_an_optimizer_with_options():
    assert optimizers.optimizer("sgd", learning_rate=0.1, momentum=0.9) == SGD(0.1, momentum=0.9)
    mine = Adam(Constant(0.1))
    assert optimizers.optimizer(mine) is mine
