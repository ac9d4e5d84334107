"""Networks that describe the distribution of one target: mean and deviation, or quantiles."""

from __future__ import annotations

import io
import pickle
from dataclasses import replace

import numpy as np
import pytest
import sklearn
from backends import assert_close, require, require_dispatched
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import norm
from sklearn.base import clone
from sklearn.linear_model import QuantileRegressor
from sklearn.metrics import mean_pinball_loss, r2_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import nnbackend as nb
from nnbackend import losses
from nnbackend.core.distributions import DISTRIBUTIONS, LEVELS, output
from nnbackend.core.losses import loss_function
from nnbackend.core.propagation import restored
from nnbackend.core.standardization import Standardization
from nnbackend.errors import GradientMismatchError, InputError

# A few epochs show what a test asks.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

KINDS = ["gaussian", "quantile"]
SIZE = {"gaussian": 2, "quantile": 3}


def data(n=400, seed=0, offset=0.0, scale=1.0):
    """Return features, and a target whose deviation depends on them."""
    rng = np.random.default_rng(seed)
    X = rng.uniform(-1.0, 1.0, (n, 2))
    y = rng.normal(np.sin(3.0 * X[:, 0]), 0.3 * np.exp(X[:, 1]))
    return X, offset + scale * y


def network(kind, **options):
    size = len(options["quantiles"]) if options.get("quantiles") else SIZE[kind]
    given = {"hidden": "tanh", "dtype": "float64", "output": kind, **options}
    return nb.Network([2, 8, size], **given)


def trained(net, X, y, **options):
    return nb.train(
        net, X, y, **{"epochs": 30, "batch_size": 50, "optimizer": nb.Adam(1e-2), **options}
    )


def mlp(loss, **options):
    chosen = {"hidden_layer_sizes": (16,), "learning_rate_init": 0.01, "random_state": 0}
    return nb.MLPRegressor(loss, **{**chosen, **options})


# The formulas


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_loss_of_quantiles_is_scikit_learns_pinball_loss(dtype):
    rng = np.random.default_rng(0)
    Z, y = rng.normal(size=(50, 4)).astype(dtype), rng.normal(size=(50, 1)).astype(dtype)
    weight = rng.random(50).astype(dtype)
    levels = (0.1, 0.3, 0.5, 0.9)
    value, dZ = losses.Quantile(levels).value_and_gradient(np, Z, y, weight)
    expected = sum(
        mean_pinball_loss(y[:, 0], Z[:, k], sample_weight=weight, alpha=level)
        for k, level in enumerate(levels)
    )
    assert value.dtype == dZ.dtype == dtype
    np.testing.assert_allclose(value, expected, rtol=1e-6 if dtype == "float32" else 1e-14)


@given(
    z=st.floats(-1e4, 1e4, width=32),
    mean=st.floats(-1e4, 1e4, width=32),
    y=st.floats(-1e4, 1e4, width=32),
)
def test_the_gaussian_loss_is_scipys_density_and_finite_for_any_logits(z, mean, y):
    deviation = np.logaddexp(0.0, z) + 1e-4
    for dtype, rtol in (("float32", 1e-4), ("float64", 1e-12)):
        Z = np.asarray([[mean, z]], dtype)
        value, dZ = losses.Gaussian().value_and_gradient(np, Z, np.asarray([[y]], dtype))
        assert np.isfinite(value)
        assert np.isfinite(dZ).all()
        assert dZ.dtype == dtype
        expected = -norm.logpdf(y, mean, deviation)
        np.testing.assert_allclose(value, expected, rtol=rtol, atol=20 * rtol)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_are_central_differences(kind, weighted):
    X, y = data(60)
    net = network(kind).standardize(X, y)
    weight = np.random.default_rng(1).random(60) if weighted else None
    report = nb.check_gradients(net, X, y, sample_weight=weight, l2=0.1)
    assert report.n_compared > 20


def test_a_wrong_derivative_of_a_loss_on_logits_of_a_distribution_is_found():
    class Wrong(losses.Gaussian):
        def elements(self, xp, Z, Y):
            value, slope = super().elements(xp, Z, Y)
            return value, 1.5 * slope

    X, y = data(60)
    with pytest.raises(GradientMismatchError):
        nb.check_gradients(network("gaussian"), X, y, loss=Wrong())


