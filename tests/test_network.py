"""Network: one flat vector and its views, the formulas it computes, and what it hands back."""

import copy
import math
import pickle

import numpy as np
import pytest
from devices import needs_cuda, on_each_device, to_host

import nnbackend as nb
from nnbackend.device import device_of, get_device
from nnbackend.errors import InputError

# Rounding of a chain of a few float64 (float32) operations, each with unit roundoff 1.1e-16 (6e-8),
# on numbers of size one, leaves relative errors well below these.
TIGHT = {"float64": 1e-12, "float32": 2e-5}

HIDDEN = {
    "identity": lambda Z: Z,
    "sigmoid": lambda Z: 1 / (1 + np.exp(-Z)),
    "logistic": lambda Z: 1 / (1 + np.exp(-Z)),
    "tanh": lambda Z: (np.exp(Z) - np.exp(-Z)) / (np.exp(Z) + np.exp(-Z)),
    "relu": lambda Z: Z * (Z > 0),
    "leaky_relu": lambda Z: np.where(Z > 0, Z, 0.01 * Z),
    "elu": lambda Z: np.where(Z > 0, Z, np.exp(Z) - 1),
    "softplus": lambda Z: np.log(1 + np.exp(Z)),
    "silu": lambda Z: Z / (1 + np.exp(-Z)),
    "gelu": lambda Z: 0.5 * Z * (1 + np.tanh(math.sqrt(2 / math.pi) * (Z + 0.044715 * Z**3))),
}
OUTPUT = {
    "identity": lambda Z: Z,
    "sigmoid": lambda Z: 1 / (1 + np.exp(-Z)),
    "softmax": lambda Z: np.exp(Z) / np.exp(Z).sum(axis=1, keepdims=True),
    "exp": np.exp,
}


def features(n_samples=7, n_features=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n_samples, n_features))


def formula(net, X):
    """Return the outputs from the textbook formulas, one layer after the other, in float64."""
    A = np.asarray(X, dtype=np.float64)
    names = [*net.hidden, net.output]
    tables = [HIDDEN] * len(net.hidden) + [OUTPUT]
    for W, b, name, table in zip(net.weights, net.biases, names, tables, strict=True):
        A = table[name](A @ to_host(W).astype(np.float64) + to_host(b))
    return A


def with_biases(net, seed=1):
    """Give a network biases that are not zero, so that formulas have to use them."""
    rng = np.random.default_rng(seed)
    net.set_parameters(
        [to_host(W) for W in net.weights], [rng.normal(size=b.shape) for b in net.biases]
    )
    return net


def two_networks_are_one(first, second):
    assert type(first) is type(second)
    assert repr(first) == repr(second)
    assert first.dropout == second.dropout
    assert (first.feature_names, first.class_names) == (second.feature_names, second.class_names)
    np.testing.assert_array_equal(to_host(first.parameters), to_host(second.parameters))
    for name in ("standardization", "target_standardization"):
        mine, other = getattr(first, name), getattr(second, name)
        assert (mine is None) == (other is None)
        if mine is not None:
            np.testing.assert_array_equal(to_host(mine.mean), to_host(other.mean))
            np.testing.assert_array_equal(to_host(mine.scale), to_host(other.scale))


def full_network(device="cpu", dtype="float64"):
    """Return a network that uses everything a network can hold."""
    net = with_biases(
        nb.Network(
            [3, 5, 4, 2],
            hidden=["tanh", "relu"],
            output="identity",
            dropout=[0.25, 0.0],
            dtype=dtype,
            device=device,
            seed=3,
        )
    )
    net.standardize(features(), 100 + 10 * features(n_features=2))
    net.feature_names, net.class_names = ("a", "b", "c"), ("low", "high")
    return net


# The flat vector and its views


@on_each_device
def test_parameters_are_the_layers_weights_and_biases_in_one_vector(device):
    net = with_biases(nb.Network([3, 4, 2], output="identity", dtype="float64", device=device))
    expected = [
        part.reshape(-1)
        for W, b in zip(net.weights, net.biases, strict=True)
        for part in (to_host(W), to_host(b))
    ]
    assert net.n_parameters == 3 * 4 + 4 + 4 * 2 + 2
    assert net.parameters.shape == (net.n_parameters,)
    np.testing.assert_array_equal(to_host(net.parameters), np.concatenate(expected))


