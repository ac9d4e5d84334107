"""A source whose ``read`` takes long holds nobody up: neither Ctrl-C, nor SIGTERM, nor the end."""

import signal
import subprocess
import sys
import threading
from functools import partial
from time import perf_counter

import factories
import numpy as np
import pytest

import nnbackend as nb
from nnbackend.data.source import Rows, Source

N = 400
X = np.random.default_rng(0).standard_normal((N, 3))
Y = (X[:, 0] > 0).astype(int)
BLOCK = 40
OPTIONS = {"epochs": 3, "batch_size": 10, "shuffle": False, "engine": "reference"}


class Slow(Source):
    """Sends a signal to the main thread in a ``read``, which then waits for its test to end."""

    n_samples, n_features, block_rows = N, 3, BLOCK

    def __init__(self, number=signal.SIGINT, at=None):
        super().__init__(buffer_bytes=2**13)
        self.number, self.at = number, at
        self.goes_on = threading.Event()
        self.n_readers = self.most_readers = 0
        self.raised_at = None
        self.n_reads = 0

    def read(self, start, stop):
        self.n_readers += 1
        self.most_readers = max(self.most_readers, self.n_readers)
        if stop - start > 8:
            self.n_reads += 1
            if self.n_reads == self.at:
                self.raised_at = perf_counter()
                signal.pthread_kill(threading.main_thread().ident, self.number)
                assert self.goes_on.wait(60)
        self.n_readers -= 1
        return Rows(X[start:stop], Y[start:stop])


network = partial(factories.network, (3, 4, 1), hidden="relu")


@pytest.fixture
def slow():
    source = Slow()
    yield source
    source.goes_on.set()


def seconds_since(source):
    return perf_counter() - source.raised_at


# What is promised is 0.2 s; other processes may take the processor meanwhile.
SOON = 2.0


def reads_per_epoch():
    source = Slow()
    nb.train(network(), source, **{**OPTIONS, "epochs": 1})
    return source.n_reads


# In the first part, in a later one, and in the second epoch.
PLACES = [(0, 1), (0, 5), (1, 5)]


@pytest.mark.parametrize(("epoch", "number"), PLACES)
def test_ctrl_c_does_not_wait_for_a_read(slow, epoch, number):
    slow.at = epoch * reads_per_epoch() + number
    net, expected = network(), network()
    before = net.parameters.copy()
    history = nb.train(net, slow, **OPTIONS)
    assert seconds_since(slow) < SOON
    assert history.stopped == "interrupted"
    assert history.n_epochs == epoch
    # The parts before are kept.
    n_steps = history.optimizer_state.step
    assert (n_steps == 0) == ((epoch, number) == PLACES[0])
    assert (n_steps == 0) == np.array_equal(net.parameters, before)
    state = None
    for step in range(n_steps):
        rows = slice(step % 40 * 10, step % 40 * 10 + 10)
        state = nb.train(
            expected, X[rows], Y[rows], epochs=1, batch_size=None, optimizer_state=state,
            engine="reference",
        ).optimizer_state  # fmt: skip
    np.testing.assert_allclose(net.parameters, expected.parameters, rtol=1e-12)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("place", PLACES)
def test_a_signal_does_not_wait_for_a_read_and_leaves_a_checkpoint(slow, number, place, tmp_path):
    slow.at, slow.number = place[0] * reads_per_epoch() + place[1], number
    kept = {"checkpoint": tmp_path, "checkpoint_every": 99}
    expected, net = network(), network()
    nb.train(expected, Slow(), **OPTIONS)
    if number == signal.SIGINT:
        assert nb.train(network(), slow, **OPTIONS, **kept).stopped == "interrupted"
    else:
        with pytest.raises(SystemExit) as caught:
            nb.train(network(), slow, **OPTIONS, **kept)
        assert caught.value.code == 143
    assert seconds_since(slow) < SOON
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    history = nb.train(net, Slow(), **OPTIONS, **kept, resume=True)
    assert history.stopped == "completed"
    np.testing.assert_array_equal(net.parameters, expected.parameters)


