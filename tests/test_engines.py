"""Every engine gives the numbers of the reference engine, whatever the problem."""

import importlib.util
import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import own_formulas
import pytest
from devices import needs_numba
from factories import PROBLEMS, N, X, Y, trained
from own_formulas import SWAPPED, Cautious, Exploding, HeavyBall, Lopsided, assert_follows

import nnbackend as nb
from nnbackend.device import get_device
from nnbackend.engines import base as engines
from nnbackend.engines import choice
from nnbackend.engines.native import kernel_cache
from nnbackend.engines.tracing.expression import Printer, Recorder
from nnbackend.errors import MissingDependencyError


def assert_equals_the_reference(hidden, output, options):
    # Sums are taken in another order: a few float64 roundings a step, over at most 20 steps.
    for weighted, batch_size, shuffle in ((False, 16, True), (True, None, False)):
        case = {"dtype": "float64", "weighted": weighted, "batch_size": batch_size}
        expected, said = trained("reference", hidden, output, options, shuffle=shuffle, **case)
        net, history = trained("cpu", hidden, output, options, shuffle=shuffle, **case)
        assert net.parameters.dtype == np.float64
        np.testing.assert_allclose(net.parameters, expected.parameters, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(history.loss, said.loss, rtol=1e-10)
        np.testing.assert_allclose(history.validation_loss, said.validation_loss, rtol=1e-10)


# Compiling takes seconds, so each problem is run in one way; the kernels and their order are one.
@needs_numba
@pytest.mark.slow
@pytest.mark.parametrize(("hidden", "output", "options"), [PROBLEMS[0], PROBLEMS[4]])
def test_the_compiled_epoch_equals_the_reference(hidden, output, options):
    assert_equals_the_reference(hidden, output, options)


@needs_numba
@pytest.mark.slow
@pytest.mark.parametrize(
    ("hidden", "output", "options"),
    [problem for i, problem in enumerate(PROBLEMS) if i not in (0, 1, 4)],
)
def test_steps_run_from_python_equal_the_reference(hidden, output, options, monkeypatch):
    monkeypatch.setattr("nnbackend.engines.native.engine._COMPILED_FLOPS", 0.0)
    # Blocks of rows, too: seven, so that the last of a batch of 16 has two.
    monkeypatch.setattr("nnbackend.engines.native.engine._BLOCK_ELEMENTS", 7 * 7)
    assert_equals_the_reference(hidden, output, options)


@needs_numba
def test_the_compiled_epoch_equals_the_reference_in_float32_with_weights():
    hidden, output, options = PROBLEMS[1]
    case = {"dtype": "float32", "weighted": True, "batch_size": 16, "shuffle": True}
    expected, said = trained("reference", hidden, output, options, **case)
    net, history = trained("cpu", hidden, output, options, **case)
    assert net.parameters.dtype == np.float32
    # float32 roundings of 6e-8, some tens of them over 20 steps of a well-conditioned problem.
    np.testing.assert_allclose(net.parameters, expected.parameters, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(history.loss, said.loss, rtol=1e-5)
    np.testing.assert_allclose(history.validation_loss, said.validation_loss, rtol=1e-5)


@needs_numba
@pytest.mark.slow
def test_same_seed_gives_the_same_bits_and_read_only_data_is_enough():
    hidden, output, options = PROBLEMS[0]
    case = {"dtype": "float64", "weighted": False, "batch_size": 16, "shuffle": True}
    first, _ = trained("cpu", hidden, output, options, **case)
    X.flags.writeable = False
    try:
        again, _ = trained("cpu", hidden, output, options, **case)
    finally:
        X.flags.writeable = True
    np.testing.assert_array_equal(first.parameters, again.parameters)


@needs_numba
@pytest.mark.slow
def test_divergence_is_found_and_the_last_finite_parameters_come_back():
    # After two epochs of a thousand; the reference says which.
    nets, epochs = [], []
    for engine in ("reference", "cpu"):
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


@needs_numba
@pytest.mark.slow
def test_early_stopping_restores_the_best_epoch():
    case = {"optimizer": nb.SGD(0.1), "early_stopping": nb.EarlyStopping(patience=2)}
    nets = []
    for engine in ("reference", "cpu"):
        net = nb.Network([6, 7, 5, 1], hidden=["relu", "tanh"], dtype="float64", seed=1)
        history = nb.train(
            net, X, Y["sigmoid"], epochs=60, validation_data=(X[::-1], Y["sigmoid"]), batch_size=16,
            engine=engine, **case,
        )  # fmt: skip
        nets.append((net.parameters, history.best_epoch, history.n_epochs))
    assert nets[0][1:] == nets[1][1:]
    np.testing.assert_allclose(nets[0][0], nets[1][0], rtol=1e-10, atol=1e-12)


@needs_numba
@pytest.mark.slow
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
    net, history = trained("cpu", hidden, output, options, **case)
    np.testing.assert_allclose(net.parameters, expected.parameters, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(history.loss, said.loss, rtol=1e-10)
    np.testing.assert_allclose(history.validation_loss, said.validation_loss, rtol=1e-10)


@needs_numba
@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.3], ids=["compiled", "python"])
def test_what_a_formula_reads_beyond_its_arguments_is_followed(dropout, caplog):
    expected = own_formulas.follows("reference", dropout=dropout)
    assert_follows(expected, own_formulas.follows("cpu", dropout=dropout))
    assert caplog.text.count("a formula has changed during the training") == 1


def test_a_formula_that_is_another_one_each_time_runs_on_the_reference(caplog):
    numbers = itertools.count()
    drifting = nb.Activation(
        "drifting",
        lambda _xp, Z: Z * (1.0 + 1.0 / (1 + next(numbers))),
        lambda xp, Z, _A: xp.ones_like(Z),
    )
    net = nb.Network([6, 4, 1], hidden=[drifting], seed=1)
    nb.train(net, X, Y["sigmoid"], engine="cpu", epochs=1)
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


@needs_numba
@pytest.mark.slow
def test_formulas_of_ones_own_mean_what_they_mean_on_numpy():
    hidden = [nb.Activation(name, *formulas) for name, formulas in OWN.items()]
    results = []
    for engine in ("reference", "cpu"):
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
def without_numba(monkeypatch):
    choice._missing_packages.cache_clear()
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "numba" else find(name)
    )
    yield
    choice._missing_packages.cache_clear()


