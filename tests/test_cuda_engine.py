"""The CUDA engine gives the numbers of the reference engine: on a GPU, and carried out on the CPU.

Without a GPU the same plans run on ``HostExecutor``: kernels as C++, products by NumPy. What then
remains is that a GPU, CuPy and cuBLASLt do what each launch says; the same tests ask that of them.
"""

import gc
import logging
import weakref
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import cupy_stub
import numpy as np
import own_formulas
import pytest
from cuda_executor import HostExecutor
from devices import CUDA_MARKS, to_host
from factories import PROBLEMS, WEIGHT, N, X, Y, trained
from own_formulas import SWAPPED, Exploding, HeavyBall, assert_follows

import nnbackend as nb
from nnbackend.core.optimizers import OptimizerState
from nnbackend.data import examples
from nnbackend.data.placement import Memory
from nnbackend.device import get_device
from nnbackend.engines import base as engines
from nnbackend.engines import choice
from nnbackend.engines.cuda import cublaslt
from nnbackend.engines.cuda import engine as cuda
from nnbackend.engines.cuda import runtime as cuda_runtime
from nnbackend.engines.cuda.plan import Epilogue, Kernel, Product
from nnbackend.engines.cuda.runtime import CudaExecutor
from nnbackend.engines.reference import ReferenceEngine

pytestmark = pytest.mark.slow

# How a plan is carried out: steps with products that do bias and activation, steps with plain
# products, and, where it is for it, all in one kernel.
PROGRAMS = ["fused", "plain", "tiny"]


@pytest.fixture(params=["emulated", "stub", pytest.param("gpu", marks=CUDA_MARKS)])
def executor(request, monkeypatch):
    """Return the class that carries plans out, in place: a stand-in, or the real one.

    With ``"stub"`` it is the real one, on a stand-in of CuPy.
    """
    if request.param == "gpu":
        return CudaExecutor
    monkeypatch.setitem(choice.ENGINES, "cuda", lambda _device: cuda.cuda_engine)
    if request.param == "stub":
        monkeypatch.setattr(cuda_runtime, "import_cupy", cupy_stub.make_cupy)
        monkeypatch.setattr(cublaslt, "load_library", cupy_stub.Library)
        return CudaExecutor
    monkeypatch.setattr(cuda, "CudaExecutor", HostExecutor)
    return HostExecutor


@pytest.fixture
def place(request, executor):  # noqa: ARG001 - put in place
    """Return the name of the device."""
    return "cuda" if request.node.callspec.params["executor"] == "gpu" else "cpu"


# For tests of what the executor's own lines do.
on_the_real_executor = pytest.mark.parametrize(
    "executor", ["stub", pytest.param("gpu", marks=CUDA_MARKS)], indirect=True
)


def epilogues_of(engine):
    """Return the epilogues of the products of a step."""
    launches = engine._program._launches["step"]
    return {entry.epilogue for entry in launches if isinstance(entry, Product)} - {Epilogue.NONE}


@pytest.fixture
def choose(place, executor, monkeypatch, record_property):
    """Return a function that makes the engine take a program, and asserts that it does.

    It returns a list, to which every engine made adds the epilogues of its products. What products
    a GPU has is among the test's properties.
    """
    offers = executor.offers
    asked, built, answers = [], [], set()

    def choose(program):
        monkeypatch.setattr(cuda, "_LAUNCH_CYCLES", 1e9 if program == "tiny" else 0)

        def answer(executor, product):
            is_offered = offers(executor, product)
            name = f"{product.epilogue.value} in {product.precision}"
            answers.add(f"{name}: {'yes' if is_offered else 'no'}")
            return is_offered and (program != "plain" or product.epilogue is Epilogue.NONE)

        def make(start):
            asked.append(program)
            engine = cuda.cuda_engine(start)
            assert type(engine) is cuda.CudaEngine
            assert type(engine._program) is (cuda._Tiny if program == "tiny" else cuda._Steps)
            built.append(set() if program == "tiny" else epilogues_of(engine))
            assert not built[-1] or program == "fused"
            return engine

        monkeypatch.setattr(executor, "offers", answer)
        monkeypatch.setitem(choice.ENGINES, "cuda", lambda _device: make)
        return built

    yield choose
    assert asked, "no CUDA engine was asked for"
    if place == "cuda":
        for each in sorted(answers):
            record_property("cuBLASLt offers", each)


