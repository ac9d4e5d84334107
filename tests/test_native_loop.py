"""The native engine's loop: threads, signals, processes, memory, and arguments that do not fit."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from forks import in_forked_child
from own_formulas import SWAPPED, Cautious, Lopsided

import nnbackend as nb
from nnbackend.data.examples import Data
from nnbackend.device import get_device
from nnbackend.engines.base import Problem, Start
from nnbackend.engines.native import engine as engine_module
from nnbackend.engines.native import interface
from nnbackend.engines.native import threads as threads_module
from nnbackend.engines.native.engine import NativeEngine
from nnbackend.engines.native.library import libraries
from nnbackend.engines.reference import ReferenceEngine

ROOT = Path(nb.__file__).parent.parent
# Hang guards.
PATIENCE = 120
TASKS = Path("/proc/self/task")

is_sanitized = "NNBACKEND_LIBRARY_FOLDER" in os.environ
needs_tasks = pytest.mark.skipif(not TASKS.exists(), reason="the system does not list threads")
# Another test of this process may have started JAX, which warns of every fork, as Python does.
forks = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork"),
    pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]


def started(
    sizes=(3, 5, 2),
    *,
    n=40,
    batch_size=None,
    hidden="tanh",
    output="identity",
    dropout=0.0,
    dtype="float64",
    optimizer=None,
    loss=None,
    l1=0.0,
    l2=0.0,
    weighted=False,
    make=NativeEngine,
    **clips,
):
    """Return an engine with a drawn problem, and its data."""
    rng = np.random.default_rng(0)
    net = nb.Network(
        sizes, hidden=hidden, output=output, dropout=dropout, dtype=dtype, seed=1, device="cpu"
    )
    objective = net.objective(loss, l1, l2, penalty_per_sample=False)
    X = rng.standard_normal((n, sizes[0])).astype(dtype)
    if output == "softmax":
        y = rng.integers(0, sizes[-1], n)
    else:
        y = rng.standard_normal((n, sizes[-1])).astype(dtype)
    data = Data(X, y, (rng.random(n) + 0.1).astype(dtype) if weighted else None)
    problem = Problem(objective, optimizer or nb.SGD(0.05), batch_size or n, **clips)
    generator = np.random.default_rng(3)
    return make(Start(problem, get_device("cpu"), net.parameters, data, generator)), data


def n_steps(data, batch_size):
    return -(-data.n_samples // batch_size)


def bits(engine):
    state = engine.state
    arrays = (state.parameters, *state.optimizer.arrays)
    return [np.asarray(a).tobytes() for a in arrays], state.optimizer.step, state.dropout


# --- Threads ---


@pytest.fixture
def threads(monkeypatch):
    """A function that sets how many threads each engine starts."""
    return lambda count: monkeypatch.setattr(engine_module, "threads_worth", lambda *_: count)


def trained(rate, **options):
    """Return an engine after two epochs in random order, and their losses with the last one."""
    engine, data = started(**options)
    orders = [np.random.default_rng(k).permutation(data.n_samples) for k in range(2)]
    rates = [[rate] * n_steps(data, options.get("batch_size") or data.n_samples)] * 2
    losses, is_finite = engine.run(data, orders, rates)
    assert is_finite
    return engine, np.append(losses, engine.data_loss(data))


PROBLEMS = {
    "large": {"sizes": (33, 130, 70, 5), "batch_size": 100},
    "softmax": {"sizes": (17, 100, 90, 10), "output": "softmax", "batch_size": 77},
    "blocks": {"sizes": (40, 300, 3), "n": 1200, "batch_size": 1100},
    "packed": {"sizes": (30, 700, 400, 5), "n": 290},
    "one row": {"sizes": (20, 100, 3), "batch_size": 1, "n": 5},
    "few rows": {"sizes": (20, 100, 3), "batch_size": 17, "n": 37},
    "few units": {"sizes": (20, 3, 2), "batch_size": 30},
    "no hidden layer": {"sizes": (700, 30)},
    "everything": {
        "sizes": (50, 200, 60, 3), "dropout": [0.3, 0.0], "l1": 0.01, "l2": 0.1, "clip_value": 0.5,
        "clip_norm": 0.1, "weighted": True, "optimizer": nb.Adam(0.01, weight_decay=0.1),
        "loss_by_rows": True, "output": "softmax", "batch_size": 64,
    },
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("variant", list(libraries()))
def test_the_bits_do_not_depend_on_the_number_of_threads(
    name, dtype, variant, threads, monkeypatch
):
    monkeypatch.setenv("NNBACKEND_VARIANT", variant)
    options = {"n": 150, **PROBLEMS[name], "dtype": dtype}
    results = []
    # Among them more than processors, more than there is work for, and more than are ever started.
    for count in (1, 2, 3, 5, 70):
        threads(count)
        engine, losses = trained(0.05, **options)
        results.append((bits(engine), losses.tobytes()))
    assert all(result == results[0] for result in results)


# Several parts of each layer's weights; some are packed, and sums over examples are long.
PARTS = {
    "packed": {"sizes": (70, 520, 300, 5), "n": 150, "batch_size": 64},
    "packed, with everything": {
        "sizes": (70, 520, 300, 5), "dropout": [0.3, 0.0], "l1": 1e-4, "l2": 0.01,
        "clip_value": 0.05, "clip_norm": 0.1, "weighted": True, "n": 75, "batch_size": 64,
    },
    "penalties alone": {"sizes": (70, 520, 300, 5), "l1": 1e-4, "l2": 0.01, "n": 64},
    "narrow, with far rows": {"sizes": (1100, 20, 2), "n": 640, "batch_size": 300},
    "narrow, with far rows of activations": {"sizes": (3, 1100, 20, 2), "n": 300},
    "one unit": {"sizes": (1, 400, 1, 400, 1), "n": 90, "batch_size": 48},
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("variant", list(libraries()))
def test_networks_in_parts_have_the_bits_of_one_thread_and_the_reference_engines_numbers(
    name, dtype, variant, threads, monkeypatch
):
    monkeypatch.setenv("NNBACKEND_VARIANT", variant)
    options = {"optimizer": nb.SGD(0.05, momentum=0.5), "dtype": dtype, **PARTS[name]}
    expected, expected_losses = trained(0.02, **options, make=ReferenceEngine)
    results = []
    # Each call in one piece, or back in Python after each step.
    for count, seconds in ((1, 1e9), (1, 0.0), (2, 1e9), (3, 0.0), (5, 1e9)):
        threads(count)
        monkeypatch.setattr(engine_module, "SECONDS_PER_CALL", seconds)
        engine, losses = trained(0.02, **options)
        results.append((bits(engine), losses.tobytes()))
    assert all(result == results[0] for result in results)
    # Sums of up to 1100 terms are rounded in another order, in each of a few steps.
    tolerance = 1000 * np.finfo(dtype).eps
    scale = np.abs(expected.parameters).max()
    np.testing.assert_allclose(
        engine.parameters, expected.parameters, rtol=0, atol=tolerance * scale
    )
    np.testing.assert_allclose(losses, expected_losses, rtol=tolerance)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("clips", [{}, {"clip_value": 1e30}], ids=["at once", "at last"])
@pytest.mark.parametrize("last", [True, False], ids=["by the last step", "by the loss"])
def test_a_divergence_keeps_the_parameters_of_the_last_finite_epoch(count, clips, last, threads):
    threads(count)
    options = {"sizes": (40, 300, 200, 3), "n": 80, "batch_size": 64, "hidden": "relu", **clips}
    fair = [[1e-3, 1e-3]] * 3
    # Either only the parameters that the epoch leaves are not finite, or its loss is not either.
    bad = [1e-3, np.inf] if last else [1e200, 1e-3]
    with np.errstate(all="ignore"):
        engine, data = started(**options)
        losses, is_finite = engine.run(data, None, [*fair, bad, *fair])
    assert not is_finite
    assert len(losses) == len(fair) + 1
    assert np.isfinite(losses[-1]) == last
    assert not np.isfinite(engine.parameters).all()
    engine.restore_finite()
    again, _ = started(**options)
    again.run(data, None, fair)
    assert engine.parameters.tobytes() == again.parameters.tobytes()
    # It goes on from there.
    for each in (engine, again):
        assert each.run(data, None, fair)[1]
    assert engine.parameters.tobytes() == again.parameters.tobytes()


def test_a_deep_network_of_narrow_layers_trains_as_in_the_reference_engine():
    # It has many parameters, though its layers hold one unit per row.
    options = {"sizes": (4, *[16] * 250, 2), "n": 40, "l2": 0.1}
    results = []
    for make in (NativeEngine, ReferenceEngine):
        engine, data = started(**options, make=make)
        before = np.array(engine.parameters)
        engine.run(data, None, [[0.05]] * 3)
        assert np.all(np.asarray(engine.parameters)[-2:] != before[-2:])
        results.append(np.asarray(engine.parameters))
    np.testing.assert_allclose(*results, rtol=1e-9, atol=1e-15)


class Half:
    """One of two threads that act as the processes of a team."""

    def __init__(self, rank, barrier, parts):
        self.rank, self.barrier, self.parts = rank, barrier, parts

    def rows(self, n):
        return slice(n * self.rank // 2, n * (self.rank + 1) // 2)

    def reduce_step(self, gradient, loss, weight):
        self.parts[self.rank] = weight * gradient, weight * loss, weight
        self.barrier.wait(PATIENCE)
        sums = [first + second for first, second in zip(*self.parts, strict=True)]
        self.barrier.wait(PATIENCE)
        gradient[:] = sums[0] / sums[2]
        return sums[1] / sums[2], sums[2]


def test_processes_of_some_threads_each_train_as_one_process(threads):
    options = {
        "sizes": (40, 300, 70, 3), "n": 150, "batch_size": 64, "dropout": [0.3, 0.0], "l1": 1e-3,
        "l2": 0.1, "clip_norm": 0.5, "weighted": True, "optimizer": nb.SGD(0.05, momentum=0.5),
    }  # fmt: skip
    rates = [[0.05] * 3] * 2

    def trained(team=None):
        engine, data = started(
            **options, make=lambda start: NativeEngine(replace(start, team=team))
        )
        losses = [engine.run(data, None, [epoch])[0].item() for epoch in rates]
        return bits(engine), np.append(engine.parameters, losses)

    expected = trained()[1]
    results = []
    for count in (1, 3):
        threads(count)
        barrier, parts = threading.Barrier(2), [None, None]
        with ThreadPoolExecutor(2) as pool:
            results += pool.map(trained, [Half(rank, barrier, parts) for rank in range(2)])
    assert all(result[0] == results[0][0] for result in results)
    np.testing.assert_allclose(results[0][1], expected, rtol=1e-9, atol=1e-12)


def n_tasks():
    return len(os.listdir(TASKS))


def n_tasks_at_rest():
    """Return how many threads there are when those that have ended are gone."""
    count, since = n_tasks(), time.monotonic()
    while time.monotonic() < since + 0.05:
        time.sleep(1e-3)
        if n_tasks() != count:
            count, since = n_tasks(), time.monotonic()
    return count


@contextmanager
def watching_threads():
    """Watch how many threads the process has, beside the watching one; yield the list of counts."""
    counts, is_over = [], threading.Event()

    def watch():
        while not is_over.wait(2e-4):
            counts.append(n_tasks() - 1)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield counts
    finally:
        is_over.set()
        thread.join(PATIENCE)


WIDE = {"sizes": (100, 200, 10), "n": 512, "batch_size": 256, "dtype": "float32"}


def threads_of_a_training(expected=0):
    """Return how many threads a training adds at most, which is worth several.

    Look for a while, and longer where as many as expected have not been seen.
    """
    engine, data = started(**WIDE)
    before, deadline = n_tasks_at_rest(), time.monotonic() + 10
    with watching_threads() as counts:
        while len(counts) < 30 or (max(counts) < before + expected and time.monotonic() < deadline):
            engine.run(data, None, [[0.01] * 2] * 10)
    # The library's threads have ended with its call, though the kernel may still clean up.
    assert_soon(lambda: n_tasks() == before)
    return max(counts) - before


def assert_soon(is_true):
    deadline = time.monotonic() + 5
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(1e-3)


@needs_tasks
def test_threads_work_together_and_none_outlives_the_call(threads):
    for count in (1, 2, 4):
        threads(count)
        assert threads_of_a_training(count - 1) == count - 1


@needs_tasks
def test_the_limits_of_threadpoolctl_and_of_the_processors_are_obeyed():
    from threadpoolctl import threadpool_limits

    free = os.sched_getaffinity(0)
    if len(free) < 2:
        pytest.skip("there is one processor only")
    with threadpool_limits(len(free)):
        assert 1 <= threads_of_a_training(1) <= len(free) - 1
    with threadpool_limits(1):
        assert threads_of_a_training() == 0
    try:
        os.sched_setaffinity(0, {min(free)})
        assert threads_of_a_training() == 0
    finally:
        os.sched_setaffinity(0, free)


@needs_tasks
@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"cpu.max": "50000 100000"}, 0),
        ({"cpu.max": "100000 100000"}, 0),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 0),
        ({"cpu.max": "max 100000"}, 1),
        ({"cpu.max": "110000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu.max": ""}, 1),
        ({}, 1),
    ],
)
def test_a_containers_quota_is_obeyed(files, limit, tmp_path, monkeypatch):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is one processor only")
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content + "\n")
    monkeypatch.setattr(threads_module, "_CONTROL_GROUP", str(tmp_path))
    # The environment may limit the BLAS to one thread.
    monkeypatch.setattr(threads_module, "_blas_libraries", list)
    assert min(1, threads_of_a_training(limit)) == limit


@pytest.mark.slow
@needs_tasks
@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"])
def test_the_limits_of_the_environment_are_obeyed(name):
    code = "import test_native_loop\nprint(test_native_loop.threads_of_a_training())\n"
    # An empty variable is none; OpenBLAS prefers its own.
    assert script(code, **{"OPENBLAS_NUM_THREADS": "", name: "1"}) == "0\n"


def test_the_gil_is_free_while_the_library_runs(monkeypatch):
    # Without going back to Python in between.
    monkeypatch.setattr(engine_module, "SECONDS_PER_CALL", 1e9)
    engine, data = started((30, 40, 3), n=64)
    ticks, began, is_over = [], threading.Event(), threading.Event()

    def tick():
        began.set()
        while not is_over.is_set():
            ticks.append(time.monotonic())
            time.sleep(1e-3)

    thread = threading.Thread(target=tick)
    thread.start()
    assert began.wait(PATIENCE)
    rates, seconds = [[0.01]] * 1000, 0.0
    while seconds < 0.2:
        rates *= 2
        start = time.monotonic()
        engine.run(data, None, rates)
        stop = time.monotonic()
        seconds = stop - start
    is_over.set()
    thread.join(PATIENCE)
    # A few at the call's ends would be there in any case.
    assert sum(start + 0.05 < at < stop - 0.05 for at in ticks) > 10


@pytest.mark.parametrize("count", [1, 3])
def test_trainings_in_two_python_threads_are_those_of_one(count, threads):
    threads(count)

    def work(results):
        engine, data = started((20, 60, 3), batch_size=16, dropout=0.2, optimizer=nb.Adam(0.01))
        for _ in range(20):
            engine.run(data, None, [[0.01] * 3] * 5)
            results.append(float(engine.data_loss(data)))
        results.append(bits(engine))

    alone, first, second = [], [], []
    work(alone)
    together = [threading.Thread(target=work, args=(own,)) for own in (first, second)]
    for thread in together:
        thread.start()
    for thread in together:
        thread.join(PATIENCE)
    assert first == alone
    assert second == alone


# --- Signals ---


@contextmanager
def interrupted_after(seconds):
    """Raise KeyboardInterrupt in the main thread, as Ctrl-C does."""
    # Hypothesis measures the garbage collector by a callback, out of which nothing is raised.
    callbacks, gc.callbacks[:] = gc.callbacks[:], []
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        gc.callbacks[:] = callbacks


INTERRUPTED = {
    "steps of a microsecond": ({"sizes": (2, 3, 1), "n": 8, "optimizer": nb.Adam(1e-3)}, 400_000),
    "steps of some threads": ({"sizes": (60, 90, 3), "n": 64, "optimizer": nb.Adam(1e-3)}, 50_000),
    "an activation of one's own": ({"hidden": SWAPPED, "optimizer": nb.Adam(1e-3)}, 50_000),
    "a loss of one's own": ({"loss": Lopsided(), "optimizer": nb.Adam(1e-3)}, 50_000),
}


@pytest.mark.parametrize("name", INTERRUPTED)
def test_an_interrupt_ends_a_long_call_after_a_whole_step(name, threads):
    threads(2 if "threads" in name else 1)
    options, most_steps = INTERRUPTED[name]
    rates = [[1e-3]] * most_steps
    interrupted = 0
    for number in range(8):
        engine, data = started(**options)
        with interrupted_after(0.02 + 0.007 * number):
            try:
                engine.run(data, None, rates)
            except KeyboardInterrupt:
                interrupted += 1
        at = time.monotonic()
        engine.run(data, None, rates[:1])
        assert time.monotonic() - at < 5
        steps = engine.state.optimizer.step
        again, _ = started(**options)
        again.run(data, None, rates[:steps])
        assert bits(engine) == bits(again)
    # The first of them may come before the library is called.
    assert interrupted > 4


def test_an_interrupt_in_an_update_of_ones_own_leaves_parameters_of_some_step():
    options = {"optimizer": Cautious(0.01, momentum=0.9)}
    rates = [[0.01]] * 20_000
    for number in range(8):
        engine, data = started(**options)
        with interrupted_after(0.02 + 0.007 * number), pytest.raises(KeyboardInterrupt):
            engine.run(data, None, rates)
        found = engine.parameters.tobytes()
        again, _ = started(**options)
        for _ in range(engine.state.optimizer.step + 1):
            if again.parameters.tobytes() == found:
                break
            again.run(data, None, [[0.01]])
        assert again.parameters.tobytes() == found


@pytest.mark.slow
def test_ctrl_c_ends_a_training_within_a_fraction_of_a_second():
    code = (
        "import time, numpy as np, nnbackend as nb\n"
        "net = nb.Network([20, 100, 1], seed=1)\n"
        "X = np.random.default_rng(0).normal(size=(500, 20))\n"
        "nb.train(net, X, X[:, 0] > 0, epochs=1)\n"
        "print('ready', flush=True)\n"
        "history = nb.train(net, X, X[:, 0] > 0, epochs=10**7)\n"
        "print(history.stopped, history.n_epochs > 0, np.isfinite(net.parameters).all())\n"
    )
    with running(code) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.4)
        process.send_signal(signal.SIGINT)
        sent = time.monotonic()
        printed, errors = process.communicate(timeout=PATIENCE)
        # Leaving Python takes some of it, on a machine that may be busy.
        assert time.monotonic() - sent < 2
    assert (process.returncode, printed, errors) == (0, "interrupted True True\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("keeps", [False, True])
def test_sigterm_ends_the_process_and_with_checkpoints_the_training_goes_on(keeps, tmp_path):
    code = (
        "import numpy as np, nnbackend as nb, sys\n"
        "net = nb.Network([20, 30, 1], dropout=0.2, seed=1)\n"
        "X = np.random.default_rng(0).normal(size=(500, 20))\n"
        "options = {'checkpoint': sys.argv[1], 'resume': True} if sys.argv[1] else {}\n"
        "say = lambda state: state.epoch == 1 and print('ready', flush=True)\n"
        "options |= {'epochs': int(sys.argv[2]), 'callbacks': say}\n"
        "history = nb.train(net, X, X[:, 0] > 0, **options)\n"
        "print(history.n_epochs, net.parameters.tobytes().hex())\n"
    )
    folder = str(tmp_path / "kept") if keeps else ""
    with running(code, folder, "10000000") as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=PATIENCE)[0] == ""
    assert process.returncode == (143 if keeps else -signal.SIGTERM)
    if not keeps:
        return
    (newest,) = Path(folder).glob("*.safetensors")
    assert nb.load(newest).n_parameters == 20 * 30 + 30 + 30 + 1


# --- Errors in a user's own formulas ---


class BrokenError(Exception):
    """What a formula raises."""


class Breaking:
    """Formulas that cannot be recorded, and raise in a call that is asked for."""

    def __init__(self):
        self.calls_to_go = None

    def count(self, array):
        # Not where the formula is recorded.
        if self.calls_to_go is not None and isinstance(array, np.ndarray):
            self.calls_to_go -= 1
            if self.calls_to_go == 0:
                self.calls_to_go = None
                raise BrokenError

    def options(self, what):
        own = self

        def function(xp, Z):
            if what == "activation":
                own.count(Z)
            return xp.tanh(Z) if float(xp.max(Z)) < 1e9 else Z

        def derivative(xp, Z, _A):
            if what == "derivative":
                own.count(Z)
            return 1 - xp.tanh(Z) ** 2 if float(xp.max(Z)) < 1e9 else Z

        class OwnLoss(nb.losses.SquaredError):
            def elements(self, xp, Z, Y):
                own.count(Z)
                return super().elements(xp, Z if float(xp.max(Z)) < 1e9 else Y, Y)

        class OwnUpdate(nb.SGD):
            def update(self, xp, parameters, gradient, state, coefficients):
                own.count(gradient)
                bound = 1.0 if float(xp.max(gradient)) < 1e9 else 0.0
                return super().update(xp, parameters, bound * gradient, state, coefficients)

        if what == "loss":
            return {"loss": OwnLoss()}
        if what == "update":
            return {"optimizer": OwnUpdate(0.05, momentum=0.5)}
        return {"hidden": nb.Activation("own", function, derivative)}


@pytest.mark.parametrize("what", ["activation", "derivative", "loss", "update"])
def test_an_error_in_a_formula_is_raised_and_the_engine_goes_on_and_is_freed(what):
    breaking = Breaking()
    options = {"sizes": (3, 6, 4, 2), "batch_size": 16, "dtype": "float32"}
    engine, data = started(**options, **breaking.options(what))
    rates = [[0.05] * 3]
    engine.run(data, None, rates)
    for call in (1, 2, 5):
        breaking.calls_to_go = call
        before = engine.state
        with pytest.raises(BrokenError) as caught:
            engine.run(data, None, rates * 4)
        # As many steps as were whole.
        steps = engine.state.optimizer.step - before.optimizer.step
        again, _ = started(**options, **breaking.options(what))
        again.set_state(before)
        whole = data.rows(0, 16), data.rows(16, 32), data.rows(32, 40)
        for number in range(steps):
            again.run(whole[number % 3], None, [[0.05]], ends=False)
        assert again.parameters.tobytes() == engine.parameters.tobytes()
        # An epoch that was broken off is begun anew.
        engine.set_state(before)
        breaking.calls_to_go = None
        del caught
    losses, is_finite = engine.run(data, None, rates)
    assert is_finite
    assert len(losses) == 1
    gone = weakref.ref(engine)
    gc.disable()
    try:
        del engine
        # Nothing refers to it in a cycle, which would keep its memory for a while.
        assert gone() is None
    finally:
        gc.enable()


def test_an_error_in_training_is_the_users_own():
    breaking = Breaking()
    net = nb.Network([3, 4, 1], hidden=breaking.options("activation")["hidden"], seed=1)
    X = np.random.default_rng(0).normal(size=(20, 3))

    def arm(state):
        if state.epoch == 2:
            breaking.calls_to_go = 3

    with pytest.raises(BrokenError):
        nb.train(net, X, X[:, 0] > 0, epochs=9, engine="native", callbacks=arm)
    assert np.isfinite(net.parameters).all()
    nb.train(net, X, X[:, 0] > 0, epochs=1, engine="native")


# --- Processes ---


def environment(**changes):
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", **changes}


@contextmanager
def running(code, *arguments, cwd=None, **changes):
    """Run a program, which is killed in the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=environment(**changes),
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def script(code, *arguments, **options):
    """Return what a program prints."""
    with running(code, *arguments, **options) as process:
        printed, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (0, "")
    return printed


