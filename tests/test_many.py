"""``train_many``: each network ends as it would alone."""

import os
import signal
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
import strict_gpu
from backends import require
from devices import CUDA_MARKS, to_host
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nnbackend as nb

RNG = np.random.default_rng(0)
N = 90
X = RNG.standard_normal((N, 5))
Y = (X[:, 0] * X[:, 1] > 0).astype(np.int64)
CLASSES = np.digitize(X[:, 0] + 0.3 * X[:, 1], [-0.5, 0.5])
WEIGHT = RNG.integers(0, 3, N).astype(float)
OPTIMIZERS = {
    "sgd": nb.SGD,
    "momentum": lambda rate: nb.SGD(rate, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "rmsprop": lambda rate: nb.RMSprop(rate, centered=True, momentum=0.5),
    "adagrad": lambda rate: nb.Adagrad(rate, decay=1e-3),
    "adam": lambda rate: nb.Adam(rate, beta1=0.8, weight_decay=1e-4),
    "adamw": nb.AdamW,
    "schedule": lambda rate: nb.Adam(nb.schedules.Cosine(rate)),
}
# Engine, dtype, and how close a network in a stack is to the same one alone.
ENGINES = [("native", "float32", 0.0), ("native", "float64", 0.0), ("reference", "float64", 1e-12)]


def networks(n, sizes=(5, 8, 4, 3), dtype="float64", **options):
    options = {"output": "softmax", **options}
    return [nb.Network(list(sizes), seed=seed, dtype=dtype, **options) for seed in range(n)]


def require_same(found, wanted, tolerance):
    """Require two (network, history) to be the same: all bits where the tolerance is 0."""
    (net, history), (alone, own) = found, wanted

    def close(a, b):
        a, b = np.asarray(a), np.asarray(b)
        if tolerance == 0.0:
            np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)

    close(net.parameters, alone.parameters)
    assert (history.stopped, history.best_epoch) == (own.stopped, own.best_epoch)
    for name in ("loss", "validation_loss", "learning_rate"):
        close(getattr(history, name), getattr(own, name))
    assert history.optimizer_state.step == own.optimizer_state.step
    for a, b in zip(history.optimizer_state.arrays, own.optimizer_state.arrays, strict=True):
        close(a, b)


def train_alone(net, *arguments, **options):
    """Train, and return network and history, also if the training diverges."""
    try:
        return net, nb.train(net, *arguments, **options)
    except nb.DivergenceError as error:
        return net, error.history


@pytest.mark.parametrize(("engine", "dtype", "tolerance"), ENGINES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_64_networks_end_as_alone(engine, dtype, tolerance, optimizer):
    n = 64 if engine == "native" else 12
    rates = [1e-3 * (1 + k % 7) for k in range(n)]
    own = {
        "optimizer": [OPTIMIZERS[optimizer](rate) for rate in rates],
        "seed": list(range(n)),
        "epochs": [3 + k % 4 for k in range(n)],
        "l2": [1e-3 * (k % 3) for k in range(n)],
        "clip_norm": [None if k % 5 else 0.5 for k in range(n)],
        "early_stopping": [
            nb.EarlyStopping(patience=1, min_delta=0.02, restore_best=bool(k % 2))
            if k % 3
            else None
            for k in range(n)
        ],
    }
    shared = {"batch_size": 16, "engine": engine}
    options = {"dtype": dtype, "dropout": 0.2}
    nets, alone = (networks(n, **options) for _ in range(2))
    histories = nb.train_many(
        nets, X, CLASSES, **own, **shared, validation_data=(X[:30], CLASSES[:30])
    )
    for k, pair in enumerate(zip(nets, histories, strict=True)):
        mine = {name: values[k] for name, values in own.items()}
        wanted = train_alone(
            alone[k], X, CLASSES, **mine, **shared, validation_data=(X[:30], CLASSES[:30])
        )
        require_same(pair, wanted, tolerance)


@pytest.mark.parametrize(("engine", "dtype", "tolerance"), ENGINES)
def test_a_network_that_diverges_ends_alone(engine, dtype, tolerance):
    optimizers = [nb.SGD(1e-2), nb.SGD(1e30), nb.SGD(1e-2)]
    nets, alone = (networks(3, output="identity", sizes=(5, 8, 1), dtype=dtype) for _ in range(2))
    options = {"epochs": 6, "batch_size": 32, "engine": engine}
    with pytest.warns(RuntimeWarning, match=r"1 of 3 networks diverged .* \(numbers 1\)"):
        histories = nb.train_many(nets, X, X[:, 0], optimizer=optimizers, **options)
    assert [history.stopped for history in histories] == ["completed", "diverged", "completed"]
    assert np.isfinite(nets[1].parameters).all()
    for k in range(3):
        wanted = train_alone(alone[k], X, X[:, 0], optimizer=optimizers[k], **options)
        require_same((nets[k], histories[k]), wanted, tolerance)


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    data=st.data(),
    n=st.integers(1, 5),
    batch_size=st.sampled_from([1, 7, 32, 90, None]),
    shuffle=st.booleans(),
    weighted=st.booleans(),
    sizes=st.sampled_from([(5, 3), (5, 6, 3), (5, 40, 33, 3)]),
    engine=st.sampled_from(ENGINES),
)
def test_rows_of_shared_data_are_as_good_as_a_copy(
    data, n, batch_size, shuffle, weighted, sizes, engine
):
    name, dtype, tolerance = engine
    weight = 1.0 + WEIGHT if weighted else None
    rows = [
        np.array(data.draw(st.lists(st.integers(0, N - 1), min_size=1, max_size=60)))
        for _ in range(n)
    ]
    options = {"batch_size": batch_size, "shuffle": shuffle, "epochs": 3, "engine": name}
    nets, alone = (networks(n, sizes=sizes, dtype=dtype) for _ in range(2))
    histories = nb.train_many(
        nets, X, CLASSES, rows=rows, seed=list(range(n)), sample_weight=weight, **options
    )
    for k in range(n):
        own = None if weight is None else weight[rows[k]]
        wanted = train_alone(
            alone[k], X[rows[k]], CLASSES[rows[k]], seed=k, sample_weight=own, **options
        )
        require_same((nets[k], histories[k]), wanted, tolerance)
        assert histories[k].n_samples == len(rows[k])


