"""Every engine gives the numbers of the reference engine, whatever the problem."""

import importlib.util

import numpy as np
import pytest

import nnbackend as nb
from nnbackend.engines.expression import RECORDER, Printer, symbol
from nnbackend.errors import InputError, MissingDependencyError

needs_numba = pytest.mark.skipif(
    importlib.util.find_spec("numba") is None, reason="Numba is not installed"
)
RNG = np.random.default_rng(0)
N = 53  # with batches of 16 the last one is short
X = RNG.standard_normal((N, 6))
Y = {
    "sigmoid": RNG.integers(0, 2, N),
    "softmax": RNG.integers(0, 3, N),
    "identity": RNG.standard_normal((N, 3)),
    "exp": RNG.poisson(2.0, (N, 3)),
}
WEIGHT = RNG.random(N)
N_OUTPUTS = {"sigmoid": 1, "softmax": 3, "identity": 3, "exp": 3}
C = nb.schedules.Cosine

# Activations of the hidden layers, output, and options: each of them once, in few programs, since
# compiling one takes seconds.
PROBLEMS = [
    (["relu", "tanh"], "sigmoid", {"optimizer": nb.SGD(0.1)}),
    (["gelu", "silu"], "softmax", {"optimizer": nb.Adam(0.01, weight_decay=0.01), "l2": 0.01}),
    (
        ["elu", "softplus"],
        "identity",
        {"optimizer": nb.SGD(0.05, momentum=0.9, nesterov=True), "loss": "huber", "l1": 0.01},
    ),
    (
        ["leaky_relu", "sigmoid"],
        "exp",
        {"optimizer": nb.RMSprop(1e-3, momentum=0.5, centered=True), "clip_norm": 0.1},
    ),
    (
        ["identity", "relu"],
        "softmax",
        {
            "optimizer": nb.AdamW(C(0.01)),
            "loss": nb.losses.SoftmaxCrossEntropy(label_smoothing=0.1),
            "clip_value": 0.01,
        },
    ),
    ([], "identity", {"optimizer": nb.Adagrad(0.1, decay=0.01), "loss": "absolute_error"}),
    (["tanh"], "softmax", {"optimizer": nb.SGD(0.1), "loss": "squared_error", "one_hot": True}),
    (["relu"], "sigmoid", {"optimizer": nb.Adam(0.01), "dropout": 0.3}),
]


def trained(engine, hidden, output, options, *, dtype, weighted, batch_size, shuffle):
    options = dict(options)
    y = Y[output]
    if options.pop("one_hot", False):
        y = np.eye(3)[y]
    net = nb.Network(
        [6, *[7, 5][: len(hidden)], N_OUTPUTS[output]],
        hidden=hidden,
        output=output,
        dropout=options.pop("dropout", 0.0),
        dtype=dtype,
        seed=1,
    )
    weight = WEIGHT if weighted else None
    history = nb.train(
        net,
        X,
        y,
        epochs=5,
        batch_size=batch_size,
        shuffle=shuffle,
        sample_weight=weight,
        validation_data=(X[:20], y[:20], weight if weight is None else weight[:20]),
        engine=engine,
        **options,
    )
    return net, history


@needs_numba
@pytest.mark.parametrize(("hidden", "output", "options"), PROBLEMS)
def test_the_compiled_epoch_equals_the_reference(hidden, output, options):
    # Sums are taken in another order: a few float64 roundings a step, over at most 20 steps.
    for weighted, batch_size, shuffle in ((False, 16, True), (False, None, False)):
        case = {"dtype": "float64", "weighted": weighted, "batch_size": batch_size}
        expected, said = trained("reference", hidden, output, options, shuffle=shuffle, **case)
        net, history = trained("cpu", hidden, output, options, shuffle=shuffle, **case)
        assert net.parameters.dtype == np.float64
        np.testing.assert_allclose(net.parameters, expected.parameters, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(history.loss, said.loss, rtol=1e-10)
        np.testing.assert_allclose(history.validation_loss, said.validation_loss, rtol=1e-10)


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
def test_divergence_is_found_and_the_last_finite_parameters_come_back():
    net = nb.Network([6, 1], output="identity", dtype="float64")
    with pytest.raises(nb.DivergenceError, match="epoch"):
        nb.train(net, X, Y["identity"][:, :1], optimizer=nb.SGD(1e6), epochs=200, engine="cpu")
    assert np.isfinite(net.parameters).all()


@needs_numba
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
def test_a_users_activation_is_compiled_and_one_that_branches_is_refused():
    square = nb.register_activation("test_square", lambda _xp, Z: Z * Z, lambda _xp, Z, _A: 2.0 * Z)
    nets = [nb.Network([6, 4, 1], hidden=square, dtype="float64") for _ in range(2)]
    for net, engine in zip(nets, ("reference", "cpu"), strict=True):
        nb.train(net, X, Y["sigmoid"], epochs=2, engine=engine)
    np.testing.assert_allclose(nets[0].parameters, nets[1].parameters, rtol=1e-10, atol=1e-12)
    branching = nb.register_activation(
        "test_branching",
        lambda xp, Z: Z if xp.all(Z > 0) else -Z,
        lambda xp, Z, _A: xp.ones_like(Z),
    )
    net = nb.Network([6, 4, 1], hidden=branching)
    with pytest.raises(InputError, match=r"engine: .*cannot be recorded.*'reference'"):
        nb.train(net, X, Y["sigmoid"], epochs=1, engine="cpu")


def test_without_numba_the_engine_says_what_to_install(monkeypatch):
    from nnbackend.engines import cpu

    cpu._require_numba.cache_clear()
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "numba" else find(name)
    )
    with pytest.raises(
        MissingDependencyError, match=r"engine='cpu' needs numba.*pip install numba"
    ):
        nb.train(nb.Network([6, 1]), X, Y["sigmoid"], epochs=1, engine="cpu")
    cpu._require_numba.cache_clear()


@needs_numba
def test_a_cache_folder_that_cannot_be_written_is_done_without(monkeypatch, tmp_path):
    from nnbackend.engines import cpu

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    net = nb.Network([6, 2, 1], hidden="tanh", dtype="float64")
    module = cpu._module("from numba import njit\nvalue = 42\n")
    assert module.value == 42
    assert net.n_parameters == 17


def test_equal_sub_expressions_are_computed_once_and_reductions_become_loops():
    z = symbol("Z[i, k]")
    constants = {}
    lines = Printer(constants).row(
        [("A[i, k]", RECORDER.exp(z) / RECORDER.sum(RECORDER.exp(z), axis=-1, keepdims=True))],
        "n",
        "",
    )
    assert lines == [
        "t1 = C0",
        "for k in range(n):",
        "    t2 = math.exp(Z[i, k])",
        "    t1 += t2",
        "for k in range(n):",
        "    t3 = math.exp(Z[i, k])",
        "    t4 = t3 / t1",
        "    A[i, k] = t4",
    ]
    assert constants == {"C0": 0.0}
