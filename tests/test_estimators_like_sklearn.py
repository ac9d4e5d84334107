"""The estimators against scikit-learn's own where that is hard: weights, saturation, dtypes."""

from functools import cache

import numpy as np
import pytest
import scipy
import sklearn
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.ensemble import AdaBoostClassifier, BaggingClassifier, BaggingRegressor
from sklearn.metrics import log_loss
from sklearn.neural_network import MLPClassifier as TheirClassifier
from sklearn.neural_network import MLPRegressor as TheirRegressor
from sklearn.preprocessing import StandardScaler

import nnbackend as nb

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

RNG = np.random.default_rng(0)
N = 233  # in batches of 50 the last one is short
X = RNG.standard_normal((N, 5))
Y = {
    "classes": RNG.integers(0, 3, N),
    "two": np.where(X[:, 0] + RNG.standard_normal(N) > 0, "yes", "no"),
    "multilabel": (X[:, :3] > 0).astype(int),
    "number": X[:, 0] * X[:, 1],
    "numbers": X[:, :2] @ RNG.standard_normal((2, 2)),
    "counts": RNG.poisson(np.exp(0.5 * X[:, 0])).astype(float),
    "two counts": RNG.poisson(np.exp(0.5 * X[:, :2])).astype(float),
}
TARGETS = list(Y)
SCIPY, SKLEARN = (tuple(map(int, module.__version__.split(".")[:2])) for module in (scipy, sklearn))
WEIGHT = RNG.integers(0, 4, N) * RNG.random(N)


def models(target, **options):
    """Return scikit-learn's estimator and ours."""
    options = {"hidden_layer_sizes": (6, 4), "random_state": 3, **options}
    if target in ("classes", "two", "multilabel"):
        pair = TheirClassifier, nb.MLPClassifier
    else:
        pair = TheirRegressor, nb.MLPRegressor
        options["loss"] = "poisson" if "counts" in target else "squared_error"
    return tuple(model(**options) for model in pair)


# What a fit leaves beside coefficients; some of it only some solvers.
COUNTS = ("n_iter_", "t_", "n_layers_", "n_outputs_", "out_activation_")
CURVES = ("loss_curve_", "validation_scores_", "loss_", "best_loss_", "best_validation_score_")


# float64, on problems of moderate curvature: rounding has grown to 1e-12 at the end.
def assert_same(theirs, ours, tolerance=1e-9):
    for name in COUNTS:
        assert getattr(ours, name) == getattr(theirs, name)
    for name in CURVES:
        assert hasattr(ours, name) == hasattr(theirs, name)
        expected = getattr(theirs, name, None)
        if expected is None:
            assert getattr(ours, name, None) is None
        else:
            np.testing.assert_allclose(getattr(ours, name), expected, tolerance, err_msg=name)
    for name in ("coefs_", "intercepts_"):
        for expected, found in zip(getattr(theirs, name), getattr(ours, name), strict=True):
            assert found.dtype == expected.dtype
            np.testing.assert_allclose(found, expected, tolerance, tolerance, err_msg=name)


# Weights ------------------------------------------------------------------------------------------


# A tolerance that ends the fits after some twenty epochs, by the loss or by the score.
STOPPING = {"learning_rate_init": 0.02, "tol": 2e-3, "n_iter_no_change": 2, "max_iter": 60}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "options",
    [
        {"solver": "sgd", "alpha": 0.5},
        {"solver": "adam", "alpha": 0.5},
        {"solver": "adam", "early_stopping": True},
        {"solver": "lbfgs", "alpha": 0.5, "max_iter": 20},
    ],
)
def test_weighted_fits_are_those_of_scikit_learn(options, target):
    if "early_stopping" in options and target == "two" and SKLEARN < (1, 8):
        pytest.skip("scikit-learn before 1.8 looks for NaN in predicted text, which raises")
    theirs, ours = models(target, **{**STOPPING, "batch_size": 50, **options})
    for model in (theirs, ours):
        model.fit(X, Y[target], sample_weight=WEIGHT)
    assert_same(theirs, ours)
    np.testing.assert_allclose(
        ours.score(X, Y[target], WEIGHT), theirs.score(X, Y[target], WEIGHT), rtol=1e-9
    )