class TestForks:
    pytestmark = forks

    @pytest.mark.parametrize("count", [1, 3])
    def test_a_child_forked_while_a_thread_trains_can_train(self, count, threads):
        threads(count)
        options = {"sizes": (20, 60, 3), "batch_size": 64, "n": 200, "hidden": "relu"}

        def work():
            engine, data = started(**options)
            engine.run(data, None, [[0.01] * 4] * 3)
            return bits(engine)

        expected = work()
        is_over, rounds = threading.Event(), []

        def train():
            engine, data = started(**options)
            while not is_over.is_set():
                engine.run(data, None, [[0.01] * 4] * 50)
                rounds.append(engine)

        thread = threading.Thread(target=train)
        thread.start()
        try:
            for _ in range(5):
                assert in_forked_child(work) == expected
        finally:
            is_over.set()
            thread.join(PATIENCE)
        assert rounds

    def test_a_child_goes_on_with_the_engine_that_it_inherits(self, threads):
        threads(2)
        engine, data = started((20, 60, 3), batch_size=16, dropout=0.2, optimizer=nb.Adam(0.01))
        rates = [[0.01] * 3] * 2
        engine.run(data, None, rates)

        def work():
            engine.run(data, None, rates)
            return bits(engine)

        assert in_forked_child(work) == in_forked_child(work) == work()


