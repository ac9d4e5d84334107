"""Every engine gives the numbers of the reference engine, whatever the problem."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import own_formulas
import pytest
from factories import PROBLEMS, N, X, Y, trained
from own_formulas import SWAPPED, Cautious, Exploding, HeavyBall, Lopsided, assert_follows

import nnbackend as nb
from nnbackend.device import get_device
from nnbackend.engines import choice
from nnbackend.errors import MissingDependencyError


def assert_equals_the_reference(hidden, output, options):
    # Sums are taken in another order: a few float64 roundings a step, over at most 20 steps.
    for weighted, batch_size, shuffle in ((False, 16, True), (True, None, False)):
        case = {"dtype": "float64", "weighted": weighted, "batch_size": batch_size}
        expected, said = trained("reference", hidden, output, options, shuffle=shuffle, **case)
        net, history = trained("native", hidden, output, options, shuffle=shuffle, **case)
        assert net.parameters.dtype == np.float64
        np.testing.assert_allclose(net.parameters, expected.parameters, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(history.loss, said.loss, rtol=1e-10)
        np.testing.assert_allclose(history.validation_loss, said.validation_loss, rtol=1e-10)


@pytest.mark.parametrize(("hidden", "output", "options"), PROBLEMS)
def test_the_native_engine_equals_the_reference(hidden, output, options):
    assert_equals_the_reference(hidden, output, options)


def test_the_native_engine_equals_the_reference_in_float32_with_weights():
    hidden, output, options = PROBLEMS[1]
    case = {"dtype": "float32", "weighted": True, "batch_size": 16, "shuffle": True}
    expected, said = trained("reference", hidden, output, options, **case)
    net, history = trained("native", hidden, output, options, **case)
    assert net.parameters.dtype == np.float32
    # float32 roundings of 6e-8, some tens of them over 20 steps of a well-conditioned problem.
    np.testing.assert_allclose(net.parameters, expected.parameters, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(history.loss, said.loss, rtol=1e-5)
    np.testing.assert_allclose(history.validation_loss, said.validation_loss, rtol=1e-5)


def test_same_seed_gives_the_same_bits_and_read_only_data_is_enough():
    hidden, output, options = PROBLEMS[0]
    case = {"dtype": "float64", "weighted": False, "batch_size": 16, "shuffle": True}
    first, _ = trained("native", hidden, output, options, **case)
    X.flags.writeable = False
    try:
        again, _ = trained("native", hidden, output, options, **case)
    finally:
        X.flags.writeable = True
    np.testing.assert_array_equal(first.parameters, again.parameters)


def test_divergence_is_found_and_the_last_finite_parameters_come_back():
    # After two epochs of a thousand; the reference says which.
    nets, epochs = [], []
    for engine in ("reference", "native"):
        net = nb.Network([6, 7, 5, 1], hidden=["relu", "tanh"], dtype="float64", seed=1)
        with pytest.raises(nb.DivergenceError, match="epoch 3") as caught:
            nb.train(
                net, X, Y["sigmoid"], optimizer=nb.SGD(Exploding()), epochs=1000, batch_size=16,
                engine=engine,
            )  # fmt: skip
        nets.append(net)
        epochs.append(caught.value.history.n_epochs)
    assert epochs == [2, 2]
    np.testing.assert_allclose(nets[0].parameters, nets[1].parameters, rtol=1e-10, atol=1e-12)


def test_early_stopping_restores_the_best_epoch():
    case = {"optimizer": nb.SGD(0.1), "early_stopping": nb.EarlyStopping(patience=2)}
    nets = []
    for engine in ("reference", "native"):
        net = nb.Network([6, 7, 5, 1], hidden=["relu", "tanh"], dtype="float64", seed=1)
        history = nb.train(
            net, X, Y["sigmoid"], epochs=60, validation_data=(X[::-1], Y["sigmoid"]), batch_size=16,
            engine=engine, **case,
        )  # fmt: skip
        nets.append((net.parameters, history.best_epoch, history.n_epochs))
    assert nets[0][1:] == nets[1][1:]
    np.testing.assert_allclose(nets[0][0], nets[1][0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("hidden", "output", "options"),
    [
        ([SWAPPED, "relu"], "sigmoid", {"optimizer": nb.Adam(0.01), "dropout": 0.2}),
        ([SWAPPED], "identity", {"loss": Lopsided(), "l2": 0.1, "clip_norm": 0.5}),
        ([SWAPPED], "softmax", {"optimizer": Cautious(0.1, momentum=0.9), "clip_value": 0.01}),
    ],
)
def test_a_formula_that_cannot_be_recorded_runs_as_it_stands(hidden, output, options):
    case = {"dtype": "float64", "weighted": True, "batch_size": 16, "shuffle": True}
    expected, said = trained("reference", hidden, output, options, **case)
    net, history = trained("native", hidden, output, options, **case)
    np.testing.assert_allclose(net.parameters, expected.parameters, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(history.loss, said.loss, rtol=1e-10)
    np.testing.assert_allclose(history.validation_loss, said.validation_loss, rtol=1e-10)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_what_a_formula_reads_beyond_its_arguments_is_followed(dropout, caplog):
    expected = own_formulas.follows("reference", dropout=dropout)
    assert_follows(expected, own_formulas.follows("native", dropout=dropout))
    assert caplog.text.count("a formula has changed during the training") == 1


def test_a_formula_that_is_another_one_each_time_runs_on_the_reference(caplog):
    numbers = itertools.count()
    drifting = nb.Activation(
        "drifting",
        lambda _xp, Z: Z * (1.0 + 1.0 / (1 + next(numbers))),
        lambda xp, Z, _A: xp.ones_like(Z),
    )
    net = nb.Network([6, 4, 1], hidden=[drifting], seed=1)
    nb.train(net, X, Y["sigmoid"], engine="native", epochs=1)
    assert "each time it is called" in caplog.text
    # Called at every step, and not only for what it records.
    assert next(numbers) > 2


# Some of these are recorded, and some are not: all mean what they mean on NumPy.
OWN = {
    "mish": (
        lambda xp, Z: Z * xp.tanh(xp.log1p(xp.exp(Z))),
        lambda xp, Z, _A: (
            xp.tanh(xp.log1p(xp.exp(Z)))
            + Z * (1 - xp.tanh(xp.log1p(xp.exp(Z))) ** 2) / (1 + xp.exp(-Z))
        ),
    ),
    "quantized": (
        lambda xp, Z: 0.1 * xp.astype(xp.astype(10 * Z, xp.int64), Z.dtype),
        lambda xp, Z, _A: xp.ones_like(Z),
    ),
    "masks": (
        lambda _xp, Z: Z * ((Z > -1) + (Z < 1)),
        lambda xp, Z, _A: xp.astype((Z > -1) + (Z < 1), Z.dtype),
    ),
    "nan": (
        lambda xp, Z: xp.where(Z > 1e30, float("nan"), xp.minimum(Z, xp.inf)),
        lambda xp, Z, _A: xp.ones_like(Z),
    ),
}


class Counting(nb.SGD):
    """Its state is a number of steps rather than an array like the parameters."""

    @property
    def state_names(self):
        return ("steps",)

    def init(self, xp, parameters):
        return (xp.zeros((), dtype=parameters.dtype),)

    def update(self, xp, parameters, gradient, state, coefficients):
        del xp
        steps = state[0] + 1.0
        return parameters - coefficients[0] * gradient / steps, (steps,)


def test_formulas_of_ones_own_mean_what_they_mean_on_numpy():
    hidden = [nb.Activation(name, *formulas) for name, formulas in OWN.items()]
    results = []
    for engine in ("reference", "native"):
        net = nb.Network([6, *[4] * len(OWN), 3], hidden=hidden, output="identity", seed=1)
        biases = [bias.copy() for bias in net.biases]
        # exp is infinite there in float32.
        biases[0][0] = 89.2
        net.set_parameters(net.weights, biases)
        history = nb.train(net, X, Y["identity"], optimizer=Counting(1e-5), epochs=3, engine=engine)
        results.append((net.parameters, history.loss))
    # A few float32 roundings a step, of numbers of the size of the largest bias.
    np.testing.assert_allclose(results[1][1], results[0][1], rtol=1e-5)
    np.testing.assert_allclose(results[1][0], results[0][0], rtol=1e-5, atol=1e-5)


@pytest.fixture
def without_library(monkeypatch):
    monkeypatch.setenv("NNBACKEND_VARIANT", "none")


@pytest.mark.usefixtures("without_library")
def test_without_its_library_the_engine_says_what_to_do():
    with pytest.raises(MissingDependencyError, match=r"engine='native' needs its compiled library"):
        nb.train(nb.Network([6, 1]), X, Y["sigmoid"], epochs=1, engine="native")


@pytest.mark.usefixtures("without_library")
def test_without_the_library_training_runs_on_the_reference_and_says_so():
    with pytest.warns(UserWarning, match="slower reference engine: "):
        assert choice.default_engine(get_device("cpu")) == "reference"


def test_auto_on_the_cpu_is_the_native_engine_and_cpu_an_alias():
    assert choice.default_engine(get_device("cpu")) == "native"
    assert choice.get_engine("cpu", "float32", get_device("cpu")) is choice.get_engine(
        "native", "float32", get_device("cpu")
    )


@pytest.mark.parametrize(
    ("engine", "advice"),
    [
        ("nativ", r"unknown name 'nativ'; did you mean 'native'\?"),
        ("numpy", "unknown name 'numpy'; known: auto, cuda, native, reference"),
        (None, r"expected a name \(auto, cuda, native, reference\), got NoneType None"),
    ],
)
def test_an_unknown_engine_is_refused_with_the_names_there_are(engine, advice):
    with pytest.raises(nb.InputError, match=f"^engine: {advice}$"):
        nb.train(nb.Network([6, 1]), X, Y["sigmoid"], engine=engine)


@pytest.mark.parametrize("engine", ["native", "cpu"])
def test_estimators_take_either_name_of_the_engine(engine):
    options = {"hidden_layer_sizes": (4,), "max_iter": 20, "tol": 1e3, "n_iter_no_change": 3}
    default, named = (
        nb.MLPClassifier(**options, random_state=0, **chosen).fit(X, Y["softmax"])
        for chosen in ({}, {"engine": engine})
    )
    assert named.get_params()["engine"] == engine
    assert default.loss_curve_ == named.loss_curve_


def test_two_threads_train_at_once_and_get_what_one_would():
    hidden, output, options = PROBLEMS[0]
    case = {"dtype": "float64", "weighted": False, "batch_size": 16, "shuffle": True}
    alone, _ = trained("native", hidden, output, options, **case)
    with ThreadPoolExecutor(2) as pool:
        futures = [
            pool.submit(trained, "native", hidden, output, options, **case) for _ in range(4)
        ]
        for future in futures:
            np.testing.assert_array_equal(future.result()[0].parameters, alone.parameters)


def test_other_forms_of_validation_targets_tiny_weights_and_optimizers():
    y, rows = Y["softmax"], np.eye(3)[Y["softmax"]]
    losses = []
    for engine in ("reference", "native"):
        net = nb.Network([6, 4, 3], output="softmax", seed=1)
        history = nb.train(
            net, X, y, engine=engine, optimizer=HeavyBall(0.1), epochs=4, batch_size=16,
            sample_weight=np.full(N, 1e-40), validation_data=(X, rows),
        )  # fmt: skip
        losses.append([*history.loss, *history.validation_loss])
    # float32, and sums of subnormal weights of few digits.
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