@given(
    weight=st.lists(
        st.one_of(st.integers(0, 3).map(float), st.floats(1e-3, 1e3)), min_size=12, max_size=40
    ),
    target=st.sampled_from(TARGETS),
    solver=st.sampled_from(["sgd", "adam", "lbfgs"]),
    batch_size=st.integers(4, 50),
    shuffle=st.booleans(),
    alpha=st.sampled_from([0.0, 0.3]),
)
@pytest.mark.filterwarnings("ignore:Got `batch_size` less than 1")
def test_any_weights_give_what_they_give_there(weight, target, solver, batch_size, shuffle, alpha):
    rows = slice(len(weight))
    theirs, ours = models(
        target, solver=solver, batch_size=batch_size, shuffle=shuffle, alpha=alpha, max_iter=4,
        learning_rate_init=0.01,
    )  # fmt: skip
    weight = np.asarray(weight)
    assume(weight.any())
    try:
        theirs.fit(X[rows], Y[target][rows], sample_weight=weight)
    except ZeroDivisionError:
        # A batch whose weights are all zero, which scikit-learn cannot average.
        assume(False)
    ours.fit(X[rows], Y[target][rows], sample_weight=weight)
    assert_same(theirs, ours)


SGD = [
    {"learning_rate": "constant"},
    {"learning_rate": "invscaling", "power_t": 0.3},
    {"learning_rate": "adaptive"},
    {"momentum": 0.0},
    {"nesterovs_momentum": False, "momentum": 0.5},
]