FIRST_TRAININGS = (
    "import sys, threading\n"
    "import numpy as np, nnbackend as nb\n"
    "sys.setswitchinterval(1e-6)\n"
    "results, barrier = [], threading.Barrier(int(sys.argv[1]))\n"
    "X = np.random.default_rng(0).normal(size=(60, 4))\n"
    "def train():\n"
    "    net = nb.Network([4, 9, 1], seed=1, device='cpu')\n"
    "    barrier.wait()\n"
    "    nb.train(net, X, X[:, 0] > 0, epochs=3)\n"
    "    results.append(net.parameters.tobytes().hex())\n"
    "threads = [threading.Thread(target=train) for _ in range(int(sys.argv[1]))]\n"
    "for thread in threads: thread.start()\n"
    "for thread in threads: thread.join()\n"
    "assert len(results) == int(sys.argv[1])\n"
    "print(*set(results))\n"
)


@pytest.mark.slow
def test_first_trainings_of_threads_and_processes_at_once_give_the_same_bits():
    with running(FIRST_TRAININGS, "8") as first, running(FIRST_TRAININGS, "1") as second:
        printed = [process.communicate(timeout=PATIENCE) for process in (first, second)]
    assert printed[0] == printed[1]
    (parameters,) = printed[0][0].split()
    assert len(parameters) == 8 * (4 * 9 + 9 + 9 + 1)
    assert printed[0][1] == ""


