"""NumPy's floating-point error state: the caller's is for the caller's arithmetic."""

import warnings
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning

import nnbackend as nb
from nnbackend.core.activations import ACTIVATIONS
from nnbackend.core.initializers import INITIALIZERS
from nnbackend.core.losses import LOSSES
from nnbackend.core.optimizers import OPTIMIZERS
from nnbackend.data.sources import Arrays
from nnbackend.errors import NNBackendError
from nnbackend.training.errors import DivergenceError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 3))
# Subnormal, tiny, huge: squares and exponentials leave the range of float32, some of float64.
WIDE = X * np.asarray([1e-42, 1.0, 1e30])
LABELS = np.arange(12) % 2
TARGETS = {
    "sigmoid": LABELS,
    "softmax": np.arange(12) % 3,
    "identity": X[:, 0],
    "exp": np.arange(12) % 4,
}
N_OUTPUTS = {"sigmoid": 1, "softmax": 3, "identity": 1, "exp": 1}


def outcome(call):
    """Return what a call gives in bytes, or the error that it ends with."""
    try:
        return call()
    except NNBackendError as error:
        return type(error), str(error)


def same_in_any_state(call):
    """Check that a call gives the same whatever the error state is, and no warning."""
    results = []
    for state in ("ignore", "warn", "raise"):
        with np.errstate(all=state), warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            results.append(outcome(call))
            assert set(np.geterr().values()) == {state}
    assert results[0] == results[1] == results[2]
    return results[0]


def trained(net, data, y, **options):
    """Train; return parameters and losses in bytes, of a training that diverges as well."""
    try:
        history = nb.train(net, data, y, **{"epochs": 3, "batch_size": 5, **options})
    except DivergenceError as error:
        history = error.history
    state = history.optimizer_state
    moments = [] if state is None else [array.tobytes() for array in state.arrays]
    return net.parameters.tobytes(), history.loss, history.validation_loss, moments


@settings(max_examples=60)
@given(
    hidden=st.sampled_from(sorted(ACTIVATIONS)),
    output=st.sampled_from(sorted(TARGETS)),
    loss=st.sampled_from([None, *sorted(LOSSES)]),
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    rate=st.sampled_from([1e-3, 1e-38, 1e20]),
    scale=st.sampled_from([1e-44, 1e-20, 1.0, 1e20, 1e37]),
    dtype=st.sampled_from(["float32", "float64"]),
    dropout=st.sampled_from([0.0, 0.3]),
)
def test_training_is_the_same_in_any_state(
    hidden, output, loss, optimizer, rate, scale, dtype, dropout
):
    def train():
        sizes = [3, 4, N_OUTPUTS[output]]
        net = nb.Network(sizes, hidden=hidden, output=output, dtype=dtype, dropout=dropout)
        y = TARGETS[output]
        return trained(
            net, scale * X, y, loss=loss, optimizer=OPTIMIZERS[optimizer](learning_rate=rate),
            engine="reference", validation_data=(scale * X[:4], y[:4]), l1=1e-30, l2=1e-30,
            clip_norm=1e-30, clip_value=1e-3,
        )  # fmt: skip

    same_in_any_state(train)


def test_training_on_the_native_engine_is_the_same_in_any_state():
    def train():
        # Hundreds of steps in which moments decay below the least number of float32.
        net = nb.Network([3, 4, 1])
        return trained(
            net, np.zeros((12, 3)), LABELS, engine="native", epochs=300,
            validation_data=(1e30 * X, LABELS),
        )  # fmt: skip

    same_in_any_state(train)


def test_moments_may_decay_below_all_numbers():
    def train():
        net = nb.Network([3, 2, 1], hidden="relu", initializer="zeros")
        return trained(net, 1e-20 * X, LABELS, optimizer=nb.Adam(beta1=0.1), epochs=200)

    same_in_any_state(train)


