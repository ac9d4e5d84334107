"""The range test leaves the network alone, follows training, and suggests rates that work."""

import os
from dataclasses import replace

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris

import nnbackend as nb
from nnbackend.training import curves, rate_finder


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X, y, nb.Network([64, 32, 10], output="softmax", dropout=0.1).standardize(X)


def test_the_network_is_not_changed(digits):
    X, y, net = digits
    before, standardization = net.parameters.copy(), net.standardization
    nb.find_learning_rate(net, X, y, steps=20)
    np.testing.assert_array_equal(net.parameters, before)
    assert net.standardization is standardization


def test_it_is_the_same_every_time(digits):
    X, y, net = digits
    first, second = (nb.find_learning_rate(net, X, y, seed=3, steps=30) for _ in range(2))
    assert first == second
    assert nb.find_learning_rate(net, X, y, seed=4, steps=30).losses != first.losses


def test_rates_rise_evenly_in_their_logarithm(digits):
    X, y, net = digits
    found = nb.find_learning_rate(net, X, y, lowest=1e-5, highest=1e-2, steps=4)
    np.testing.assert_allclose(found.rates, [1e-5, 1e-4, 1e-3, 1e-2], rtol=1e-12)
    assert len(found.losses) == len(found.smoothed_losses) == 4
    assert all(type(value) is float for value in (*found.rates, *found.losses))


@pytest.mark.parametrize("optimizer", [nb.SGD(momentum=0.9), nb.Adam(), nb.AdamW()])
def test_the_losses_are_those_of_one_training_with_a_rising_rate(optimizer):
    # Full batches, all rows measured: the same steps in a single training, by hand.
    X, y = load_diabetes(return_X_y=True)
    net = nb.Network([10, 8, 1], output="identity", dtype="float64").standardize(X, y)
    found = nb.find_learning_rate(
        net, X, y, optimizer=optimizer, batch_size=None, lowest=1e-4, highest=1e-1, steps=8
    )

    class Listed(nb.schedules.Schedule):
        def rate(self, clock, state=None):
            del state
            return found.rates[clock.step]

    history = nb.train(
        net.copy(),
        X,
        y,
        optimizer=replace(optimizer, learning_rate=Listed()),
        epochs=8,
        batch_size=None,
        validation_data=(X, y),
    )
    np.testing.assert_allclose(found.losses, history.validation_loss, rtol=1e-12)


TASKS = {
    "digits": (load_digits, [64, 32, 10], "softmax"),
    "breast cancer": (load_breast_cancer, [30, 16, 8, 1], "sigmoid"),
    "diabetes": (load_diabetes, [10, 32, 1], "identity"),
}


@pytest.mark.parametrize("optimizer", [nb.SGD(), nb.SGD(momentum=0.9), nb.RMSprop(), nb.Adam()])
@pytest.mark.parametrize("task", TASKS)
def test_the_suggestion_trains_well(task, optimizer):
    loader, sizes, output = TASKS[task]
    X, y = loader(return_X_y=True)
    net = nb.Network(sizes, output=output).standardize(X, *([y] if output == "identity" else []))
    found = nb.find_learning_rate(net, X, y, optimizer=optimizer, batch_size=32)
    assert found.suggestion is not None

    def loss_after_training(factor):
        trained = net.copy()
        rate = replace(optimizer, learning_rate=factor * found.suggestion)
        try:
            return nb.train(trained, X, y, optimizer=rate, epochs=5, batch_size=32).loss[-1]
        except nb.DivergenceError:
            return np.inf

    # Better than a rate far below, and no worse than one far above.
    assert loss_after_training(1.0) < 0.9 * loss_after_training(0.01)
    assert loss_after_training(1.0) < loss_after_training(100.0)


def test_it_ends_where_the_loss_explodes(digits):
    X, y, net = digits
    found = nb.find_learning_rate(net, X, y, steps=60)
    assert len(found.rates) < 60
    assert found.losses[-1] > 2.0 * found.losses[0]
    assert max(found.losses[:-1]) <= 2.0 * found.losses[0]


def test_it_ends_where_training_diverges(digits):
    X, y, net = digits
    found = nb.find_learning_rate(net, X, y, optimizer="sgd", lowest=1e-2, highest=1e30, steps=8)
    assert len(found.rates) < 8
    assert np.isfinite(found.losses).all()


