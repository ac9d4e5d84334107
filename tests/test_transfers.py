"""Nothing is read back from the device inside an epoch."""

import numpy as np
import pytest
from backends import require
from cupy_on_host import namespace, on_device
from devices import needs_cuda

import nnbackend as nb
from nnbackend.data.examples import Data
from nnbackend.device import get_device
from nnbackend.engines.base import Problem, Start
from nnbackend.engines.choice import get_engine
from nnbackend.engines.cuda import engine as cuda
from nnbackend.engines.reference import ReferenceEngine

N, BATCH = 48, 16
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((N, 6)), RNG.integers(0, 2, (N, 1))


def problem(net):
    return Problem(net.objective(l2=0.1), nb.Adam(), BATCH, clip_norm=1.0)


class Traced:
    """A device whose arrays hold no numbers yet: reading one is an error."""

    kind = "cpu"

    def __init__(self, xp):
        self.xp, self.place = xp, xp.asarray


def test_the_reference_engine_reads_nothing_inside_an_epoch():
    jax = require("jax")
    net = nb.Network([6, 5, 1], dropout=0.2, dtype="float64")
    order = RNG.permutation(N)

    def epoch(parameters, X, y, weight):
        rng = np.random.default_rng(0)
        device = Traced(jax.numpy)
        data = Data(X, y, weight)
        engine = ReferenceEngine(Start(problem(net), device, parameters, data, rng))
        losses, is_finite = engine.run(data, [order], [[0.1] * (N // BATCH)])
        return engine.parameters, losses, is_finite

    arguments = (np.asarray(net.parameters), X, Y.astype(float), np.ones(N))
    parameters, losses, is_finite = jax.eval_shape(epoch, *arguments)
    assert parameters.shape == (net.parameters.size,)
    assert losses.shape == (1,)
    assert is_finite.shape == ()
    with pytest.raises(jax.errors.ConcretizationTypeError):
        jax.eval_shape(lambda *given: epoch(*given)[2] and 1, *arguments)


@pytest.fixture
def cupy(monkeypatch):
    return namespace(monkeypatch)


def test_a_read_of_the_device_is_seen(cupy):
    x = on_device([1.0, -2.0, np.nan])
    assert type(cupy.sum(x)) is type(x)
    # array-api-compat's sign and clip assign by a mask.
    for read in (cupy.sign, lambda x: cupy.clip(x, 0.0, 1.0), lambda x: bool(x[0] > 0), float):
        with pytest.raises(AssertionError, match="the host reads"):
            read(x[:1] if read is float else x)


LOSSES = {
    "binary_cross_entropy": ("sigmoid", nb.SGD(momentum=0.9, nesterov=True)),
    "softmax_cross_entropy": ("softmax", nb.Adam(weight_decay=0.1)),
    "squared_error": ("softmax", nb.AdamW()),
    "absolute_error": ("identity", nb.RMSprop(momentum=0.5, centered=True)),
    "huber": ("sigmoid", nb.Adagrad()),
    "poisson": ("exp", nb.SGD()),
}
HIDDEN = [*("relu", "tanh", "gelu", "silu", "elu"), *("softplus", "leaky_relu", "sigmoid")]


@pytest.mark.parametrize(("loss", "case"), LOSSES.items(), ids=LOSSES)
@pytest.mark.parametrize("l1", [0.0, 0.1])
def test_cupys_namespace_reads_nothing_inside_an_epoch(cupy, loss, case, l1):
    output, optimizer = case
    net = nb.Network([6, *[5] * len(HIDDEN), 3], hidden=HIDDEN, output=output, dropout=0.2)
    y = RNG.integers(0, 3, N) if loss == "softmax_cross_entropy" else RNG.random((N, 3))
    y = y if y.ndim == 1 else y.astype(np.float32)
    weight = RNG.random(N).astype(np.float32)
    problem = Problem(
        net.objective(loss, l1, 0.1, penalty_per_sample=True), optimizer, BATCH, 1.0, 1.0
    )
    device = Traced(cupy)
    data = Data(*map(device.place, (X.astype(np.float32), y, weight)))
    parameters = device.place(np.asarray(net.parameters))
    engine = ReferenceEngine(Start(problem, device, parameters, data, np.random.default_rng(0)))
    losses, is_finite = engine.run(data, [RNG.permutation(N)], [[0.01] * (N // BATCH)])
    validation = engine.data_loss(data)
    for result in (losses, is_finite, validation, engine.parameters):
        assert type(result) is type(parameters)
    assert np.isfinite(np.asarray(losses)).all()
    assert np.asarray(engine.parameters).dtype == np.float32


# name: the engine, and the kind of its program.
RUNNERS = {
    "reference": ("reference", None),
    "tiny": ("cuda", cuda._Tiny),
    "graphs": ("cuda", cuda._Steps),
}


@needs_cuda
@pytest.mark.parametrize(("engine", "program"), RUNNERS.values(), ids=RUNNERS)
def test_no_copy_to_the_host_inside_an_epoch(monkeypatch, engine, program):
    torch = require("torch")  # its profiler sees all that the process asks of the GPU
    if not torch.cuda.is_available():
        pytest.skip("torch was built without CUDA, or for another one")
    monkeypatch.setattr(cuda, "_LAUNCH_CYCLES", 1e9 if program is cuda._Tiny else 0)
    device = get_device("cuda")
    net = nb.Network([6, 5, 1], device="cuda")
    data = Data(device.place(X.astype(np.float32)), device.place(Y.astype(np.float32)), None)
    start = Start(problem(net), device, net.parameters, data, RNG)
    runner = get_engine(engine, "float32", device)(start)
    if program is not None:
        assert type(runner) is cuda.CudaEngine
        assert type(runner._program) is program
    rates = [[0.1] * (N // BATCH)]
    runner.run(data, [RNG.permutation(N)], rates)  # compiles
    device.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        losses, _ = runner.run(data, [RNG.permutation(N)], rates)
        device.synchronize()
        read = device.to_numpy(losses)
    assert np.isfinite(read).all()
    copies = [event.name for event in profile.events() if "DtoH" in event.name]
    # That of the losses, after the epoch, shows that copies are seen.
    assert len(copies) == 1, copies
