"""Early stopping of ``train`` and of the command: which epoch is selected, and when none can be."""

import pickle
from functools import partial

import factories
import numpy as np
import pytest

import nnbackend as nb
from nnbackend.cli.evaluation import split
from nnbackend.data.datasets import Dataset

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 3))
Y = X[:, 0] - X[:, 1]
OUTLIERS = (1e30 * X[:9], Y[:9])  # their squared error overflows in float32


network = partial(factories.network, (3, 4, 1), hidden="relu", output="identity", dtype="float32")


def train(net, data=(X, Y), **options):
    return nb.train(net, *data, **{"early_stopping": nb.EarlyStopping(), "epochs": 5, **options})


def parameters_after(epochs, **options):
    net = network()
    train(net, epochs=epochs, early_stopping=None, **options)
    return net.parameters


def test_a_validation_loss_that_is_never_finite_is_an_error_in_the_first_epoch():
    net = network()
    with pytest.raises(nb.DivergenceError, match="look for outliers in the validation") as caught:
        train(net, validation_data=OUTLIERS)
    error = caught.value
    assert error.what == "the validation loss became inf in epoch 1"
    assert str(error).startswith(f"{error.what}; the network keeps its parameters from before")
    assert (error.history.n_epochs, error.history.best_epoch) == (0, None)
    np.testing.assert_array_equal(net.parameters, network().parameters)
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (copy.what, str(copy)) == (error.what, str(error))


@pytest.mark.parametrize("monitor", ["loss", "validation_loss"])
def test_a_later_divergence_is_an_error_and_the_best_epoch_is_kept(monitor):
    net = network()
    options = {"optimizer": nb.SGD(5.0), "validation_data": (X, Y), "epochs": 50}
    with pytest.raises(nb.DivergenceError, match="keeps its parameters from after") as caught:
        train(net, early_stopping=nb.EarlyStopping(50, monitor=monitor), **options)
    history = caught.value.history
    assert "outliers" not in str(caught.value)
    assert history.best_epoch == 1 + int(np.argmin(getattr(history, monitor)))
    del options["epochs"]
    np.testing.assert_array_equal(net.parameters, parameters_after(history.best_epoch, **options))


@pytest.mark.parametrize("min_delta", [0.0, 1e300])
def test_where_the_loss_never_falls_the_first_epoch_is_selected(min_delta):
    net = network()
    # Trained towards the opposite of what it is validated on.
    options = {"optimizer": nb.SGD(0.01), "validation_data": (X, -Y)}
    rule = nb.EarlyStopping(3, min_delta=min_delta)
    history = train(net, epochs=20, early_stopping=rule, **options)
    assert history.validation_loss == sorted(history.validation_loss)
    assert (history.best_epoch, history.n_epochs, history.stopped) == (1, 4, "early stopping")
    np.testing.assert_array_equal(net.parameters, parameters_after(1, **options))


def test_a_training_that_ends_within_its_first_epoch_has_no_best_one():
    class Batches(list):
        def __iter__(self):
            yield self[0]
            raise KeyboardInterrupt

    net = network()
    history = train(net, (Batches([(X, Y), (X, Y)]),), validation_data=(X, Y))
    assert (history.best_epoch, history.n_epochs, history.stopped) == (None, 0, "interrupted")
    assert np.isfinite(net.parameters).all()


def test_the_command_fails_where_no_epoch_can_be_selected(run, tmp_path):
    dataset = Dataset("data", X, Y, ("a", "b", "c"), "y", None)
    rows = split(dataset, validation=0.2, held_out=0.2, seed=0)
    features = X.copy()
    features[rows.validation[0]] = 1e30
    table = np.column_stack([features, Y])
    np.savetxt(tmp_path / "data.csv", table, delimiter=",", header="a,b,c,y", comments="")
    # An encoding would squash the outlier.
    options = ("--encoding", "none", "--epochs", "5", "--out", "r")
    code, _, err = run("train", "data.csv", "--target", "y", *options)
    assert code == 2
    assert "the validation loss became inf in epoch 1; the network keeps its parameters from" in err
    assert "look for outliers in the validation data" in err
    assert not (tmp_path / "r").exists()