@given(
    rows=arrays(np.float64, (4, 3), elements=st.floats(-50.0, 50.0)),
    mean=st.floats(-100.0, 100.0),
    # Not so small that float32 is too coarse for the mean.
    scale=st.floats(1.0, 100.0),
)
def test_outputs_are_the_same_in_every_library(backend, rows, mean, scale):
    if backend.name == "strict_no_float64":
        pytest.skip("standardization computes in float64")
    for kind in KINDS:
        chosen = DISTRIBUTIONS[kind]
        Z = rows[:, : SIZE[kind]]

        def described(xp, Z, mean, scale, chosen=chosen):
            target = Standardization(*(xp.astype(x, xp.float64) for x in (mean, scale)))
            A = restored(xp, chosen, chosen.function(xp, Z), target)
            return A, chosen.point(A), chosen.interval(xp, A, 0.9)

        A, point, ends = backend.call(described, Z, np.asarray([mean]), np.asarray([scale]))
        z, m, s = backend.exact([Z, np.asarray([mean]), np.asarray([scale])])
        size = (np.abs(z).max() + 1.0) * s[0] + abs(m[0])
        if kind == "gaussian":
            means, deviations = z[:, :1] * s + m, (np.logaddexp(0.0, z[:, 1:]) + 1e-4) * s
            half = norm.ppf(0.95) * deviations
            assert_close(backend, A, np.hstack([means, deviations]), scale=size)
            assert_close(backend, point, means, scale=size)
            assert_close(backend, ends, np.hstack([means - half, means + half]), scale=size)
        else:
            Q = np.sort(z * s + m, axis=1)
            assert_close(backend, A, Q, scale=size)
            assert_close(backend, point, Q[:, 1:2], scale=size)
            assert_close(backend, ends, Q[:, [0, 2]], scale=size)