@pytest.mark.slow
def test_training_writes_nothing(tmp_path):
    names = ["HOME", "XDG_CACHE_HOME", "TMPDIR", "APPDATA", "LOCALAPPDATA"]
    folders = {name: str(tmp_path / name) for name in names}
    for folder in [*folders.values(), tmp_path / "cwd"]:
        os.mkdir(folder)

    def package():
        return {p: p.stat().st_mtime_ns for p in (ROOT / "nnbackend").rglob("*") if p.is_file()}

    before = package()
    script(FIRST_TRAININGS, "2", cwd=tmp_path / "cwd", **folders)
    assert package() == before
    assert {p for p in tmp_path.rglob("*") if not p.is_dir()} == set()
    assert {p.name for p in tmp_path.rglob("*")} == {*names, "cwd"}


@pytest.mark.slow
@pytest.mark.parametrize("unrecorded", [False, True])
def test_python_may_end_while_a_daemon_thread_trains(unrecorded):
    code = (
        "import sys, threading, time\n"
        "import numpy as np, nnbackend as nb\n"
        "from own_formulas import SWAPPED\n"
        "X = np.random.default_rng(0).normal(size=(400, 20))\n"
        f"net = nb.Network([20, 300, 1], hidden={'SWAPPED' if unrecorded else repr('relu')})\n"
        "ready = threading.Event()\n"
        "def train():\n"
        "    nb.train(net, X, X[:, 0] > 0, epochs=1)\n"
        "    ready.set()\n"
        "    nb.train(net, X, X[:, 0] > 0, epochs=10**7)\n"
        "threading.Thread(target=train, daemon=True).start()\n"
        "ready.wait()\n"
        "time.sleep(0.1)\n"
        "print('over')\n"
    )
    for _ in range(2):
        assert script(code) == "over\n"