@on_each_device
def test_weights_are_n_in_by_n_out_and_live_on_the_network_device(device):
    net = nb.Network([3, 4, 2], device=device)
    assert [W.shape for W in net.weights] == [(3, 4), (4, 2)]
    assert [b.shape for b in net.biases] == [(4,), (2,)]
    for x in (net.parameters, *net.weights, *net.biases):
        assert device_of(x) == get_device(device)
        assert x.dtype == np.float32


@on_each_device
def test_changing_a_view_changes_the_network(device):
    net = nb.Network([3, 4, 2], output="identity", dtype="float64", device=device)
    X = features()
    net.weights[1][...] = 0
    net.biases[1][...] = 7
    np.testing.assert_array_equal(net.forward(X), np.full((7, 2), 7.0))
    assert float(net.parameters[-1]) == 7
    net.parameters[...] = 0
    np.testing.assert_array_equal(net.forward(X), np.zeros((7, 2)))
    assert float(abs(net.weights[0]).max()) == 0


@on_each_device
def test_set_parameters_copies_values_and_keeps_the_views(device):
    net = nb.Network([3, 4, 2], dtype="float64", device=device)
    W, b = net.weights[0], net.biases[1]
    weights = [features(3, 4), features(4, 2)]
    biases = [[1.0, 2.0, 3.0, 4.0], np.asarray([5, 6])]
    net.set_parameters(weights, biases)
    np.testing.assert_array_equal(to_host(W), weights[0])
    np.testing.assert_array_equal(to_host(b), [5.0, 6.0])
    weights[0][...] = 0
    assert float(abs(W).max()) > 0, "the caller's array is not the network's memory"


def test_set_parameters_takes_the_network_own_views_in_any_order():
    net = nb.Network([2, 2, 2], dtype="float64", initializer="normal")
    first, second = (np.array(W) for W in net.weights)
    net.set_parameters(net.weights[::-1], net.biases)
    np.testing.assert_array_equal(net.weights[0], second)
    np.testing.assert_array_equal(net.weights[1], first)


@on_each_device
def test_training_keeps_the_views(device):
    net = nb.Network([3, 4, 1], device=device)
    flat, W = net.parameters, net.weights[0]
    before = to_host(W)
    nb.train(net, features(), [0, 1, 0, 1, 0, 1, 1], epochs=1)
    assert net.parameters is flat
    assert (to_host(W) != before).any()


def test_changing_the_returned_list_does_not_change_the_network():
    net = nb.Network([3, 4, 1])
    before = np.array(net.parameters)
    net.weights[0] = np.zeros((3, 4))
    net.layer_sizes[0] = 99
    np.testing.assert_array_equal(net.parameters, before)
    assert net.layer_sizes == [3, 4, 1]


# Initial parameters


@pytest.mark.parametrize(
    ("hidden", "initializer"),
    [
        ("relu", "he_normal"),
        ("leaky_relu", "he_normal"),
        ("elu", "he_normal"),
        ("softplus", "he_normal"),
        ("silu", "he_normal"),
        ("gelu", "he_normal"),
        ("tanh", "glorot_uniform"),
        ("sigmoid", "glorot_uniform"),
        ("logistic", "glorot_uniform"),
        ("identity", "glorot_uniform"),
    ],
)
def test_each_activation_has_its_default_initializer_and_the_output_layer_glorot(
    hidden, initializer
):
    net = nb.Network([30, 20, 10], hidden=hidden, dtype="float64", seed=5)
    rng = np.random.default_rng(5)
    if initializer == "he_normal":
        first = np.sqrt(2 / 30) * rng.standard_normal((30, 20))
    else:
        first = rng.uniform(-np.sqrt(6 / 50), np.sqrt(6 / 50), (30, 20))
    last = rng.uniform(-np.sqrt(6 / 30), np.sqrt(6 / 30), (20, 10))
    # The order of the factors under a root may differ in the last bit.
    np.testing.assert_allclose(net.weights[0], first, rtol=1e-14)
    np.testing.assert_allclose(net.weights[1], last, rtol=1e-14)
    assert not net.biases[0].any()
    assert not net.biases[1].any()