# Engines


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("kind", "quantiles"),
    [
        ("gaussian", None),
        ("quantile", (0.5,)),
        ("quantile", LEVELS),
        # So many levels have no compiled formula.
        ("quantile", tuple(np.linspace(0.05, 0.95, 13))),
    ],
    ids=["gaussian", "one level", "three levels", "thirteen levels"],
)
@pytest.mark.parametrize("width", [8, 80])
def test_the_native_engine_computes_what_the_reference_does(kind, quantiles, width, dtype):
    X, y = data(150)
    size = len(quantiles) if quantiles else 2
    found = []
    for engine in ("native", "reference"):
        net = nb.Network(
            [2, width, size], hidden="tanh", output=kind, quantiles=quantiles, dtype=dtype
        ).standardize(X, y)
        history = trained(
            net, X, y, epochs=4, batch_size=32, engine=engine, sample_weight=1.0 + X[:, 0] ** 2,
            validation_data=(X[:40], y[:40]),
        )  # fmt: skip
        found.append(np.concatenate([net.parameters, history.loss, history.validation_loss]))
    np.testing.assert_allclose(*found, rtol=0, atol=2e-4 if dtype == "float32" else 1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_the_formulas_run_compiled_without_calls_of_python(kind, monkeypatch):
    X, y = data(100)
    calls = []
    cls = losses.LOSSES[kind]
    elements = cls.elements
    monkeypatch.setattr(cls, "elements", lambda *a: calls.append(0) or elements(*a))
    trained(network(kind), X, y, epochs=5, batch_size=10)
    # Only to record them.
    assert len(calls) < 5


@pytest.mark.parametrize("kind", KINDS)
def test_an_own_loss_on_a_distribution_trains_like_the_packages(kind):
    cls = losses.LOSSES[kind]
    own = type("Own", (cls,), {"name": "own"})
    X, y = data(100)
    nets = [network(kind), network(kind)]
    trained(nets[0], X, y, epochs=3)
    trained(nets[1], X, y, epochs=3, loss=own.of_output(nets[1].structure.output))
    np.testing.assert_allclose(nets[0].parameters, nets[1].parameters, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_networks_trained_together_end_as_they_would_alone(kind):
    X, y = data(120)
    rates = (1e-2, 1e-3, 3e-3)
    alone, together = ([network(kind, seed=k) for k in range(3)] for _ in range(2))
    for nets in (alone, together):
        for net in nets:
            net.standardize(X, y)
    optimizers = [nb.Adam(rate) for rate in rates]
    for net, optimizer in zip(alone, optimizers, strict=True):
        nb.train(net, X, y, optimizer=optimizer, epochs=3, batch_size=32, seed=0)
    nb.train_many(together, X, y, optimizer=optimizers, epochs=3, batch_size=32, seed=0)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one.parameters, other.parameters, rtol=0, atol=1e-12)


def test_leading_axes_are_networks_of_a_stack():
    rng = np.random.default_rng(0)
    Z, y = rng.normal(size=(3, 5, 2)), rng.normal(size=(5, 1))
    for loss in (losses.Gaussian(), losses.Quantile((0.2, 0.9))):
        value, dZ = loss.value_and_gradient(np, Z, y)
        assert value.shape == (3,)
        for k in range(3):
            one, slope = loss.value_and_gradient(np, Z[k], y)
            np.testing.assert_allclose(value[k], one, rtol=1e-15)
            np.testing.assert_array_equal(dZ[k], slope)


# Fits


def test_a_linear_network_converges_to_scikit_learns_quantile_regression():
    X, y = data(200)
    levels = (0.1, 0.5, 0.8)
    net = nb.Network([2, 3], output="quantile", quantiles=levels, dtype="float64")
    steps = nb.schedules.Cosine(0.05)
    nb.train(net, X, y, optimizer=nb.Adam(steps), epochs=3000, batch_size=None)
    Q = X @ net.weights[0] + net.biases[0]
    for k, level in enumerate(levels):
        exact = QuantileRegressor(quantile=level, alpha=0.0).fit(X, y)
        least = mean_pinball_loss(y, exact.predict(X), alpha=level)
        assert mean_pinball_loss(y, Q[:, k], alpha=level) < least * (1 + 1e-3)
        np.testing.assert_allclose(net.weights[0][:, k], exact.coef_, atol=0.05)


def test_a_constant_gaussian_network_converges_to_mean_and_deviation():
    _, y = data(300, offset=50.0, scale=7.0)
    X = np.zeros((300, 2))
    net = nb.Network([2, 2], output="gaussian", dtype="float64").standardize(X, y)
    nb.train(net, X, y, optimizer=nb.Adam(nb.schedules.Cosine(0.05)), epochs=1500)
    np.testing.assert_allclose(net.forward(X[:1])[0], [y.mean(), y.std()], rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (1e6, 1e-3), (-4.0, 1e5)])
def test_intervals_cover_what_they_say_where_the_deviation_changes(kind, offset, scale):
    X, y = data(3000, offset=offset, scale=scale)
    net = network(kind).standardize(X, y)
    trained(net, X, y, epochs=60)
    test, target = data(3000, seed=1, offset=offset, scale=scale)
    lower, upper = net.predict_interval(test, 0.9).T
    inside = (lower < target) & (target < upper)
    for rows in (test[:, 1] < -0.5, test[:, 1] > 0.5):
        assert 0.84 < inside[rows].mean() < 0.95
    width = upper - lower
    expected = 2 * norm.ppf(0.95) * 0.3 * scale * np.exp(test[:, 1])
    assert np.corrcoef(width, expected)[0, 1] > 0.9
    assert r2_score(target, net.predict(test)) > 0.5


def test_a_network_that_fits_exactly_keeps_a_deviation_and_finite_numbers():
    X = np.linspace(-1.0, 1.0, 64)[:, np.newaxis]
    net = nb.Network([1, 2], output="gaussian").standardize(X, 3.0 * X[:, 0])
    history = nb.train(net, X, 3.0 * X[:, 0], optimizer=nb.Adam(0.02), epochs=800, batch_size=16)
    assert np.isfinite(history.loss).all()
    deviation = net.forward(X)[:, 1]
    assert (deviation >= 1e-4 * net.target_standardization.scale).all()
    assert (deviation < 0.2).all()