@given(
    target=st.sampled_from(TARGETS),
    options=st.sampled_from([{"solver": "adam"}, *({"solver": "sgd", **other} for other in SGD)]),
    early_stopping=st.booleans(),
    n=st.integers(40, N),
    batch_size=st.integers(11, 90),
    zeros=st.sampled_from([None, 0.0, 0.3, 0.7]),
    shuffle=st.booleans(),
    tol=st.sampled_from([0.0, 1e-3, 3e-2]),
    n_iter_no_change=st.integers(1, 3),
    seed=st.integers(0, 3),
)
def test_losses_scores_and_counts_are_those_of_scikit_learn(
    target, options, early_stopping, n, batch_size, zeros, shuffle, tol, n_iter_no_change, seed
):
    assume(not (early_stopping and target == "two" and SKLEARN < (1, 8)))
    rng = np.random.default_rng(seed)
    weight = None if zeros is None else rng.random(n) * (rng.random(n) >= zeros)
    theirs, ours = models(
        target, early_stopping=early_stopping, batch_size=min(batch_size, n // 2), shuffle=shuffle,
        tol=tol, n_iter_no_change=n_iter_no_change, learning_rate_init=0.02, max_iter=12,
        random_state=seed, validation_fraction=0.2, **options,
    )  # fmt: skip
    try:
        theirs.fit(X[:n], Y[target][:n], sample_weight=weight)
    except (ZeroDivisionError, ValueError):
        # A batch, or held-out rows, whose weights are all zero, which scikit-learn cannot average.
        assume(False)
    ours.fit(X[:n], Y[target][:n], sample_weight=weight)
    assert_same(theirs, ours)
    others = rng.random(N) * (rng.random(N) >= 0.5)
    for weights in (None, others, WEIGHT):
        expected = theirs.score(X, Y[target], sample_weight=weights)
        assert ours.score(X, Y[target], sample_weight=weights) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("target", ["classes", "two", "numbers", "counts"])
@pytest.mark.parametrize("solver", ["sgd", "adam"])
def test_partial_fit_and_warm_start_take_weights(solver, target):
    continued = models(target, solver=solver, batch_size=20)
    warm = models(target, solver=solver, batch_size=50, warm_start=True, max_iter=3)
    for model, again in zip(continued, warm, strict=True):
        known = {"classes": np.unique(Y[target])} if hasattr(model, "predict_proba") else {}
        for start in range(0, 200, 70):
            rows = slice(start, start + 70)
            model.partial_fit(X[rows], Y[target][rows], sample_weight=WEIGHT[rows], **known)
        for weight in (WEIGHT, None, WEIGHT[::-1]):
            again.fit(X, Y[target], sample_weight=weight)
    assert_same(*continued)
    assert_same(*warm)


@pytest.mark.parametrize("solver", ["sgd", "adam"])
@pytest.mark.parametrize("target", ["classes", "counts"])
def test_a_warm_start_keeps_the_best_coefficients_where_no_score_is_better(solver, target):
    outcomes = set()
    for seed in range(8):
        theirs, ours = models(
            target, solver=solver, early_stopping=True, warm_start=True, max_iter=4, batch_size=50,
            learning_rate_init=0.01, random_state=seed,
        )  # fmt: skip
        for model in (theirs, ours):
            model.fit(X, Y[target], sample_weight=WEIGHT)
        best, coefs = ours.best_validation_score_, [W.copy() for W in ours.coefs_]
        for model in (theirs, ours):
            model.fit(X, Y[target], sample_weight=WEIGHT)
        is_better = ours.best_validation_score_ > best
        outcomes.add(is_better)
        if not is_better:
            # scikit-learn's best coefficients are the arrays that its next fit changes.
            for before, after in zip(coefs, ours.coefs_, strict=True):
                np.testing.assert_array_equal(after, before)
            theirs.coefs_, theirs.intercepts_ = ours.coefs_, ours.intercepts_
        assert_same(theirs, ours)
    assert outcomes == {False, True}


def test_a_batch_without_weight_does_not_count():
    weight = np.ones(N)
    weight[50:100] = 0.0
    options = {"hidden_layer_sizes": (4,), "shuffle": False, "batch_size": 50, "max_iter": 1}
    options |= {"random_state": 0, "alpha": 0.0, "solver": "sgd"}
    whole = nb.MLPRegressor(**options).fit(X, Y["number"], sample_weight=weight)
    # Momentum goes on through that batch, so only the first batch can be compared.
    first = nb.MLPRegressor(**options).fit(X[:100], Y["number"][:100], sample_weight=weight[:100])
    alone = nb.MLPRegressor(**options).fit(X[:50], Y["number"][:50])
    assert first.loss_curve_ == pytest.approx(alone.loss_curve_, rel=1e-12)
    assert np.isfinite(whole.loss_)


def test_ensembles_that_weigh_are_those_of_scikit_learn():
    options = {"hidden_layer_sizes": (6,), "max_iter": 30, "batch_size": 50, "random_state": 0}
    options |= {"tol": 1e-2, "n_iter_no_change": 2, "learning_rate_init": 0.01}
    for ensemble, target in ((BaggingClassifier, "two"), (BaggingRegressor, "number")):
        theirs, ours = (
            ensemble(model, n_estimators=3, random_state=0).fit(X, Y[target])
            for model in models(target, **options)
        )
        for expected, found in zip(theirs.estimators_, ours.estimators_, strict=True):
            assert_same(expected, found)
    theirs, ours = (
        AdaBoostClassifier(model, n_estimators=3, random_state=0).fit(X, Y["classes"])
        for model in models("classes", **options)
    )
    for expected, found in zip(theirs.estimators_, ours.estimators_, strict=True):
        assert_same(expected, found)


def test_class_weights_are_sample_weights():
    theirs, ours = models("two", batch_size=50, **STOPPING)
    weight = np.where(Y["two"] == "yes", 3.0, 0.5) * WEIGHT
    theirs.fit(X, Y["two"], sample_weight=weight)
    ours.set_params(class_weight={"yes": 3.0, "no": 0.5}).fit(X, Y["two"], sample_weight=WEIGHT)
    assert_same(theirs, ours)


# Saturation ---------------------------------------------------------------------------------------


@cache
def raw(name):
    """Return a data set as it comes, its features of very different scales, and some rows of it."""
    load = {"wine": load_wine, "breast_cancer": load_breast_cancer, "digits": load_digits}[name]
    features, labels = load(return_X_y=True)
    return features[:600], labels[:600]


@pytest.mark.parametrize("name", ["wine", "breast_cancer", "digits"])
@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
def test_saturated_outputs_cost_what_they_cost_there(solver, name):
    # scikit-learn clips probabilities in the value of its loss, so that a wrong and certain one
    # costs 36. L-BFGS makes rounding grow: that of the sigmoid of two classes is not the same, and
    # without the reference engine, which sums in scikit-learn's order, no rounding is.
    features, labels = raw(name)
    max_iter = 15 if solver == "lbfgs" and name == "breast_cancer" else 40
    options = {"solver": solver, "random_state": 0, "max_iter": max_iter}
    theirs = TheirClassifier((10,), **options).fit(features, labels)
    engine = "reference" if solver == "lbfgs" else "auto"
    ours = nb.MLPClassifier((10,), engine=engine, **options).fit(features, labels)
    assert_same(theirs, ours)
    np.testing.assert_array_equal(ours.predict(features), theirs.predict(features))


# On such features scikit-learn's own losses differ, after 40 iterations on wine, by 2e-6 between
# kernels of OpenBLAS for one processor and another.
@pytest.mark.parametrize(
    ("name", "max_iter"), [("wine", 20), ("breast_cancer", 15), ("digits", 30)]
)
@pytest.mark.parametrize("engine", ["native", "reference"])
def test_lbfgs_takes_the_same_first_steps_on_raw_features(engine, name, max_iter):
    features, labels = raw(name)
    options = {"solver": "lbfgs", "random_state": 0, "max_iter": max_iter}
    theirs = TheirClassifier((10,), **options).fit(features, labels)
    ours = nb.MLPClassifier((10,), engine=engine, **options).fit(features, labels)
    assert_same(theirs, ours)
    np.testing.assert_array_equal(ours.predict(features), theirs.predict(features))


@pytest.mark.parametrize("name", ["wine", "breast_cancer", "digits"])
@pytest.mark.parametrize("engine", ["native", "reference"])
def test_lbfgs_converges_to_the_same_minimum_after_as_many_iterations(engine, name):
    features, labels = raw(name)
    features = StandardScaler().fit_transform(features)
    options = {"solver": "lbfgs", "random_state": 0}
    theirs = TheirClassifier((10,), **options).fit(features, labels)
    ours = nb.MLPClassifier((10,), engine=engine, **options).fit(features, labels)
    assert 10 < theirs.n_iter_ < 200
    assert_same(theirs, ours)


def test_lbfgs_without_the_library_runs_on_the_reference_engine(monkeypatch):
    monkeypatch.setenv("NNBACKEND_VARIANT", "none")
    options = {"hidden_layer_sizes": (6,), "solver": "lbfgs", "random_state": 0, "max_iter": 20}
    named = nb.MLPRegressor(engine="reference", **options).fit(X, Y["number"])
    with pytest.warns(UserWarning, match="runs on the slower reference engine"):
        chosen = nb.MLPRegressor(**options).fit(X, Y["number"])
    np.testing.assert_array_equal(chosen.coefs_[0], named.coefs_[0])
    with pytest.raises(nb.MissingDependencyError, match="engine='native' needs its compiled"):
        nb.MLPRegressor(engine="native", **options).fit(X, Y["number"])


@given(
    target=st.sampled_from(TARGETS),
    alpha=st.sampled_from([0.0, 0.3]),
    weighted=st.booleans(),
    activation=st.sampled_from(["relu", "tanh", "logistic", "identity"]),
)
def test_lbfgs_starts_with_the_same_objective_and_gradient(target, alpha, weighted, activation):
    # A first step of L-BFGS is along the gradient, so it shows value and gradient at one point.
    options = {"solver": "lbfgs", "max_iter": 1, "alpha": alpha}
    theirs, ours = models(target, activation=activation, **options)
    weight = WEIGHT if weighted else None
    for model in (theirs, ours):
        model.fit(X, Y[target], sample_weight=weight)
    assert_same(theirs, ours, 1e-12)


def test_saturated_labels_cost_what_they_cost_there():
    features, labels = raw("wine")
    several = np.stack([labels == 0, labels > 1], axis=1).astype(int)
    theirs, ours = (
        table((10,), random_state=0, max_iter=60).fit(features, several)
        for table in (TheirClassifier, nb.MLPClassifier)
    )
    assert max(theirs.loss_curve_) > 36
    assert_same(theirs, ours)


@pytest.mark.parametrize("name", ["wine", "breast_cancer"])
def test_each_engine_clips_and_counts_alike(name):
    features, labels = raw(name)
    weight = np.resize(WEIGHT, len(labels))
    options = {"random_state": 0, "max_iter": 20, "batch_size": 50, "alpha": 0.5}
    theirs = TheirClassifier((10,), **options).fit(features, labels, sample_weight=weight)
    ours = nb.MLPClassifier((10,), engine="native", **options)
    assert_same(theirs, ours.fit(features, labels, sample_weight=weight))


def test_in_float32_the_clip_is_that_of_float32():
    features, labels = raw("wine")
    single = features.astype(np.float32)
    theirs, ours = (
        table((10,), random_state=0, max_iter=3).fit(single, labels)
        for table in (TheirClassifier, nb.MLPClassifier)
    )
    # float32 has seven digits, and three epochs of saturated outputs.
    np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-4)
    wrong = ours.predict_proba(single)[np.arange(len(labels)), labels] == 0
    assert wrong.any()