def test_rows_are_read_by_one_thread_at_a_time_after_ctrl_c_too(slow):
    expected, net = network(), network()
    nb.train(expected, Slow(), **OPTIONS)
    slow.at = 5
    nb.train(network(), slow, **OPTIONS)
    assert slow.n_readers == 1
    threading.Timer(0.1, slow.goes_on.set).start()
    nb.train(net, slow, **OPTIONS)
    assert slow.most_readers == 1
    np.testing.assert_array_equal(net.parameters, expected.parameters)


@pytest.mark.parametrize(
    "use",
    [
        lambda source, _: network().standardize(source),
        lambda source, _: nb.MLPClassifier((4,)).partial_fit(source, classes=[0, 1]),
        lambda source, folder: nb.train(network(), source, **OPTIONS, checkpoint=folder),
    ],
    ids=["standardize", "partial_fit", "the digest of a training with checkpoints"],
)
def test_ctrl_c_ends_what_reads_in_the_main_thread(slow, use, tmp_path, monkeypatch):
    read = slow.read

    def wait(start, stop):
        # Not the first row, which all of them look at before.
        if stop - start == 1:
            return read(start, stop)
        slow.raised_at = perf_counter()
        main = threading.main_thread().ident
        threading.Timer(0.05, signal.pthread_kill, [main, signal.SIGINT]).start()
        assert slow.goes_on.wait(60)
        return read(start, stop)

    monkeypatch.setattr(slow, "read", wait)
    with pytest.raises(KeyboardInterrupt):
        use(slow, tmp_path)
    assert seconds_since(slow) < SOON


PROGRAM = """
import threading
import numpy as np
import nnbackend as nb

class Slow(nb.sources.Source):
    n_samples, n_features, block_rows = 400, 3, 40
    def read(self, start, stop):
        if start >= 200:
            print("reading", flush=True)
            threading.Event().wait(60)
        return nb.sources.Rows(np.ones((stop - start, 3)), np.ones(stop - start))

net = nb.Network([3, 4, 1])
history = nb.train(net, Slow(buffer_bytes=2**13), batch_size=10, shuffle=False)
print(history.stopped, history.optimizer_state.step > 0, flush=True)
"""


def test_a_process_ends_though_a_read_goes_on():
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "reading\n"
        begun = perf_counter()
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
        assert (out, error, process.returncode) == ("interrupted True\n", "", 0)
        assert perf_counter() - begun < 10


# Arrays that a source uses again


class Reusing(Source):
    """Reads every block into the same arrays."""

    n_samples, n_features, block_rows = N, 3, BLOCK

    def __init__(self, n_buffers):
        super().__init__(buffer_bytes=2**14)
        self.buffers = [(np.empty((N, 3)), np.empty(N, int), np.empty(N)) for _ in range(n_buffers)]
        self.weight = np.random.default_rng(2).uniform(0.5, 2, N)

    def read(self, start, stop):
        self.buffers.append(self.buffers.pop(0))
        for buffer, x in zip(self.buffers[-1], (X, Y, self.weight), strict=True):
            buffer[: stop - start] = x[start:stop]
        return Rows(*(buffer[: stop - start] for buffer in self.buffers[-1]))


class Fresh(Reusing):
    """The same rows in arrays of their own."""

    def read(self, start, stop):
        return Rows(*(x.copy() for x in super().read(start, stop)))


@pytest.mark.parametrize("n_buffers", [1, 3])
def test_a_source_may_use_its_arrays_again(n_buffers):
    def outcomes(make):
        net = nb.Network([3, 4, 1], dtype="float64", seed=1).standardize(make(n_buffers))
        nb.train(net, make(n_buffers), **{**OPTIONS, "shuffle": True})
        model = nb.MLPRegressor(hidden_layer_sizes=(4,), random_state=0, batch_size=20)
        model.partial_fit(make(n_buffers))
        digest = nb.sources.digest(make(n_buffers))
        return net.parameters, net.standardization.mean, model.coefs_[0], digest

    for got, expected in zip(outcomes(Reusing), outcomes(Fresh), strict=True):
        np.testing.assert_array_equal(got, expected)