def test_a_named_initializer_is_that_of_every_layer():
    net = nb.Network([30, 20, 10], initializer="zeros")
    assert not net.parameters.any()
    net = nb.Network([30, 20, 10], initializer="orthogonal", dtype="float64")
    for W in net.weights:
        # Orthonormal up to the rounding of a QR factorization of 30 rows.
        np.testing.assert_allclose(W.T @ W, np.eye(W.shape[1]), atol=1e-13)


@on_each_device
def test_one_seed_gives_the_same_weights_in_both_dtypes_up_to_rounding(device):
    double = nb.Network([5, 6, 3], dtype="float64", device=device, seed=11)
    single = nb.Network([5, 6, 3], dtype="float32", device=device, seed=11)
    rounded = to_host(double.parameters).astype(np.float32)
    np.testing.assert_array_equal(to_host(single.parameters), rounded)


def test_seeds_decide_the_weights():
    def draw(seed):
        return np.array(nb.Network([5, 6, 3], seed=seed).parameters)

    np.testing.assert_array_equal(draw(1), draw(1))
    np.testing.assert_array_equal(draw(np.random.default_rng(1)), draw(1))
    np.testing.assert_array_equal(draw(np.int64(1)), draw(1))
    assert (draw(1) != draw(2)).any()
    assert (draw(None) != draw(None)).any()


def test_a_generator_is_drawn_on_from_network_to_network():
    rng = np.random.default_rng(1)
    first, second = nb.Network([5, 3], seed=rng), nb.Network([5, 3], seed=rng)
    assert (first.parameters != second.parameters).any()


# What it computes


@on_each_device
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("hidden", sorted(HIDDEN))
def test_forward_is_the_formula_for_each_hidden_activation(hidden, dtype, device):
    net = with_biases(nb.Network([3, 5, 4, 2], hidden=hidden, dtype=dtype, device=device))
    A = net.forward(features())
    assert A.dtype == dtype
    np.testing.assert_allclose(A, formula(net, features()), rtol=TIGHT[dtype], atol=TIGHT[dtype])


@on_each_device
@pytest.mark.parametrize("sizes", [[3, 1], [3, 3], [3, 4, 1], [3, 4, 3]])
@pytest.mark.parametrize("output", sorted(OUTPUT))
def test_forward_is_the_formula_for_each_output(output, sizes, device):
    net = with_biases(nb.Network(sizes, output=output, dtype="float64", device=device))
    A = net.forward(features())
    assert A.shape == (7, sizes[-1])
    np.testing.assert_allclose(A, formula(net, features()), rtol=1e-12)


@on_each_device
def test_gradients_of_the_two_layer_network_are_the_textbook_ones(device):
    net = with_biases(nb.Network([3, 5, 1], hidden="tanh", dtype="float64", device=device))
    X, y = features(), np.asarray([0, 1, 1, 0, 1, 0, 0])
    loss, gradients = net.loss_and_gradients(X, y)
    (W1, W2), (b1, b2) = map(to_host, net.weights), map(to_host, net.biases)
    a1 = np.tanh(X @ W1 + b1)
    a2 = 1 / (1 + np.exp(-(a1 @ W2 + b2)))
    dz2 = (a2 - y[:, None]) / 7
    dz1 = (dz2 @ W2.T) * (1 - a1**2)
    expected = -np.mean(y * np.log(a2[:, 0]) + (1 - y) * np.log(1 - a2[:, 0]))
    assert loss.shape == ()
    np.testing.assert_allclose(to_host(loss), expected, rtol=1e-13)
    # atol: the terms of a sum over 7 examples may cancel.
    for found, term in zip(gradients.weights, (X.T @ dz1, a1.T @ dz2), strict=True):
        np.testing.assert_allclose(to_host(found), term, rtol=1e-12, atol=1e-15)
    for found, term in zip(gradients.biases, (dz1.sum(0), dz2.sum(0)), strict=True):
        np.testing.assert_allclose(to_host(found), term, rtol=1e-12, atol=1e-15)