def test_smoothed_targets_meet_clipped_probabilities():
    features, labels = raw("wine")
    model = nb.MLPClassifier((10,), random_state=0, max_iter=1, solver="sgd", batch_size=178)
    model.set_params(label_smoothing=0.3, shuffle=False, alpha=0.0, learning_rate_init=1e-300)
    P = np.clip(model.fit(features, labels).predict_proba(features), 2.0**-52, 1 - 2.0**-52)
    targets = 0.7 * np.eye(3)[labels] + 0.1
    assert model.loss_ == pytest.approx(-(targets * np.log(P)).sum(axis=1).mean(), rel=1e-12)


def test_the_validation_curve_is_the_loss_without_weights_and_penalties():
    curve = []
    model = nb.MLPClassifier((10,), random_state=0, max_iter=20, alpha=1.0, batch_size=50)
    features, labels = raw("wine")

    def look(state):
        P = np.asarray(state.network.predict_proba(features[1::2]))
        curve.append(log_loss(labels[1::2], P))

    model.set_params(callbacks=look)
    weight = np.where(labels == 0, 5.0, 0.1)
    model.fit(features, labels, sample_weight=weight, X_val=features[1::2], y_val=labels[1::2])
    np.testing.assert_allclose(model.validation_loss_curve_, curve, rtol=1e-9)
    assert max(curve) > 5