@pytest.mark.parametrize(("engine", "dtype", "tolerance"), ENGINES)
def test_rows_without_weight_are_skipped_as_alone(engine, dtype, tolerance):
    rows = [np.flatnonzero(WEIGHT), np.argsort(WEIGHT), np.repeat(np.argsort(WEIGHT)[:40], 2)]
    options = {"batch_size": 8, "shuffle": False, "epochs": 2, "engine": engine}
    rows[2][-1] = int(np.argmax(WEIGHT))
    nets, alone = (networks(3, dtype=dtype) for _ in range(2))
    histories = nb.train_many(nets, X, CLASSES, rows=rows, sample_weight=WEIGHT, **options)
    for k in range(3):
        chosen = rows[k]
        wanted = train_alone(
            alone[k], X[chosen], CLASSES[chosen], sample_weight=WEIGHT[chosen], **options
        )
        require_same((nets[k], histories[k]), wanted, tolerance)


def test_folds_watch_the_rows_that_they_hold_out():
    folds = np.arange(N) % 3
    nets, alone = (networks(3) for _ in range(2))
    stopping = nb.EarlyStopping(patience=2)
    histories = nb.train_many(
        nets, X, CLASSES, rows=[folds != k for k in range(3)],
        validation_rows=[folds == k for k in range(3)], early_stopping=stopping, epochs=20,
        optimizer=nb.Adam(0.05), batch_size=16,
    )  # fmt: skip
    for k in range(3):
        own, held_out = folds != k, folds == k
        wanted = train_alone(
            alone[k], X[own], CLASSES[own], validation_data=(X[held_out], CLASSES[held_out]),
            early_stopping=stopping, epochs=20, optimizer=nb.Adam(0.05), batch_size=16,
        )  # fmt: skip
        require_same((nets[k], histories[k]), wanted, 0.0)


def test_networks_of_all_kinds_train_in_one_call():
    nets, alone = (
        [
            nb.Network([5, 4, 1], hidden="tanh", seed=1, dtype="float64"),
            nb.Network([5, 1], seed=2),
            nb.Network([5, 300, 300, 1], seed=3).standardize(10 * X + 3),
            nb.Network([5, 16, 1], hidden="gelu", dropout=0.5, seed=4),
        ]
        for _ in range(2)
    )
    optimizers = [nb.SGD(0.1), nb.Adam(), nb.RMSprop(), nb.AdamW()]
    sizes = [None, 8, 64, 13]
    histories = nb.train_many(nets, X, Y, optimizer=optimizers, batch_size=sizes, epochs=4)
    for k in range(4):
        wanted = train_alone(alone[k], X, Y, optimizer=optimizers[k], batch_size=sizes[k], epochs=4)
        require_same((nets[k], histories[k]), wanted, 0.0)