@on_each_device
@pytest.mark.parametrize(
    ("output", "n_outputs"),
    [(output, n) for output in sorted(OUTPUT) for n in (1, 3) if (output, n) != ("softmax", 1)],
)
def test_gradients_agree_with_central_differences_for_each_output(output, n_outputs, device):
    net = with_biases(nb.Network([3, 4, n_outputs], hidden="tanh", output=output, device=device))
    y = np.random.default_rng(0).integers(0, 2, (7, n_outputs))
    if output == "softmax":
        y = np.arange(7) % 3
    # A float64 central difference of step 1e-5 is right to about 1e-10.
    assert nb.check_gradients(net, features(), y, l2=0.1).relative_error < 1e-8


def test_a_softmax_of_one_class_is_certain_and_learns_nothing():
    net = with_biases(nb.Network([3, 4, 1], output="softmax"))
    loss, gradients = net.loss_and_gradients(features(), np.zeros(7, dtype=int))
    assert loss == 0
    assert not any(g.any() for g in (*gradients.weights, *gradients.biases))


@pytest.mark.parametrize("dropout", [0.5, [0.5, 0.0]])
def test_dropout_is_for_training_alone(dropout):
    kept = nb.Network([3, 50, 50, 2], dropout=dropout)
    plain = nb.Network([3, 50, 50, 2])
    np.testing.assert_array_equal(kept.forward(features()), plain.forward(features()))
    labels = np.zeros((7, 2))
    assert (
        kept.loss_and_gradients(features(), labels)[0]
        == (plain.loss_and_gradients(features(), labels)[0])
    )


# Predictions


@on_each_device
def test_predict_of_a_sigmoid_is_one_where_the_activation_is_above_one_half(device):
    net = nb.Network([1, 1], dtype="float64", device=device)
    net.set_parameters([[[1.0]]], [[0.0]])
    predicted = net.predict([[-1.0], [0.0], [1.0]])
    assert predicted.dtype == np.int64
    np.testing.assert_array_equal(predicted, [0, 0, 1])
    a = 1 / (1 + np.exp(-np.asarray([-1.0, 0.0, 1.0])))
    np.testing.assert_allclose(
        net.predict_proba([[-1.0], [0.0], [1.0]]), np.stack([1 - a, a], axis=1), rtol=1e-15
    )


@on_each_device
@pytest.mark.parametrize(
    ("output", "n_outputs", "shape", "dtype"),
    [
        ("sigmoid", 1, (7,), "int64"),
        ("sigmoid", 3, (7, 3), "int64"),
        ("softmax", 3, (7,), "int64"),
        ("softmax", 2, (7,), "int64"),
        ("identity", 1, (7,), "float32"),
        ("identity", 3, (7, 3), "float32"),
        ("exp", 1, (7,), "float32"),
        ("exp", 3, (7, 3), "float32"),
    ],
)
def test_predict_is_classes_or_values_in_this_shape(output, n_outputs, shape, dtype, device):
    net = with_biases(nb.Network([3, 4, n_outputs], output=output, device=device))
    A, predicted = net.forward(features()), net.predict(features())
    expected = {
        "sigmoid": A > 0.5,
        "softmax": A.argmax(axis=1),
        "identity": A,
        "exp": A,
    }[output]
    assert predicted.shape == shape
    assert predicted.dtype == dtype
    assert isinstance(predicted, np.ndarray)
    np.testing.assert_array_equal(predicted, np.asarray(expected).reshape(shape))


@on_each_device
@pytest.mark.parametrize(
    ("output", "n_outputs", "n_columns"),
    [("sigmoid", 1, 2), ("sigmoid", 3, 3), ("softmax", 3, 3)],
)
def test_predict_proba_has_a_column_per_class(output, n_outputs, n_columns, device):
    net = with_biases(nb.Network([3, 4, n_outputs], output=output, dtype="float64", device=device))
    P = net.predict_proba(features())
    assert P.shape == (7, n_columns)
    np.testing.assert_allclose(P[:, -n_outputs:], net.forward(features()), rtol=1e-15)
    if n_columns != n_outputs or output == "softmax":
        np.testing.assert_allclose(P.sum(axis=1), 1, rtol=1e-15 * n_columns)