# --- Memory ---


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth_of(work, times):
    """Return by how many bytes the process grows while it works, after some warming up."""
    for number in range(times // 4):
        work(number)
    gc.collect()
    before = resident_bytes()
    for number in range(times):
        work(number + times)
    gc.collect()
    return resident_bytes() - before


holds_memory = pytest.mark.skipif(
    is_sanitized or not Path("/proc/self/statm").exists(),
    reason="a sanitizer keeps what is freed, or the system does not tell",
)


@holds_memory
def test_engines_that_are_dropped_leave_nothing():
    def work(_number):
        engine, data = started((10, 64, 3), n=64, dtype="float32")
        engine.run(data, None, [[0.01]])

    # Each has some 60 kB of buffers.
    assert growth_of(work, 500) < 8e6


@holds_memory
def test_hundred_layers_train_at_once_and_are_freed():
    def work(_number):
        engine, data = started((10, *[64] * 100, 3), n=64, dtype="float32")
        assert engine.run(data, None, [[0.01]])[1]

    # Each has some 12 MB.
    assert growth_of(work, 20) < 40e6


@holds_memory
def test_every_new_label_smoothing_leaves_nothing():
    def work(number):
        loss = nb.losses.SoftmaxCrossEntropy(label_smoothing=(number + 1) / 1e5)
        engine, data = started((4, 6, 3), loss=loss, output="softmax")
        engine.run(data, None, [[0.01]])

    assert growth_of(work, 500) < 8e6


def test_memory_that_is_not_there_is_said_in_a_sentence():
    with pytest.raises(MemoryError, match="do not fit the memory"):
        started((4, 50, 3), batch_size=2**44)


# --- Arguments that are not as agreed ---

BAD = {
    "dtype": lambda data: Data(data.X.astype("float32"), data.y),
    "dtype of targets": lambda data: Data(data.X, data.y.astype("complex128")),
    "features": lambda data: Data(data.X[:, :2], data.y),
    "rows of targets": lambda data: Data(data.X, data.y[:3]),
    "columns of targets": lambda data: Data(data.X, data.y[:, :1]),
    "dimensions": lambda data: Data(data.X[None], data.y),
    "weights": lambda data: Data(data.X, data.y, np.ones(3)),
    "dtype of weights": lambda data: Data(data.X, data.y, np.ones(40, int)),
    "dimensions of weights": lambda data: Data(data.X, data.y, np.ones((40, 1))),
    "no targets": lambda data: Data(data.X, data.y[:0]),
}


@pytest.mark.filterwarnings("ignore::numpy.exceptions.ComplexWarning")
@pytest.mark.parametrize("name", BAD)
def test_data_of_another_form_is_stopped_before_the_library_sees_it(name):
    engine, data = started()
    before = bits(engine)
    if name == "dtype of targets":
        # They are converted, as they may be of another real dtype.
        engine.run(Data(data.X, data.y.astype("float32")), None, [[0.01]])
        return
    for call in (lambda bad: engine.run(bad, None, [[0.01]]), engine.data_loss):
        with pytest.raises(ValueError, match=r"expected a C-contiguous array"):
            call(BAD[name](data))
    assert bits(engine) == before


@pytest.mark.parametrize(
    ("rows", "rates"),
    [
        ([[0, 1, 40]], [[0.1]]),
        ([[0, -1, 2]], [[0.1]]),
        ([[0, 2**62, 2]], [[0.1]]),
        ([np.arange(40)], [[0.1]]),  # three steps
        ([np.arange(40)], [[0.1, 0.1]]),
        ([np.arange(40)], [[0.1] * 4]),
        ([np.arange(40)], [[]]),
        (None, [[0.1]]),
        (None, [[0.1] * 3, [0.1] * 2]),
        ([np.arange(40)], [[0.1] * 3] * 2),
        ([np.arange(40)] * 2, [[0.1] * 3]),
        ([np.arange(40), np.arange(39)], [[0.1] * 3] * 2),
        ([np.arange(80).reshape(2, 40) % 40], [[0.1] * 3]),
        ([np.array(["a"] * 40)], [[0.1] * 3]),
    ],
    ids=str,
)
def test_orders_and_rates_that_do_not_fit_are_stopped(rows, rates):
    engine, data = started(batch_size=16)
    before = bits(engine)
    with pytest.raises((ValueError, IndexError)):
        engine.run(data, None if rows is None else list(map(np.asarray, rows)), rates)
    assert bits(engine) == before
    engine.run(data, None, [[0.1] * 3])


@pytest.mark.parametrize("features_major", [False, True])
@pytest.mark.parametrize("label", [-1, 3, 2**40, -(2**63)])
def test_a_label_beyond_the_classes_reaches_no_memory(label, features_major):
    # Training refuses it; an engine, asked directly, takes it for a row without a class.
    sizes = (3, 5, 3) if features_major else (3, 40, 3)
    engine, data = started(sizes, output="softmax")
    data.y[7] = label
    engine.run(data, None, [[0.1]])
    expected, _ = started(sizes, output="softmax", make=ReferenceEngine)
    expected.run(data, None, [[0.1]])
    np.testing.assert_allclose(engine.parameters, expected.parameters, rtol=1e-10)


@pytest.mark.parametrize("features_major", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e308])
def test_numbers_that_are_not_finite_are_found(value, features_major):
    sizes = (3, 5, 2) if features_major else (3, 40, 2)
    for where in ("X", "y", "weight"):
        results = []
        for make in (ReferenceEngine, NativeEngine):
            engine, data = started(sizes, weighted=True, make=make)
            array = {"X": data.X, "y": data.y, "weight": data.sample_weight}[where]
            array.flat[11] = value
            with np.errstate(all="ignore"):
                losses, is_finite = engine.run(data, None, [[0.1]])
            if not is_finite:
                engine.restore_finite()
            results.append((bool(is_finite), np.asarray(engine.parameters)))
        # tanh makes something finite of features that are not.
        assert results[0][0] == results[1][0]
        np.testing.assert_allclose(*(parameters for _, parameters in results), rtol=1e-9)
        del losses


