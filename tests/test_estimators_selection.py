"""Early stopping of the estimators: what is selected where scores or training are not finite."""

import warnings

import numpy as np
import pytest
import sklearn
from backends import require_dispatched
from sklearn.exceptions import ConvergenceWarning, UndefinedMetricWarning
from sklearn.metrics import r2_score

import nnbackend as nb

RNG = np.random.default_rng(5)
X = RNG.standard_normal((200, 4))
c = (X[:, 0] + 0.3 * RNG.standard_normal(200) > 0).astype(int)
y = X[:, 0] * X[:, 1]
RARE = np.zeros(200, int)
RARE[[3, 150]] = 1
LABELS = np.stack([c, np.ones(200, int), 1 - c], axis=1)

MAX_ITER_REACHED = "ignore:.*Maximum iterations:sklearn.exceptions.ConvergenceWarning"


def classifier(**options):
    options = {"early_stopping": True, "random_state": 0, **options}
    return nb.MLPClassifier((6,), **options)


def regressor(**options):
    options = {"early_stopping": True, "random_state": 0, **options}
    return nb.MLPRegressor(hidden_layer_sizes=(6,), **options)


def nan_scorer(model, X, y):  # noqa: ARG001
    return np.nan


# Warnings are errors here: scikit-learn's UndefinedMetricWarning would come before the error.
@pytest.mark.parametrize(
    ("model", "target", "validation", "message"),
    [
        (
            classifier(scoring="roc_auc"), c, (X[c == 1], c[c == 1]),
            r"^scoring: expected a finite score .* got nan from roc_auc: all \d+ rows of y_val",
        ),
        (
            classifier(scoring="roc_auc"), np.where(c, "yes", "no"), (X[:9], ["yes"] * 9),
            "all 9 rows of y_val have the label yes",
        ),
        (
            classifier(scoring="roc_auc"), RARE, (None, None),
            "all 20 rows of the rows held out have the label 0; raise validation_fraction",
        ),
        (
            classifier(scoring="roc_auc"), LABELS, (X, LABELS),
            "all 200 rows of y_val have the label 1 in column 1",
        ),
        (regressor(), y, (X[:1], y[:1]), "^early_stopping: .* got nan from R.2: y_val has 1 row;"),
        (regressor(scoring=nan_scorer), y, (None, None), "got nan from nan_scorer: the scorer ret"),
        (
            regressor(scoring=lambda *_: np.inf), y, (None, None),
            "got inf from <lambda>: the scorer returned it",
        ),
        (
            regressor(scoring="d2_absolute_error_score"), y, (X[:1], y[:1]),
            "got nan from d2_absolute_error_score: y_val has 1 row",
        ),
    ],
)  # fmt: skip
def test_a_score_that_is_not_finite_is_an_error_that_says_why(model, target, validation, message):
    with pytest.raises(nb.InputError, match=message):
        model.fit(X, target, X_val=validation[0], y_val=validation[1])
    # The first epoch's score ended it.
    assert len(model.loss_curve_) == 1


def test_held_out_rows_without_weight_are_an_error():
    weight = np.zeros(200)
    weight[:3] = 1.0
    with pytest.raises(nb.InputError, match="sample_weight: expected weights above 0 among the 20"):
        regressor().fit(X, y, sample_weight=weight)


@pytest.mark.filterwarnings(MAX_ITER_REACHED)
def test_what_a_finite_score_warns_of_is_told():
    # Without a row that is predicted to be positive, precision is 0 by definition.
    model = classifier(scoring="precision", learning_rate_init=0.05, max_iter=9)
    with pytest.warns(UndefinedMetricWarning, match="Precision is ill-defined"):
        model.fit(X, RARE, X_val=X, y_val=RARE)