class Doubled(nb.losses.SquaredError):
    """A loss of the caller's own."""

    name = "doubled"

    def elements(self, xp, Z, Y):
        self.seen = threading.current_thread()
        element, slope = super().elements(xp, Z, Y)
        return 2.0 * element, 2.0 * slope


def test_formulas_of_ones_own_run_in_the_callers_thread():
    nets, alone = (networks(4, output="identity", sizes=(5, 6, 1)) for _ in range(2))
    loss = Doubled()
    histories = nb.train_many(nets, X, X[:, 1], loss=loss, epochs=3)
    assert loss.seen is threading.current_thread()
    for k in range(4):
        wanted = train_alone(alone[k], X, X[:, 1], loss=Doubled(), epochs=3)
        require_same((nets[k], histories[k]), wanted, 0.0)


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_callbacks_know_the_network_and_can_stop_it(engine):
    seen = []

    def callback(state):
        assert state.network is nets[state.number]
        assert threading.current_thread() is threading.main_thread()
        seen.append((state.number, state.epoch))
        if state.epoch > state.number:
            state.stop()

    nets = networks(4)
    histories = nb.train_many(nets, X, CLASSES, epochs=9, callbacks=callback, engine=engine)
    assert [history.n_epochs for history in histories] == [1, 2, 3, 4]
    assert {history.stopped for history in histories} == {"callback"}
    assert sorted(seen) == [(k, epoch) for k in range(4) for epoch in range(1, k + 2)]


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_an_error_of_a_callback_ends_all_and_each_keeps_what_it_learnt(engine):
    def callback(state):
        # Networks run side by side in no fixed order: each must have had an epoch by then.
        begun.add(state.number)
        if len(begun) == 4 and state.number == 2 and state.epoch >= 3:
            raise LookupError("mine")

    begun = set()
    nets, fresh = networks(4), networks(4)
    with pytest.raises(LookupError, match="mine"):
        nb.train_many(nets, X, CLASSES, epochs=10**6, callbacks=callback, engine=engine)
    for net, untrained in zip(nets, fresh, strict=True):
        assert not np.array_equal(net.parameters, untrained.parameters)
        nb.train(net, X, CLASSES, epochs=1)


@pytest.mark.parametrize("engine", ["native", "reference"])
@pytest.mark.parametrize("where", ["progress", "callback"])
def test_an_interrupt_keeps_what_every_network_has_learnt(engine, where):
    def progress(histories):
        if where == "progress" and min(h.n_epochs for h in histories) > 1 and not came:
            came.append(None)
            raise KeyboardInterrupt

    def callback(state):
        # Networks run side by side in no fixed order: each must have had an epoch by then.
        begun.add(state.number)
        if where == "callback" and len(begun) == 5 and state.number == 1 and state.epoch >= 4:
            raise KeyboardInterrupt

    came, begun = [], set()
    nets, fresh = networks(5), networks(5)
    histories = nb.train_many(
        nets, X, CLASSES, epochs=10**6, batch_size=4, callbacks=callback, progress=progress,
        engine=engine,
    )  # fmt: skip
    assert {history.stopped for history in histories} == {"interrupted"}
    assert all(history.n_epochs > 0 for history in histories)
    for net, untrained in zip(nets, fresh, strict=True):
        assert not np.array_equal(net.parameters, untrained.parameters)
        nb.train(net, X, CLASSES, epochs=1)


def test_an_interrupt_at_any_line_is_no_completion():
    class Tracer:
        """Raise at one of the lines that run in the module of ``train_many``."""

        def __init__(self, wanted):
            self.wanted, self.n_lines = wanted, 0

        def __call__(self, frame, event, _argument):
            if frame.f_code.co_name not in ("run", "_training"):
                return None
            if frame.f_globals["__name__"] != nb.train_many.__module__:
                return None
            if event == "line":
                self.n_lines += 1
                if self.n_lines == self.wanted:
                    raise KeyboardInterrupt
            return self

    own, wanted, came = sys.gettrace(), 0, True
    while came:
        wanted += 1
        nets, tracer = networks(3), Tracer(wanted)
        sys.settrace(tracer)
        try:
            histories = nb.train_many(nets, X, CLASSES, epochs=[1, 2, 3], batch_size=30)
        except KeyboardInterrupt:
            continue
        finally:
            sys.settrace(own)
        came = tracer.n_lines >= wanted
        for history, epochs in zip(histories, [1, 2, 3], strict=True):
            assert history.stopped == "interrupted" or history.n_epochs == epochs
    assert wanted > 20