def programs_of(options):
    """Return the programs for a problem: dropout is not for the tiny one."""
    return [program for program in PROGRAMS if program != "tiny" or "dropout" not in options]


CASES = [
    pytest.param(*problem, program, id=f"{'-'.join([*problem[0], problem[1]])}-{program}")
    for problem in PROBLEMS
    for program in programs_of(problem[2])
]


@pytest.mark.parametrize(("hidden", "output", "options", "program"), CASES)
def test_every_program_equals_the_reference(place, choose, hidden, output, options, program):
    choose(program)
    # Sums are taken in another order: a few float64 roundings a step, over at most 20 steps.
    for weighted, batch_size, shuffle in ((False, 16, True), (True, 16, False), (True, None, True)):
        case = {"dtype": "float64", "weighted": weighted, "batch_size": batch_size}
        expected, said = trained("reference", hidden, output, options, shuffle=shuffle, **case)
        net, history = trained(
            "cuda", hidden, output, options, shuffle=shuffle, device=place, **case
        )
        assert net.parameters.dtype == np.float64
        np.testing.assert_allclose(
            to_host(net.parameters), expected.parameters, rtol=1e-10, atol=1e-12
        )
        np.testing.assert_allclose(history.loss, said.loss, rtol=1e-10)
        np.testing.assert_allclose(history.validation_loss, said.validation_loss, rtol=1e-10)


