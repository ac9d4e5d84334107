"""The benchmark: one mathematics for all contestants, and a report that hides nothing."""

import contextlib
import ctypes
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import nnbackend as nb
from nnbackend.bench import contestants as peers
from nnbackend.bench import limit, peer_torch, startup
from nnbackend.bench import own as contestants
from nnbackend.bench import race as benchmark
from nnbackend.bench import text as benchmark_report
from nnbackend.bench.contestant import NotInstalledError, UnsupportedError
from nnbackend.bench.own import own_contestants
from nnbackend.bench.process import ContestantError, ContestantProcess
from nnbackend.bench.race import run_benchmark
from nnbackend.bench.report import Comparison, Entry, Report, Result, Summary, verdicts
from nnbackend.bench.startup import Startup
from nnbackend.bench.worker import Worker
from nnbackend.bench.workload import (
    DIGITS,
    WORKLOADS,
    Workload,
    custom_workload,
    random_workloads,
)
from nnbackend.core.activations import ACTIVATIONS, is_built_in
from nnbackend.device import Device
from nnbackend.engines.cuda import cublaslt
from nnbackend.errors import InputError

TINY = Workload("tiny", (3, 5, 4, 1), "tanh", "sigmoid", 8, nb.SGD(0.1), 4)
LEARNERS = [name for name in peers.CONTESTANTS if name not in (*peers.OWN, peers.LIMIT)]


def contestant(name, workload, *where):
    """Return a contestant that is ready to train from the network's initial parameters."""
    entry = peers.CONTESTANTS[name](workload, *(where or ("cpu",)))
    try:
        entry.load()
    except NotInstalledError as error:
        if os.environ.get("NNBACKEND_REQUIRE_ORACLES") == "1":
            raise
        pytest.skip(str(error))
    net = workload.network()
    entry.prepare(
        *workload.data(), ([W.copy() for W in net.weights], [b.copy() for b in net.biases])
    )
    entry.reset()
    return entry