@pytest.mark.usefixtures("without_numba")
def test_without_numba_the_engine_says_what_to_install():
    with pytest.raises(
        MissingDependencyError, match=r"engine='cpu' needs numba.*pip install numba"
    ):
        nb.train(nb.Network([6, 1]), X, Y["sigmoid"], epochs=1, engine="cpu")


@pytest.mark.usefixtures("without_numba")
def test_without_numba_a_long_training_runs_on_the_reference_and_says_so():
    with pytest.warns(UserWarning, match=r"numba is not installed.*pip install numba"):
        assert choice.default_engine(get_device("cpu"), 60.0) == "reference"


@needs_numba
@pytest.mark.slow
def test_auto_depends_on_the_length_of_the_training_alone():
    cpu = get_device("cpu")
    assert choice.default_engine(cpu, 60.0) == "cpu"
    assert choice.default_engine(cpu, 0.1) == "reference"
    problem = engines.Problem(nb.Network([6, 4, 1]).objective(), nb.SGD(), batch_size=10)
    # 4 steps of 0.2 ms an epoch; the products of such a network take no time.
    assert choice.reference_seconds(problem, 40, 100) == pytest.approx(0.08, rel=1e-2)


@needs_numba
@pytest.mark.slow
def test_a_cache_folder_that_cannot_be_written_is_done_without(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    module = kernel_cache.load_kernels("from numba import njit\nvalue = 42\n")
    assert module.value == 42


@needs_numba
@pytest.mark.slow
def test_compiling_says_so_once(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = "from numba import njit\n\n@njit(cache=True)\ndef double(x):\n    return 2 * x\n"
    assert kernel_cache.load_kernels(source).double(2) == 4
    assert [str(tmp_path) in record.getMessage() for record in caplog.records] == [True]
    assert kernel_cache.load_kernels(source).double(2) == 4
    assert len(caplog.records) == 1


def test_equal_sub_expressions_are_computed_once_and_reductions_become_loops():
    xp = Recorder("float32")
    z = xp.symbol("Z[i, k]")
    constants, functions = {}, set()
    lines = Printer(constants, functions).row(
        [("A[i, k]", xp.exp(z) / xp.sum(xp.exp(z), axis=-1, keepdims=True))],
        "n",
        "",
    )
    assert lines == [
        "t1 = C0",
        "for k in range(n):",
        "    t2 = exp(Z[i, k])",
        "    t1 += t2",
        "for k in range(n):",
        "    t3 = exp(Z[i, k])",
        "    t4 = t3 / t1",
        "    A[i, k] = t4",
    ]
    assert constants == {"C0": 0.0}
    assert functions == {"exp"}


@needs_numba
@pytest.mark.slow
def test_two_threads_train_at_once_and_get_what_one_would():
    hidden, output, options = PROBLEMS[0]
    case = {"dtype": "float64", "weighted": False, "batch_size": 16, "shuffle": True}
    alone, _ = trained("cpu", hidden, output, options, **case)
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(trained, "cpu", hidden, output, options, **case) for _ in range(4)]
        for future in futures:
            np.testing.assert_array_equal(future.result()[0].parameters, alone.parameters)


@needs_numba
@pytest.mark.slow
@pytest.mark.parametrize("flops", [0.0, 1e9], ids=["python", "compiled"])
def test_other_forms_of_validation_targets_tiny_weights_and_optimizers(flops, monkeypatch):
    monkeypatch.setattr("nnbackend.engines.native.engine._COMPILED_FLOPS", flops)
    y, rows = Y["softmax"], np.eye(3)[Y["softmax"]]
    losses = []
    for engine in ("reference", "cpu"):
        net = nb.Network([6, 4, 3], output="softmax", seed=1)
        history = nb.train(
            net, X, y, engine=engine, optimizer=HeavyBall(0.1), epochs=4, batch_size=16,
            sample_weight=np.full(N, 1e-40), validation_data=(X, rows),
        )  # fmt: skip
        losses.append([*history.loss, *history.validation_loss])
    # float32, and sums of subnormal weights of few digits.
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
