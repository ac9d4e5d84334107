"""Losses say which targets they take, those of a user's own included."""

import numpy as np
import pytest

import nnbackend as nb
from nnbackend.core.losses import LOSSES, Loss
from nnbackend.errors import InputError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4))
LABELS = np.argmax(X[:, :3], axis=1)


class Perceptron(Loss):
    """The perceptron's loss of several classes: by how much each logit exceeds the true class's."""

    name, output, kind = "test_perceptron", "softmax", "classes"

    def elements(self, xp, Z, Y):
        gap = Z - xp.sum(Y * Z, axis=-1, keepdims=True)
        is_above = xp.astype(gap > 0, Z.dtype)
        return is_above * gap, is_above - Y * xp.sum(is_above, axis=-1, keepdims=True)


class Brier(Loss):
    """The squared distance of predicted probabilities from the class, on any output."""

    name, output, kind = "test_brier", "identity", "classes"

    def elements(self, xp, Z, Y):
        del xp
        return 0.5 * (Z - Y) * (Z - Y), Z - Y


class Gamma(Loss):
    """The deviance of positive targets."""

    name, output = "test_gamma", "exp"
    expected_targets = "amounts > 0"

    def wrong_targets(self, xp, Y):
        del xp
        return Y <= 0

    def elements(self, xp, Z, Y):
        ratio = Y * xp.exp(-Z)
        return Z + ratio, 1.0 - ratio


class Focal(Loss):
    """A loss on the logits of a sigmoid that says nothing of its targets."""

    name, output = "test_focal", "sigmoid"

    def elements(self, xp, Z, Y):
        return nb.losses.BinaryCrossEntropy().elements(xp, Z, Y)


class Negative(Loss):
    """A loss that declares the kind of its targets and nothing else."""

    name, output, kind = "test_negative", "identity", "counts"

    def elements(self, xp, Z, Y):
        return nb.losses.SquaredError().elements(xp, Z, Y)


def trained(loss, y, *, output, engine="reference", validation=None, n_outputs=3):
    net = nb.Network([4, 8, n_outputs], output=output, dtype="float64", seed=1)
    history = nb.train(
        net,
        X,
        y,
        loss=loss,
        optimizer=nb.Adam(0.05),
        epochs=20,
        batch_size=16,
        engine=engine,
        validation_data=(X, y if validation is None else validation),
    )
    return net, history


@pytest.mark.parametrize(("loss", "output"), [(Perceptron(), "softmax"), (Brier(), "softmax"),
                                              (Brier(), "identity")])  # fmt: skip
def test_a_loss_of_ones_own_takes_labels_and_rows_of_them_alike(loss, output):
    net, history = trained(loss, LABELS, output=output)
    rows_net, rows_history = trained(loss, np.eye(3)[LABELS], output=output)
    np.testing.assert_allclose(history.loss, rows_history.loss, rtol=1e-9)
    np.testing.assert_allclose(net.parameters, rows_net.parameters, rtol=1e-6, atol=1e-9)
    assert np.mean(np.argmax(net.forward(X), axis=1) == LABELS) > 0.8
    assert nb.check_gradients(net, X, LABELS, loss=loss).relative_error < 1e-6


def test_a_loss_of_ones_own_takes_labels_on_every_engine():
    nets, histories = zip(
        *(trained(Perceptron(), LABELS, output="softmax", engine=engine)
          for engine in ("reference", "native")),
        strict=True,
    )  # fmt: skip
    np.testing.assert_allclose(nets[1].parameters, nets[0].parameters, rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(histories[1].validation_loss, histories[0].validation_loss)


def test_labels_may_be_validated_on_rows():
    expected = trained(Perceptron(), LABELS, output="softmax")[1]
    found = trained(Perceptron(), LABELS, output="softmax", validation=np.eye(3)[LABELS])[1]
    np.testing.assert_allclose(found.validation_loss, expected.validation_loss, rtol=1e-12)


REFUSED = {
    "a class without a column": (
        Perceptron(), "softmax", LABELS + 1,
        "y: expected labels 0 to 2, one for each of the 3 outputs, got 3",
    ),
    "a fraction as a class": (
        Brier(), "identity", LABELS + 0.5,
        "y: expected integer class labels for output='identity', got fractions such as",
    ),
    "rows that sum to two": (
        Brier(), "identity", 2.0 * np.eye(3)[LABELS],
        "y: expected rows of class probabilities that are >= 0 and sum to 1, got ",
    ),
    "an amount of its own predicate": (
        Gamma(), "exp", np.where(np.arange(180) == 100, 0, 1.0).reshape(60, 3),
        "y: expected amounts > 0, got 0 in row 33",
    ),
    "a label of a sigmoid that says nothing": (
        Focal(), "sigmoid", np.full((60, 3), 0.5),
        "y: expected labels 0 and 1 for a sigmoid output (for other values use output='identity')",
    ),
    "a negative count": (
        Negative(), "identity", np.full((60, 3), -1.0),
        "y: expected counts >= 0 for the Negative loss, got -1 in row 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_targets_that_a_loss_does_not_take_are_refused_in_its_words(case):
    loss, output, y, said = REFUSED[case]
    net = nb.Network([4, 3], output=output)
    with pytest.raises(InputError) as caught:
        nb.train(net, X, y, loss=loss, epochs=1)
    assert str(caught.value).startswith(said)
    with pytest.raises(InputError) as caught:
        net.loss_and_gradients(X, y, loss=loss)
    assert str(caught.value).startswith(said)


def test_targets_that_its_predicate_lets_through_are_taken():
    assert trained(Gamma(), np.abs(X[:, :3]) + 0.1, output="exp")[1].n_epochs == 20


def test_every_loss_of_the_package_says_its_kind():
    kinds = {name: loss.kind for name, loss in LOSSES.items()}
    assert Gamma.kind == "values"
    assert kinds == {
        "binary_cross_entropy": "binary",
        "softmax_cross_entropy": "classes",
        "squared_error": "values",
        "absolute_error": "values",
        "huber": "values",
        "poisson": "counts",
        "quantile": "values",
        "gaussian": "values",
    }


def test_a_kind_that_there_is_not_is_refused_where_the_loss_is_written():
    with pytest.raises(
        InputError, match=r"Odd\.kind: expected one of 'values', 'binary', .*, got 'labels'"
    ):
        type("Odd", (Loss,), {"name": "odd", "output": "identity", "kind": "labels"})