def unaligned(X):
    memory = bytearray(X.nbytes + 1)
    copy = np.frombuffer(memory, X.dtype, offset=1, count=X.size).reshape(X.shape)
    copy[:] = X
    return copy


VIEWS = {
    "columns first": np.asfortranarray,
    "every second row": lambda X: np.repeat(X, 2, axis=0)[::2],
    "backwards": lambda X: np.ascontiguousarray(X[::-1])[::-1],
    "rows of a wider array": lambda X: np.hstack([X, X])[:, : X.shape[1]],
    "read-only": lambda X: np.frombuffer(X.tobytes(), X.dtype).reshape(X.shape),
    "unaligned": unaligned,
    "other byte order": lambda X: X.astype(X.dtype.newbyteorder()),
    "float16": lambda X: X.astype("float16").astype(X.dtype),
    "list": lambda X: X.tolist(),
    "one row for all": lambda X: np.broadcast_to(X[:1], X.shape),
}


@pytest.mark.parametrize("sizes", [(4, 5, 1), (4, 40, 1)], ids=["narrow", "wide"])
@pytest.mark.parametrize("name", VIEWS)
def test_any_layout_of_the_data_gives_the_same_bits(name, sizes):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(70, 4)), rng.normal(size=(70, 1))
    if name == "one row for all":
        X = np.ascontiguousarray(np.broadcast_to(X[:1], X.shape))
    if name == "float16":
        X = X.astype("float16").astype("float64")
    weight = rng.random((70, 1)) + 0.1
    results = []
    for change in (lambda array: array, VIEWS[name]):
        for dtype in ("float32", "float64"):
            net = nb.Network(sizes, output="identity", dtype=dtype, seed=1, device="cpu")
            shown = [change(X), y if "one row" in name or "16" in name else change(y)]
            own = np.asarray(weight if "one row" in name or "16" in name else change(weight))
            history = nb.train(
                net, *shown, sample_weight=own[:, 0], engine="native", epochs=2, batch_size=33
            )
            results.append((net.parameters.tobytes(), history.loss))
    assert results[:2] == results[2:]