# torch.compile takes seconds; what it compiles is Torch's loss, which is tested. Without a GPU,
# TorchGraph is Torch.
@pytest.mark.parametrize(
    "name", [name for name in LEARNERS if name not in ("torch-compiled", "torch-graph")]
)
@pytest.mark.parametrize(
    ("output", "optimizer", "n_batches"),
    [
        ("sigmoid", nb.SGD(0.5), 1),
        ("sigmoid", nb.Adam(0.01), 4),
        ("softmax", nb.Adam(0.01), 1),
        ("softmax", nb.SGD(0.5), 4),
        ("softmax", nb.SGD(0.2, momentum=0.9), 1),
        ("multilabel", nb.Adam(0.01), 1),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_peer_takes_the_steps_that_we_take(name, output, optimizer, n_batches):
    if name == "sklearn" and n_batches > 1:
        pytest.skip("scikit-learn draws its own order of the batches")
    sizes = (6, 7, 5, 1 if output == "sigmoid" else 3)
    kind = "softmax" if output == "softmax" else "sigmoid"
    workload = Workload("w", sizes, "tanh", kind, 16, optimizer, n_batches)
    entry = contestant(name, workload)
    epochs = entry.epochs_per_call
    loss = entry.run(epochs)

    net = workload.network()
    X, y = workload.data()
    history = nb.train(net, X, y, optimizer=optimizer, epochs=epochs, batch_size=16)
    # float32 rounding, added up over the steps. scikit-learn adds Adam's epsilon before the bias
    # correction: its first step is shorter by the share 3e-7 / |g|, a tenth for the least |g| here.
    is_other_adam = name == "sklearn" and isinstance(optimizer, nb.Adam)
    atol = 0.1 * optimizer.learning_rate if is_other_adam else 2e-5
    assert loss == pytest.approx(history.loss[-1], rel=1e-4)
    for got, expected in zip(entry.parameters(), (net.weights, net.biases), strict=True):
        for x, y in zip(got, expected, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=atol)


@pytest.mark.parametrize("name", ["jax", "torch"])
@pytest.mark.parametrize(
    "hidden", sorted({entry.name for entry in filter(is_built_in, ACTIVATIONS.values())})
)
def test_a_peer_has_every_activation_that_we_have(name, hidden):
    workload = Workload("w", (6, 7, 1), hidden, "sigmoid", 16, nb.SGD(0.5, momentum=0.9), 1)
    entry = contestant(name, workload)
    loss = entry.run(3)
    net = workload.network()
    options = {"optimizer": workload.optimizer, "batch_size": 16, "engine": "reference"}
    history = nb.train(net, *workload.data(), epochs=3, **options)
    # float32 rounding, added up over the steps.
    assert loss == pytest.approx(history.loss[-1], rel=1e-5)
    for x, expected in zip(entry.parameters()[0], net.weights, strict=True):
        np.testing.assert_allclose(x, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    "name",
    [
        "nnbackend",
        "nnbackend-reference",
        "textbook",
        "torch",
        "jax",
        "jax-scan",
        "sklearn",
    ],
)
def test_every_round_starts_from_the_same_parameters(name):
    entry = contestant(name, TINY)
    first = entry.run(entry.epochs_per_call)
    entry.run(entry.epochs_per_call)
    entry.reset()
    again = entry.run(entry.epochs_per_call)
    if name != "sklearn":  # which goes on with its own random state
        assert again == first
    assert again == pytest.approx(first, rel=0.05)


def test_the_limit_computes_the_products_of_a_step():
    entry = contestant("limit", TINY)
    entry.run(1)
    flops = [2 * a.shape[0] * a.shape[1] * b.shape[1] for a, b, _ in entry._products]
    assert len(flops) == 3 * 3 - 1
    assert sum(flops) == TINY.flops_per_step
    for a, b, out in entry._products:
        np.testing.assert_allclose(out, a @ b, rtol=1e-5, atol=1e-5)


class FakeCuda:
    """What torch has for CUDA graphs; a replay takes the captured step again, on the CPU."""

    def __init__(self, torch, monkeypatch):
        self.captured = None
        nothing = SimpleNamespace(wait_stream=lambda _: None)
        names = {
            "is_available": lambda: True,
            "set_device": lambda _: None,
            "current_stream": lambda: nothing,
            "Stream": lambda: nothing,
            "stream": lambda _: contextlib.nullcontext(),
            "CUDAGraph": lambda: SimpleNamespace(replay=lambda: self.step(*self.captured)),
            "graph": self.capture,
        }
        for name, stand_in in names.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)
        self.step, self.is_capturing = peer_torch.Torch._step, False

        def step(*arguments):
            if self.is_capturing:
                self.captured = arguments
            else:
                self.step(*arguments)

        monkeypatch.setattr(peer_torch.Torch, "_step", step)

    @contextlib.contextmanager
    def capture(self, _, **where):
        assert where.keys() == {"stream"}
        self.is_capturing = True
        yield
        self.is_capturing = False


@pytest.mark.parametrize("optimizer", [nb.SGD(0.5), nb.Adam(0.01)], ids=lambda o: o.name)
@pytest.mark.parametrize("n_batches", [1, 4])
def test_a_captured_step_is_the_eager_one(torch, monkeypatch, optimizer, n_batches):
    workload = Workload("w", (6, 7, 1), "relu", "sigmoid", 16, optimizer, n_batches)
    eager = contestant("torch", workload)
    cuda = FakeCuda(torch, monkeypatch)
    # Another name of the CPU, which is not "cpu".
    captured = contestant("torch-graph", workload, "cpu:0")
    assert cuda.captured is not None
    for _ in range(2):
        losses = [entry.run(3) for entry in (eager, captured)]
        assert losses[0] == losses[1]
        for x, y in zip(eager.parameters(), captured.parameters(), strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(x, y, strict=True))
        eager.reset()
        captured.reset()


def test_torch_computes_in_the_precision_asked_for(torch):
    assert torch.get_float32_matmul_precision() == "highest"
    losses = {}
    for precision, setting in (("tf32", "high"), ("bfloat16", "highest"), ("float32", "highest")):
        entry = contestant("torch", TINY, "cpu", precision)
        assert torch.get_float32_matmul_precision() == setting
        losses[precision] = entry.run(1)
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.01)


@pytest.mark.parametrize(
    ("precision", "setting"),
    [("float32", "HIGHEST"), ("tf32", "HIGH"), ("bfloat16", "lhs_precision_type = bf16")],
)
def test_jax_computes_in_the_precision_asked_for(precision, setting):
    entry = contestant("jax", TINY, "cpu", precision)
    jax = entry._jax
    try:
        X, y = (entry._jnp.asarray(x) for x in TINY.data())
        lowered = jax.jit(entry._step).lower(entry._state, X[:8], y[:8, None]).as_text()
    finally:
        jax.config.update("jax_default_matmul_precision", None)
    products = [line for line in lowered.splitlines() if "dot_general" in line]
    assert len(products) == 3 * 3 - 1
    assert all(setting in line for line in products)