@pytest.mark.parametrize("engine", ["native", "reference"])
@pytest.mark.parametrize("standardized", [False, True])
@pytest.mark.parametrize("scale", [1e-45, 1e-10, 1.0, 1e15, 1e38])
@pytest.mark.parametrize("kind", KINDS)
def test_data_of_any_size_trains_or_diverges_with_finite_parameters(
    kind, scale, standardized, engine
):
    net = network(kind, dtype="float32")
    X = scale * np.asarray([[0.5, 1.0], [-1.0, 0.25], [0.0, -0.75]])
    y = scale * np.asarray([1.0, 0.0, 2.0])
    if standardized:
        net.standardize(X, y)
    try:
        history = trained(net, X, y, optimizer=nb.SGD(0.1), epochs=3, engine=engine)
    except nb.DivergenceError:
        assert scale > 1.0
        assert not standardized
    else:
        assert np.isfinite(history.loss).all()
    assert np.isfinite(net.parameters).all()


# Predictions


@given(seed=st.integers(0, 1000), levels=st.sets(st.integers(1, 99), min_size=1, max_size=6))
def test_quantiles_never_cross_and_sorting_never_raises_the_loss(seed, levels):
    levels = tuple(level / 100 for level in sorted(levels))
    rng = np.random.default_rng(seed)
    net = network("quantile", quantiles=levels, seed=seed)
    X, y = rng.normal(size=(40, 2)), rng.normal(size=(40, 1))
    Q = net.forward(X)
    assert (np.diff(Q, axis=1) >= 0).all()
    assert net.quantiles == levels
    loss = losses.Quantile(levels)
    raw = np.tanh(X @ net.weights[0] + net.biases[0]) @ net.weights[1] + net.biases[1]
    np.testing.assert_allclose(Q, np.sort(raw, axis=1), rtol=0, atol=1e-12)
    sorted_value, raw_value = (loss.value_and_gradient(np, Z, y)[0] for Z in (Q, raw))
    assert sorted_value <= raw_value + 1e-12


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_gaussian_predicts_the_mean_and_the_intervals_of_scipy(dtype):
    X, y = data(100, offset=10.0, scale=3.0)
    net = network("gaussian", dtype=dtype).standardize(X, y)
    mean, deviation = net.forward(X).T
    assert net.predict(X).dtype == dtype
    np.testing.assert_array_equal(net.predict(X), mean)
    for coverage in (0.5, 0.9, 0.999):
        ends = net.predict_interval(X, coverage)
        assert ends.dtype == dtype
        expected = np.stack(norm.interval(coverage, mean, deviation), axis=1)
        np.testing.assert_allclose(ends, expected, rtol=1e-5 if dtype == "float32" else 1e-12)


def test_standardization_shifts_and_scales_means_and_quantiles_but_scales_deviations():
    X, y = data(100, offset=50.0, scale=4.0)
    for kind in KINDS:
        net = network(kind)
        plain = net.forward(X)
        net.standardize(X, y)
        X_std = (X - X.mean(0)) / X.std(0)
        other = network(kind)
        A = other.forward(X_std)
        assert not np.allclose(A, plain)
        expected = A * y.std() + y.mean()
        if kind == "gaussian":
            expected[:, 1] = A[:, 1] * y.std()
        np.testing.assert_allclose(net.forward(X), expected, rtol=1e-12)
        assert net.target_standardization.mean.shape == (1,)


def test_a_target_too_coarse_for_float32_is_predicted_in_float64():
    X, y = data(100, offset=1e7)
    net = network("gaussian", dtype="float32").standardize(X, y)
    assert net.forward(X).dtype == net.predict_interval(X).dtype == np.float64
    assert (net.forward(X)[:, 1] < 10).all()


@pytest.mark.parametrize(
    ("levels", "point"),
    [
        ((0.1, 0.5, 0.9), lambda Q: Q[:, 1]),
        ((0.2, 0.6), lambda Q: 0.25 * Q[:, 0] + 0.75 * Q[:, 1]),
        ((0.8,), lambda Q: Q[:, 0]),
        ((0.8, 0.9), lambda Q: Q[:, 0]),
        ((0.1, 0.3), lambda Q: Q[:, 1]),
    ],
)
def test_a_quantile_network_predicts_the_median_or_what_is_nearest(levels, point):
    net = network("quantile", quantiles=levels)
    X = data(20)[0]
    np.testing.assert_allclose(net.predict(X), point(net.forward(X)), rtol=1e-14)


