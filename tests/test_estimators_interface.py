"""The estimators' own ground: parameters are checked, coefficients are the user's to change."""

import pickle
import re
import tracemalloc

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.neural_network import MLPClassifier as TheirClassifier
from sklearn.neural_network import MLPRegressor as TheirRegressor

import nnbackend as nb

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

RNG = np.random.default_rng(4)
X = RNG.standard_normal((60, 5))
Y = {
    "two": np.where(X[:, 0] > 0, "yes", "no"),
    "three": np.digitize(X[:, 0], [-0.5, 0.5]) + 7,
    "one class": np.zeros(60, int),
    "multilabel": (X[:, :3] > 0).astype(int),
}
BAD = [
    ("hidden_layer_sizes", None), ("hidden_layer_sizes", -3), ("hidden_layer_sizes", "10"),
    ("hidden_layer_sizes", [4, 0]), ("solver", "newton"), ("alpha", -1), ("alpha", "small"),
    ("batch_size", 0), ("batch_size", "all"), ("learning_rate", "fast"), ("learning_rate_init", 0),
    ("power_t", -0.5), ("max_iter", 0), ("max_iter", 2.5), ("shuffle", "yes"),
    ("random_state", "x"), ("random_state", -1), ("tol", np.nan), ("tol", -1.0), ("verbose", -1),
    ("warm_start", 1), ("momentum", 1.5), ("nesterovs_momentum", None), ("early_stopping", "no"),
    ("validation_fraction", 1.0), ("beta_1", 1), ("beta_2", -0.1), ("epsilon", 0),
    ("n_iter_no_change", 0), ("n_iter_no_change", 2.5), ("max_fun", -1),
]  # fmt: skip


def message(model, y):
    """Return what fit raises, with the names of a choice in one order."""
    with pytest.raises(ValueError, match="must be") as caught:
        model.fit(X, y)
    return re.sub(r"{(.*)}", lambda m: str(sorted(m[1].split(", "))), str(caught.value))


@pytest.mark.parametrize(("name", "value"), BAD)
def test_bad_parameters_are_refused_in_scikit_learns_words(name, value):
    for ours, theirs, y in (
        (nb.MLPClassifier(), TheirClassifier(), Y["two"]),
        (nb.MLPRegressor(), TheirRegressor(), X[:, 0]),
    ):
        expected = message(theirs.set_params(**{name: value}), y)
        assert message(ours.set_params(**{name: value}), y) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("activation", 3), ("optimizer", 0.1), ("dropout", "much"), ("clip_norm", "1"),
        ("scoring", 1), ("callbacks", 5), ("device", 0), ("engine", None), ("precision", 32),
        ("class_weight", 2.0), ("label_smoothing", "0.1"),
    ],
)  # fmt: skip
def test_parameters_of_its_own_are_checked_alike(name, value):
    model = nb.MLPClassifier(**{name: value})
    text = f"The '{name}' parameter of MLPClassifier must be .* Got {value!r} instead"
    for method in (model.fit, lambda X, y: model.partial_fit(X, y, classes=["no", "yes"])):
        for kind in (nb.InputError, TypeError):
            with pytest.raises(kind, match=text):
                method(X, Y["two"])


def test_infinity_is_a_number_of_epochs_without_change():
    model = nb.MLPClassifier((4,), n_iter_no_change=np.inf, tol=10.0, max_iter=30)
    assert model.fit(X, Y["two"]).n_iter_ == 30


@pytest.mark.parametrize("method", ["predict", "predict_proba", "predict_log_proba"])
def test_without_a_fit_there_is_no_prediction(method):
    with pytest.raises(NotFittedError, match="This MLPClassifier instance is not fitted yet"):
        getattr(nb.MLPClassifier(), method)(X)


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_predictions_follow_the_coefficients(solver):
    model = nb.MLPRegressor(hidden_layer_sizes=(4,), solver=solver, max_iter=5, random_state=0)
    before = model.fit(X, X[:, 0]).predict(X)
    model.intercepts_[1] += 1.0
    np.testing.assert_allclose(model.predict(X), before + 1.0, rtol=1e-12, atol=1e-12)
    model.coefs_[1] = 2.0 * model.coefs_[1]
    model.intercepts_ = [model.intercepts_[0], 2.0 * (model.intercepts_[1] - 1.0)]
    np.testing.assert_allclose(model.predict(X), 2.0 * before, rtol=1e-12, atol=1e-12)
    # Training goes on from there, too.
    if solver == "adam":
        model.set_params(learning_rate_init=1e-300)
        del model._optimizer
        model.partial_fit(X, X[:, 0])
        np.testing.assert_allclose(model.predict(X), 2.0 * before, rtol=1e-12, atol=1e-12)