def test_a_first_step_that_diverges_is_an_error():
    X, y = [[1.0], [2.0]], [1e3, 2e3]
    net = nb.Network([1, 4, 1], output="identity", seed=1)
    with pytest.raises(nb.DivergenceError, match=r"it was 1e\+36"):
        nb.find_learning_rate(net, X, y, optimizer="sgd", lowest=1e36, highest=1e37, steps=3)


def test_a_negative_loss_explodes_upwards():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 3))
    y = rng.poisson(np.exp(2.0 + 0.3 * X[:, 0]))
    net = nb.Network([3, 8, 1], output="exp")
    net.weights[-1][...] *= 0.1
    net.biases[-1][...] = 1.5
    found = nb.find_learning_rate(net, X, y, optimizer="sgd", steps=60)
    assert found.losses[0] < 0.0
    assert len(found.rates) < 60
    assert 1e-4 < found.suggestion < 1.0


def finder(rates, losses):
    return nb.RateFinder(rates, losses, nb.Adam(), 128)


def test_where_the_loss_never_falls_nothing_is_suggested():
    assert finder([0.1, 1.0, 10.0, 100.0], [1.0, 2.0, 3.0, 4.0]).suggestion is None
    assert finder([0.1], [1.0]).suggestion is None


def test_no_rate_below_the_tested_ones_is_suggested():
    assert finder([1.0, 2.0, 5.0, 9.9], [4.0, 3.0, 2.0, 1.0]).suggestion is None
    assert finder([1.0, 2.0, 5.0, 10.0], [4.0, 3.0, 2.0, 1.0]).suggestion == 1.0
    X, y = load_iris(return_X_y=True)
    net = nb.Network([4, 8, 3], output="softmax").standardize(X)
    found = nb.find_learning_rate(net, X, y, optimizer="sgd", lowest=0.5, highest=5)
    assert found.losses[0] > min(found.losses)
    assert found.suggestion is None


def test_the_repr_is_one_line(digits):
    X, y, net = digits
    found = nb.find_learning_rate(net, X, y, lowest=1e-5, highest=1e-2, steps=20)
    assert repr(found) == f"RateFinder(20 steps, rates 1e-05 to 0.01, suggestion={0.001})"
    nothing = finder([0.1, 1.0], [1.0, 2.0])
    assert repr(nothing) == "RateFinder(2 steps, rates 0.1 to 1, suggestion=None)"


def test_smoothing_averages_neighbours_and_the_suggestion_is_a_tenth_of_the_lowest():
    rates = [10.0**k for k in range(-6, 1)]
    found = finder(rates, [7.0, 6.0, 5.0, 3.0, 1.0, 2.0, 9.0])
    np.testing.assert_allclose(
        found.smoothed_losses, [6.0, 5.25, 22 / 5, 17 / 5, 20 / 5, 15 / 4, 12 / 3]
    )
    assert found.suggestion == pytest.approx(1e-4)


@pytest.mark.parametrize("batch_size", [16, 1000, None])
def test_weights_count_and_rows_without_weight_do_not(batch_size):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 4))
    y = (X[:, 0] > 0).astype(int)
    weight = np.where(np.arange(300) < 100, rng.uniform(0.5, 2.0, 300), 0.0)
    net = nb.Network([4, 8, 1])
    options = {"batch_size": batch_size, "steps": 30}
    whole = nb.find_learning_rate(net, X, y, sample_weight=weight, **options)
    part = nb.find_learning_rate(net, X[:100], y[:100], sample_weight=weight[:100], **options)
    assert whole == part
    assert part != nb.find_learning_rate(net, X[:100], y[:100], **options)


def test_batches_are_epochs_in_a_new_order(digits):
    X, y, net = digits
    rows = rate_finder._Rows(net, X, y, None, nb.Adam(), None, 128)
    batches = rows.batches(np.random.default_rng(0))
    epochs = [np.concatenate([next(batches) for _ in range(15)]) for _ in range(2)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(1797))
    assert not np.array_equal(*epochs)


def test_data_frames_other_losses_and_probabilities_are_taken(digits):
    pandas = pytest.importorskip("pandas")
    X, y, net = digits
    frame = pandas.DataFrame(X, columns=[f"pixel {k}" for k in range(64)])
    expected = nb.find_learning_rate(net, X, y, steps=10)
    assert nb.find_learning_rate(net, frame, y, steps=10) == expected
    assert net.feature_names is None
    rows = np.eye(10)[y]
    smooth = nb.losses.SoftmaxCrossEntropy(label_smoothing=0.1)
    assert nb.find_learning_rate(net, X, rows, steps=10).losses == pytest.approx(expected.losses)
    assert nb.find_learning_rate(net, X, y, steps=10, loss=smooth).losses[0] > expected.losses[0]