def test_coverages_of_quantiles_are_those_of_their_levels():
    net = network("quantile", quantiles=(0.05, 0.25, 0.5, 0.75, 0.95))
    X = data(20)[0]
    Q = net.forward(X)
    np.testing.assert_array_equal(net.predict_interval(X), Q[:, [0, 4]])
    np.testing.assert_array_equal(net.predict_interval(X, coverage=0.5), Q[:, [1, 3]])
    with pytest.raises(
        InputError,
        match=r"coverage: expected 0\.5 and 0\.9, got 0\.8: the network has learned the quantiles "
        r"0\.05, 0\.25, 0\.5, 0\.75 and 0\.95; train with the quantiles 0\.1 and 0\.9, too",
    ):
        net.predict_interval(X, 0.8)


# Models on disk and elsewhere


@pytest.mark.parametrize("kind", KINDS)
def test_models_keep_their_distribution_through_files_and_pickles(kind, tmp_path):
    X, y = data(100, offset=5.0, scale=3.0)
    quantiles = (0.1, 0.5, 0.9) if kind == "quantile" else None
    net = network(kind, quantiles=quantiles).standardize(X, y)
    nb.save(net, tmp_path / "model.safetensors")
    copies = [
        nb.load(tmp_path / "model.safetensors"),
        pickle.loads(pickle.dumps(net)),  # noqa: S301
        net.copy(),
        net.astype("float32").astype("float64"),
    ]
    for other in copies:
        assert other.quantiles == quantiles
        np.testing.assert_allclose(other.forward(X), net.forward(X), rtol=1e-4, atol=1e-4)
        assert repr(other) == repr(net)
        interval = other.predict_interval(X, 0.8)
        expected = net.predict_interval(X, 0.8)
        np.testing.assert_allclose(interval, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(copies[0].forward(X), net.forward(X))
    summary = str(net.summary())
    assert kind in summary
    assert "features and targets" in summary


@pytest.mark.parametrize("kind", KINDS)
def test_a_pipeline_in_onnx_has_the_deviation_or_the_quantiles(kind, tmp_path):
    for package in ("ndonnx", "onnx", "onnxruntime"):
        require(package)
    import onnxruntime

    X, y = data(100, offset=5.0, scale=3.0)
    model = make_pipeline(StandardScaler(), mlp(kind, max_iter=5)).fit(X, y)
    nb.export_onnx(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    mean, spread = session.run(None, {"X": X})
    np.testing.assert_allclose(mean, model.predict(X), rtol=1e-10)
    scaled = model[0].transform(X)
    if kind == "gaussian":
        expected = model[1].predict(scaled, return_std=True)[1]
    else:
        expected = model[1].predict_quantiles(scaled)
        assert session.get_modelmeta().custom_metadata_map["quantiles"] == "[0.05, 0.5, 0.95]"
    np.testing.assert_allclose(spread, expected, rtol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_dict_holds_the_logits(kind):
    torch = pytest.importorskip("torch")
    X, y = data(50, offset=5.0, scale=3.0)
    net = network(kind)
    if kind == "quantile":
        net.standardize(X, y)
    else:
        net.standardize(X)
    state = nb.to_torch(net)
    quantiles = net.quantiles
    back = nb.from_torch(state, hidden="tanh", output=kind, quantiles=quantiles)
    np.testing.assert_allclose(back.forward(X), net.forward(X), rtol=1e-10)
    buffer = io.BytesIO()
    torch.save(state, buffer)


def test_a_deviation_in_other_units_is_refused_by_weights():
    X, y = data(50)
    with pytest.raises(InputError, match="net: expected a network without a standardization of"):
        nb.to_torch(network("gaussian").standardize(X, y))


def test_scikit_learn_has_no_such_network():
    for kind in KINDS:
        with pytest.raises(InputError, match=f"net: expected .* got output='{kind}'"):
            nb.to_sklearn(network(kind))


def test_training_resumes_from_a_checkpoint_with_the_same_bits(tmp_path):
    X, y = data(100)
    for kind in KINDS:
        nets = [network(kind).standardize(X, y) for _ in range(2)]
        trained(nets[0], X, y, epochs=6)
        folder = tmp_path / kind
        trained(nets[1], X, y, epochs=3, checkpoint=folder)
        again = network(kind).standardize(X, y)
        trained(again, X, y, epochs=6, checkpoint=folder, resume=True)
        np.testing.assert_array_equal(again.parameters, nets[0].parameters)


# Bad input


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: nb.Network([2, 3], output="gaussian"),
            (
                "layer_sizes: expected 2 units in the last layer, the mean and the deviation, for "
                "output='gaussian', got 3"
            ),
        ),
        (
            lambda: nb.Network([2, 2], output="quantile"),
            (
                "layer_sizes: expected 3 units in the last layer, one for each of the quantiles "
                "0.05, 0.5 and 0.95, for output='quantile', got 2"
            ),
        ),
        (
            lambda: nb.Network([2, 2], output="identity", quantiles=(0.1, 0.9)),
            "quantiles: expected None, since levels are for output='quantile' only",
        ),
        (
            lambda: nb.Network([2, 2], output="quantile", quantiles=(0.9, 0.1)),
            "quantiles: expected levels that increase, got 0.1 after 0.9",
        ),
        (
            lambda: nb.Network([2, 2], output="quantile", quantiles=(0.1, 1.0)),
            "quantiles: expected a finite number > 0 and < 1, got 1.0",
        ),
        (
            lambda: nb.Network([2, 2], output="quantile", quantiles=0.5),
            (
                "quantiles: expected one or more levels between 0 and 1, such as (0.05, 0.5, "
                "0.95), got 0.5"
            ),
        ),
        (lambda: losses.Quantile(()), "quantiles: expected one or more levels"),
        (lambda: losses.Quantile("0.5"), "quantiles: expected a finite number > 0 and < 1"),
        (
            lambda: network("quantile").objective(losses.Quantile((0.1, 0.5, 0.9))),
            "loss: expected the quantiles of the network, (0.05, 0.5, 0.95), got (0.1, 0.5, 0.9)",
        ),
        (
            lambda: network("gaussian").objective("squared_error"),
            (
                "loss: 'squared_error' needs output='identity', got a network with "
                "output='gaussian'; omit loss for 'gaussian'"
            ),
        ),
        (
            lambda: nb.Network([2, 2], output="identity").objective("gaussian"),
            "loss: 'gaussian' needs output='gaussian', got a network with output='identity'",
        ),
        (
            lambda: nb.Network([2, 1], output="identity").predict_interval([[0.0, 0.0]]),
            "predict_interval: expected a network with output='gaussian' or 'quantile'",
        ),
        (
            lambda: network("gaussian").predict_interval([[0.0, 0.0]], 1.0),
            "coverage: expected a finite number > 0 and < 1, got 1.0",
        ),
        (
            lambda: network("quantile", quantiles=(0.9,)).predict_interval([[0.0, 0.0]]),
            "coverage: got 0.9: the network has learned the quantiles 0.9; train with",
        ),
        (
            lambda: nb.train(network("gaussian"), [[0.0, 1.0]], [[1.0, 2.0]]),
            (
                "y: expected (1,) or (1, 1): one row for each of the 1 examples in X and "
                "1 column, got shape (1, 2)"
            ),
        ),
    ],
)
def test_what_does_not_fit_a_distribution_is_refused_in_a_sentence(build, message):
    with pytest.raises(InputError) as caught:
        build()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "quantiles", "said"),
    [
        (
            "quantile",
            (0.9, 0.5, 0.1),
            r"its output is 'quantile' of the quantiles \[0.9, 0.5, 0.1\]",
        ),
        ("quantile", (0.1, 0.5, 1.5), "its output is 'quantile' of the quantiles"),
        ("quantile", (0.1, 0.9), "its output is 'quantile' of the quantiles .*, for 3 units"),
        ("quantile", ("a", "b", "c"), "its output is 'quantile' of the quantiles"),
        ("gaussian", None, "its output is 'gaussian', for 3 units"),
    ],
)
def test_a_file_whose_output_does_not_fit_is_refused(kind, quantiles, said, tmp_path):
    chosen = DISTRIBUTIONS[kind]
    if quantiles is not None:
        chosen = replace(chosen, quantiles=quantiles)
    net = nb.Network([2, 3], output="identity")
    structure = replace(net.structure, output=chosen)
    net = nb.Network.from_structure(structure, net.parameters, dtype="float32", device="cpu")
    nb.save(net, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=said):
        nb.load(tmp_path / "model.safetensors")


