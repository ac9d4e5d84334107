"""Every gradient is the central difference of its objective, by check_gradients and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from backends import TORCH_ACTIVATIONS
from hypothesis import assume, given
from hypothesis import strategies as st

import nnbackend as nb
from nnbackend import losses
from nnbackend.core.activations import ACTIVATIONS, OUTPUTS
from nnbackend.core.losses import LOSSES

# What fits: a loss on its own output's logits, and those on "identity" with every output.
PAIRS = [
    (output, name)
    for output in OUTPUTS
    if output != "logistic"
    for name, loss in LOSSES.items()
    if loss.output in ("identity", output)
]
HIDDEN = [name for name in TORCH_ACTIVATIONS if name != "logistic"]
KINKED = {"relu", "leaky_relu", "absolute_error", "huber", "elu"}
N = 12


def targets(output, name, n_outputs, rng):
    if name == "poisson":
        return rng.poisson(2.0, (N, n_outputs)).astype(float)
    if name == "softmax_cross_entropy":
        return rng.integers(0, n_outputs, N)
    if output == "softmax":
        return rng.dirichlet(np.ones(n_outputs), N)
    if name == "binary_cross_entropy":
        return rng.integers(0, 2, (N, n_outputs))
    return rng.normal(size=(N, n_outputs))


def problem(hidden, output, name, n_outputs, seed=0):
    rng = np.random.default_rng(seed)
    net = nb.Network([3, 5, 4, n_outputs], hidden=hidden, output=output, dtype="float64", seed=seed)
    net.parameters[...] = net.parameters + 0.1 * rng.normal(size=net.n_parameters)
    return net, rng.normal(size=(N, 3)), targets(output, name, n_outputs, rng)


@pytest.mark.parametrize("n_outputs", [1, 3])
@pytest.mark.parametrize(("output", "name"), PAIRS)
@pytest.mark.parametrize("hidden", HIDDEN)
def test_gradients_equal_central_differences(hidden, output, name, n_outputs):
    net, X, y = problem(hidden, output, name, n_outputs)
    weight = np.random.default_rng(1).uniform(0.1, 2.0, N)
    before = net.parameters.copy()
    report = nb.check_gradients(net, X, y, loss=name, sample_weight=weight, l2=0.01)
    # Truncation and rounding of a float64 central difference are near 1e-9; a wrong formula is
    # wrong by 1e-3 and more.
    assert report.relative_error < 1e-6
    assert report.n_compared + report.n_skipped == report.n_parameters == net.n_parameters
    np.testing.assert_array_equal(net.parameters, before)
    if not KINKED & {hidden, name}:
        assert report.n_skipped == 0
    # Of 12 examples hardly one comes within 1e-5 of a kink.
    assert report.n_compared > 0.9 * report.n_parameters


@pytest.mark.parametrize(
    ("hidden", "output", "loss"),
    [
        ("tanh", "sigmoid", None),
        ("relu", "sigmoid", None),
        ("gelu", "softmax", losses.SoftmaxCrossEntropy(label_smoothing=0.1)),
        ("silu", "softmax", "squared_error"),
        ("elu", "exp", None),
        ("softplus", "identity", losses.Huber(delta=0.5)),
    ],
)
@pytest.mark.parametrize("n_outputs", [1, 3])
def test_gradients_equal_differences_taken_one_parameter_at_a_time(hidden, output, loss, n_outputs):
    name = loss or {"sigmoid": "binary_cross_entropy", "exp": "poisson"}[output]
    net, X, y = problem(hidden, output, getattr(name, "name", name), n_outputs, seed=3)
    weight = np.random.default_rng(4).uniform(0.1, 2.0, N)

    def value():
        J, _ = net.loss_and_gradients(X, y, loss=loss, sample_weight=weight, l1=0.01, l2=0.1)
        return float(J)

    _, gradients = net.loss_and_gradients(X, y, loss=loss, sample_weight=weight, l1=0.01, l2=0.1)
    h = 1e-5
    for arrays, analytic in ((net.weights, gradients.weights), (net.biases, gradients.biases)):
        for array, gradient in zip(arrays, analytic, strict=True):
            for index in np.ndindex(array.shape):
                kept = array[index]
                array[index] = kept + h
                up = value()
                array[index] = kept - h
                down = value()
                array[index] = kept
                # Rounding eps |J| / h = 1e-10 for J near 5, truncation h^2 J''' / 6 about as much.
                assert gradient[index] == pytest.approx((up - down) / (2 * h), rel=1e-7, abs=2e-9)


def wrong(name, factor=1.0, offset=0.0):
    """Return a built-in activation with a derivative that is off."""
    entry = ACTIVATIONS[name]
    return nb.Activation(
        f"wrong_{name}",
        entry.function,
        lambda xp, Z, A: factor * entry.derivative(xp, Z, A) + offset,
    )


@pytest.mark.parametrize(
    "activation",
    [
        wrong("tanh", factor=2.0),
        wrong("tanh", factor=-1.0),
        wrong("relu", factor=0.0),
        wrong("relu", offset=0.01),
        wrong("gelu", factor=1.0 + 1e-4),
        nb.Activation("cube", lambda _xp, Z: Z * Z * Z, lambda _xp, Z, _A: 2.0 * Z * Z),
    ],
    ids=["doubled", "negated", "zero", "shifted", "off_by_1e-4", "cube"],
)
@pytest.mark.parametrize("n_outputs", [1, 3])
def test_a_wrong_derivative_is_detected(activation, n_outputs):
    net, X, y = problem(activation, "sigmoid", "binary_cross_entropy", n_outputs)
    with pytest.raises(nb.GradientMismatchError, match=r"worst at (weights|biases)\[[01]\]"):
        nb.check_gradients(net, X, y)


def test_a_wrong_derivative_is_detected_under_its_registered_name(monkeypatch):
    right, false = ACTIVATIONS["tanh"], wrong("tanh", factor=1.5)
    monkeypatch.setitem(ACTIVATIONS, "wrong_tanh", right)  # so that the entry is gone afterwards
    nb.register_activation("wrong_tanh", false.function, false.derivative)
    net, X, y = problem("wrong_tanh", "sigmoid", "binary_cross_entropy", 1)
    with pytest.raises(nb.GradientMismatchError, match="gradients differ"):
        nb.check_gradients(net, X, y)


def test_a_wrong_loss_gradient_is_detected():
    class Wrong(losses.SquaredError):
        def elements(self, xp, Z, Y):
            element, derivative = super().elements(xp, Z, Y)
            return element, 2.0 * derivative

    net, X, y = problem("tanh", "identity", "squared_error", 3)
    with pytest.raises(nb.GradientMismatchError, match="gradients differ"):
        nb.check_gradients(net, X, y, loss=Wrong())


@pytest.mark.parametrize("hidden", ["relu", "leaky_relu"])
def test_parameters_at_a_kink_are_skipped_and_the_others_compared(hidden):
    net = nb.Network([3, 4, 1], hidden=hidden, dtype="float64", seed=0)
    net.weights[0][...] = (
        0.0  # with zero biases, every Z of the hidden layer is exactly at the kink
    )
    X = np.random.default_rng(0).normal(size=(N, 3))
    y = np.random.default_rng(1).integers(0, 2, N)
    report = nb.check_gradients(net, X, y)
    assert report.n_skipped == 3 * 4 + 4
    assert report.n_compared == 4 + 1
    assert report.relative_error < 1e-6


def test_one_unit_at_a_kink_hides_no_other_unit():
    net = nb.Network([3, 4, 1], hidden="relu", dtype="float64", seed=0)
    net.weights[0][:, 2] = 0.0
    X = np.random.default_rng(0).normal(size=(N, 3))
    report = nb.check_gradients(net, X, np.random.default_rng(1).integers(0, 2, N))
    assert report.n_skipped == 3 + 1
    assert report.n_compared == net.n_parameters - 4


def test_a_network_of_zeros_is_compared_where_its_objective_is_smooth():
    # With all weights zero no hidden weight changes the output: its derivative is zero, and right.
    net = nb.Network([3, 4, 1], hidden="relu", initializer="zeros", dtype="float64")
    X = np.random.default_rng(0).normal(size=(N, 3))
    report = nb.check_gradients(net, X, np.random.default_rng(1).integers(0, 2, N))
    assert report.n_skipped == 0
    assert report.relative_error < 1e-6


def test_a_network_with_nothing_to_compare_does_not_pass():
    net = nb.Network([2, 1], output="identity", initializer="zeros", dtype="float64")
    with pytest.raises(nb.GradientMismatchError, match="none of the 3 parameters"):
        nb.check_gradients(net, [[1.0, 2.0]], [0.0], loss="absolute_error")


def test_a_float32_network_is_checked_in_float64_and_left_as_it_is():
    net = nb.Network([3, 4, 1], hidden="tanh", seed=0)
    before = net.parameters.copy()
    X = np.random.default_rng(0).normal(size=(N, 3))
    report = nb.check_gradients(net, X, np.random.default_rng(1).integers(0, 2, N))
    assert report.relative_error < 1e-6
    assert net.dtype == "float32"
    np.testing.assert_array_equal(net.parameters, before)


INITIALIZERS = ["normal", "he_normal", "glorot_uniform", "orthogonal", "zeros"]


@st.composite
def networks(draw, initializers=INITIALIZERS):
    """Return what makes a network of some hidden activation, and data for it."""
    seed = draw(st.integers(0, 2**32))
    output = draw(st.sampled_from(["sigmoid", "softmax", "identity", "exp"]))
    n_outputs = draw(st.sampled_from([1, 3]))
    n_samples = draw(st.sampled_from([1, 2, 12, 100, 500]))
    rng = np.random.default_rng(seed)
    y = {
        "sigmoid": rng.integers(0, 2, (n_samples, n_outputs)),
        "softmax": rng.integers(0, n_outputs, n_samples),
        "identity": rng.normal(size=(n_samples, n_outputs)),
        "exp": rng.poisson(2.0, (n_samples, n_outputs)),
    }[output]
    hidden = draw(st.sampled_from(["relu", "leaky_relu", "elu", "tanh", "gelu"]))
    initializer = draw(st.sampled_from(initializers))

    def make(activation):
        return nb.Network(
            [5, 8, 4, n_outputs],
            hidden=activation,
            output=output,
            initializer=initializer,
            seed=seed,
        )

    return make, hidden, rng.normal(size=(n_samples, 5)), y


@pytest.mark.parametrize("seed", range(12))
def test_a_relu_network_of_small_gradients_is_found_right(seed):
    rng = np.random.default_rng(seed)
    X, y = rng.normal(size=(500, 5)), rng.integers(0, 2, 500)
    net = nb.Network([5, 8, 4, 1], hidden="relu", initializer="normal", seed=seed)
    report = nb.check_gradients(net, X, y)
    # A kink is a small part of 500 examples' gradient: many parameters have one within reach, and
    # are compared or left out by what it does to the comparison.
    assert report.n_compared > 0.4 * report.n_parameters


@pytest.mark.slow
@given(networks(), st.sampled_from([{}, {"l1": 0.01, "l2": 0.1}]))
def test_right_gradients_are_found_right(drawn, penalties):
    make, hidden, X, y = drawn
    report = nb.check_gradients(make(hidden), X, y, **penalties)
    # By default a third of the tolerance is left to kinks that stay below it.
    assert report.relative_error < 5e-7
    if hidden in ("tanh", "gelu") and not penalties:
        assert report.n_skipped == 0


def norm_of(arrays):
    return float(np.sqrt(sum((x**2).sum() for x in arrays)))


def wrong_loss(base, factor):
    class Wrong(type(base)):
        def elements(self, xp, Z, Y):
            element, derivative = super().elements(xp, Z, Y)
            return element, factor * derivative

    return Wrong()


@pytest.mark.slow
@given(networks(), st.sampled_from([3e-6, -3e-6, 1e-3]))
def test_a_loss_gradient_off_by_3e_6_is_detected(drawn, error):
    make, hidden, X, y = drawn
    net = make(hidden)
    _, gradients = net.astype("float64").loss_and_gradients(X, y)
    # Where targets are met there is no gradient to be off.
    assume(norm_of([*gradients.weights, *gradients.biases]) > 1e-4)
    with pytest.raises(nb.GradientMismatchError, match="gradients differ"):
        nb.check_gradients(net, X, y, loss=wrong_loss(net.objective().loss, 1.0 + error))


@pytest.mark.slow
@given(
    # With initializer="normal" rounding is more than 3e-6 of the hidden layers' gradients.
    st.tuples(networks(INITIALIZERS[1:-1]), st.sampled_from([3e-6, -3e-6]))
    | st.tuples(networks(INITIALIZERS[:-1]), st.just(1e-3))
)
def test_a_derivative_off_by_3e_6_is_detected(drawn):
    (make, hidden, X, y), error = drawn
    net = make(wrong(hidden, factor=1.0 + error))
    _, gradients = net.astype("float64").loss_and_gradients(X, y)
    assume(norm_of([*gradients.weights[:-1], *gradients.biases[:-1]]) > 1e-6)
    with pytest.raises(nb.GradientMismatchError, match="gradients differ"):
        nb.check_gradients(net, X, y)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_gradients_of_features_of_any_size_are_judged_by_their_own_size(scale):
    rng = np.random.default_rng(0)
    X, y = scale * rng.normal(size=(30, 4)), rng.poisson(2.0, (30, 1))
    net = nb.Network([4, 6, 1], hidden="tanh", output="exp", dtype="float64")
    assert nb.check_gradients(net, X, y).relative_error < 1e-6
    with pytest.raises(nb.GradientMismatchError, match="gradients differ"):
        nb.check_gradients(net, X, y, loss=wrong_loss(losses.Poisson(), 1.0 + 3e-6))


def test_an_error_near_overflow_does_not_pass_as_nan():
    net = nb.Network([1, 1], output="exp", dtype="float64")
    net.set_parameters([[[1.0]]], [[0.0]])
    assert nb.check_gradients(net, [[600.0]], [1.0]).relative_error < 1e-6
    with pytest.raises(nb.GradientMismatchError, match="gradients differ"):
        nb.check_gradients(net, [[600.0]], [1.0], loss=wrong_loss(losses.Poisson(), 1.0 + 3e-6))