@pytest.mark.parametrize("output", ["identity", "exp"])
def test_predict_proba_of_a_regression_points_to_predict(output):
    with pytest.raises(InputError, match=f"predict_proba.*{output}.*use predict"):
        nb.Network([3, 1], output=output).predict_proba(features())


# Copies


@on_each_device
def test_to_its_own_device_is_the_network_itself(device):
    net = nb.Network([3, 4, 1], device=device)
    assert net.to(net.device) is net
    assert net.to(device) is net
    assert net.astype("float32") is net
    assert net.astype(np.float32) is net


@pytest.mark.parametrize(
    "copied",
    [
        pytest.param(lambda net: net.copy(), id="copy"),
        pytest.param(copy.copy, id="copy.copy"),
        pytest.param(copy.deepcopy, id="copy.deepcopy"),
        pytest.param(lambda net: pickle.loads(pickle.dumps(net)), id="pickle"),  # noqa: S301
    ],
)
@on_each_device
def test_a_copy_is_equal_and_has_parameters_of_its_own(copied, device):
    net = full_network(device)
    twin = copied(net)
    two_networks_are_one(net, twin)
    np.testing.assert_array_equal(net.predict(features()), twin.predict(features()))
    before = to_host(net.parameters)
    twin.parameters[...] = 0
    assert float(abs(twin.weights[0]).max()) == 0, "its views are views of its own vector"
    np.testing.assert_array_equal(to_host(net.parameters), before)


@pytest.mark.parametrize("output", sorted(OUTPUT))
def test_a_network_with_each_output_can_be_pickled(output):
    net = nb.Network([3, 4, 2], output=output)
    two_networks_are_one(pickle.loads(pickle.dumps(net)), net)  # noqa: S301


def test_astype_converts_parameters_and_keeps_everything_else():
    net = full_network(dtype="float64")
    single = net.astype("float32")
    assert (single.dtype, single.parameters.dtype) == ("float32", np.float32)
    assert single.standardization.mean.dtype == np.float64
    np.testing.assert_array_equal(single.parameters, net.parameters.astype(np.float32))
    back = single.astype("float64")
    np.testing.assert_array_equal(back.parameters, single.parameters)
    assert (back.feature_names, back.dropout) == (net.feature_names, net.dropout)
    assert back.predict(features()).dtype == np.float64


@needs_cuda
def test_a_network_goes_to_the_gpu_and_comes_back_unchanged():
    net = full_network()
    there = net.to("cuda")
    assert there.device == "cuda:0"
    assert device_of(there.parameters) == get_device("cuda")
    two_networks_are_one(there.to("cpu"), net)
    # Sums of 3 to 5 float64 products in another order.
    np.testing.assert_allclose(there.predict(features()), net.predict(features()), rtol=1e-12)


@needs_cuda
def test_cupy_in_gives_cupy_out_on_the_same_device():
    import cupy

    net = full_network("cuda")
    X = cupy.asarray(features())
    for result in (net.forward(X), net.predict(X)):
        assert device_of(result) == get_device("cuda")
    np.testing.assert_array_equal(to_host(net.predict(X)), net.predict(features()))
    loss, gradients = net.loss_and_gradients(X, cupy.zeros((7, 2)))
    for result in (loss, *gradients.weights, *gradients.biases):
        assert device_of(result) == get_device("cuda")


# Standardization