def test_the_losses_of_distributions_come_of_their_output():
    for kind in KINDS:
        assert loss_function(None, DISTRIBUTIONS[kind]).name == kind
        assert loss_function(kind, DISTRIBUTIONS[kind]) == loss_function(None, DISTRIBUTIONS[kind])
    chosen = output("output", "quantile", (0.2, 0.7))
    assert loss_function("quantile", chosen) == losses.Quantile((0.2, 0.7))


# The estimator


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_an_estimator_learns_targets_of_any_scale(kind, solver):
    options = {"alpha": 0.1} if solver == "lbfgs" else {}
    model = mlp(kind, solver=solver, max_iter=150, **options)
    for offset, scale in ((0.0, 1.0), (1e4, 1e3)):
        X, y = data(1500, offset=offset, scale=scale)
        test, target = data(1000, seed=1, offset=offset, scale=scale)
        model.fit(X, y)
        assert model.predict(test).shape == (1000,)
        assert model.score(test, target) > 0.5
        lower, upper = model.predict_interval(test).T
        assert 0.84 < ((lower < target) & (target < upper)).mean() < 0.95


def test_an_estimator_has_deviations_or_quantiles():
    X, y = data(200)
    gaussian = mlp("gaussian", max_iter=30).fit(X, y)
    mean, std = gaussian.predict(X, return_std=True)
    np.testing.assert_array_equal(mean, gaussian.predict(X))
    half = norm.ppf(0.9) * std
    expected = np.stack([mean - half, mean + half], axis=1)
    np.testing.assert_allclose(gaussian.predict_interval(X, 0.8), expected, rtol=1e-12)
    quantile = mlp("quantile", quantiles=(0.1, 0.5, 0.9), max_iter=30).fit(X, y)
    Q = quantile.predict_quantiles(X)
    assert Q.shape == (200, 3)
    assert quantile.quantiles_ == (0.1, 0.5, 0.9)
    np.testing.assert_array_equal(quantile.predict(X), Q[:, 1])
    np.testing.assert_array_equal(quantile.predict_interval(X, 0.8), Q[:, [0, 2]])
    for call, said in (
        (lambda: gaussian.predict_quantiles(X), "predict_quantiles: .* loss='quantile', got"),
        (lambda: quantile.predict(X, return_std=True), "return_std: .* loss='gaussian', got"),
        (lambda: quantile.predict_interval(X, 0.9), "coverage: expected 0.8, got 0.9"),
        (lambda: mlp("huber", max_iter=2).fit(X, y).predict_interval(X), "predict_interval: "),
    ):
        with pytest.raises(InputError, match=said):
            call()