def test_a_precision_that_no_engine_has_is_unsupported():
    for name in ("nnbackend", "nnbackend-reference"):
        with pytest.raises(UnsupportedError, match="'tf32'"):
            contestant(name, TINY, "cpu", "tf32")
    with pytest.raises(UnsupportedError, match="with cuBLASLt alone"):
        contestant("limit", TINY, "cpu", "tf32")


def test_every_engine_that_runs_on_a_device_takes_part(monkeypatch):
    engines = {"native": "the library", "cuda": "planned steps", "reference": "the core"}

    def get_engine(name, precision, device):
        if name == "native" or (name != "cuda" and precision == "tf32"):
            raise InputError(f"{name} does not run on {device} in {precision}")
        return engines["reference" if name == "auto" else name]

    monkeypatch.setattr(contestants, "ENGINES", engines)
    monkeypatch.setattr(contestants, "get_engine", get_engine)
    gpu = Device("cuda")
    both = {"nnbackend": "reference", "nnbackend-cuda": "cuda"}
    assert own_contestants(gpu, "float32") == both
    assert own_contestants(gpu, "tf32") == {"nnbackend-cuda": "cuda"}
    assert own_contestants(gpu, "bfloat16") == both


class FakeArray(np.ndarray):
    """An array that tells its address as CuPy's do."""

    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data)