@on_each_device
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_standardize_is_x_minus_mean_over_deviation_before_the_first_layer(dtype, device):
    X = 50 + 20 * features(40)
    net = with_biases(nb.Network([3, 4, 2], dtype=dtype, device=device))
    plain = net.copy()
    assert net.standardize(X) is net
    Z = (X - X.mean(axis=0)) / X.std(axis=0)
    np.testing.assert_allclose(to_host(net.standardization.mean), X.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(to_host(net.standardization.scale), X.std(axis=0), rtol=1e-13)
    assert net.standardization.mean.dtype == np.float64
    np.testing.assert_allclose(net.forward(X), plain.forward(Z), rtol=TIGHT[dtype])
    assert net.forward(X).dtype == dtype


@on_each_device
def test_standardized_targets_are_learnt_in_their_units_and_predicted_in_the_callers(device):
    X, y = features(40), 1000 + 50 * features(40, 2, seed=1)
    net = nb.Network([3, 4, 2], output="identity", dtype="float64", device=device)
    plain = net.copy()
    net.standardize(X, y)
    Z = (X - X.mean(axis=0)) / X.std(axis=0)
    T = (y - y.mean(axis=0)) / y.std(axis=0)
    np.testing.assert_allclose(
        net.predict(X), plain.predict(Z) * y.std(axis=0) + y.mean(axis=0), rtol=1e-12
    )
    loss, gradients = net.loss_and_gradients(X, y)
    expected_loss, expected = plain.loss_and_gradients(Z, T)
    np.testing.assert_allclose(to_host(loss), to_host(expected_loss), rtol=1e-11)
    np.testing.assert_allclose(
        to_host(gradients.weights[0]), to_host(expected.weights[0]), rtol=1e-9, atol=1e-13
    )


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -123456.789, 1e30, 1e-30])
def test_a_constant_column_is_moved_to_zero_and_not_scaled(value):
    X = features(50)
    X[:, 1] = value
    net = nb.Network([3, 1], dtype="float64").standardize(X)
    assert net.standardization.scale[1] == 1
    assert not net.preparation.features(X)[:, 1].any()
    assert np.isfinite(net.forward(X)).all()


def test_a_constant_target_is_predicted_as_it_is():
    y = np.full(7, 12.5)
    net = nb.Network([3, 1], output="identity", initializer="zeros").standardize(features(), y)
    np.testing.assert_array_equal(net.predict(features()), y)


@on_each_device
def test_a_huge_offset_costs_float32_data_no_precision(device):
    # float32 numbers near 1e6 are 1/16 apart: the noise is exact in the data, and a float32 mean or
    # difference of squares would lose it.
    noise = np.random.default_rng(0).integers(-16, 17, (400, 3)) / 16
    X = (1e6 + noise).astype(np.float32)
    net = nb.Network([3, 1], device=device).standardize(X)
    expected = (noise - noise.mean(axis=0)) / noise.std(axis=0)
    np.testing.assert_allclose(to_host(net.standardization.mean) - 1e6, noise.mean(0), atol=1e-9)
    np.testing.assert_allclose(to_host(net.standardization.scale), noise.std(axis=0), rtol=1e-8)
    # What reaches the layers is rounded to float32 once.
    np.testing.assert_allclose(to_host(net.preparation.features(X)), expected, rtol=1e-6, atol=1e-6)


def test_columns_too_large_to_square_are_standardized_or_refused():
    X = 1e200 * features()
    net = nb.Network([3, 1], dtype="float64")
    try:
        net.standardize(X)
    except InputError as error:
        assert str(error).startswith("X:")  # noqa: PT017
        assert net.standardization is None
    else:
        expected = (features() - features().mean(0)) / features().std(0)
        np.testing.assert_allclose(net.preparation.features(X), expected, rtol=1e-12)


def test_standardize_again_replaces_what_was_there():
    net = nb.Network([3, 1], output="identity", dtype="float64")
    net.standardize(features(), np.arange(7.0))
    net.standardize(100 + features())
    assert net.target_standardization is None
    np.testing.assert_allclose(net.standardization.mean, 100 + features().mean(0), rtol=1e-14)


@pytest.mark.parametrize(
    ("output", "X", "y", "message"),
    [
        ("sigmoid", features(), np.zeros(7), "y: .*identity.*sigmoid"),
        ("identity", features(), np.zeros(6), "y: .*7"),
        ("identity", features(), np.full(7, np.nan), "y: .*nan"),
        ("identity", features(7, 2), None, "X: .*3 features"),
        ("identity", np.full((7, 3), np.inf), None, "X: .*inf"),
    ],
)
def test_standardize_refuses_bad_data_and_changes_nothing(output, X, y, message):
    net = nb.Network([3, 1], output=output)
    with pytest.raises(InputError, match=message):
        net.standardize(X, y)
    assert net.standardization is None
    assert net.target_standardization is None