@pytest.mark.parametrize("kind", KINDS)
def test_an_estimator_is_cloned_pickled_saved_and_searched(kind, tmp_path):
    X, y = data(150, offset=100.0, scale=5.0)
    model = mlp(kind, max_iter=20, quantiles=(0.1, 0.5, 0.9) if kind == "quantile" else None)
    assert clone(model).get_params() == model.get_params()
    pipeline = make_pipeline(StandardScaler(), model).fit(X, y)
    again = pickle.loads(pickle.dumps(pipeline))  # noqa: S301
    np.testing.assert_array_equal(again.predict(X), pipeline.predict(X))
    nb.save(pipeline, tmp_path / "model.safetensors")
    net = nb.load(tmp_path / "model.safetensors")
    np.testing.assert_allclose(net.predict(X), pipeline.predict(X), rtol=1e-10)
    ends = model.predict_interval(pipeline[0].transform(X), 0.8)
    np.testing.assert_allclose(net.predict_interval(X, 0.8), ends, rtol=1e-10)
    search = GridSearchCV(clone(model), {"alpha": [1e-4, 1e-2]}, cv=2).fit(X, y)
    assert set(search.best_params_) == {"alpha"}


@pytest.mark.parametrize("kind", KINDS)
def test_an_estimator_stops_early_weighs_and_goes_on(kind):
    X, y = data(400, offset=100.0, scale=5.0)
    early = mlp(kind, early_stopping=True, max_iter=200).fit(X, y)
    assert early.best_validation_score_ > 0.3
    held = mlp(kind, max_iter=10).fit(X, y, X_val=X[:50], y_val=y[:50])
    assert len(held.validation_loss_curve_) == 10
    assert held.validation_loss_curve_[-1] < held.validation_loss_curve_[0]
    # Weights of 0 and 1 as if the rows were not there, but for the batches and the units.
    low = y < np.median(y)
    weighted = mlp(kind, max_iter=60).fit(X, y, sample_weight=low.astype(float))
    assert weighted.predict(X).mean() < mlp(kind, max_iter=60).fit(X, y).predict(X).mean() - 1.0
    partial = mlp(kind)
    for _ in range(20):
        partial.partial_fit(X, y)
    units = partial.target_standardization_
    partial.partial_fit(X, y + 1.0)
    assert partial.target_standardization_ is units
    assert partial.score(X, y) > 0.3
    warm = mlp(kind, warm_start=True, max_iter=5).fit(X, y)
    first = warm.loss_
    assert warm.fit(X, y).loss_ < first


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_weight_0_decide_no_units(kind):
    X, y = data(100)
    weight = np.ones(100)
    weight[:10] = 0.0
    far = np.where(weight == 0.0, 1e6, y)
    models = [mlp(kind, max_iter=3, shuffle=False).fit(X, t, weight) for t in (y, far)]
    np.testing.assert_array_equal(*(model.predict_interval(X) for model in models))