# Dtypes -------------------------------------------------------------------------------------------


# With three classes the reference engine does the same operations in the same order. Elsewhere, and
# with a sigmoid, and targets that are float64 there, the last bit is another, which L-BFGS soon
# makes the fourth digit.
@pytest.mark.parametrize(
    ("engine", "target", "max_iter", "tolerance"),
    [
        ("reference", "classes", 20, 1e-9),
        *(
            (engine, target, 5, 1e-3)
            for engine in ("reference", "native")
            for target in ("classes", "two", "multilabel", "numbers")
        ),
    ],
)
@pytest.mark.skipif(SCIPY < (1, 15), reason="SciPy before 1.15 evaluates float32 in float64")
def test_lbfgs_on_float32_data_gives_float64_coefficients(engine, target, max_iter, tolerance):
    single = X.astype(np.float32)
    theirs, ours = models(target, solver="lbfgs", max_iter=max_iter, alpha=0.1)
    ours.set_params(engine=engine)
    for model in (theirs, ours):
        model.fit(single, Y[target])
    assert ours.coefs_[0].dtype == np.float64
    assert_same(theirs, ours, tolerance)
    assert ours.predict(single).dtype == theirs.predict(single).dtype


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@pytest.mark.parametrize("fitted_on", ["float32", "float64"])
@pytest.mark.parametrize("asked_for", ["float32", "float64", "int64", "int8"])
def test_predictions_have_the_dtype_that_they_have_there(fitted_on, asked_for, solver):
    rows = np.round(3 * X).astype(asked_for)
    for target, method in (("classes", "predict_proba"), ("numbers", "predict")):
        theirs, ours = models(target, solver=solver, max_iter=2)
        expected, found = (
            getattr(model.fit(X.astype(fitted_on), Y[target]), method)(rows)
            for model in (theirs, ours)
        )
        assert found.dtype == expected.dtype
        tolerance = 1e-9 if fitted_on == "float64" else 1e-4
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