def test_an_interrupt_is_one(digits, monkeypatch):
    X, y, net = digits

    def interrupted(*args, **options):
        del args, options
        return nb.History(stopped="interrupted")

    monkeypatch.setattr(rate_finder, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        nb.find_learning_rate(net, X, y)


@pytest.mark.parametrize(
    ("name", "signature"), [("curve.png", b"\x89PNG"), ("curve.SVG", b"<?xml")]
)
def test_the_curve_is_drawn(digits, tmp_path, name, signature):
    X, y, net = digits
    found = nb.find_learning_rate(net, X, y, steps=30)
    found.plot(tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(signature)
    found.plot(os.fsencode(tmp_path / name))
    assert (tmp_path / name).read_bytes().startswith(signature)


def test_a_curve_that_never_falls_is_drawn(tmp_path):
    found = finder([0.1, 1.0], [1.0, 2.0])
    found.plot(tmp_path / "curve.png")
    with pytest.raises(nb.InputError, match="path: cannot write"):
        found.plot(tmp_path / "missing" / "curve.png")


@pytest.mark.parametrize("name", ["curve.foo", "curve", "curve.pdf", ".png"])
def test_a_picture_of_another_format_is_refused(tmp_path, name):
    with pytest.raises(nb.InputError, match=r"^path: expected a file that ends in \.png or \.svg"):
        finder([0.1, 1.0], [1.0, 2.0]).plot(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("optimizer", "batch_size", "title"),
    [
        (None, 128, "Adam, batches of 128"),
        ("adamw", None, "AdamW, full batches"),
        (nb.SGD(0.5, momentum=0.9, nesterov=True), 4096, "SGD(momentum=0.9, nesterov=True), "),
    ],
)
def test_the_title_names_optimizer_and_batch_size(
    digits, tmp_path, monkeypatch, optimizer, batch_size, title
):
    X, y, net = digits
    found = nb.find_learning_rate(
        net, X, y, optimizer=optimizer, batch_size=batch_size, lowest=1e-5, steps=2
    )
    drawn = []

    def listening(figure, file_format):
        drawn.append((figure.axes[0].get_title(), file_format))
        return b""

    monkeypatch.setattr(curves, "render", listening)
    found.plot(tmp_path / "curve.svg")
    ((heading, file_format),) = drawn
    assert file_format == "svg"
    assert heading.startswith(f"Learning-rate range test\n{title}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lowest": 0.0}, "lowest: expected a finite number > 0"),
        ({"highest": 0.0}, "highest: expected a finite number > 0"),
        ({"lowest": 1, "highest": 0.1}, "highest: expected a number > lowest, 1, got 0.1"),
        ({"highest": 1e-6}, "highest: expected a number > lowest, 1e-06, got 1e-06"),
        ({"steps": 1}, "steps: expected an integer >= 2"),
        ({"batch_size": 0}, "batch_size: expected an integer >= 1"),
        ({"seed": -1}, "seed: expected an integer >= 0"),
        ({"optimizer": "adma"}, "did you mean 'adam'"),
        ({"loss": "poisson"}, "needs output='exp'"),
        ({"sample_weight": [1.0]}, "sample_weight: expected shape"),
    ],
)
def test_wrong_options_are_refused(digits, options, message):
    X, y, net = digits
    with pytest.raises(nb.InputError, match=message):
        nb.find_learning_rate(net, X, y, **options)


def test_wrong_data_is_refused_in_the_callers_words(digits):
    X, y, net = digits
    with pytest.raises(nb.InputError, match="X: expected"):
        nb.find_learning_rate(net, X[:, :3], y)
    with pytest.raises(nb.InputError, match=r"^y: expected targets, got None; .* pass arrays X"):
        nb.find_learning_rate(net, [(X, y)])
    with pytest.raises(nb.InputError, match="y: expected 1797 labels"):
        nb.find_learning_rate(net, X, y[:5])
    with pytest.raises(nb.InputError, match=r"net: expected a nnbackend.Network, got str"):
        nb.find_learning_rate("net", X, y)