@pytest.mark.parametrize("kind", KINDS)
def test_an_estimator_returns_arrays_of_the_library_it_is_given(kind):
    torch = require_dispatched("torch")
    X, y = data(60)
    model = mlp(kind, max_iter=3).fit(X, y)
    with sklearn.config_context(array_api_dispatch=True):
        other = mlp(kind, max_iter=3).fit(torch.asarray(X), torch.asarray(y))
        results = [other.predict(torch.asarray(X)), other.predict_interval(torch.asarray(X))]
    for found, expected in zip(results, (model.predict(X), model.predict_interval(X)), strict=True):
        assert isinstance(found, torch.Tensor)
        np.testing.assert_array_equal(found.numpy(), expected)


def test_a_refit_with_another_loss_forgets_the_distribution():
    X, y = data(100)
    model = mlp("quantile", max_iter=5).fit(X, y)
    model.set_params(loss="squared_error").fit(X, y)
    assert not hasattr(model, "quantiles_")
    assert not hasattr(model, "target_standardization_")
    fresh = mlp("squared_error", max_iter=5).fit(X, y)
    np.testing.assert_array_equal(model.predict(X), fresh.predict(X))


def test_an_estimator_takes_loss_objects():
    X, y = data(100)
    named = mlp("quantile", quantiles=(0.2, 0.8), max_iter=5).fit(X, y)
    given = mlp(losses.Quantile((0.2, 0.8)), max_iter=5).fit(X, y)
    np.testing.assert_array_equal(named.predict_quantiles(X), given.predict_quantiles(X))
    named = mlp("gaussian", max_iter=5).fit(X, y)
    given = mlp(losses.Gaussian(), max_iter=5).fit(X, y)
    np.testing.assert_array_equal(named.predict(X), given.predict(X))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda X, y: mlp("gaussian").fit(X, np.stack([y, y], axis=1)),
            r"y: expected one column, \(n_samples,\), for loss='gaussian', got shape \(60, 2\)",
        ),
        (
            lambda X, y: mlp("huber", quantiles=(0.1, 0.9)).fit(X, y),
            "quantiles: expected None, since levels are for loss='quantile' only",
        ),
        (
            lambda X, y: mlp("quantile", quantiles=(0.9, 0.1)).fit(X, y),
            "quantiles: expected levels that increase",
        ),
        (
            lambda X, y: (
                mlp("quantile", max_iter=1, warm_start=True)
                .fit(X, y)
                .set_params(quantiles=(0.1, 0.5, 0.9))
                .fit(X, y)
            ),
            "quantiles: expected the levels that the model has begun to learn",
        ),
        (
            lambda X, y: nb.EnsembleRegressor(mlp("gaussian")).fit(X, y),
            "estimator: expected members whose predictions are values, got loss='gaussian'",
        ),
    ],
)
def test_an_estimator_refuses_what_does_not_fit(build, message):
    X, y = data(60)
    with pytest.raises(InputError, match=message):
        build(X, y)