def test_data_that_is_its_own_target_and_weight_is_enough():
    # Overlapping arrays; the library only reads them.
    engine, data = started((2, 5, 2), n=60)
    X = data.X
    expected, _ = started((2, 5, 2), n=60)
    expected.run(Data(X.copy(), X.copy(), np.abs(X).ravel()[:60].copy()), None, [[0.1]])
    positive = np.abs(X)
    engine.run(Data(X, X, positive.ravel()[:60]), None, [[0.1]])
    assert bits(engine) == bits(expected)


@pytest.mark.parametrize(
    "order",
    [
        lambda n: np.arange(n) + 1,
        lambda n: np.arange(n) - 1,
        lambda n: np.full(n, 2**63 - 1),
        lambda n: np.zeros(n, int),
        lambda n: np.arange(n - 1),
        lambda n: np.arange(n, dtype=float) + 0.5,
        lambda _: [],
        lambda _: None,
        lambda _: "abc",
    ],
)
def test_orders_of_a_callable_that_are_none_are_refused(order):
    X = np.zeros((40, 3))
    net = nb.Network([3, 5, 1], seed=1)
    with pytest.raises(nb.InputError, match=r"^shuffle: expected"):
        nb.train(
            net, X, X[:, 0], shuffle=lambda: order(40), batch_size=16, engine="native", epochs=2
        )


@pytest.mark.parametrize("kind", [np.int8, np.uint64, float])
def test_orders_of_any_dtype_are_taken(kind):
    X = np.random.default_rng(0).normal(size=(40, 3))
    results = []
    for dtype in (np.int64, kind):
        net = nb.Network([3, 5, 1], seed=1)
        order = np.arange(40, dtype=dtype)[::-1]
        nb.train(net, X, X[:, 0] > 0, shuffle=lambda o=order: o, batch_size=16, engine="native",
                 epochs=2)  # fmt: skip
        results.append(net.parameters.tobytes())
    assert results[0] == results[1]