@pytest.mark.parametrize("output", sorted(TARGETS))
@pytest.mark.parametrize("data", [X, WIDE, 1e-320 * X], ids=["usual", "wide", "subnormal"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_network_computes_the_same_in_any_state(output, data, dtype, tmp_path):
    net = nb.Network([3, 4, N_OUTPUTS[output]], hidden="silu", output=output, dtype=dtype)
    y = TARGETS[output]
    calls = {
        "forward": lambda: [net.forward(data).tobytes()],
        "predict": lambda: [net.predict(data).tobytes()],
        "loss": lambda: [x.tobytes() for x in flat(net.loss_and_gradients(data, y))],
        "standardize": lambda: [x.tobytes() for x in net.copy().standardize(data).standardization],
        "standardized": lambda: [net.copy().standardize(data).forward(data).tobytes()],
        "other dtype": lambda: [net.astype("float32").astype("float64").parameters.tobytes()],
        "set": lambda: net.copy().set_parameters([1e-300 * W for W in wide(net)], net.biases),
        "check": lambda: nb.check_gradients(net, data, y, tolerance=1e300).errors,
        "rates": lambda: nb.find_learning_rate(net, data, y, steps=8).losses,
        "loaded": lambda: [through_a_file(net, tmp_path / "m").parameters.tobytes()],
    }
    if output in ("sigmoid", "softmax"):
        calls["proba"] = lambda: [net.predict_proba(data).tobytes()]
    if output == "identity":
        calls["targets"] = lambda: [
            x.tobytes() for x in net.copy().standardize(data, 1e-200 * y).target_standardization
        ]
    for call in calls.values():
        same_in_any_state(call)


def flat(result):
    loss, gradients = result
    return [np.asarray(loss), *gradients.weights, *gradients.biases]


def wide(net):
    return [W.astype("float64") for W in net.weights]


def through_a_file(net, path):
    nb.save(net, path)
    return nb.load(path)


@pytest.mark.parametrize("initializer", sorted(INITIALIZERS))
def test_initial_weights_are_the_same_in_any_state(initializer):
    same_in_any_state(
        lambda: [nb.Network([50, 40, 3], initializer=initializer).parameters.tobytes()]
    )


@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
@pytest.mark.parametrize("kind", ["classifier", "regressor"])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_estimators_are_the_same_in_any_state(solver, kind, scale):
    def fit():
        make = {"classifier": nb.MLPClassifier, "regressor": nb.MLPRegressor}[kind]
        model = make((4,), solver=solver, max_iter=8, random_state=0, activation="logistic")
        y = {"classifier": np.asarray(["a", "b"])[LABELS], "regressor": X[:, 0]}[kind]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            try:
                model.fit(scale * X, y)
            except ValueError as error:
                return str(error)
        results = [model.predict(scale * X).tolist()]
        if kind == "classifier":
            results += [model.predict_proba(scale * X).tolist()]
            results += [model.predict_log_proba(scale * X).tolist()]
        if solver != "lbfgs":
            results += [model.partial_fit(scale * X, y).predict(scale * X).tolist()]
        return [c.tolist() for c in model.coefs_], results

    same_in_any_state(fit)


def test_other_libraries_models_are_the_same_in_any_state(torch):
    model = nb.MLPClassifier((4,), solver="lbfgs", random_state=0, max_iter=500).fit(X, LABELS)
    net = nb.Network([3, 4, 1], dtype="float64").standardize(WIDE)
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
    module.double()
    same_in_any_state(lambda: [nb.from_sklearn(model).parameters.tobytes()])
    same_in_any_state(lambda: [c.tolist() for c in nb.to_sklearn(net).coefs_])
    same_in_any_state(lambda: [nb.from_torch(module).parameters.tobytes()])
    same_in_any_state(lambda: {k: v.tolist() for k, v in nb.to_torch(net).items()})


def test_sources_and_batches_are_the_same_in_any_state():
    def standardized(data):
        net = nb.Network([3, 4, 1]).standardize(data)
        return trained(net, data, None)

    same_in_any_state(lambda: standardized(Arrays(WIDE, LABELS)))
    batches = [(WIDE[:6], LABELS[:6]), (WIDE[6:], LABELS[6:])]
    same_in_any_state(
        lambda: trained(nb.Network([3, 4, 1]), batches, None, batch_size=128)  # its default
    )


class Batches:
    """Batches that note the error state in which they are made."""

    def __init__(self, seen):
        self.seen = seen

    def __len__(self):
        return 1

    def __iter__(self):
        self.seen.append(np.geterr())
        yield X, LABELS
        self.seen.append(np.geterr())


@contextmanager
def states(seen):
    """Check that all error states noted are the caller's."""
    mine = {"divide": "raise", "over": "warn", "under": "print", "invalid": "ignore"}
    with np.errstate(**mine):
        yield
    assert seen
    assert all(state == mine for state in seen)


def test_what_is_called_of_the_callers_finds_the_callers_state():
    seen = []

    def note(*_):
        seen.append(np.geterr())

    def order():
        note()
        return np.arange(12)

    with states(seen):
        net = nb.Network([3, 2, 1])

        def predict(state):
            # A door again, of the network in a callback; behind it, the callback's own state.
            assert np.isfinite(state.network.predict(1e-30 * X)).all()
            note()

        nb.train(net, X, LABELS, epochs=1, callbacks=[predict, note])
        nb.train(net, X, LABELS, epochs=2, batch_size=5, callbacks=note, shuffle=order)
    seen.clear()
    with states(seen):
        nb.train(net, Batches(seen), epochs=2)
    seen.clear()
    with states(seen), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        nb.MLPClassifier((2,), max_iter=2, callbacks=note).fit(X, LABELS)
    assert len(seen) == 2
