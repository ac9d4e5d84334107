"""What the tests of data-parallel training run under mpiexec: ``python training_programs.py NAME``.

A failed assertion ends all processes, with its traceback and exit code 3.
"""

import os
import signal
import sys
import traceback

import factories
import numpy as np
from mpi4py import MPI

import nnbackend as nb
from nnbackend.training.checkpoint_folder import checkpoint_files

WORLD = MPI.COMM_WORLD
RANK, SIZE = WORLD.rank, WORLD.size
RNG = np.random.default_rng(0)
# The last batch has 3 rows: fewer than 4 processes.
X = RNG.normal(size=(103, 4))
Y = {
    "sigmoid": (X[:, 0] * X[:, 1] > 0).astype(int),
    "softmax": RNG.integers(0, 3, 103),
    "identity": X @ RNG.normal(size=(4, 2)),
}
WEIGHT = RNG.uniform(0, 2, 103)
WEIGHT[:50] = 0
OPTIMIZERS = [
    nb.SGD(0.1),
    nb.SGD(0.1, momentum=0.9, nesterov=True),
    nb.RMSprop(0.01),
    nb.Adagrad(0.05),
    nb.Adam(0.01),
    nb.AdamW(0.01, weight_decay=0.1),
]


def network(output="sigmoid", **options):
    n_outputs = {"sigmoid": 1, "softmax": 3, "identity": 2}[output]
    return factories.network([4, 6, 5, n_outputs], output=output, **options)


def train(net, output="sigmoid", **options):
    options = {"epochs": 3, "batch_size": 20, "engine": "reference", "optimizer": "adam", **options}
    return nb.train(net, options.pop("X", X), options.pop("y", Y[output]), **options)


def outcome(output="sigmoid", net_options=None, **options):
    net = network(output, **(net_options or {}))
    history = train(net, output, **options)
    return np.concatenate([net.parameters, history.loss, history.validation_loss]), history


def expect_equal(**options):
    """All ranks together give what one gives alone."""
    alone, alone_history = outcome(**options)
    together, history = outcome(**options, communicator=WORLD)
    # Sums of at most 100 terms of order one, taken in another order, over some 20 steps.
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-12)
    assert history.stopped == alone_history.stopped
    assert history.best_epoch == alone_history.best_epoch
    assert len(set(WORLD.allgather(together.tobytes()))) == 1
    return history


def expect(error_type, function):
    try:
        function()
    except error_type as error:
        return error
    raise AssertionError(f"expected {error_type.__name__}")


def equal():
    """Every optimizer; then every option that has to do with how a batch is cut."""
    for optimizer in OPTIMIZERS:
        expect_equal(optimizer=optimizer)
    weighted = {
        "sample_weight": WEIGHT,
        "validation_data": (X[:9], Y["sigmoid"][:9], WEIGHT[45:54]),
    }
    expect_equal(l1=1e-3, l2=1e-2, penalty_per_sample=True, loss_by_rows=True, **weighted)
    expect_equal(clip_norm=0.1, clip_value=0.05, batch_size=None)
    expect_equal(output="softmax", shuffle=False, batch_size=1)
    expect_equal(output="identity", loss="huber", batch_size=50)
    for engine in ("reference", "native"):
        everything = {"l2": 1e-2, "penalty_per_sample": True, "clip_norm": 0.1, **weighted}
        everything["loss_by_rows"] = True
        expect_equal(engine=engine, net_options={"dropout": [0.3, 0.0]}, **everything)
    expect_equal(
        optimizer=nb.SGD(nb.schedules.ReduceOnPlateau(0.5, patience=1)),
        epochs=12,
        validation_data=(X[:2], Y["sigmoid"][:2]),
        early_stopping=nb.EarlyStopping(patience=3),
    )
    # Several buffers, each with batches of its own.
    source = nb.sources.Arrays(X, Y["sigmoid"], WEIGHT + 0.1, buffer_bytes=8000)
    expect_equal(X=source, y=None, engine="native")
    # Batches without weight, which all processes leave out.
    gaps = np.where(np.arange(len(X)) % 20 < 12, 0.0, 1.0)
    source = nb.sources.Arrays(X, Y["sigmoid"], gaps, buffer_bytes=8000)
    expect_equal(sample_weight=gaps, batch_size=4, shuffle=False)
    expect_equal(X=source, y=None, batch_size=4, engine="native")


def float32():
    """In float32 the sums are of that dtype, and all processes still hold the same bits."""
    alone, _ = outcome(net_options={"dtype": "float32"})
    together, _ = outcome(net_options={"dtype": "float32"}, communicator=WORLD)
    np.testing.assert_allclose(together, alone, rtol=0, atol=2e-6)
    assert len(set(WORLD.allgather(together.tobytes()))) == 1


def one_speaks():
    """Callbacks are those of rank 0; what they ask for holds for all."""
    seen = []

    def callback(state):
        seen.append(state.epoch)
        if state.epoch == 2:
            state.stop()

    _, history = outcome(callbacks=callback, communicator=WORLD)
    assert history.stopped == "callback"
    assert history.n_epochs == 2
    assert seen == ([1, 2] if RANK == 0 else [])