class FakeGPU:
    """A device, a stream and cuBLASLt, on which products are computed by NumPy."""

    def __init__(self, monkeypatch, error=None):
        self.kind, self.launched, self.recorded, self.ptr = "cuda", 0, None, 7
        self.xp = SimpleNamespace(
            __name__="array_api_compat.numpy",
            uint8=np.uint8,
            float32=np.float32,
            matmul=np.matmul,
            empty=lambda shape, dtype: np.full(shape, 77, dtype).view(FakeArray),
            cuda=SimpleNamespace(Stream=self.stream),
        )
        self.library = SimpleNamespace(cublasLtGetVersion=lambda: 130000)
        monkeypatch.setattr(limit, "get_device", lambda _: self)

        def make(pointer, size):
            assert pointer > 0 < size
            if error is not None:
                raise error
            return self

        monkeypatch.setattr(cublaslt, "CublasLt", make)

    def stream(self, *, non_blocking):
        assert non_blocking
        return self

    def place(self, x):
        return x.copy().view(FakeArray)

    def activate(self):
        return contextlib.nullcontext()

    def synchronize(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def begin_capture(self):
        self.recorded = []

    def end_capture(self):
        recorded, self.recorded = self.recorded, None
        return SimpleNamespace(launch=lambda _: [compute() for compute in recorded])

    def prepare(self, product, pointers):
        cublaslt.layout(product)  # which raises if the parts do not fit

        def matrix(part):
            kind = ctypes.c_uint16 if part.dtype == "bfloat16" else ctypes.c_float
            buffer = (kind * (part.rows * part.ld)).from_address(pointers[part.buffer])
            values = np.ctypeslib.as_array(buffer)
            if part.dtype == "bfloat16":
                values = (values.astype(np.uint32) << 16).view(np.float32)
            return values.reshape(part.rows, part.ld)[:, : part.columns]

        def compute():
            A, B = matrix(product.A), matrix(product.B)
            A = A.T if product.transpose_A else A
            matrix(product.out)[...] = A @ (B.T if product.transpose_B else B)
            self.launched += 1

        def run(stream):
            assert stream == self.ptr
            compute() if self.recorded is None else self.recorded.append(compute)

        return SimpleNamespace(algorithms=2, choose=range(2).index, run=run)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("n_batches", [1, 4])
def test_the_limit_on_a_gpu_is_a_graph_of_the_products(monkeypatch, precision, n_batches):
    gpu = FakeGPU(monkeypatch)
    workload = Workload("w", (3, 5, 4, 1), "tanh", "sigmoid", 8, nb.SGD(0.1), n_batches)
    entry = contestant("limit", workload, "cuda:0", precision)
    assert entry.versions()["products"] == "cuBLASLt 130000, launched by a CUDA graph"
    epochs = entry.epochs_per_call
    assert epochs * n_batches == (64 if n_batches == 1 else 4)
    gpu.launched = 0
    entry.run(epochs)
    assert gpu.launched == epochs * n_batches * (3 * 3 - 1)

    def values(name, columns):
        x = np.asarray(entry._arrays[name])
        if x.dtype == np.uint16:
            x = (x.astype(np.uint32) << 16).view(np.float32)
        return x[:, :columns]

    for i, (n_in, n_out) in enumerate([(3, 5), (5, 4), (4, 1)]):
        A, W = values(f"A{i}", n_in), values(f"W{i}", n_out)
        dZ = values(f"dZ{i}", n_out)
        np.testing.assert_allclose(values(f"Z{i}", n_out), A @ W, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(values(f"dW{i}", n_out), A.T @ dZ, rtol=1e-5, atol=1e-5)
        if i > 0:
            np.testing.assert_allclose(values(f"dA{i}", n_in), dZ @ W.T, rtol=1e-5, atol=1e-5)


def test_the_limit_without_cublaslt_says_so(monkeypatch):
    FakeGPU(monkeypatch, cublaslt.CublasLtError("it was not found"))
    entry = contestant("limit", TINY, "cuda:0")
    how = "cupy.matmul, launched one by one, since it was not found"
    assert entry.versions()["products"] == how
    entry.run(1)
    for a, b, out in entry._products:
        np.testing.assert_allclose(out, a @ b, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_turn_on_a_gpu_begins_with_a_tenth_of_it():
    calls = []
    entry = SimpleNamespace(
        epochs_per_call=2,
        reset=lambda: None,
        run=lambda epochs: (calls.append(epochs), time.sleep(0.001 * epochs), 0.5)[-1],
    )
    warm_up = {}
    for device in ("cpu", "cuda:0"):
        worker = Worker({"contestant": "torch", "device": device, "precision": "float32"})
        worker.contestant, worker.workload = entry, TINY
        reply = worker.calibrate(0.1)
        assert reply["epochs"] > 40
        warm_up[device] = reply["warm_up"] / reply["epochs"]
        worker.warm_up(reply["warm_up"])
        assert calls[-1] == reply["warm_up"]
    assert warm_up["cpu"] < 0.05 < warm_up["cuda:0"] <= 0.1


def test_what_a_peer_lacks_is_unsupported():
    gelu = custom_workload([3, 4, 1], 8, hidden="gelu")
    for name in ("textbook", "sklearn"):
        with pytest.raises(UnsupportedError, match="has no 'gelu' activation"):
            contestant(name, gelu)
    with pytest.raises(UnsupportedError, match="not a softmax of two"):
        contestant("sklearn", custom_workload([3, 4, 2], 8))


@pytest.mark.parametrize(
    "workload", [*WORKLOADS.values(), DIGITS, *random_workloads(3, seed=1)], ids=lambda w: w.name
)
def test_a_workload_survives_its_description(workload):
    assert Workload.from_dict(json.loads(json.dumps(workload.to_dict()))) == workload


def test_random_labels_come_in_every_class():
    X, y = custom_workload([3, 4, 5], 8).data()
    assert (X.dtype, X.shape[1], len(X) % 8) == (np.float32, 3, 0)
    assert np.array_equal(np.unique(y), np.arange(5))


def test_the_same_seed_draws_the_same_workloads():
    drawn = random_workloads(40, seed=3)
    assert drawn == random_workloads(80, seed=3)[:40]
    assert drawn != random_workloads(40, seed=4)
    for workload in drawn:
        assert workload.name == str(workload)
        inputs, *widths, outputs = workload.layer_sizes
        assert 2 <= inputs <= 1000
        assert 1 <= len(widths) <= 4
        assert all(1 <= width <= 601 and width % 8 for width in widths)
        assert (outputs == 1) == (workload.output == "sigmoid")
        assert outputs <= 20
        assert 8 <= workload.batch_size <= 1024
        # What a turn costs at least is bounded.
        epoch = workload.n_batches * workload.flops_per_step
        assert workload.n_batches <= 2 or epoch <= 10**10
    assert any(workload.n_batches == 1 for workload in drawn)
    assert {workload.hidden for workload in drawn} > {"relu", "tanh", "sigmoid", "gelu", "silu"}
    optimizers = {(workload.optimizer.name, workload.momentum) for workload in drawn}
    assert optimizers == {("adam", 0.0), ("sgd", 0.0), ("sgd", 0.9)}


@pytest.fixture
def bench(run):
    """Call ``nnbackend bench`` in an empty folder; return exit code, stdout and stderr."""
    return partial(run, "bench")


OWN_WORKLOAD = ("--layers", "3-5-1", "--batch", "8", "--rounds", "2", "--seconds", "0.001")


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_json_and_pictures(bench):
    code, out, err = bench(*OWN_WORKLOAD, "--contestants", "nnbackend,textbook", "--out", "r")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "3-5-1  3-5-1, relu/sigmoid, batch 8, adam  (your own)"
    rows = {line[: line.index("  ")] for line in lines[3:6]}
    assert rows == {"nnbackend", "NumPy textbook", "products alone"}
    assert all("µs" in line and "%" in line for line in lines[3:6])
    assert lines[-1] == (
        "run folder  r: benchmark.json, benchmark.md, benchmark.png, benchmark.svg"
    )

    report = json.loads(Path("r/benchmark.json").read_text())
    settings = report["settings"]
    assert (settings["rounds"], settings["seconds_per_round"]) == (2, 0.001)
    assert settings["precision"] == report["results"][0]["precision"] == "float32"
    environment = report["environment"]
    assert {"numpy", "Python", "platform", "BLAS", "cores", "devices"} <= environment.keys()
    (result,) = report["results"]
    assert result["measures"] == "seconds per step"
    assert result["workload"]["layer_sizes"] == [3, 5, 1]
    assert result["flops_per_step"] == 2 * 8 * (2 * 15 + 3 * 5)
    entries = {entry["contestant"]: entry for entry in result["entries"]}
    assert entries.keys() == {"nnbackend", "textbook", "limit"}
    for entry in entries.values():
        assert (entry["status"], len(entry["seconds"])) == ("ok", 2)
        median = entry["median_seconds"]
        assert entry["q1_seconds"] <= median <= entry["q3_seconds"]
        assert entry["samples_per_second"] == pytest.approx(8 / median)
        assert entry["steps_per_second"] == pytest.approx(1 / median)
        assert entry["gflops"] == pytest.approx(result["flops_per_step"] / median / 1e9)
        limit = entries["limit"]["median_seconds"]
        assert entry["fraction_of_limit"] == pytest.approx(limit / median)
        assert entry["first_seconds"] >= median
        assert entry["startup_seconds"] > 0
        assert entry["versions"]
        assert any(pool["api"] == "blas" for pool in entry["threads"])
    conditions, table = Path("r/benchmark.md").read_text().split("\n\n")[:2]
    cores = environment["cores"]
    assert f"Every contestant may use the same {cores} core" in conditions
    assert conditions in lines
    assert table.startswith("| | 3-5-1 |\n|---|---:|\n| nnbackend | ")
    ratio = entries["textbook"]["median_seconds"] / entries["nnbackend"]["median_seconds"]
    assert f"| best peer / nnbackend | {ratio:.2f} |\n" in table
    assert lines[3].startswith("nnbackend ")
    ours = limit / entries["nnbackend"]["median_seconds"]
    assert lines[6] == (
        f"Time divided by that of nnbackend: NumPy textbook, the best peer, {ratio:.2f}; "
        f"products alone {ours:.2f}."
    )
    assert Path("r/benchmark.png").read_bytes().startswith(b"\x89PNG")
    picture = Path("r/benchmark.svg").read_text()
    assert "</svg>" in picture


@pytest.mark.slow
def test_json_is_one_object_and_the_folder_has_a_default(bench):
    arguments = (*OWN_WORKLOAD, "--contestants", "nnbackend", "--quick", "--json")
    code, out, err = bench(*arguments)
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["settings"]["rounds"] == 2, "what is given goes before --quick"
    assert re.fullmatch(r"runs/bench-\d{8}-\d{6}", report["run"])
    assert sorted(os.listdir(report["run"])) == sorted(report["files"])
    assert "nnbackend is the fastest" not in out


@pytest.mark.slow
def test_digits_are_trained_to_an_accuracy(bench):
    arguments = ("digits", "--rounds", "1", "--contestants", "nnbackend,textbook")
    code, out, err = bench(*arguments, "--json", "--out", "r")
    assert (code, err) == (0, "")
    (result,) = json.loads(out)["results"]
    assert result["measures"] == "seconds to accuracy"
    assert {entry["contestant"] for entry in result["entries"]} == {"nnbackend", "textbook"}
    # The same numbers up to rounding: as many epochs, give or take one near the threshold.
    epochs = [entry["epochs"] for entry in result["entries"]]
    assert max(epochs) - min(epochs) <= 1
    for entry in result["entries"]:
        assert entry["accuracy"] >= result["workload"]["accuracy"]
        assert entry["first_seconds"] >= 0 < entry["median_seconds"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smal"], "WORKLOAD: unknown name 'smal'; did you mean 'small'?"),
        (["--batch", "8"], "--batch: expected --layers along with it, got none"),
        (["--seed", "8"], "--seed: expected --random along with it, got none"),
        (["--random", "0"], "random: expected an integer >= 1, got 0"),
        (["--random", "2", "--seed", "-1"], "seed: expected an integer >= 0, got -1"),
        (["--layers", "3-x-1"], "--layers: expected units by layer such as 64-256-1, got '3-x-1'"),
        (["--layers", "3"], "layers: expected at least two sizes"),
        (["--layers", "3-0-1"], "layers: expected an integer >= 1, got 0"),
        (["--layers", "3-1", "--batch", "0"], "batch: expected an integer >= 1, got 0"),
        (["--layers", "3-1", "--hidden", "rleu"], "hidden: unknown name 'rleu'; did you mean"),
        (["--layers", "3-1", "--output", "exp"], "output: unknown name 'exp'"),
        (["--layers", "3-1", "--output", "softmax"], "output: expected 'sigmoid' for a single"),
        (["--layers", "3-1", "--optimizer", "adagrad"], "optimizer: unknown name 'adagrad'"),
        (["small", "--contestants", "torhc"], "contestants: unknown name 'torhc'; did you mean"),
        (["small", "--rounds", "0"], "rounds: expected an integer >= 1, got 0"),
        (["small", "--seconds", "-1"], "seconds: expected a finite number > 0, got -1.0"),
        (["small", "--precision", "tf33"], "precision: unknown name 'tf33'; did you mean 'tf32'?"),
        (
            ["small", "--device", "cpu", "--precision", "tf32"],
            "precision: expected 'float32' on device 'cpu', got 'tf32', which NVIDIA GPUs have",
        ),
        (["small", "--device", "gpu"], "device: expected 'cpu', 'cuda', 'cuda:N' or 'auto'"),
    ],
)
def test_bad_arguments_end_with_one_sentence(bench, arguments, message):
    code, out, err = bench(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"nnbackend bench: {message}")
    assert err.count("\n") == 1
    assert list(Path.cwd().iterdir()) == [], "no empty folder is left behind"


@pytest.mark.slow
def test_drawn_workloads_and_the_startup_are_part_of_the_report(bench, monkeypatch):
    monkeypatch.setattr(startup, "ROUNDS", 1)
    arguments = ("startup", "--random", "1", "--seed", "8", "--contestants", "nnbackend,textbook")
    code, out, err = bench(*arguments, "--rounds", "1", "--seconds", "0.001", "--out", "r")
    assert (code, err) == (0, "")
    report = json.loads(Path("r/benchmark.json").read_text())
    names = [workload.name for workload in random_workloads(1, seed=8)]
    assert [result["workload"]["name"] for result in report["results"]] == names
    titles = list(startup.PROGRAMS)
    assert [each["title"] for each in report["startups"]] == titles
    for each in report["startups"]:
        assert each["reason"] == ""
        (first,), (second,) = each["first_seconds"], each["second_seconds"]
        assert each["extra_seconds"] == pytest.approx(first - second)
        assert each["import_seconds"][0] > 0 < second
    text = Path("r/benchmark.md").read_text()
    for name in (*names, *titles):
        assert f"| {name} |" in text
        assert name in out


def test_a_fresh_process_finds_an_empty_home_folder_and_no_limit_of_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", "/kept")
    imports = (
        "import os; home = os.path.expanduser('~'); assert os.listdir(home) == []; "
        "assert os.environ['XDG_CACHE_HOME'] == home; assert 'OMP_NUM_THREADS' not in os.environ"
    )
    found = Startup("title", imports, "len(X), len(y)")
    found.run()
    assert found.reason == ""
    assert [len(found.import_seconds), len(found.first_seconds)] == [1, 1]
    broken = Startup("title", "import nowhere", "")
    broken.run()
    assert broken.reason == "ModuleNotFoundError: No module named 'nowhere'"
    assert "extra_seconds" not in broken.to_dict()
    report = Report([], SETTINGS, {"cores": 2, "devices": []}, "2026-01-01", [found, broken])
    text = benchmark_report.markdown(report)
    assert f"| title | {broken.reason} |  |  |  |" in text
    assert "the same 2 cores" in text


@pytest.fixture
def threads_script():
    path = Path(__file__).resolve().parent.parent / "benchmarks" / "threads.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_two_trainings_count_twice_in_the_throughput(threads_script, monkeypatch, capsys):
    seconds = dict(zip(threads_script.WAYS, (2e-6, 2.2e-6, 3e-6, 2.5e-6), strict=True))
    monkeypatch.setattr(threads_script, "turn", lambda _name, way, _seconds: seconds[way])
    monkeypatch.setattr(threads_script.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(threads_script.shutil, "which", lambda name: name)
    threads_script.main(["--rounds", "2"])
    _, _, *rows = capsys.readouterr().out.splitlines()
    assert rows == [
        f"| {name} | 2 µs (1.00) | 2.2 µs (1.10) | 3 µs (1.50) | 2.5 µs (1.25) | 1.60 |"
        for name in ("small", "mnist")
    ]


@pytest.mark.parametrize("way", ["alone", "in two threads"])
def test_the_time_of_a_step_is_that_of_whole_epochs(threads_script, monkeypatch, way):
    trained = []
    train = nb.train

    def note(net, *data, **options):
        trained.append(options["epochs"])
        return train(net, *data, **options)

    monkeypatch.setattr(nb, "train", note)
    start = time.perf_counter()
    seconds = threads_script.step_seconds("small", way, 0.02)
    passed = time.perf_counter() - start
    assert len(trained) % (2 if way == "in two threads" else 1) == 0
    assert 0.02 <= seconds * trained[-1] * WORKLOADS["small"].n_batches <= passed


@pytest.fixture
def broken_peers(tmp_path, monkeypatch):
    """Make torch, JAX and scikit-learn fail in a contestant's process, each in its own way."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, importlib.abc\n"
        "class Breaker(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'torch':\n"
        "            raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n"
        "        if name == 'jax':\n"
        "            import os; print('jax broke', file=sys.stderr, flush=True); os._exit(3)\n"
        "        if name == 'sklearn':\n"
        "            import time; time.sleep(60)\n"
        "sys.meta_path.insert(0, Breaker())\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(benchmark, "PATIENCE_SECONDS", 3.0)


@pytest.mark.slow
@pytest.mark.usefixtures("broken_peers")
def test_who_is_missing_crashes_or_hangs_is_reported_and_stops_nobody(capsys):
    names = ["torch", "jax", "sklearn", "nnbackend"]
    report = run_benchmark([TINY], contestants=names, rounds=1, seconds=0.001)
    (result,) = report.results
    entries = {entry.contestant: entry for entry in result.entries}
    found = {name: (entries[name].status, entries[name].reason) for name in names}
    assert found == {
        "torch": ("missing", "not installed; install it with: pip install torch"),
        "jax": ("failed", "its process ended (exit code 3): jax broke"),
        "sklearn": ("timeout", "no answer to 'load' within 3 s"),
        "nnbackend": ("ok", ""),
    }
    benchmark_report.print_result(result)
    out = capsys.readouterr().out
    assert "torch on cpu: missing: not installed; install it with: pip install torch\n" in out
    assert "scikit-learn on cpu: timeout: no answer to 'load' within 3 s\n" in out
    from nnbackend.bench.picture import draw

    assert draw(report)["png"].startswith(b"\x89PNG")


@pytest.mark.slow
def test_kept_processes_serve_all_workloads_and_a_failed_one_is_replaced(monkeypatch):
    started = []
    make = benchmark.ContestantProcess

    def start(**job):
        started.append(job["contestant"])
        return make(**job)

    monkeypatch.setattr(benchmark, "ContestantProcess", start)
    gelu = Workload("gelu", (3, 5, 1), "gelu", "sigmoid", 8, nb.SGD(0.1), 2)
    names = ["nnbackend-reference", "textbook"]
    report = run_benchmark(
        [TINY, gelu, DIGITS, TINY], contestants=names, rounds=1, seconds=0.001, keep_processes=True
    )
    assert started == [*names, "limit", "textbook"], "the textbook lacks gelu"
    found = [{e.contestant: e.status for e in result.entries} for result in report.results]
    ok = dict.fromkeys([*names, "limit"], "ok")
    assert found[0] == found[3] == ok
    assert found[1] == {**ok, "textbook": "unsupported"}
    assert found[2] == dict.fromkeys(names, "ok")
    for result in report.results:
        assert all(e.first_seconds is e.startup_seconds is None for e in result.entries)
    from nnbackend.bench.picture import draw

    assert draw(report, ["png"])["png"].startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_process_that_is_killed_says_so_and_leaves_nothing_behind():
    process = ContestantProcess(contestant="textbook", device="cpu", precision="float32")
    load = {"workload": TINY.to_dict(), "data": None}
    assert process.ask("load", 60, **load)["versions"]["numpy"] == np.__version__
    os.kill(process._process.pid, signal.SIGKILL)
    with pytest.raises(ContestantError, match=r"its process ended \(killed by SIGKILL\)"):
        process.ask("prepare", 60)
    process.close()
    process.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process._process.pid, 0)


def test_what_a_library_prints_does_not_reach_the_answers():
    code = (
        "import sys; from nnbackend.bench import worker\n"
        "load = worker.Worker.load\n"
        "worker.Worker.load = lambda self, **job: (print('noise'), load(self, **job))[1]\n"
        "sys.exit(worker.main())"
    )
    job = {"contestant": "textbook", "device": "cpu", "precision": "float32"}
    load = {"command": "load", "workload": TINY.to_dict(), "data": None}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(job)],
        input=f"{json.dumps(load)}\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "versions" in json.loads(done.stdout)
    assert done.stderr == "noise\n"


def result_of(**medians):
    """Return a result with two rounds, 1 % apart, for each contestant."""
    entries = [Entry(name, "cpu", seconds=[m, 1.01 * m]) for name, m in medians.items()]
    return Result(TINY, sorted(entries, key=lambda entry: entry.median))


def test_the_verdict_says_who_is_faster():
    assert verdicts(result_of(nnbackend=2.0, torch=1.0, textbook=4.0)) == [
        "Faster than nnbackend: torch (2x)."
    ]
    assert verdicts(result_of(**{"nnbackend": 2.0, "nnbackend-reference": 1.0})) == [
        "Faster than nnbackend: nnbackend reference (2x)."
    ]
    assert verdicts(result_of(nnbackend=1.0, torch=2.0, limit=0.5)) == [
        "nnbackend is the fastest: 2.0 times as fast as the next, torch."
    ]
    assert verdicts(result_of(nnbackend=1.0, torch=1.001)) == [
        "Not told apart from nnbackend, since the rounds overlap: torch."
    ]
    assert verdicts(result_of(torch=1.0)) == []


SETTINGS = {"precision": "float32", "rounds": 2, "seconds_per_round": 0.5}


def test_the_summary_tells_the_worst_and_the_median_ratio_of_the_best_peers(capsys):
    # The default counts, even if another engine of this package is faster.
    slow = result_of(**{"nnbackend": 2.0, "nnbackend-reference": 0.5}, torch=1.0, limit=1.0)
    fast = result_of(nnbackend=1.0, torch=8.0, textbook=4.0)
    alone = result_of(nnbackend=1.0)
    assert slow.comparisons() == [Comparison("tiny", "cpu", "nnbackend", "torch", 0.5, 0.5)]
    assert fast.comparisons() == [Comparison("tiny", "cpu", "nnbackend", "textbook", 4.0, None)]
    assert alone.comparisons() == [Comparison("tiny", "cpu", "nnbackend", None, None, None)]
    environment = {"cores": 1, "devices": [{"processor": "a CPU"}]}
    report = Report([slow, fast, alone], SETTINGS, environment, "2026-01-01")
    assert report.summaries() == [Summary("cpu", 2, 2.25, slow.comparisons()[0])]
    benchmark_report.print_summary(report)
    sentence, conditions = capsys.readouterr().out.splitlines()
    assert sentence == (
        "The best peer's time divided by nnbackend's on cpu, over 2 workloads: median 2.25, worst "
        "0.50 (tiny: torch)."
    )
    assert conditions.startswith("2026-01-01, a CPU, float32, medians of 2 rounds of 0.5 s.")
    text = benchmark_report.markdown(report)
    assert "| best peer / nnbackend | 0.50 | 4.00 |  |\n" in text
    assert "| products alone / nnbackend | 0.50 |  |  |\n" in text
    assert "| torch | 1.00 s (0.50) | 8.04 s (8.00) |  |\n" in text
    assert text.endswith(f"{sentence}\n")


def test_the_verdict_compares_devices():
    result = result_of(nnbackend=1.0)
    result.entries.append(Entry("nnbackend", "cuda:0", seconds=[3.0, 3.0]))
    assert verdicts(result) == ["nnbackend is 3.0 times as fast on cpu as on cuda:0."]


def test_rounds_that_differ_are_called_doubtful(capsys):
    result = result_of(nnbackend=1e-3, torch=2e-3)
    result.entries[0].seconds = [1e-3, 2e-3, 3e-3]
    for entry in result.entries:
        entry.startup_seconds = entry.first_seconds = 1.0
    benchmark_report.print_result(result)
    assert "Doubtful, since the rounds differ" in capsys.readouterr().out


@pytest.mark.slow
def test_interrupting_the_command_ends_its_processes(tmp_path):
    command = [sys.executable, "-m", "nnbackend", "bench", *OWN_WORKLOAD[:4], "--seconds", "60"]
    process = subprocess.Popen(
        [*command, "--contestants", "nnbackend"], cwd=tmp_path, text=True, stderr=subprocess.PIPE
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        process.communicate()
        pytest.skip("needs Linux's /proc to see the processes")
    deadline = time.monotonic() + 30
    while not children.read_text().split() and time.monotonic() < deadline:
        time.sleep(0.02)
    (child,) = children.read_text().split()
    time.sleep(0.5)  # into the middle of the first call, which is to last a minute
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "")
    assert not Path(f"/proc/{child}").exists()
    assert list(tmp_path.iterdir()) == []