# The rates make the loss overflow in the first epochs, in float32 earlier than in float64; with the
# highest, outputs are infinite in float32 while all parameters are finite.
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rate", [30.0, 1e3, 1e8])
@pytest.mark.parametrize("is_given", [False, True])
@pytest.mark.parametrize("scoring", [None, "neg_mean_squared_error"])
def test_a_training_that_diverges_keeps_its_best_finite_epoch(scoring, is_given, rate, dtype):
    data = X.astype(dtype), y.astype(dtype)
    fit = {"X_val": data[0][:50], "y_val": data[1][:50]} if is_given else {}
    model = regressor(solver="sgd", learning_rate_init=rate, scoring=scoring)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(*data, **fit)
    (warning,) = caught
    assert warning.category is ConvergenceWarning
    best = int(np.nanargmax(model.validation_scores_)) + 1
    text = str(warning.message)
    assert text.startswith("Training diverged: the ")
    assert f"the coefficients of epoch {best}, whose validation score of" in text
    assert f"Lower learning_rate_init (the rate was {rate:g})" in text
    assert model.best_validation_score_ == np.nanmax(model.validation_scores_)
    assert len(model.validation_scores_) == len(model.loss_curve_) == model.n_iter_
    # The coefficients are those that a training of so many epochs ends with.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        short = regressor(solver="sgd", learning_rate_init=rate, scoring=scoring, max_iter=best)
        short.fit(*data, **fit)
    np.testing.assert_array_equal(short.coefs_[0], model.coefs_[0])
    if is_given and scoring is None:
        with np.errstate(over="ignore"):
            score = r2_score(fit["y_val"], model.predict(fit["X_val"]))
        assert score == pytest.approx(model.best_validation_score_, rel=1e-5)


@pytest.mark.parametrize("early_stopping", [False, True])
def test_without_a_finite_epoch_divergence_is_an_error(early_stopping):
    model = regressor(solver="sgd", learning_rate_init=1e200, early_stopping=early_stopping)
    with pytest.raises(ValueError, match=r"non-finite parameter weights.*in epoch"):
        model.fit(X, y)


def test_an_interruption_before_the_first_score_keeps_what_was_learnt():
    def interrupt(*_):
        raise KeyboardInterrupt

    model = regressor(scoring=interrupt)
    with pytest.warns(UserWarning, match="Training interrupted by user"):
        model.fit(X, y)
    learnt = regressor(max_iter=1)
    with pytest.warns(ConvergenceWarning, match="Maximum iterations"):
        learnt.fit(X, y)
    np.testing.assert_array_equal(model.coefs_[0], learnt.coefs_[0])


@pytest.mark.filterwarnings(MAX_ITER_REACHED)
def test_a_second_fit_that_diverges_keeps_the_first_ones_coefficients():
    model = regressor(solver="sgd", warm_start=True, max_iter=5).fit(X, y)
    before = [W.copy() for W in model.coefs_]
    # The next fit takes the new rate.
    model.set_params(learning_rate_init=1e200)
    del model._optimizer
    with pytest.warns(ConvergenceWarning, match="has the coefficients before this fit, whose"):
        model.fit(X, y)
    for expected, found in zip(before, model.coefs_, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.filterwarnings(MAX_ITER_REACHED)
@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("is_given", [False, True])
def test_a_scorer_is_handed_targets_in_the_form_of_predictions(is_given, outputs):
    targets = y if outputs == 1 else np.stack([y, X[:, 2]], axis=1)
    fit = {"X_val": X[:50], "y_val": targets[:50]} if is_given else {}

    def scorer(model, X, y):
        predicted = model.predict(X)
        assert y.shape == predicted.shape
        return -np.mean((predicted - y) ** 2)

    own = regressor(scoring=scorer, max_iter=3).fit(X, targets, **fit)
    theirs = regressor(scoring="neg_mean_squared_error", max_iter=3).fit(X, targets, **fit)
    np.testing.assert_allclose(own.validation_scores_, theirs.validation_scores_, rtol=1e-12)


@pytest.mark.filterwarnings(MAX_ITER_REACHED)
@pytest.mark.parametrize("scoring", [None, "roc_auc"])
@pytest.mark.parametrize("is_given", [False, True])
def test_scores_of_other_libraries_arrays(is_given, scoring):
    xp = require_dispatched("torch")
    expected, found = (classifier(scoring=scoring, max_iter=3) for _ in range(2))
    fit = {"X_val": X[:50], "y_val": c[:50]} if is_given else {}
    expected.fit(X, c, **fit)
    with sklearn.config_context(array_api_dispatch=True):
        found.fit(xp.asarray(X), xp.asarray(c), **{k: xp.asarray(v) for k, v in fit.items()})
    np.testing.assert_allclose(found.validation_scores_, expected.validation_scores_, rtol=1e-12)