def test_a_fit_leaves_the_coefficients_of_an_earlier_one_alone():
    model = nb.MLPRegressor(hidden_layer_sizes=(4,), warm_start=True, max_iter=3, random_state=0)
    earlier = model.fit(X, X[:, 0]).coefs_
    copies = [W.copy() for W in earlier]
    model.fit(X, X[:, 0]).partial_fit(X, X[:, 0])
    for W, expected in zip(earlier, copies, strict=True):
        np.testing.assert_array_equal(W, expected)
    assert not np.array_equal(model.coefs_[0], copies[0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_predicting_a_row_copies_no_coefficients(dtype):
    rows = RNG.standard_normal((30, 256)).astype(dtype)
    model = nb.MLPClassifier((256,), max_iter=1, random_state=0).fit(rows, np.arange(30) % 3)
    model.predict(rows[:1])
    tracemalloc.start()
    try:
        model.predict(rows[:1])
        model.predict_proba(rows[:1])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < model.coefs_[0].nbytes / 4


@pytest.mark.parametrize(
    ("options", "arrays"),
    [({"solver": "lbfgs"}, 1), ({"solver": "sgd", "early_stopping": True}, 2), ({}, 3)],
)
def test_pickles_hold_every_array_once(options, arrays):
    rows = RNG.standard_normal((60, 100))
    model = nb.MLPClassifier((100,), max_iter=2, random_state=0, **options).fit(rows, Y["two"])
    n_bytes = sum(x.nbytes for x in (*model.coefs_, *model.intercepts_))
    # The optimizer's velocity, or its two moments, are what partial_fit goes on with.
    assert len(pickle.dumps(model)) < arrays * n_bytes + 5000


@pytest.mark.parametrize("kind", ["int64", "int8", "bool", "float16", list])
def test_features_that_are_not_floats_become_float64(kind):
    rows = np.round(X)
    given = rows.tolist() if kind is list else (rows > 0 if kind == "bool" else rows).astype(kind)
    options = {"max_iter": 5, "random_state": 0}
    theirs, ours = (
        table((4,), **options).fit(given, Y["two"]) for table in (TheirClassifier, nb.MLPClassifier)
    )
    assert ours.coefs_[0].dtype == theirs.coefs_[0].dtype == np.float64
    np.testing.assert_allclose(ours.coefs_[0], theirs.coefs_[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(ours.predict_proba(given), theirs.predict_proba(given), rtol=1e-9)


@pytest.mark.parametrize("target", Y)
def test_labels_are_encoded_and_decoded_as_there(target):
    options = {"max_iter": 5, "random_state": 0}
    theirs, ours = (
        table((4,), **options).fit(X, Y[target]) for table in (TheirClassifier, nb.MLPClassifier)
    )
    np.testing.assert_array_equal(ours.classes_, theirs.classes_)
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))
    assert ours.predict(X).dtype == theirs.predict(X).dtype
    # Converters of fitted models read it.
    expected, found = theirs._label_binarizer, ours._label_binarizer
    assert found.y_type_ == expected.y_type_
    np.testing.assert_array_equal(found.classes_, expected.classes_)


@pytest.mark.parametrize(
    ("first", "second", "text"),
    [
        ({"classes": None}, None, "classes must be passed on the first call"),
        ({"classes": [7, 8, 9]}, {"classes": [7, 8]}, "is not the same as on last call"),
        ({"classes": [7, 8]}, None, "`y` has classes not in `self.classes_`"),
    ],
)
def test_partial_fit_wants_the_classes_that_there_are(first, second, text):
    for model in (TheirClassifier((4,)), nb.MLPClassifier((4,))):

        def calls(model=model):
            model.partial_fit(X, Y["three"], **first)
            model.partial_fit(X, Y["three"], **second)

        with pytest.raises(ValueError, match=text):
            calls()


def test_a_warm_start_wants_the_classes_of_the_fit_before():
    model = nb.MLPClassifier((4,), warm_start=True, max_iter=2).fit(X, Y["three"])
    with pytest.raises(ValueError, match="warm_start can only be used where `y` has the same"):
        model.fit(X, Y["two"])


@pytest.mark.parametrize(
    ("weight", "text"),
    [
        (np.ones((60, 2)), "Sample weights must be 1D array or scalar, got 2D array"),
        (np.ones(59), r"sample_weight.shape == \(59,\), expected \(60,\)!"),
        (np.zeros(60), "Sample weights must contain at least one non-zero number"),
        (np.full(60, np.nan), "Input sample_weight contains NaN"),
    ],
)
def test_bad_weights_are_refused(weight, text):
    with pytest.raises(ValueError, match=text):
        nb.MLPClassifier((4,)).fit(X, Y["two"], sample_weight=weight)


def test_a_fit_that_fails_leaves_no_data_behind():
    def fail(_state):
        raise RuntimeError("no")

    model = nb.MLPClassifier((4,), callbacks=fail, learning_rate_init=0.05, random_state=0)
    with pytest.raises(RuntimeError, match="no"):
        model.fit(X, Y["two"], sample_weight=np.ones(60))
    assert len(pickle.dumps(model.set_params(callbacks=None))) < X.nbytes
    assert clone(model).fit(X, Y["two"]).score(X, Y["two"]) > 0.9
