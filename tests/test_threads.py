"""Threads and processes: trainings side by side, predictions meanwhile, and forks."""

import multiprocessing
import sys
import threading
from functools import partial

import factories
import numpy as np
import pytest
from devices import on_each_engine
from forks import in_forked_child

import nnbackend as nb
from nnbackend.errors import InputError
from nnbackend.model.parameters import ParameterVector

X = np.random.default_rng(0).normal(size=(60, 4))
Y = (X.sum(axis=1) > 0).astype(int)
# Hang guards.
PATIENCE = 300


@pytest.fixture(autouse=True)
def _hasty_threads():
    """Let threads take turns as often as can be."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


network = partial(factories.network, (4, 8, 1), dtype="float32", seed=0)


def trained(net, engine="reference", epochs=5, **options):
    """Train, and return what came out in bytes."""
    history = nb.train(
        net, X, Y, engine=engine, epochs=epochs, batch_size=7, optimizer=nb.Adam(0.02), **options
    )
    return net.parameters.tobytes(), history.loss


def started(work):
    """Start a thread; return what waits for its result, or raises its error."""
    results = []

    def run():
        try:
            results.append((work(), None))
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            results.append((None, error))

    thread = threading.Thread(target=run)
    thread.start()

    def wait():
        thread.join(PATIENCE)
        assert not thread.is_alive()
        result, error = results[0]
        if error is not None:
            raise error
        return result

    return wait


class UntilToldSo:
    """A callback that lets a training go on, at leisure, until it is told to end."""

    def __init__(self):
        self.is_told = threading.Event()

    def __call__(self, state):
        if self.is_told.wait(1e-3):
            state.stop()


class Pause:
    """A callback that holds a training after its first epoch until it is let go."""

    def __init__(self):
        self.reached, self.let_go = threading.Event(), threading.Event()

    def __call__(self, state):
        if state.epoch == 1:
            self.reached.set()
            assert self.let_go.wait(PATIENCE)


# Trainings

KINDS = {
    "reference": {"engine": "reference"},
    "native": {"engine": "native"},
    "native with dropout": {"engine": "native"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_trainings_side_by_side_equal_the_same_one_after_the_other(kind, tmp_path):
    rates = [0.3, 0.2] if kind == "native with dropout" else [0.0, 0.0]
    validation = {"validation_data": (X[:20], Y[:20])}

    def work(number, folder):
        net = network(seed=number, dropout=rates[number])
        kept = {"checkpoint": tmp_path / folder / str(number), "checkpoint_every": 0.5}
        return trained(net, seed=number, **KINDS[kind], **validation, **kept)

    expected = [work(number, "alone") for number in range(2)]
    waiting = [started(lambda number=number: work(number, "both")) for number in range(2)]
    assert [wait() for wait in waiting] == expected


def test_a_network_that_is_being_trained_is_refused_and_nothing_is_changed(tmp_path):
    expected = trained(network())
    net, pause = network(), Pause()
    wait = started(lambda: trained(net, callbacks=pause))
    assert pause.reached.wait(PATIENCE)
    before = net.parameters.copy()
    folder = tmp_path / "new"
    for options in ({}, {"checkpoint": folder}):
        with pytest.raises(
            InputError, match=r"not being trained, got one that another thread.*copy"
        ):
            trained(net, seed=5, **options)
    np.testing.assert_array_equal(net.parameters, before)
    # A copy is another network.
    trained(net.copy(), epochs=1)
    pause.let_go.set()
    assert wait() == expected
    trained(net, epochs=1)


def test_a_training_that_failed_lets_the_next_one_begin():
    net = network()
    with pytest.raises(InputError):
        nb.train(net, X[:, :2], Y)
    with pytest.raises(ZeroDivisionError):
        trained(net, callbacks=lambda _: 1 / 0)
    trained(net, epochs=1)


# Predictions meanwhile


def test_predictions_during_a_training_are_of_the_parameters_of_one_epoch():
    """The parameters are some megabytes, whose writing a prediction easily comes across."""
    net = nb.Network([4, 700, 700, 1], hidden="tanh")
    probe, target = X[:3], Y[:3]
    epochs = [net.copy()]
    is_over = threading.Event()

    def train():
        try:
            nb.train(
                net,
                X,
                Y,
                engine="reference",
                optimizer=nb.SGD(0.1),
                epochs=12,
                batch_size=None,
                # What the callback gets is the network itself; nobody writes while it looks.
                callbacks=lambda _: epochs.append(net.copy()),
            )
        finally:
            is_over.set()

    def forward(net):
        return net.predict_proba(probe).tobytes()

    def gradients(net):
        loss, found = net.loss_and_gradients(probe, target)
        # Of all layers, of which those below take part in those above.
        return loss.tobytes(), *(dW[0].tobytes() for dW in found.weights)

    def watch(look):
        seen = set()
        while not is_over.is_set():
            seen.add(look(net))
        return seen

    looks = (forward, gradients)
    waiting = [started(lambda look=look: watch(look)) for look in looks]
    started(train)()
    for look, wait in zip(looks, waiting, strict=True):
        allowed = {look(epoch) for epoch in epochs}
        seen = wait()
        assert len(seen) > 1
        assert seen <= allowed


def test_a_result_in_whose_midst_the_parameters_were_written_is_computed_again():
    vector = ParameterVector(np, np.zeros(3))
    calls = []

    def first_and_last(parameters):
        first = float(parameters[0])
        if not calls:
            vector.write(np.ones(3))
        calls.append(first)
        return first, float(parameters[-1])

    assert vector.read(first_and_last) == (1.0, 1.0)
    assert len(calls) == 2


# Processes


def predict_and_train(net, engines=("reference", "native")):
    """Return a prediction, and what a training gives that goes on; another process does so, too."""
    return net.predict_proba(X).tobytes(), *(
        trained(net.copy(), engine, epochs=2) for engine in engines
    )


def run_in_child(context, net):
    with context.Pool(1) as pool:
        result = pool.apply_async(predict_and_train, (net,)).get(PATIENCE)
        pool.close()
        pool.join()
    return result


# Another test of this process may have started JAX, which warns of every fork.
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_processes_started_while_a_thread_trains_predict_and_train(method):
    mine = network(seed=3)
    trained(mine)
    expected = predict_and_train(mine)
    until = UntilToldSo()
    wait = started(lambda: trained(network(dropout=0.2), epochs=10**6, callbacks=until))
    try:
        for _ in range(3 if method == "fork" else 1):
            assert run_in_child(multiprocessing.get_context(method), mine) == expected
    finally:
        until.is_told.set()
    parameters, loss = wait()
    assert (parameters, loss) == trained(network(dropout=0.2), epochs=len(loss))


@pytest.mark.slow
def test_joblib_workers_train_and_predict_while_a_thread_trains():
    import joblib

    mine = network(seed=3)
    expected = predict_and_train(mine, ["reference"])
    until = UntilToldSo()
    wait = started(lambda: trained(network(), "native", epochs=10**6, callbacks=until))
    try:
        tasks = [joblib.delayed(predict_and_train)(mine, ["reference"])] * 2
        assert joblib.Parallel(n_jobs=2, backend="loky")(tasks) == [expected] * 2
    finally:
        until.is_told.set()
    parameters, loss = wait()
    assert (parameters, loss) == trained(network(), "native", epochs=len(loss))


# Another test of this process may have started JAX, which warns of every fork.
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
def test_a_child_forked_while_a_thread_trains_predicts_with_that_network_and_trains_a_copy():
    net, pause = network(), Pause()
    wait = started(lambda: trained(net, callbacks=pause))
    assert pause.reached.wait(PATIENCE)
    # It stands still now, so that its parameters are known.
    assert in_forked_child(lambda: predict_and_train(net)) == predict_and_train(net)
    pause.let_go.set()
    wait()


# Another test of this process may have started JAX, which warns of every fork.
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
@on_each_engine
def test_a_forked_child_goes_on_with_a_trained_network(engine):
    net = nb.Network([4, 300, 300, 1], hidden="tanh", dropout=(0.3, 0.0))
    trained(net, engine, epochs=1)

    def work():
        return net.predict_proba(X).tobytes(), trained(net, engine, epochs=1)

    assert in_forked_child(work) == work()


# Another test of this process may have started JAX, which warns of every fork.
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
def test_a_child_forked_in_a_callback_predicts_and_trains_a_copy():
    results = []

    def callback(state):
        if state.epoch == 2:
            net = state.network
            results.extend(
                [in_forked_child(lambda: predict_and_train(net)), predict_and_train(net)]
            )

    trained(network(), callbacks=callback)
    assert results[0] == results[1]