AN_INTERRUPT_OF_THE_END = """
import os, sys, time
import nnbackend as nb

def interrupt(frame, event, argument):
    if event == "call":
        return interrupt if frame.f_code.co_filename.endswith("pool.py") and (
            frame.f_code.co_name == "close") else None
    if event == "line":
        lines.append(frame.f_lineno)
        if len(lines) == wanted:
            raise KeyboardInterrupt
    return interrupt

def progress(histories):
    if not lines and not came:
        came.append(None)
        sys.settrace(interrupt)
        raise KeyboardInterrupt

for wanted in range(1, 8):
    lines, came = [], []
    nets = [nb.Network([2, 64, 1], seed=seed) for seed in range(4)]
    histories = nb.train_many(
        nets, [[0.0, 1.0]] * 64, [[1.0]] * 64, epochs=10**6, batch_size=2, progress=progress)
    sys.settrace(None)
    assert {history.stopped for history in histories} == {"interrupted"}
    busy = time.process_time()
    time.sleep(0.1)
    assert time.process_time() - busy < 0.05, f"threads go on after line {lines[-1]}"
"""


def test_threads_rest_after_a_second_interrupt():
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", AN_INTERRUPT_OF_THE_END],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


class Dropping:
    """A callback within which Python drops what a signal's handler raises."""

    def __init__(self):
        self.n = 0

    def __call__(self, _state):
        self.n += 1
        if self.n == 3:
            thing = threading.Event()
            weakref.finalize(thing, os.kill, os.getpid(), signal.SIGINT)
            del thing


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("engine", ["native", "reference"])
def test_an_interrupt_that_python_drops_is_not_lost(engine):
    before = signal.getsignal(signal.SIGINT)
    histories = nb.train_many(
        networks(3), X, CLASSES, epochs=10**6, callbacks=Dropping(), engine=engine
    )
    assert {history.stopped for history in histories} == {"interrupted"}
    assert signal.getsignal(signal.SIGINT) is before


def test_progress_comes_to_an_end():
    seen = []
    nets = networks(3)
    nb.train_many(
        nets, X, CLASSES, epochs=[2, 3, 4], progress=lambda h: seen.append([e.n_epochs for e in h])
    )
    assert seen[-1] == [2, 3, 4]


@pytest.mark.parametrize("device", ["stand-in", pytest.param("cuda", marks=CUDA_MARKS)])
def test_networks_on_a_gpu_end_as_alone(monkeypatch, device):
    if device == "stand-in":
        strict_gpu.install(monkeypatch)
    nets, alone = (networks(6, device="cuda", dropout=0.2) for _ in range(2))
    rows = [RNG.permutation(N)[:60] for _ in range(6)]
    own = {"optimizer": [nb.Adam(1e-3 * (k + 1)) for k in range(6)], "seed": list(range(6))}
    stopping = nb.EarlyStopping(patience=2)
    histories = nb.train_many(
        nets, X, CLASSES, **own, rows=rows, validation_rows=[np.arange(20)] * 6, epochs=8,
        batch_size=16, early_stopping=stopping,
    )  # fmt: skip
    for k in range(6):
        mine = {name: values[k] for name, values in own.items()}
        history = nb.train(
            alone[k], X[rows[k]], CLASSES[rows[k]], **mine, epochs=8, batch_size=16,
            validation_data=(X[:20], CLASSES[:20]), early_stopping=stopping,
        )  # fmt: skip
        assert histories[k].best_epoch == history.best_epoch
        np.testing.assert_allclose(histories[k].loss, history.loss, rtol=1e-10)
        np.testing.assert_allclose(
            to_host(nets[k].parameters), to_host(alone[k].parameters), rtol=1e-10, atol=1e-12
        )


def test_more_networks_than_run_at_once():
    nets, alone = (networks(150, sizes=(5, 4, 3)) for _ in range(2))
    nb.train_many(nets, X, CLASSES, epochs=2, seed=list(range(150)))
    for k in (0, 63, 64, 149):
        nb.train(alone[k], X, CLASSES, epochs=2, seed=k)
        np.testing.assert_array_equal(nets[k].parameters, alone[k].parameters)


def test_a_network_goes_on_from_the_state_of_its_optimizer():
    nets, alone = (networks(3) for _ in range(2))
    first = nb.train_many(nets, X, CLASSES, epochs=2)
    states = [history.optimizer_state for history in first]
    second = nb.train_many(nets, X, CLASSES, epochs=2, seed=1, optimizer_state=states)
    for k in range(3):
        own = nb.train(alone[k], X, CLASSES, epochs=2)
        last = nb.train(alone[k], X, CLASSES, epochs=2, seed=1, optimizer_state=own.optimizer_state)
        require_same((nets[k], second[k]), (alone[k], last), 0.0)