def go_on(folder):
    """A checkpoint of any number of processes is gone on from; rank 0 alone needs the folder."""
    own = folder if RANK == 0 else os.devnull
    keep = {"checkpoint": own, "checkpoint_every": 0.4, "resume": True}
    alone, _ = outcome(epochs=4, net_options={"dropout": 0.2})
    outcome(epochs=2, net_options={"dropout": 0.2}, communicator=WORLD, **keep)
    if RANK == 0:
        newest, *others = checkpoint_files(folder)
        # Steps 8, 10 and 12: the second is in mid-epoch.
        steps = [int(os.path.basename(name)[11:23]) for name in (newest, *others)]
        assert steps == [12, 10, 8]
        os.unlink(newest)
    together, history = outcome(epochs=4, net_options={"dropout": 0.2}, communicator=WORLD, **keep)
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-12)
    assert history.n_epochs == 4


def fail(folder):
    """Whatever goes wrong on one process ends all, with the right sentence."""
    bad = SIZE - 1
    own_y = np.where(np.arange(103) == 7, np.nan, 0.0) if bad == RANK else Y["sigmoid"]
    before = network().parameters
    for options, own, told in (
        ({"y": own_y}, "y: expected finite numbers", f"rank {bad} failed: InputError: y: expected"),
        ({"epochs": 0 if bad == RANK else 3}, "epochs: expected", f"rank {bad} failed: InputError"),
    ):
        net = network()
        error = expect(
            nb.NNBackendError, lambda o=options, n=net: train(n, communicator=WORLD, **o)
        )
        assert (own if bad == RANK else told) in str(error), error
        np.testing.assert_array_equal(net.parameters, before)
    other_X = X + (bad == RANK) * np.eye(103, 4) * 1e-9
    for options, fact in (
        ({"X": other_X}, "data"),
        ({"l2": 0.1 * (bad == RANK)}, "l2"),
        ({"epochs": 3 + (bad == RANK)}, "epochs"),
        ({"net": network(seed=1 + (bad == RANK))}, "initial parameters"),
    ):
        net = options.pop("net", None) or network()
        error = expect(
            nb.DistributedError, lambda o=options, n=net: train(n, communicator=WORLD, **o)
        )
        assert f": {fact} is " in str(error), error
        assert f"on rank {bad}" in str(error), error
        assert error.rank == bad

    def callback(state):
        if state.epoch == 2:
            raise RuntimeError("no more room")

    error = expect(
        (RuntimeError, nb.DistributedError),
        lambda: train(network(), callbacks=callback, communicator=WORLD),
    )
    assert str(error) == ("" if RANK == 0 else "rank 0 failed: RuntimeError: ") + "no more room"
    batches = [(X[:20], Y["sigmoid"][:20])]
    error = expect(
        nb.NNBackendError, lambda: train(network(), X=batches, y=None, communicator=WORLD)
    )
    assert "X: expected arrays or a source" in str(error), error
    # One block cannot be read on one process, in mid-training.
    source = Blocks(buffer_bytes=20_000)
    error = expect(
        (OSError, nb.DistributedError),
        lambda: train(network(), X=source, y=None, communicator=WORLD),
    )
    assert "a bad sector" in str(error), error
    error = expect(
        nb.DivergenceError,
        lambda: train(network("identity"), "identity", optimizer=nb.SGD(1e200), communicator=WORLD),
    )
    assert "in epoch 1" in str(error)
    error = expect(
        nb.NNBackendError,
        lambda: train(network(), checkpoint=os.path.join(folder, "file", "x"), communicator=WORLD),
    )
    assert "checkpoint: cannot write" in str(error), error
    error = expect(nb.InputError, lambda: train(network(), communicator=5))
    assert "communicator: expected one of mpi4py's" in str(error)


class Blocks(nb.sources.Source):
    """On the last rank, the rows from 60 on cannot be read after the first epoch."""

    n_samples, n_features = 103, 4
    n_reads = 0

    def read(self, start, stop):
        self.n_reads += stop > 60
        if self.n_reads > 2 and RANK == SIZE - 1:
            raise OSError("a bad sector")
        return nb.sources.Rows(X[start:stop], Y["sigmoid"][start:stop])


def stop(folder):
    """SIGTERM on one process: all stop at the same step, with a checkpoint, and can go on."""
    net = network()
    steps = []

    class Watched(nb.Adam):
        def coefficients(self, learning_rate, step):
            steps.append(step)
            if step == 7 and RANK == SIZE - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().coefficients(learning_rate, step)

    keep = {"checkpoint": folder, "epochs": 100, "communicator": WORLD}
    error = expect(SystemExit, lambda: train(net, optimizer=Watched(0.01), **keep))
    assert error.code == 143
    assert len(set(WORLD.allgather(steps[-1]))) == 1
    assert 7 <= steps[-1] <= 9, steps[-1]


if __name__ == "__main__":
    try:
        globals()[sys.argv[1]](*sys.argv[2:])
    except BaseException:  # noqa: BLE001 - the others would wait
        traceback.print_exc()
        sys.stderr.flush()
        WORLD.Abort(3)
