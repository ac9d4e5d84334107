"""Features and targets with a large offset, such as times: the signal is learnt and comes back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from backends import require
from devices import on_each_device, to_host

import nnbackend as nb
from nnbackend.core.standardization import Standardization
from nnbackend.data.sources import Arrays
from nnbackend.data.stream import Stream
from nnbackend.device import Device
from nnbackend.errors import InputError

TIME = 1.7e9
RNG = np.random.default_rng(0)
SIGNAL = RNG.normal(size=(400, 3))
# Steps of 2**-10, so that times are exact in float64.
SIGNAL = np.round(SIGNAL * 2**10) / 2**10
Y = np.sin(SIGNAL[:, 0]) + 0.5 * SIGNAL[:, 1]
Y = np.round(10 * Y * 2**10) / 2**10


def trained(X, y, **options):
    net = nb.Network([3, 16, 1], hidden="tanh", output="identity", **options).standardize(X, y)
    nb.train(net, X, y, optimizer=nb.Adam(0.01), epochs=40, batch_size=50, engine="reference")
    return net


def r2(y, predicted):
    return 1 - ((y - predicted) ** 2).sum() / ((y - y.mean()) ** 2).sum()


@on_each_device
def test_a_target_with_an_offset_is_predicted_as_one_without(device):
    plain, net = trained(SIGNAL, Y, device=device), trained(SIGNAL, TIME + Y, device=device)
    expected = plain.predict(SIGNAL)
    found = net.predict(SIGNAL)
    assert (expected.dtype, found.dtype) == (np.float32, np.float64)
    assert r2(Y, found - TIME) > 0.98
    # The deviations are equal to float64's rounding, so the trainings are to float32's.
    np.testing.assert_allclose(found - TIME, expected, rtol=0, atol=1e-3)
    np.testing.assert_array_equal(net.forward(SIGNAL)[:, 0], found)
    here = net.predict(net._device.place(SIGNAL))
    assert type(here).__module__.split(".")[0] == ("numpy" if device == "cpu" else "cupy")
    np.testing.assert_array_equal(to_host(here), found)


def test_the_offset_survives_files_and_copies(tmp_path):
    net = trained(SIGNAL, TIME + Y)
    expected = net.predict(SIGNAL)
    nb.save(net, tmp_path / "model.safetensors")
    for other in (nb.load(tmp_path / "model.safetensors"), net.copy()):
        np.testing.assert_array_equal(other.predict(SIGNAL), expected)


@pytest.mark.parametrize(
    ("y", "dtype"),
    [
        (838.0 + np.asarray([-1.0, 1.0]), "float32"),
        (-840.0 + np.asarray([-1.0, 1.0]), "float64"),
        (np.asarray([0.0, 1e30]), "float32"),
        (np.asarray([0.0, 1e38]), "float64"),
        (np.asarray([-1e-30, 1e-30]), "float32"),
        (np.asarray([-1e-42, 1e-42]), "float64"),
        (np.asarray([12.5, 12.5]), "float32"),
        (np.asarray([1e300, 1e300]), "float64"),
        (np.asarray([[0.0, TIME], [1.0, TIME + 1]]), "float64"),
    ],
)
def test_predictions_are_float64_where_float32_is_too_coarse_for_a_target(y, dtype):
    X = np.asarray([[0.0], [1.0]])
    n_outputs = 1 if y.ndim == 1 else y.shape[1]
    for own in ("float32", "float64"):
        net = nb.Network([1, n_outputs], output="identity", initializer="zeros", dtype=own)
        found = net.standardize(X, y).predict(X)
        assert found.dtype == (dtype if own == "float32" else "float64")
        np.testing.assert_allclose(found, np.broadcast_to(y.mean(axis=0), y.shape), rtol=1e-6)


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_predictions_of_float64_come_back_in_the_callers_library(name):
    library = require(name)
    if name == "jax":
        library = library.numpy
    net = nb.Network([1, 1], output="identity", initializer="zeros")
    net.standardize([[0.0], [1.0]], [TIME, TIME + 1])
    found = net.predict(library.asarray([[0.0], [0.5]]))
    assert type(found) is type(library.asarray([0.0]))
    assert float(found[0]) == TIME + 0.5


def exactly(X):
    """Return X standardized: what a column is, whatever its offset."""
    return (X - X.mean(axis=0)) / X.std(axis=0)


def frame(kind, X):
    columns = {"a": X[:, 0], "b": X[:, 1], "c": X[:, 2]}
    return require(kind).DataFrame(columns)


COUNTS = RNG.integers(-500, 500, (300, 3))
# What holds times in seconds, to the second, without rounding them.
HOLDERS = {
    "float64": lambda X: X.astype(float),
    "int64": lambda X: X,
    "uint32": lambda X: X.astype("u4"),
    "list": lambda X: X.tolist(),
    "pandas": lambda X: frame("pandas", X),
    "polars": lambda X: frame("polars", X),
    "torch": lambda X: require("torch").asarray(X),
    "source": Arrays,
    "source of float64": lambda X: Arrays(X.astype(float), buffer_bytes=2**13),
}


@pytest.mark.parametrize("kind", HOLDERS)
def test_features_with_an_offset_keep_their_digits_however_they_come(kind):
    X = HOLDERS[kind](int(TIME) + COUNTS)
    net = nb.Network([3, 1]).standardize(X)
    rows = [X] if not isinstance(X, Arrays) else [X.read(0, 100).X, X.read(100, 300).X]
    found = np.concat([net.preparation.features(part) for part in rows])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exactly(COUNTS), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["pandas", "polars"])
def test_a_frame_of_times_and_short_floats_keeps_the_times(kind):
    library = require(kind)
    times = int(TIME) + COUNTS[:, 0]
    X = library.DataFrame({"time": times, "short": COUNTS[:, 1].astype("f4")})
    found = nb.Network([2, 1]).standardize(X).preparation.features(X)
    np.testing.assert_allclose(found, exactly(COUNTS[:, :2]), rtol=1e-6, atol=1e-6)


def test_features_and_targets_of_a_stream_keep_their_digits():
    X, y = int(TIME) + COUNTS, int(TIME) + COUNTS[:, 0]
    net = nb.Network([3, 1], output="identity")
    source = Arrays(X, y, buffer_bytes=2**13)
    net.standardize(source, source)
    stream = Stream(net.preparation, source, net.objective().loss, 10, shuffle=False)
    parts = [part.data for part in stream.parts(None)]
    assert len(parts) > 1
    expected = exactly(COUNTS)
    features = np.concat([data.X for data in parts])
    np.testing.assert_allclose(features, expected, rtol=1e-6, atol=1e-6)
    targets = np.concat([data.y for data in parts])
    np.testing.assert_allclose(targets, expected[:, :1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", ["f8", "i8"])
def test_features_that_stay_on_the_host_keep_their_digits(dtype):
    X = (int(TIME) + COUNTS).astype(dtype)
    net = nb.Network([3, 1]).standardize(X)
    net._device = Device("cpu", 1)  # another than the home
    found = net.preparation.features(X, home=Device("cpu"))
    np.testing.assert_allclose(found, exactly(COUNTS), rtol=1e-6, atol=1e-6)


def test_a_pipeline_of_scikit_learn_keeps_the_digits_of_times():
    from sklearn.neural_network import MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    X = TIME + SIGNAL
    mlp = MLPRegressor(hidden_layer_sizes=(4,), solver="lbfgs", tol=1e-2, random_state=0)
    pipeline = make_pipeline(StandardScaler(), mlp).fit(X, Y)
    np.testing.assert_allclose(
        nb.from_sklearn(pipeline).predict(X), pipeline.predict(X), rtol=0, atol=1e-10
    )


FOLDED = {
    "feature": lambda dtype: trained(TIME + SIGNAL, Y, dtype=dtype),
    "target": lambda dtype: trained(SIGNAL, TIME + Y, dtype=dtype),
}


@pytest.mark.parametrize("kind", FOLDED)
@pytest.mark.parametrize("function", [nb.to_sklearn, nb.to_torch])
def test_weights_that_are_too_coarse_for_an_offset_are_refused(kind, function):
    if function is nb.to_torch:
        require("torch")
    net = FOLDED[kind]("float32")
    with pytest.raises(InputError, match=rf"1\.7e\+09 .* for {kind} 0.*astype\('float64'\)"):
        function(net)
    X = SIGNAL + (TIME if kind == "feature" else 0)
    double = net.astype("float64")
    if function is nb.to_sklearn:
        found = nb.to_sklearn(double).predict(X)
    else:
        found = nb.from_torch(nb.to_torch(double), hidden="tanh", output="identity").predict(X)
    # A product of 1.7e9 with a weight near 1, in float64; and float32's rounding in one of them.
    np.testing.assert_allclose(found, net.predict(X), rtol=0, atol=1e-5)


def test_an_offset_that_no_weight_can_take_up_is_refused_with_advice():
    X = np.asarray([[1e15], [1e15 + 4]])
    net = nb.Network([1, 1], dtype="float64").standardize(X)
    with pytest.raises(InputError, match=r"float64 is too coarse; subtract its mean from the feat"):
        nb.to_sklearn(net)


ONNX = {
    # features, targets: the dtype of X, the dtype of predictions
    "neither": (0.0, 0.0, "float32", "float32"),
    "features": (TIME, 0.0, "float64", "float32"),
    "targets": (0.0, TIME, "float32", "float64"),
    "both": (TIME, -1e12, "float64", "float64"),
}


@pytest.mark.parametrize("kind", ONNX)
def test_onnxruntime_keeps_the_digits_too(kind, tmp_path):
    for name in ("ndonnx", "onnx"):
        require(name)
    onnxruntime = require("onnxruntime")
    offset, target_offset, given, returned = ONNX[kind]
    X = (offset + SIGNAL).astype(given)
    net = trained(X, target_offset + Y)
    nb.export_onnx(net, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {"X": X})
    expected = net.predict(X)
    assert found.dtype == expected.dtype == returned
    # float32 products, in another order.
    np.testing.assert_allclose(found, expected, rtol=1e-15, atol=1e-5 * Y.std())
    assert r2(Y, found - target_offset) > 0.95


def test_the_command_predicts_and_evaluates_times(run, tmp_path):
    np.savez(tmp_path / "times.npz", X=SIGNAL, y=TIME + Y)
    code, out, _ = run(
        "train", str(tmp_path / "times.npz"), "--task", "regression", "--epochs", "60", "--json",
        "--out", str(tmp_path / "r"),
    )  # fmt: skip
    assert code == 0
    # Rounded to float32, 128 apart, it is below zero.
    assert json.loads(out)["held_out"]["r2"] > 0.75
    code, out, _ = run("predict", str(tmp_path / "r"), str(tmp_path / "times.npz"))
    assert code == 0
    predicted = np.asarray([float(line) for line in out.split()[1:]])
    net = nb.load(tmp_path / "r" / "model.safetensors")
    np.testing.assert_array_equal(predicted, net.predict(SIGNAL))
    assert r2(Y, predicted - TIME) > 0.75
    code, out, _ = run("evaluate", str(tmp_path / "r"), str(tmp_path / "times.npz"), "--json")
    assert json.loads(out)["r2"] == pytest.approx(r2(Y, predicted - TIME), abs=1e-6)


def test_exceeds_agrees_with_the_steps_that_numbers_have():
    # Against NumPy's own spacing, which the rule bounds from above within a factor of two.
    mean = np.asarray([0.0, 1.0, 1e3, -1e6, 1e-40, 1e39, 1.7e9])
    scale = np.asarray([1.0, 1e-2, 1e2, 1e6, 1e-41, 1e30, 1e9])
    with np.errstate(over="ignore"):
        steps = np.spacing(np.abs(mean).astype("f4")).astype(float)
    steps[~np.isfinite(steps)] = np.inf
    found = Standardization(mean, scale).exceeds(np, np.float32)
    assert found[steps > 1e-4 * scale].all()
    assert not found[2 * steps < 1e-4 * scale].any()