def test_frames_are_read_by_the_names_that_the_networks_learn():
    pandas = require("pandas")
    frame = pandas.DataFrame(X, columns=list("abcde"))
    turned = frame[list("edcba")]
    nets, alone = (networks(2) for _ in range(2))
    histories = nb.train_many(
        nets, frame, CLASSES, epochs=2, validation_data=(turned[:30], CLASSES[:30])
    )
    for k in range(2):
        own = nb.train(
            alone[k], frame, CLASSES, epochs=2, validation_data=(turned[:30], CLASSES[:30])
        )
        require_same((nets[k], histories[k]), (alone[k], own), 0.0)
        assert nets[k].feature_names == tuple("abcde")
        np.testing.assert_array_equal(nets[k].predict(turned), nets[k].predict(frame))


def test_arrays_hold_one_value_for_each():
    nets, alone = (networks(3) for _ in range(2))
    strengths = np.logspace(-4, -2, 3)
    histories = nb.train_many(
        nets, X, CLASSES, l2=strengths, epochs=np.array([1, 2, 3]), seed=np.arange(3)
    )
    for k in range(3):
        own = nb.train(alone[k], X, CLASSES, l2=float(strengths[k]), epochs=k + 1, seed=k)
        require_same((nets[k], histories[k]), (alone[k], own), 0.0)


def test_no_networks_are_no_histories():
    assert nb.train_many([], X, CLASSES) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"epochs": [1, 2]},
            "epochs: expected one value, or one for each of the 3 networks, got 2",
        ),
        ({"optimizer": ["adam", "lion", "sgd"]}, r"optimizer(\[1\])?: .*'lion'"),
        ({"rows": [None, [0, 90], None]}, r"rows: expected row numbers 0 to 89, .*, 0 to 90$"),
        ({"rows": [None, [], None]}, "rows: expected row numbers 0 to 89, at least one"),
        ({"rows": [None, [0.5], None]}, "rows: .* got float64"),
        ({"rows": [None] * 2}, "rows: expected an array of row numbers, .* got 2 entries"),
        ({"shuffle": lambda: np.arange(N)}, "shuffle: expected True or False"),
        ({"early_stopping": nb.EarlyStopping()}, "early_stopping: expected validation_data"),
        (
            {"validation_data": (X, CLASSES), "validation_rows": [[0], [1], [2]]},
            "validation_rows: expected None with validation_data",
        ),
        ({"callbacks": 3}, "callbacks: expected a callable"),
        ({"engine": "fast"}, "engine"),
        ({"l2": [0.0, -1.0, 0.0]}, r"l2\[1\]: expected .* got -1"),
        ({"l2": -1.0}, "l2: expected"),
        ({"rows": np.arange(2)}, "rows: expected an array of row numbers, .* of the 3 networks"),
        (
            {"validation_data": [(X, CLASSES)] * 3},
            "validation_data: expected one tuple .* with validation_rows",
        ),
    ],
)
def test_an_error_leaves_all_networks_as_they_were(changed, message):
    nets, fresh = networks(3), networks(3)
    with pytest.raises(nb.InputError, match=message):
        nb.train_many(nets, X, CLASSES, **changed)
    for net, untrained in zip(nets, fresh, strict=True):
        np.testing.assert_array_equal(net.parameters, untrained.parameters)


def test_networks_are_different_ones():
    net, other = networks(2)
    with pytest.raises(nb.InputError, match="nets: expected different networks"):
        nb.train_many([net, other, net], X, CLASSES)
    with pytest.raises(nb.InputError, match=r"nets\[1\]: expected a nnbackend.Network, got int"):
        nb.train_many([net, 3], X, CLASSES)
    with pytest.raises(nb.InputError, match="X: expected arrays X and y in memory"):
        nb.train_many([net], X, None)


def test_memory_that_does_not_suffice_is_told_before(monkeypatch):
    monkeypatch.setattr("nnbackend.device.Device.free_bytes", lambda _: 10_000)
    nets, fresh = networks(40), networks(40)
    with pytest.raises(nb.DeviceMemoryError, match=r"40 networks need .* SGD without"):
        nb.train_many(nets, X, CLASSES)
    np.testing.assert_array_equal(nets[0].parameters, fresh[0].parameters)
