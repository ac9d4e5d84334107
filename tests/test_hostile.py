"""Numbers at the edges: finite results that equal the formula, or one clear error, no warning."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import nnbackend as nb
from nnbackend.core.activations import ACTIVATIONS, OUTPUTS
from nnbackend.core.losses import LOSSES
from nnbackend.core.optimizers import OPTIMIZERS
from nnbackend.errors import InputError
from nnbackend.training.errors import DivergenceError

BUILT_IN = ("identity", "sigmoid", "tanh", "relu", "leaky_relu", "elu", "softplus", "silu", "gelu")
RATES = (5e-324, 1e-300, 1e-3, 1.0, 1e300)
LONG = np.longdouble
# Subnormal, tiny, ordinary, huge; of both signs.
MAGNITUDES = (0.0, 5e-324, 1e-310, 1e-200, 1e-38, 1e-3, 1.0, 700.0, 1e4, 1e38, 1e150, 1e300)
EXTREME = st.sampled_from(MAGNITUDES) | st.floats(0, 1.7e308)
SIGNED = st.builds(math.copysign, EXTREME, st.sampled_from((1.0, -1.0)))


def finite_or_refused(call):
    """Return what a call returns, or None where it raises an error of one line."""
    try:
        return call()
    except ValueError as error:  # InputError, or scikit-learn's own of what is not finite
        said = str(error)
    assert "\n" not in said
    return None


def exactly_equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


# Activations and losses: the formula in extended precision


def stable_sigmoid(Z):
    E = np.exp(-abs(Z))
    return np.where(Z >= 0, 1, E) / (1 + E)


FORMULAS = {
    "identity": lambda Z: (Z, np.ones_like(Z)),
    "sigmoid": lambda Z: (stable_sigmoid(Z), stable_sigmoid(Z) * stable_sigmoid(-Z)),
    "tanh": lambda Z: (np.tanh(Z), 1 - np.tanh(Z) ** 2),
    "relu": lambda Z: (np.where(Z > 0, Z, 0), np.where(Z > 0, 1, 0)),
    "leaky_relu": lambda Z: (np.where(Z > 0, Z, LONG(0.01) * Z), np.where(Z > 0, 1, LONG(0.01))),
    "elu": lambda Z: (np.where(Z > 0, Z, np.expm1(np.minimum(Z, 0))), np.exp(np.minimum(Z, 0))),
    "softplus": lambda Z: (np.logaddexp(0, Z), stable_sigmoid(Z)),
    "silu": lambda Z: (
        Z * stable_sigmoid(Z),
        stable_sigmoid(Z) + Z * stable_sigmoid(Z) * stable_sigmoid(-Z),
    ),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_activations_are_finite_and_right_at_any_magnitude(name, dtype):
    limits = np.finfo(dtype)
    largest = float(limits.max) / 4
    sizes = np.asarray([*(z for z in MAGNITUDES if z < largest), largest], dtype)
    Z = np.concatenate([-sizes[::-1], sizes])
    entry = ACTIVATIONS[name]
    A = entry.function(np, Z)
    slope = entry.derivative(np, Z, A)
    with np.errstate(all="ignore"):  # of the formula, in its tails
        value, derivative = FORMULAS[name](Z.astype(LONG))
    assert A.dtype == slope.dtype == dtype
    # A result below the smallest normal number keeps an absolute error of that size.
    assert np.allclose(A, value, rtol=16 * limits.eps, atol=2 * limits.tiny)
    # 1 - A^2 and A (1 - A) lose the digits that A does not have: an absolute error.
    assert np.allclose(slope, derivative, rtol=16 * limits.eps, atol=4 * limits.eps)


def test_gelu_is_finite_at_any_magnitude(torch):
    Z = np.asarray([sign * z for z in MAGNITUDES for sign in (1, -1)])
    entry = ACTIVATIONS["gelu"]
    A = entry.function(np, Z)
    slope = entry.derivative(np, Z, A)
    assert np.isfinite(slope).all()
    moderate = abs(Z) < 1e4
    given = torch.tensor(Z[moderate], requires_grad=True)
    oracle = torch.nn.functional.gelu(given, approximate="tanh")
    oracle.sum().backward()
    assert np.allclose(A[moderate], oracle.detach().numpy(), rtol=1e-12, atol=1e-15)
    assert np.allclose(slope[moderate], given.grad.numpy(), rtol=1e-12, atol=1e-12)
    assert np.array_equal(A[~moderate], np.maximum(Z[~moderate], 0))
    assert np.array_equal(slope[~moderate], Z[~moderate] > 0)


@given(logit=SIGNED.filter(lambda z: abs(z) < 1e300), label=st.integers(0, 1))
@example(logit=1e300, label=0)
@example(logit=-745.0, label=1)
def test_binary_cross_entropy_equals_the_formula_at_any_logit(logit, label):
    J, dZ = LOSSES["binary_cross_entropy"]().value_and_gradient(
        np, np.asarray([[logit]]), np.asarray([[float(label)]])
    )
    z = LONG(logit)
    with np.errstate(all="ignore"):
        expected = np.logaddexp(0, z if label == 0 else -z)
        slope = -stable_sigmoid(-z) if label else stable_sigmoid(z)
    assert np.isclose(float(J), float(expected), rtol=1e-14, atol=1e-307)
    assert np.isclose(dZ[0, 0], float(slope), rtol=1e-14, atol=2e-16)


@given(st.lists(SIGNED.filter(lambda z: abs(z) < 1e300), min_size=2, max_size=5))
@example([1e300, -1e299])
@example([0.0, -800.0])
def test_softmax_cross_entropy_equals_the_formula_at_any_logits(logits):
    Z = np.asarray([logits])
    J, dZ = LOSSES["softmax_cross_entropy"]().value_and_gradient(np, Z, np.asarray([0]))
    z = Z.astype(LONG)
    with np.errstate(all="ignore"):
        shifted = z - z.max()
        log_sum = np.log(np.exp(shifted).sum())
        expected, p = log_sum - shifted[0, 0], np.exp(shifted - log_sum)
    p[0, 0] -= 1
    assert np.isclose(float(J), float(expected), rtol=1e-13, atol=1e-15)
    assert np.allclose(dZ, p.astype(float), rtol=1e-13, atol=4e-16)


# Standardization


@settings(max_examples=80)
@given(
    st.lists(SIGNED, min_size=1, max_size=6),
    st.sampled_from([np.float64, np.float32]),
)
@example([1e308, -1e308], np.float64)
@example([1e300, 1e300, 1e300], np.float64)
def test_standardized_columns_have_mean_0_and_deviation_1(values, dtype):
    with np.errstate(over="ignore"):
        column = np.asarray(values, dtype)
    if not np.isfinite(column).all():
        return
    magnitude = float(np.abs(column).max())
    if 0 < magnitude < 1e-290:
        return  # see the test of subnormal columns
    net = nb.Network([1, 1], output="identity", dtype="float64").standardize(column[:, None])
    mean, scale = (float(x[0]) for x in net.standardization)
    assert math.isfinite(mean)
    assert 0 < scale < math.inf
    exact = column.astype(LONG)
    assert abs(mean - float(exact.mean())) <= 1e-14 * magnitude
    deviation = exact.std()
    if deviation > 1e-10 * magnitude:
        assert math.isclose(scale, float(deviation), rel_tol=1e-5)
    standardized = net.preparation.features(column[:, None])
    assert np.isfinite(standardized).all()
    assert abs(standardized).max() <= max(1.0, magnitude) * len(values)


@pytest.mark.parametrize("value", [0.0, 1.0, -3e-5, 1e300, 1e16 + 2])
def test_a_constant_column_is_shifted_and_not_scaled(value):
    X = np.full((7, 1), value)
    net = nb.Network([1, 1], output="identity", dtype="float64").standardize(X)
    assert net.standardization.scale.tolist() == [1.0]
    assert abs(net.preparation.features(X)).max() <= abs(value) * 1e-15


# Data of every kind


DTYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16",
          "float32", "float64", "bool")  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_features_and_labels_of_every_dtype_train_alike(dtype):
    X = np.asarray([[0, 1], [1, 1], [1, 0], [0, 0]])
    y = np.asarray([0, 1, 1, 0])
    expected, given_net = (nb.Network([2, 3, 1], hidden="tanh") for _ in range(2))
    nb.train(expected, X.astype("float64"), y, epochs=3, batch_size=2)
    nb.train(given_net, X.astype(dtype), y.astype(dtype), epochs=3, batch_size=2)
    assert np.array_equal(given_net.parameters, expected.parameters)
    assert np.array_equal(given_net.forward(X.astype(dtype)), expected.forward(X))


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_the_largest_integers_are_taken_as_floats(dtype):
    limits = np.iinfo(dtype)
    X = np.asarray([[limits.min], [limits.max], [0]], dtype)
    net = nb.Network([1, 1], output="identity", dtype="float64").standardize(X)
    assert np.allclose(net.preparation.features(X).std(), 1)


LAYOUTS = {
    "Fortran order": np.asfortranarray,
    "negative strides": lambda x: np.ascontiguousarray(x[::-1])[::-1],
    "every second": lambda x: np.repeat(x, 2, axis=0)[::2],
    "broadcast": lambda x: np.broadcast_to(x[:1], x.shape),
    "read-only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    "other byte order": lambda x: x.astype(x.dtype.newbyteorder()),
    "unaligned": lambda x: (
        np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(x.dtype).reshape(x.shape)
    ),
}


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_the_layout_of_arrays_in_memory_is_no_matter_and_they_stay_as_they_are(layout):
    rng = np.random.default_rng(0)
    x, targets = rng.normal(size=(6, 3)), rng.normal(size=(6, 2))
    X, y, weight = (
        LAYOUTS[layout](values) for values in (x, targets, np.linspace(1, 2, 6).reshape(6, 1))
    )
    before = X.copy(), y.copy()
    nets = [nb.Network([3, 4, 2], output="identity", dtype="float64") for _ in range(2)]
    plain = [np.array(values, np.float64) for values in (X, y, weight[:, 0])]
    for net, (features, goal, w) in zip(nets, ((X, y, weight[:, 0]), plain), strict=True):
        options = {"sample_weight": w, "epochs": 2, "batch_size": 4, "engine": "reference"}
        nb.train(net, features, goal, **options)
    assert np.allclose(nets[0].parameters, nets[1].parameters, rtol=1e-13)
    assert exactly_equal((X, y), before)


@pytest.mark.parametrize(
    ("X", "y"),
    [
        (np.zeros((0, 2)), np.zeros(0)),
        (np.zeros((3, 0)), np.zeros(3)),
        (np.zeros((2, 2)), np.zeros(0)),
        (np.zeros((2, 2, 0)), np.zeros(2)),
        (np.zeros((3, 2)) + np.nan, np.zeros(3)),
        (np.full((3, 2), 1e39), np.zeros(3)),
        (np.zeros((3, 2)), np.full(3, np.inf)),
        (np.zeros((3, 2)), np.full(3, 0.5)),
        (np.zeros((3, 2), complex), np.zeros(3)),
        (np.zeros((3, 2), object), np.zeros(3)),
        (np.zeros((3, 2), "M8[s]"), np.zeros(3)),
        ([[1, 2], [3]], [0, 1]),
        ([["a", "b"]], [0]),
        ("text", [0]),
        (3.0, [0]),
    ],
    ids=range(15),
)
def test_what_cannot_be_used_is_refused_and_changes_nothing(X, y):
    net = nb.Network([2, 3, 1])
    before = net.parameters.copy()
    for call in (
        lambda: nb.train(net, X, y),
        lambda: net.loss_and_gradients(X, y),
        lambda: nb.train(net, np.zeros((4, 2)), np.zeros(4), validation_data=(X, y)),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert np.array_equal(net.parameters, before)
    assert net.standardization is None


# Training at the edges


@pytest.mark.parametrize("output", ["sigmoid", "softmax", "identity", "exp"])
@pytest.mark.parametrize("batch_size", [1, 1000, None])
def test_one_sample_one_feature_one_row_of_validation(output, batch_size):
    n_outputs = 3 if output == "softmax" else 1
    net = nb.Network([1, 4, n_outputs], output=output)
    history = nb.train(
        net, [[0.5]], [1], epochs=3, batch_size=batch_size, validation_data=([[2.0]], [1])
    )
    assert np.isfinite([history.loss, history.validation_loss]).all()
    assert np.isfinite(net.predict([[0.5]])).all()


@pytest.mark.parametrize("output", ["sigmoid", "softmax"])
def test_a_single_class_is_learnt(output):
    net = nb.Network([2, 2 if output == "softmax" else 1], output=output, initializer="zeros")
    X = np.random.default_rng(0).normal(size=(20, 2))
    history = nb.train(net, X, np.ones(20, int), optimizer=nb.SGD(1.0), epochs=200)
    assert history.loss[-1] < 0.01
    assert net.predict(X).tolist() == [1] * 20


def test_weights_of_zero_but_one_are_training_on_that_example():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(5, 3)), rng.normal(size=5)
    nets = [nb.Network([3, 4, 1], output="identity", dtype="float64") for _ in range(2)]
    for net, rows, weight in ((nets[0], slice(None), [0, 0, 1e-300, 0, 0]), (nets[1], [2], None)):
        nb.train(net, X[rows], y[rows], sample_weight=weight, epochs=4, batch_size=None)
    assert np.allclose(nets[0].parameters, nets[1].parameters, rtol=1e-12)
    # In batches, all but one have no weight, and count for nothing.
    history = nb.train(nets[0], X, y, sample_weight=[0, 0, 1, 0, 0], epochs=2, batch_size=1)
    assert np.isfinite(history.loss).all()


def test_100_000_features(torch):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(3, 100_000))
    net = nb.Network([100_000, 2, 1], hidden="tanh", dtype="float64").standardize(X)
    J, _ = net.loss_and_gradients(X, [0, 1, 1])
    standard = torch.tensor((X - X.mean(0)) / X.std(0))
    hidden = torch.tanh(standard @ torch.tensor(net.weights[0]))
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        hidden @ torch.tensor(net.weights[1]), torch.tensor([[0.0], [1.0], [1.0]]).double()
    )
    assert np.isclose(float(J), float(loss), rtol=1e-10)
    assert np.isfinite(nb.train(net, X, [0, 1, 1], epochs=2).loss).all()


def trained(net, X, y, **options):
    """Train; whatever comes of it, check that the network is finite."""
    try:
        history = nb.train(net, X, y, **options)
    except DivergenceError as error:
        history = error.history
    assert np.isfinite(history.loss).all()
    assert np.isfinite(net.parameters).all()


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_optimizer_trains_or_diverges_at_any_rate_and_scale(optimizer, dtype):
    for rate in RATES:
        for scale in (1e-30, 1.0, 1e30):
            net = nb.Network([2, 3, 1], output="identity", dtype=dtype)
            X = scale * np.asarray([[0.5, 1.0], [-1.0, 0.25], [0.0, 0.0]])
            chosen = OPTIMIZERS[optimizer](learning_rate=rate)
            trained(net, X, [1.0, -2.0, 0.0], optimizer=chosen, epochs=3, engine="reference")


@settings(max_examples=60)
@given(
    hidden=st.sampled_from(BUILT_IN),
    output=st.sampled_from(sorted(set(OUTPUTS) - {"logistic"})),
    loss=st.sampled_from([None, *sorted(LOSSES)]),
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    rate=st.sampled_from(RATES),
    scale=st.sampled_from([1e-45, 1e-10, 1.0, 1e15, 1e38, 1e300]),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_every_combination_trains_diverges_or_is_refused(
    hidden, output, loss, optimizer, rate, scale, dtype
):
    net = nb.Network([2, 3, 2], hidden=hidden, output=output, dtype=dtype)
    before = net.parameters.copy()
    X = scale * np.asarray([[0.5, 1.0], [-1.0, 0.25], [0.0, -0.75]])
    y = np.asarray([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    chosen = OPTIMIZERS[optimizer](learning_rate=rate)
    try:
        trained(net, X, y, loss=loss, optimizer=chosen, epochs=2, engine="reference")
    except InputError:
        assert np.array_equal(net.parameters, before)


# The estimators


@pytest.mark.parametrize(
    ("X", "y"),
    [
        ([[1.0]], [1.0]),
        (np.full((8, 2), 3.0), np.arange(8.0)),
        (1e300 * np.eye(4), [1.0, 2.0, 3.0, 4.0]),
        (5e-324 * np.eye(4), [1.0, 2.0, 3.0, 4.0]),
        (np.eye(4), np.asarray([1e300, -1e300, 0, 1])),
    ],
    ids=["one sample", "constant", "huge features", "subnormal features", "huge targets"],
)
@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_a_regressor_predicts_finite_numbers_or_says_why_not(X, y, solver):
    model = nb.MLPRegressor(
        hidden_layer_sizes=(3,), solver=solver, max_iter=5, random_state=0, tol=0.0
    )
    fitted = finite_or_refused(lambda: fit_quietly(model, X, y))
    if fitted is not None:
        assert np.isfinite(fitted.predict(X)).all()


def fit_quietly(model, X, y):
    import warnings

    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(X, y)