# What is taken, and what comes back


class Frame:
    """What a data frame is to NumPy: something with ``__array__``."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype=dtype, copy=copy)


def read_only(X):
    X = X.copy()
    X.flags.writeable = False
    return X


LAYOUTS = {
    "list": lambda X: X.tolist(),
    "tuple of lists": lambda X: tuple(X.tolist()),
    "list of arrays": list,
    "data frame": Frame,
    "read-only": read_only,
    "Fortran order": np.asfortranarray,
    "every second row": lambda X: np.repeat(X, 2, axis=0)[::2],
    "every second column": lambda X: np.repeat(X, 2, axis=1)[:, ::2],
    "reversed": lambda X: X[::-1, ::-1].copy()[::-1, ::-1],
    "big-endian": lambda X: X.astype(">f8"),
    "unaligned": lambda X: (
        np.frombuffer(b"x" + X.tobytes(), np.uint8)[1:].view("f8").reshape(X.shape)
    ),
    "masked array with nothing masked": np.ma.masked_array,
}


@on_each_device
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_the_layout_of_the_data_makes_no_difference(layout, device):
    X, y = features(20), np.arange(20) % 2
    given = LAYOUTS[layout](X)
    nets = [nb.Network([3, 4, 1], dtype="float64", device=device) for _ in range(2)]
    histories = [
        nb.train(net, data, y, epochs=2, batch_size=8)
        for net, data in zip(nets, (X, given), strict=True)
    ]
    results = [net.forward(data) for net, data in zip(nets, (X, given), strict=True)]
    assert type(results[1]) is np.ndarray
    # BLAS may sum the products of a transposed or strided matrix in another order.
    np.testing.assert_allclose(results[1], results[0], rtol=1e-12)
    np.testing.assert_allclose(histories[1].loss, histories[0].loss, rtol=1e-12)


@on_each_device
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "data_dtype", ["float16", "float32", "float64", "int8", "int64", "uint8", "bool"]
)
def test_results_have_the_network_dtype_whatever_the_data_has(data_dtype, dtype, device):
    X = np.random.default_rng(0).integers(0, 2, (7, 3)).astype(data_dtype)
    net = nb.Network([3, 4, 2], dtype=dtype, device=device)
    plain = net.forward(X)
    assert plain.dtype == dtype
    np.testing.assert_array_equal(plain, net.forward(X.astype(np.float64)))
    net.standardize(X)
    assert net.forward(X).dtype == dtype
    loss, gradients = net.loss_and_gradients(X, np.zeros((7, 2)))
    assert {str(g.dtype) for g in (loss, *gradients.weights, *gradients.biases)} == {dtype}


@on_each_device
def test_one_row_is_predicted_as_it_is_among_others(device):
    net = with_biases(nb.Network([3, 4, 2], dtype="float64", device=device))
    # A product with one row may take another path through BLAS than one with seven.
    np.testing.assert_allclose(
        net.forward(features()[2:3]), net.forward(features())[2:3], rtol=1e-13
    )


# Describing itself


def test_attributes_and_repr_say_what_the_network_is():
    net = nb.Network(np.asarray([3, 5, 4, 2]), hidden=["tanh", "relu"], dropout=[0.5, 0], seed=None)
    assert net.layer_sizes == [3, 5, 4, 2]
    assert all(type(size) is int for size in net.layer_sizes)
    assert (net.hidden, net.output, net.dropout) == (("tanh", "relu"), "sigmoid", (0.5, 0.0))
    assert (net.dtype, net.device) == ("float32", "cpu")
    assert repr(net) == (
        "Network([3, 5, 4, 2], hidden=('tanh', 'relu'), output='sigmoid', dropout=(0.5, 0.0), "
        "dtype='float32', device='cpu')"
    )
    assert repr(nb.Network([2, 1])) == (
        "Network([2, 1], output='sigmoid', dtype='float32', device='cpu')"
    )


def test_a_registered_activation_is_used_by_name_and_by_entry():
    from nnbackend.core.activations import ACTIVATIONS

    entry = nb.register_activation(
        "cubic", lambda _xp, Z: Z * Z * Z, lambda _xp, Z, _A: 3 * Z * Z, initializer="lecun_normal"
    )
    try:
        named = nb.Network([3, 4, 1], hidden="cubic", dtype="float64")
        given = nb.Network([3, 4, 1], hidden=entry, dtype="float64")
        two_networks_are_one(named, given)
        A = 1 / (1 + np.exp(-((features() @ named.weights[0]) ** 3 @ named.weights[1])))
        np.testing.assert_allclose(named.forward(features()), A, rtol=1e-12)
        first = np.sqrt(1 / 3) * np.random.default_rng(0).standard_normal((3, 4))
        np.testing.assert_allclose(named.weights[0], first, rtol=1e-14)
        assert nb.check_gradients(named, features(), np.arange(7) % 2).relative_error < 1e-8
    finally:
        del ACTIVATIONS["cubic"]


class Frame:
    """What the library asks of a data frame."""

    def __init__(self, columns):
        self._columns = columns
        self.columns = list(columns)

    def __getitem__(self, names):
        return Frame({name: self._columns[name] for name in names})

    def __array__(self, dtype=None, copy=None):
        return np.column_stack(list(self._columns.values())).astype(dtype or float)


def test_a_data_frame_is_read_by_name_once_the_network_knows_its_columns():
    X = features()
    frame = Frame({"a": X[:, 0], "b": X[:, 1], "c": X[:, 2]})
    net = nb.Network([3, 4, 1]).standardize(frame)
    assert net.feature_names == ("a", "b", "c")
    turned = frame[["c", "a", "b"]]
    np.testing.assert_array_equal(net.forward(turned), net.forward(X))
    with pytest.raises(InputError, match=r"X: .*the column 'b' is missing"):
        net.forward(frame[["a", "c"]])


def test_training_on_a_data_frame_learns_its_column_names():
    X = features()
    net = nb.Network([3, 4, 1])
    nb.train(net, Frame(dict(zip("abc", X.T, strict=True))), np.arange(len(X)) % 2, epochs=1)
    assert net.feature_names == ("a", "b", "c")


def test_predictions_in_blocks_of_rows_are_those_of_all_rows(monkeypatch):
    net = nb.Network([5, 40, 3], output="softmax", dtype="float64")
    X = np.random.default_rng(0).standard_normal((700, 5))
    at_once = net.forward(X)
    monkeypatch.setattr(
        "nnbackend.model.network.CACHED_ELEMENTS", 0
    )  # 256 rows, the last block 188
    np.testing.assert_allclose(net.forward(X), at_once, rtol=1e-14)


@pytest.mark.parametrize("output", ["sigmoid", "softmax"])
@pytest.mark.parametrize("n_outputs", [1, 3])
def test_outputs_that_are_nan_are_no_class(output, n_outputs):
    if (output, n_outputs) == ("softmax", 1):
        n_outputs = 2
    # Two infinite units, one of which is taken from the other.
    weights = [np.full((1, 2), 1e38), np.outer([1.0, -1.0], np.ones(n_outputs))]
    biases = [np.zeros(2), np.zeros(n_outputs)]
    net = nb.Network([1, 2, n_outputs], output=output)
    net.set_parameters(weights, biases)
    X = [[1.0], [1e5], [1.0], [1e6]]
    assert np.isnan(net.forward(X)).all(axis=1).tolist() == [False, True, False, True]
    with pytest.raises(InputError, match=r"X: expected features .* NaN as the output of row 1"):
        net.predict(X)
    assert len(net.predict(X[:1])) == 1
    # Values say themselves that they are none.
    values = nb.Network([1, 2, n_outputs], output="identity")
    values.set_parameters(weights, biases)
    assert np.isnan(values.predict(X)[1]).all()