@pytest.mark.parametrize(
    ("program", "number"), [("fused", 0), ("plain", 0), ("plain", 7), ("tiny", 1)]
)
def test_float32_stays_float32(place, choose, program, number):
    used = choose(program)
    hidden, output, options = PROBLEMS[number]
    case = {"dtype": "float32", "weighted": True, "batch_size": 16, "shuffle": True}
    expected, said = trained("reference", hidden, output, options, **case)
    net, history = trained("cuda", hidden, output, options, device=place, **case)
    if place == "cpu" and program == "fused":
        assert used == [{Epilogue.RELU_AUX_BIAS, Epilogue.DRELU_BGRAD, Epilogue.BGRAD_B}]
    assert net.parameters.dtype == np.float32
    # float32 roundings of 6e-8, some tens of them over 20 steps of a well-conditioned problem.
    np.testing.assert_allclose(to_host(net.parameters), expected.parameters, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(history.loss, said.loss, rtol=1e-5)


def wide_data(n_classes):
    rng = np.random.default_rng(5)
    X = rng.standard_normal((150, 40))
    return X, rng.integers(0, n_classes, 150)


@pytest.mark.parametrize("program", ["fused", "plain"])
def test_rows_and_columns_beyond_a_block_equal_the_reference(place, choose, program):
    # Softmax of 300 outputs is more than a row of threads, column sums go over several blocks.
    choose(program)
    data = wide_data(300)
    nets = []
    for engine, device in (("reference", "cpu"), ("cuda", place)):
        net = nb.Network(
            [40, 70, 33, 300], hidden=["relu", "tanh"], output="softmax", dtype="float64",
            device=device, dropout=[0.0, 0.25],
        )  # fmt: skip
        nb.train(net, *data, optimizer=nb.SGD(0.5), epochs=2, batch_size=100, engine=engine)
        nets.append(to_host(net.parameters))
    np.testing.assert_allclose(nets[1], nets[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("precision", "bits", "activation"),
    [("tf32", 11, "relu"), ("tf32", 11, "gelu"), ("bfloat16", 8, "relu")],
)
def test_shorter_operands_give_nearly_the_numbers_of_float32(
    place, choose, precision, bits, activation
):
    choose("fused")
    data = wide_data(10)
    steps, losses = {}, {}
    for engine, device, chosen in (("reference", "cpu", "float32"), ("cuda", place, precision)):
        net = nb.Network(
            [40, 70, 33, 10], hidden=[activation, "tanh"], output="softmax", device=device
        )
        options = {"optimizer": nb.SGD(0.5), "engine": engine, "precision": chosen}
        before = list(map(to_host, [*net.weights, *net.biases]))
        nb.train(net, *data, epochs=1, batch_size=None, **options)
        after = map(to_host, [*net.weights, *net.biases])
        steps[chosen] = [new - old for new, old in zip(after, before, strict=True)]
        losses[chosen] = nb.train(net, *data, epochs=3, batch_size=64, **options).loss
        assert net.parameters.dtype == np.float32
    # At most six products lie behind a gradient, its own included. Each has two operands, which are
    # off by 2^-bits of themselves on average, if bits are cut off; where sums cancel, errors do.
    bounds = np.full(6, 12 * 2.0**-bits)
    if activation == "relu":
        # A share of some 2^-bits of its units is so near to 0 that it comes out on the other side.
        bounds[[0, 3]] = 2 * 2.0 ** (-bits / 2)
    for step, expected, bound in zip(steps[precision], steps["float32"], bounds, strict=True):
        error = np.linalg.norm(step - expected) / np.linalg.norm(expected)
        assert error <= bound
        # Without a GPU tf32 is float32.
        assert error > 0 or precision == "tf32"
    # In the mean over rows the errors cancel, too.
    np.testing.assert_allclose(losses[precision], losses["float32"], rtol=2.0**-bits)


@pytest.mark.parametrize("program", PROGRAMS)
def test_same_seed_gives_the_same_bits_in_whatever_order_blocks_run(
    place, choose, program, monkeypatch
):
    choose(program)
    hidden, output, options = PROBLEMS[4]
    case = {"dtype": "float32", "weighted": True, "batch_size": None, "shuffle": False}
    first, history = trained("cuda", hidden, output, options, device=place, **case)
    if place == "cpu":
        monkeypatch.setattr(HostExecutor, "seed", 1000)
    again, repeated = trained("cuda", hidden, output, options, device=place, **case)
    np.testing.assert_array_equal(to_host(first.parameters), to_host(again.parameters))
    assert history.loss == repeated.loss


@pytest.mark.parametrize("program", ["fused", "tiny"])
def test_divergence_is_found_and_the_last_finite_parameters_come_back(place, choose, program):
    choose(program)
    nets = []
    for engine, device in (("reference", "cpu"), ("cuda", place)):
        net = nb.Network(
            [6, 7, 5, 1], hidden=["relu", "tanh"], dtype="float64", seed=1, device=device
        )
        with pytest.raises(nb.DivergenceError, match="epoch 3") as caught:
            nb.train(
                net, X, Y["sigmoid"], optimizer=nb.SGD(Exploding()), epochs=50, batch_size=16,
                engine=engine,
            )  # fmt: skip
        assert caught.value.history.n_epochs == 2
        nets.append(to_host(net.parameters))
    np.testing.assert_allclose(nets[0], nets[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_early_stopping_restores_the_best_epoch(place, choose, precision):
    choose("fused")
    net = nb.Network([6, 7, 5, 1], hidden=["relu", "tanh"], seed=1, device=place)
    history = nb.train(
        net, X, Y["sigmoid"], optimizer=nb.SGD(0.5), epochs=40, batch_size=16, engine="cuda",
        validation_data=(X[::-1], Y["sigmoid"]), precision=precision,
        early_stopping=nb.EarlyStopping(patience=2),
    )  # fmt: skip
    assert history.stopped == "early stopping"
    loss, _ = net.loss_and_gradients(X[::-1], Y["sigmoid"])
    best = history.validation_loss[history.best_epoch - 1]
    assert float(loss) == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("program", ["fused", "tiny"])
def test_an_optimizer_that_keeps_parameters_and_tiny_weights(place, choose, program, monkeypatch):
    choose(program)
    # Training leaves batches without weight out; the kernels are right on them nevertheless.
    monkeypatch.setattr(examples, "is_zero_weight", lambda *_: None)
    losses = []
    for engine, device in (("reference", "cpu"), ("cuda", place)):
        net = nb.Network([6, 4, 3], output="softmax", seed=1, device=device)
        weight = np.where(np.arange(len(X)) < 32, 0.0, 1e-30)
        history = nb.train(
            net, X, Y["softmax"], engine=engine, optimizer=HeavyBall(0.1), epochs=4, batch_size=16,
            sample_weight=weight, shuffle=False,
        )  # fmt: skip
        losses.append(history.loss)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_a_formula_that_cannot_be_recorded_runs_on_the_reference_and_says_so(place, caplog):
    net = nb.Network([6, 7, 1], hidden=[SWAPPED], seed=1, device=place)
    with caplog.at_level(logging.WARNING, "nnbackend"):
        nb.train(net, X, Y["sigmoid"], epochs=2, engine="cuda")
    assert "cannot be recorded" in caplog.text
    assert "reference engine" in caplog.text
    with pytest.raises(nb.InputError, match=r"precision: 'tf32' needs kernels.*'float32'"):
        nb.train(net, X, Y["sigmoid"], epochs=2, engine="cuda", precision="tf32")


def test_precisions_are_for_float32_networks(place):
    net = nb.Network([6, 1], dtype="float64", device=place)
    with pytest.raises(nb.InputError, match=r"precision: .*dtype float64, got 'bfloat16'"):
        nb.train(net, X, Y["sigmoid"], engine="cuda", precision="bfloat16")


def test_the_engine_is_for_cuda_and_precisions_are_for_it():
    net = nb.Network([6, 1])
    with pytest.raises(nb.InputError, match=r"engine: 'cuda' runs on device='cuda'.*on cpu"):
        nb.train(net, X, Y["sigmoid"], engine="cuda")
    for engine in ("auto", "native", "reference"):
        with pytest.raises(nb.InputError, match=r"precision: 'tf32' is one of engine='cuda'"):
            nb.train(net, X, Y["sigmoid"], engine=engine, precision="tf32")
    assert choice.default_engine(get_device("cpu")) == "native"
    assert choice.default_engine(engines.Device("cuda")) == "reference"


@pytest.mark.parametrize("engine", ["reference", "cuda"])
@pytest.mark.parametrize(("weighted", "shuffle"), [(False, True), (True, False)])
def test_features_that_do_not_fit_are_streamed(
    request, place, monkeypatch, engine, weighted, shuffle
):
    if engine == "cuda":
        request.getfixturevalue("choose")("fused")
    hidden, output, options = PROBLEMS[0]
    case = {"dtype": "float64", "weighted": weighted, "batch_size": 16, "shuffle": shuffle}
    expected, said = trained("reference", hidden, output, options, **case)
    seen = []

    def keep_on_host(memory, X, *arguments):
        data = memory._preparation.examples(X, *arguments, home=get_device("cpu"))
        data = replace(data, streams=True)
        seen.append(data.streams)
        return data

    monkeypatch.setattr(Memory, "prepare", keep_on_host)
    net, history = trained(engine, hidden, output, options, device=place, **case)
    assert seen == [True, True]  # validation data, too
    np.testing.assert_allclose(to_host(net.parameters), expected.parameters, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(history.loss, said.loss, rtol=1e-10)
    np.testing.assert_allclose(history.validation_loss, said.validation_loss, rtol=1e-10)


@pytest.fixture
def stub(monkeypatch):
    """Put the stand-in of CuPy in place; return a function that does so with a cuBLASLt."""
    monkeypatch.setitem(choice.ENGINES, "cuda", lambda _device: cuda.cuda_engine)
    monkeypatch.setattr(cuda_runtime, "import_cupy", cupy_stub.make_cupy)
    monkeypatch.setattr(cuda, "_LAUNCH_CYCLES", 0)
    return lambda load: monkeypatch.setattr(cublaslt, "load_library", load)


def trained_on_zeros(engine, device="cpu"):
    """Return a network's parameters; its pre-activations are 0 at first, in some rows or all."""
    zeros = np.where(np.arange(len(X))[:, None] % 3 == 0, 0.0, X)
    net = nb.Network([6, 8, 8, 1], hidden="relu", dtype="float64", seed=2, device=device)
    nb.train(net, zeros, Y["sigmoid"], epochs=2, batch_size=16, engine=engine)
    return to_host(net.parameters)


@pytest.mark.parametrize(
    ("library", "epilogues"),
    [
        ({}, ["relu_aux_bias", "drelu_bgrad"]),
        ({"passes_zero": True}, ["relu_bias"]),
        ({"hides_nan": True}, []),
    ],
)
def test_relu_is_the_libraries_where_it_is_the_cores(stub, caplog, library, epilogues):
    stub(lambda: cupy_stub.Library(**library))
    expected = trained_on_zeros("reference")
    with caplog.at_level(logging.INFO, "nnbackend"):
        np.testing.assert_allclose(trained_on_zeros("cuda"), expected, rtol=1e-12, atol=1e-14)
    assert ("differs at 0 or NaN" in caplog.text) == bool(library)
    used = epilogues_of(engine_of("relu", "sigmoid", sizes=[8, 16, 12, 1])[0])
    assert used - {Epilogue.BGRAD_B} == set(map(Epilogue, epilogues))


@on_the_real_executor
def test_without_cublaslt_products_are_cupys_and_nothing_is_captured(
    place, choose, monkeypatch, caplog
):
    def load():
        raise cublaslt.CublasLtError("cuBLASLt is not installed")

    monkeypatch.setattr(cublaslt, "load_library", load)
    choose("fused")
    expected = trained_on_zeros("reference")
    np.testing.assert_allclose(trained_on_zeros("cuda", place), expected, rtol=1e-10, atol=1e-12)
    assert "every product is launched on its own" in caplog.text
    net = nb.Network([6, 1], device=place)
    with pytest.raises(nb.MissingDependencyError, match=r"precision='tf32' needs cuBLASLt.*pip"):
        nb.train(net, X, Y["sigmoid"], engine="cuda", precision="tf32")


@on_the_real_executor
@pytest.mark.parametrize("program", ["fused", "tiny"])
def test_the_memory_is_free_when_training_returns(place, choose, monkeypatch, program):
    executors = []

    def make(*arguments):
        executor = CudaExecutor(*arguments)
        executors.append(weakref.ref(executor))
        return executor

    monkeypatch.setattr(cuda, "CudaExecutor", make)
    choose(program)
    hidden, output, options = PROBLEMS[0]
    case = {"dtype": "float64", "weighted": False, "batch_size": 16, "shuffle": True}
    gc.disable()
    try:
        trained("cuda", hidden, output, options, device=place, **case)
        assert [executor() for executor in executors] == [None]
    finally:
        gc.enable()


def used_in_streams(make, device, *, streams):
    """Train for some epochs, each time with what a caller does between them; return parameters.

    The features begin within an array, and where that is not aligned.
    """
    xp, rng = device.xp, np.random.default_rng(0)
    hidden, output, options = PROBLEMS[4]
    net = nb.Network([6, 7, 5, 3], hidden=hidden, output=output, dtype="float64", seed=1)
    data = examples.Data(
        X if streams else xp.asarray(np.vstack([X[:1], X]))[1:],
        xp.asarray(Y[output]),
        xp.asarray(WEIGHT),
        streams=streams,
    )
    optimizer = nb.AdamW(0.01)
    problem = engines.Problem(net.objective(options["loss"]), optimizer, 16, clip_value=0.01)
    engine = make(engines.Start(problem, device, xp.asarray(net.parameters), data, rng))
    n_epochs, losses = 1 if streams else 3, []
    for _ in range(3):
        orders = [rng.permutation(N) for _ in range(n_epochs)]
        found, is_finite = engine.run(data, orders, [[0.01] * 4] * n_epochs)
        assert bool(is_finite)
        losses += [float(found[-1]), float(engine.data_loss(data))]
        engine.restore(0.9 * engine.snapshot())
        state = engine.state
        step, arrays = state.optimizer
        optimizer = OptimizerState(step, tuple(0.9 * array for array in arrays))
        engine.set_state(state._replace(optimizer=optimizer))
    parameters = list(map(float, engine.parameters))
    engine.restore_finite()
    assert all(map(np.isfinite, map(float, engine.parameters)))
    return np.asarray([*losses, *parameters])


@pytest.fixture
def machine(monkeypatch):
    """Return a device whose arrays, like the executor's, are those of the stand-in of CuPy."""
    cupy = cupy_stub.make_cupy()
    monkeypatch.setattr(cuda_runtime, "import_cupy", lambda: cupy)
    monkeypatch.setattr(cublaslt, "load_library", cupy_stub.Library)
    monkeypatch.setattr(cuda, "_LAUNCH_CYCLES", 0)
    return SimpleNamespace(xp=cupy, place=cupy.asarray, index=0)


@pytest.mark.parametrize("streams", [False, True])
def test_nothing_in_a_stream_overtakes_what_it_needs(machine, monkeypatch, streams):
    expected = used_in_streams(ReferenceEngine, get_device("cpu"), streams=streams)
    found = used_in_streams(cuda.cuda_engine, machine, streams=streams)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    monkeypatch.setattr(cupy_stub.Stream, "wait_event", lambda *_: None)
    with pytest.raises(AssertionError, match="does not wait for the last write"):
        used_in_streams(cuda.cuda_engine, machine, streams=streams)


def test_the_host_waits_before_it_writes_to_what_is_copied(machine, monkeypatch):
    monkeypatch.setattr(cupy_stub.Event, "synchronize", lambda _: None)
    with pytest.raises(AssertionError, match="wrote to what a copy may still read"):
        used_in_streams(cuda.cuda_engine, machine, streams=True)


class Summing(nb.SGD):
    """Divides by a sum over all parameters, of which padding is not one."""

    def update(self, xp, parameters, gradient, state, coefficients):
        total = xp.sum(xp.exp(gradient), axis=-1, keepdims=True)
        return parameters - coefficients[0] * gradient / total, state


class Signs(nb.SGD):
    """Makes NaN of a gradient of 0, which padding has."""

    def update(self, xp, parameters, gradient, state, coefficients):
        return parameters - coefficients[0] * gradient / xp.abs(gradient), state


class PerBatch(nb.losses.SquaredError):
    """Divides by the rows of a batch, of which the last one has fewer."""

    def elements(self, xp, Z, Y):
        element, derivative = super().elements(xp, Z, Y)
        return element / Z.shape[-2], derivative / Z.shape[-2]


NORMALIZED = nb.register_activation(
    "test_normalized",
    lambda xp, Z: Z / (1.0 + xp.sum(xp.abs(Z), axis=-1, keepdims=True)),
    lambda xp, Z, _A: 1.0 / (1.0 + xp.sum(xp.abs(Z), axis=-1, keepdims=True)),
)
SHARED = nb.register_activation(
    "test_shared",
    lambda _xp, Z: Z / Z.shape[-1],
    lambda xp, Z, _A: xp.ones_like(Z) / Z.shape[-1],
)


@pytest.mark.parametrize(
    "executor", ["emulated", pytest.param("gpu", marks=CUDA_MARKS)], indirect=True
)
@pytest.mark.parametrize(
    ("hidden", "options"),
    [
        ("tanh", {"optimizer": Summing(0.1)}),
        ("tanh", {"optimizer": Signs(0.01)}),
        ("tanh", {"optimizer": nb.SGD(0.1), "loss": PerBatch()}),
        (NORMALIZED, {"optimizer": nb.SGD(0.1)}),
        (SHARED, {"optimizer": nb.SGD(0.1)}),
    ],
    ids=["sum in optimizer", "0/0 in optimizer", "batch in loss", "sum in layer", "width in layer"],
)
def test_formulas_beyond_an_element_run_on_the_reference_and_say_so(place, caplog, hidden, options):
    case = {"dtype": "float64", "weighted": True, "batch_size": 16, "shuffle": True}
    expected, said = trained("reference", [hidden], "identity", options, **case)
    with caplog.at_level(logging.WARNING, "nnbackend"):
        net, history = trained("cuda", [hidden], "identity", options, device=place, **case)
    assert caplog.text.count("runs on the slower reference engine") == 1
    np.testing.assert_allclose(to_host(net.parameters), expected.parameters, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(history.loss, said.loss, rtol=1e-10)


@pytest.mark.parametrize(
    "executor", ["emulated", pytest.param("gpu", marks=CUDA_MARKS)], indirect=True
)
@pytest.mark.parametrize(("program", "dropout"), [("plain", 0.0), ("plain", 0.3), ("tiny", 0.0)])
def test_what_a_formula_reads_beyond_its_arguments_is_followed(place, choose, program, dropout):
    choose(program)
    expected = own_formulas.follows("reference", dropout=dropout)
    assert_follows(expected, own_formulas.follows("cuda", place, dropout=dropout))


@pytest.mark.parametrize(("dtype", "drawn"), [("float32", 7), ("float32", 8), ("float64", 7)])
def test_the_hosts_generator_goes_on_where_the_devices_is(dtype, drawn):
    used, rng = np.random.default_rng(5), np.random.default_rng(5)
    start = rng.bit_generator.state
    used.random(drawn, dtype=dtype)
    cuda._advance(rng, start, drawn, dtype)
    np.testing.assert_array_equal(rng.random(5, dtype=dtype), used.random(5, dtype=dtype))


class Constant(nb.SGD):
    """Its coefficients are the same at every step."""

    def coefficients(self, learning_rate, step):
        del learning_rate, step
        return 0.1, 0.5

    def update(self, xp, parameters, gradient, state, coefficients):
        del xp
        rate, decay = coefficients
        return parameters - rate * (gradient + decay * parameters), state


class Bare(nb.SGD):
    """It has no coefficients."""

    def coefficients(self, learning_rate, step):
        del learning_rate, step
        return ()

    def update(self, xp, parameters, gradient, state, coefficients):
        del xp
        assert coefficients == ()
        return parameters - 0.1 * gradient, state


def assert_equal_parameters(engine, optimizer, device="cpu"):
    case = {"dtype": "float64", "weighted": False, "batch_size": 16, "shuffle": True}
    options = {"optimizer": optimizer}
    expected, _ = trained("reference", [], "identity", options, **case)
    net, _ = trained(engine, [], "identity", options, device=device, **case)
    np.testing.assert_allclose(to_host(net.parameters), expected.parameters, rtol=1e-10, atol=1e-12)


@on_the_real_executor
@pytest.mark.parametrize("program", ["fused", "tiny"])
@pytest.mark.parametrize("optimizer", [Constant(), Bare()], ids=["constant", "bare"])
def test_coefficients_need_not_change_or_be_there(place, choose, program, optimizer):
    choose(program)
    assert_equal_parameters("cuda", optimizer, place)


@pytest.mark.parametrize("optimizer", [Constant(), Bare()], ids=["constant", "bare"])
def test_coefficients_need_not_change_or_be_there_on_the_cpu(optimizer):
    assert_equal_parameters("native", optimizer)


def engine_of(hidden, output, *, sizes, n_samples=256, batch_size=64, optimizer=None):
    """Return an engine on the host executor, before its first step, and its data."""
    net = nb.Network(sizes, hidden=hidden, output=output)
    rng = np.random.default_rng(0)
    data = examples.Data(
        rng.standard_normal((n_samples, sizes[0]), dtype=np.float32),
        rng.integers(0, 2, (n_samples, 1)).astype(np.float32),
    )
    problem = engines.Problem(net.objective(), optimizer or nb.Adam(), batch_size)
    start = engines.Start(problem, get_device("cpu"), net.parameters, data, rng)
    return cuda.cuda_engine(start), data


@pytest.fixture
def emulated(monkeypatch):
    monkeypatch.setattr(cuda, "CudaExecutor", HostExecutor)
    monkeypatch.setattr(cuda, "_LAUNCH_CYCLES", 0)


@pytest.mark.usefixtures("emulated")
def test_a_step_of_relu_layers_is_a_gather_and_three_launches_a_layer_and_one():
    engine, _ = engine_of("relu", "sigmoid", sizes=[8, 16, 12, 1])
    launches = engine._program._launches["step"]
    names = [entry.name if isinstance(entry, Kernel) else entry.epilogue for entry in launches]
    assert names == [
        "gather",
        Epilogue.RELU_AUX_BIAS,
        Epilogue.RELU_AUX_BIAS,
        Epilogue.NONE,
        "output_loss",
        Epilogue.BGRAD_B,
        Epilogue.DRELU_BGRAD,
        Epilogue.NONE,
        Epilogue.DRELU_BGRAD,
        Epilogue.NONE,
        "update",
    ]


@pytest.mark.usefixtures("emulated")
def test_matrices_are_aligned_for_wide_loads_and_lie_apart():
    engine, _ = engine_of("tanh", "sigmoid", sizes=[30, 20, 7, 1])
    layout = engine._program.layout
    places = [*layout.weights, *layout.biases]
    assert all(place.offset * 4 % 256 == 0 for place in places)
    assert all(W.ld * 4 % 16 == 0 for W in layout.weights)
    taken = sorted((p.offset, p.offset + (p.rows * p.ld if p in layout.weights else p.size))
                   for p in places)  # fmt: skip
    assert all(end <= start for (_, end), (start, _) in pairwise(taken))
    assert taken[-1][1] <= layout.size
    for launch in engine._program._launches["step"]:
        if isinstance(launch, Product):
            for matrix in (launch.A, launch.B, launch.out):
                assert matrix.ld * 4 % 16 == 0


@pytest.mark.usefixtures("emulated")
def test_short_epochs_are_captured_many_in_a_graph_and_long_ones_in_parts(monkeypatch):
    engine, data = engine_of("relu", "sigmoid", sizes=[8, 4, 1], n_samples=16, batch_size=8)
    executor = engine._executor
    engine.run(data, None, [[0.1, 0.1]] * 21)
    # 16, 4 and 1 epochs in a graph of their own.
    assert executor.n_graphs == 3
    monkeypatch.setattr(cuda, "_GRAPH_LAUNCHES", 20)
    engine, data = engine_of("relu", "sigmoid", sizes=[8, 4, 1], n_samples=60, batch_size=8)
    executor = engine._executor
    losses, is_finite = engine.run(data, None, [[0.1] * 8] * 3)
    # Two steps in a graph, the seventh, and the short one with the end of the epoch.
    assert executor.n_graphs == 3
    assert len(losses) == 3
    assert bool(is_finite)
    assert sorted(times for _, times in engine._program._graphs) == [1, 1, 2]


@pytest.mark.usefixtures("emulated")
def test_without_graphs_launches_go_out_one_by_one(monkeypatch):
    monkeypatch.setattr(HostExecutor, "captures", False)
    engine, data = engine_of("relu", "sigmoid", sizes=[8, 4, 1], n_samples=16, batch_size=8)
    engine.run(data, None, [[0.1, 0.1]] * 21)
    assert set(engine._program._graphs) == {("epoch", 1)}


@pytest.mark.usefixtures("emulated")
def test_what_products_run_without_their_epilogue_is_said(monkeypatch, caplog):
    monkeypatch.setattr(HostExecutor, "epilogues", frozenset({Epilogue.RELU_BIAS}))
    with caplog.at_level(logging.INFO, "nnbackend"):
        engine, _ = engine_of(["relu", "gelu"], "sigmoid", sizes=[8, 4, 6, 1])
    assert "layer 2 (gelu, 6 units)" in caplog.text
    names = [getattr(entry, "name", None) for entry in engine._program._launches["step"]]
    # ReLU's way forward is in its product, its way back is not.
    assert [name for name in names if name] == [
        "gather",
        "activate_1",
        "output_loss",
        "column_sums",
        "pull_back_1",
        "pull_back_0",
        "update",
    ]


@pytest.mark.parametrize("program", ["fused", "tiny"])
def test_penalties_per_sample_and_a_training_that_goes_on(place, choose, program):
    choose(program)
    options = {
        "optimizer": nb.Adam(0.01), "batch_size": 16, "l2": 2.0, "penalty_per_sample": True,
        "shuffle": False, "clip_norm": 0.5, "loss_by_rows": True,
    }  # fmt: skip
    weight = 1.0 + np.arange(len(X)) % 3
    nets, losses = [], []
    for engine, device, parts in (("reference", "cpu", [5]), ("cuda", place, [2, 3])):
        net = nb.Network([6, 7, 1], hidden="tanh", dtype="float64", seed=1, device=device)
        state = None
        losses.append([])
        for epochs in parts:
            history = nb.train(
                net, X, Y["sigmoid"], epochs=epochs, engine=engine, optimizer_state=state,
                sample_weight=weight, **options,
            )  # fmt: skip
            state = history.optimizer_state
            losses[-1] += history.loss
        nets.append(to_host(net.parameters))
    np.testing.assert_allclose(nets[1], nets[0], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-10)