def test_the_checks_of_an_array_refuse_all_that_the_library_takes_for_granted():
    array = np.zeros((4, 6))
    address = interface.address
    assert address(array, np.float64, (4, 6), writes=True) == array.ctypes.data
    read_only = array.copy()
    read_only.flags.writeable = False
    assert address(read_only, np.float64, (4, 6)) == read_only.ctypes.data
    with pytest.raises(ValueError, match="can be written"):
        address(read_only, np.float64, (4, 6), writes=True)
    for bad in (
        array.T, array[:, ::2], array[::2], array[1:], array.astype("f4"), array.astype(">f8"),
        array.astype(int), array.reshape(6, 4), array[None], np.asfortranarray(array),
        unaligned(array),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="C-contiguous"):
            address(bad, np.float64, (4, 6))


@pytest.mark.parametrize("what", ["activation", "loss", "update"])
def test_what_a_formula_keeps_of_its_arguments_stays_as_it_was(what):
    kept = []

    def keep(*arrays):
        if not isinstance(arrays[0], np.ndarray):
            raise TypeError  # not recorded
        kept.extend((array, array.copy()) for array in arrays)

    def derivative(xp, Z, A):
        keep(Z, A)
        return 1 - xp.tanh(Z) ** 2

    def function(xp, Z):
        keep(Z)
        return xp.tanh(Z)

    class OwnLoss(nb.losses.SquaredError):
        def elements(self, xp, Z, Y):
            keep(Z, Y)
            return super().elements(xp, Z, Y)

    class OwnUpdate(nb.SGD):
        def update(self, xp, parameters, gradient, state, coefficients):
            keep(parameters, gradient, *state)
            return super().update(xp, parameters, gradient, state, coefficients)

    options = {
        "activation": {"hidden": nb.Activation("own", function, derivative)},
        "loss": {"loss": OwnLoss()},
        "update": {"optimizer": OwnUpdate(0.05, momentum=0.5)},
    }[what]
    engine, data = started(batch_size=16, **options)
    engine.run(data, None, [[0.05] * 3] * 3)
    del engine
    # Others take the memory that has become free.
    started(batch_size=16)
    assert len(kept) >= 9
    for array, copy in kept:
        np.testing.assert_array_equal(array, copy)


# --- Predictions ---


def test_predictions_of_threads_at_once_are_those_of_one():
    rng = np.random.default_rng(0)
    nets = [nb.Network([4, width, 3], hidden="gelu", output="softmax", seed=1) for width in (9, 40)]
    examples = [rng.normal(size=(n, 4)) for n in (1, 7, 300)]
    expected = [[net.predict_proba(X).tobytes() for X in examples] for net in nets]
    results, barrier = [], threading.Barrier(4)

    def work():
        barrier.wait(PATIENCE)
        results.extend(
            [[net.predict_proba(X).tobytes() for X in examples] for net in nets] for _ in range(200)
        )

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(PATIENCE)
    finally:
        sys.setswitchinterval(interval)
    assert len(results) == 800
    assert all(result == expected for result in results)


@needs_tasks
def test_predictions_obey_the_limits_at_the_time():
    from threadpoolctl import threadpool_limits

    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is one processor only")
    net = nb.Network([100, 200, 200, 3], dtype="float32", seed=1)
    X = np.random.default_rng(0).normal(size=(2000, 100)).astype("float32")

    def threads_of_predictions(expected):
        before, deadline = n_tasks_at_rest(), time.monotonic() + 10
        with watching_threads() as counts:
            while len(counts) < 30 or (
                max(counts) < before + expected and time.monotonic() < deadline
            ):
                net.predict(X)
        return max(counts) - before

    for _ in range(2):
        with threadpool_limits(1):
            assert threads_of_predictions(0) == 0
        with threadpool_limits(2):
            assert threads_of_predictions(1) == 1


@pytest.mark.parametrize("sizes", [(4, 5, 1), (4, 40, 1)], ids=["narrow", "wide"])
@pytest.mark.parametrize("name", VIEWS)
def test_any_layout_of_the_data_gives_the_same_predictions(name, sizes):
    X = np.random.default_rng(0).normal(size=(70, 4))
    if name == "one row for all":
        X = np.ascontiguousarray(np.broadcast_to(X[:1], X.shape))
    if name == "float16":
        X = X.astype("float16").astype("float64")
    for dtype in ("float32", "float64"):
        net = nb.Network(sizes, dtype=dtype, seed=1, device="cpu")
        own = X.astype(dtype)
        expected = net.predict_proba(own)
        np.testing.assert_array_equal(net.predict_proba(VIEWS[name](own)), expected)


@pytest.mark.slow
def test_python_may_end_while_a_daemon_thread_predicts():
    code = (
        "import threading, time\n"
        "import numpy as np, nnbackend as nb\n"
        "X = np.random.default_rng(0).normal(size=(4000, 300))\n"
        "net = nb.Network([300, 500, 500, 1])\n"
        "ready = threading.Event()\n"
        "def predict():\n"
        "    while True:\n"
        "        net.predict(X)\n"
        "        ready.set()\n"
        "threading.Thread(target=predict, daemon=True).start()\n"
        "ready.wait()\n"
        "time.sleep(0.02)\n"
        "print('over')\n"
    )
    for _ in range(2):
        assert script(code) == "over\n"


@holds_memory
def test_networks_that_predict_and_are_dropped_leave_nothing():
    def work(number):
        net = nb.Network([10 + number % 40, 64, 3], seed=1)
        net.predict(np.zeros((5, 10 + number % 40)))

    assert growth_of(work, 400) < 8e6
