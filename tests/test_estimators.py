"""MLPClassifier and MLPRegressor against scikit-learn's own, and at home in its tools."""

import importlib.util
import io
import pickle
from contextlib import redirect_stdout

import joblib
import numpy as np
import pytest
import scipy.sparse
import sklearn
from array_api_compat import array_namespace
from backends import require, require_dispatched
from devices import to_host
from sklearn.base import clone, is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_diabetes, load_iris
from sklearn.decomposition import PCA
from sklearn.ensemble import BaggingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.inspection import permutation_importance
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.neural_network import MLPClassifier as TheirClassifier
from sklearn.neural_network import MLPRegressor as TheirRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import nnbackend as nb
from nnbackend.device import get_device
from nnbackend.errors import DeviceError

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

try:
    HAS_GPU = bool(get_device("cuda"))
except DeviceError:
    HAS_GPU = False
IS_BEFORE_1_9 = importlib.util.find_spec("sklearn.callback") is None
RNG = np.random.default_rng(0)
N = 233  # in batches of 50 the last one is short, and weighs its penalty by itself
X = RNG.standard_normal((N, 7))
Y = {
    "classes": RNG.integers(0, 3, N),
    "two": np.where(X[:, 0] + RNG.standard_normal(N) > 0, "yes", "no"),
    "multilabel": (X[:, :3] > 0).astype(int),
    "number": X[:, 0] * X[:, 1],
    "numbers": X[:, :2] @ RNG.standard_normal((2, 2)),
    "counts": RNG.poisson(np.exp(0.5 * X[:, 0])).astype(float),
}
OURS = {"classifier": nb.MLPClassifier, "regressor": nb.MLPRegressor}
THEIRS = {"classifier": TheirClassifier, "regressor": TheirRegressor}


def kind_of(target):
    return "classifier" if target in ("classes", "two", "multilabel") else "regressor"


def both(target, *, y=None, X=X, fit=None, **options):
    """Return scikit-learn's estimator and ours, fitted alike."""
    options = {"hidden_layer_sizes": (9, 5), "max_iter": 20, "random_state": 3, **options}
    return [
        table[kind_of(target)](**options).fit(X, Y[target] if y is None else y, **(fit or {}))
        for table in (THEIRS, OURS)
    ]


def assert_same(theirs, ours, *, tolerance=1e-9):
    for name in ("coefs_", "intercepts_"):
        for expected, found in zip(getattr(theirs, name), getattr(ours, name), strict=True):
            assert found.dtype == expected.dtype
            np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
    assert ours.n_iter_ == theirs.n_iter_
    assert ours.out_activation_ == theirs.out_activation_
    # In float32, theirs is still the logarithm of float64.
    assert ours.loss_ == pytest.approx(theirs.loss_, rel=max(1e-7, 1e-3 * tolerance))


# Twenty epochs, or iterations, of float64 on a problem of moderate curvature: rounding grows to
# some 1e-12; what is asked for is 1e-6.
@pytest.mark.parametrize("target", ["classes", "two", "multilabel", "number", "numbers"])
@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
def test_coefficients_are_those_of_scikit_learn(solver, activation, target):
    assert_same(*both(target, solver=solver, activation=activation, alpha=0.1, batch_size=50))


@pytest.mark.parametrize(
    "options",
    [
        {"solver": "sgd", "learning_rate": "invscaling", "learning_rate_init": 0.1},
        {"solver": "sgd", "learning_rate": "adaptive", "tol": 0.05, "n_iter_no_change": 1},
        {"solver": "sgd", "momentum": 0.0, "shuffle": False},
        {"solver": "sgd", "nesterovs_momentum": False},
        {"solver": "adam", "early_stopping": True, "n_iter_no_change": 2, "max_iter": 60},
        {"solver": "adam", "tol": 0.05, "n_iter_no_change": 2, "max_iter": 60},
        {"solver": "adam", "hidden_layer_sizes": ()},
        {"solver": "adam", "batch_size": 1000},
    ],
)
@pytest.mark.parametrize("target", ["classes", "number"])
@pytest.mark.filterwarnings("ignore:Got `batch_size` less than 1")
def test_options_do_what_they_do_there(target, options):
    theirs, ours = both(target, **options)
    assert_same(theirs, ours)
    np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-8)
    if options.get("early_stopping"):
        np.testing.assert_allclose(ours.validation_scores_, theirs.validation_scores_, rtol=1e-8)
        assert ours.best_validation_score_ == pytest.approx(theirs.best_validation_score_)


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_poisson_regression(solver):
    theirs, ours = both("counts", solver=solver, loss="poisson", alpha=0.01)
    assert_same(theirs, ours)
    np.testing.assert_allclose(ours.predict(X), theirs.predict(X), rtol=1e-8)


@pytest.mark.parametrize("solver", ["sgd", "lbfgs"])
@pytest.mark.parametrize("target", ["classes", "numbers"])
def test_sample_weights(solver, target):
    weight = RNG.random(N)
    theirs, ours = both(target, solver=solver, batch_size=N, fit={"sample_weight": weight})
    assert_same(theirs, ours)


def test_float32_is_kept():
    theirs, ours = both("two", X=X.astype(np.float32))
    assert_same(theirs, ours, tolerance=1e-3)
    assert ours.predict_proba(X.astype(np.float32)).dtype == np.float32


def test_sparse_rows_give_what_dense_ones_do():
    sparse = scipy.sparse.csr_array(np.where(np.abs(X) > 1, X, 0))
    theirs, ours = both("classes", X=sparse)
    assert_same(theirs, ours)
    np.testing.assert_allclose(ours.predict_proba(sparse), theirs.predict_proba(sparse), rtol=1e-8)


@pytest.mark.parametrize("target", ["classes", "two", "multilabel", "number"])
@pytest.mark.parametrize("solver", ["sgd", "adam"])
def test_partial_fit_goes_on_where_it_was(solver, target):
    fitted = []
    classes = {"classes": np.unique(Y[target])} if kind_of(target) == "classifier" else {}
    if target == "multilabel":
        classes = {"classes": [0, 1, 2]}
    for table in (THEIRS, OURS):
        model = table[kind_of(target)]((6,), solver=solver, random_state=1, batch_size=20)
        if kind_of(target) == "regressor":
            model.set_params(hidden_layer_sizes=(6,), loss="squared_error")
        for start in range(0, 200, 50):
            rows = slice(start, start + 50)
            first = {} if start else classes
            model.partial_fit(X[rows], Y[target][rows], **first)
        fitted.append(model)
    assert_same(*fitted)


def test_warm_start_goes_on_from_the_coefficients():
    fitted = []
    for table in (THEIRS, OURS):
        model = table["classifier"]((6,), warm_start=True, max_iter=5, random_state=1)
        for _ in range(3):
            model.fit(X, Y["classes"])
        fitted.append(model)
    assert_same(*fitted)
    assert fitted[1].t_ == fitted[0].t_


def test_the_same_is_printed():
    printed = []
    for table in (THEIRS, OURS):
        model = table["classifier"]((6,), verbose=True, max_iter=50, random_state=1, tol=0.1)
        output = io.StringIO()
        with redirect_stdout(output):
            model.fit(X, Y["classes"])
        printed.append(output.getvalue())
    assert printed[1] == printed[0]


def test_without_convergence_there_is_a_warning():
    with pytest.warns(ConvergenceWarning, match=r"Maximum iterations \(3\) reached"):
        nb.MLPClassifier((3,), max_iter=3).fit(X, Y["two"])
    with pytest.warns(ConvergenceWarning, match="lbfgs failed to converge"):
        nb.MLPClassifier((3,), solver="lbfgs", max_iter=2).fit(X, Y["two"])


def test_divergence_is_an_error_that_says_why():
    model = nb.MLPRegressor((5,), solver="sgd", learning_rate_init=1e10, random_state=0)
    model.set_params(hidden_layer_sizes=(5,), loss="squared_error")
    with pytest.raises(ValueError, match="non-finite parameter weights"):
        model.fit(1e10 * X, Y["number"])


@parametrize_with_checks(
    [
        nb.MLPClassifier((20,), max_iter=100),
        nb.MLPRegressor(hidden_layer_sizes=(20,), max_iter=100),
        nb.MLPClassifier((5,), solver="lbfgs", activation="tanh", max_iter=50),
        nb.MLPRegressor(hidden_layer_sizes=(5, 5), solver="lbfgs", loss="huber"),
        nb.MLPClassifier(
            (20,), activation=["silu"], optimizer=nb.AdamW(0.01), batch_size=1000, max_iter=60
        ),
    ]
)
@pytest.mark.filterwarnings("ignore:Got `batch_size` less than 1", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:lbfgs failed")
def test_scikit_learns_checks(estimator, check):
    if "cupy" in repr(check) and not HAS_GPU:
        pytest.skip("CuPy finds no GPU")
    if "check_array_api" in repr(check):
        require_dispatched("array_api_strict")
        if is_classifier(estimator) and "numpy" not in repr(check) and IS_BEFORE_1_9:
            pytest.skip("there, this check refuses classes_ in NumPy, which text needs; 1.9 not")
    # The tests of core restrict it to what core may use; scikit-learn uses more.
    flags = require("array_api_strict").ArrayAPIStrictFlags
    with flags(
        boolean_indexing=True, data_dependent_shapes=True, enabled_extensions=("linalg", "fft")
    ):
        check(estimator)


@pytest.mark.parametrize("library", ["torch", "jax", "cupy"])
def test_a_pipeline_on_other_libraries_arrays(library):
    if library == "cupy" and not HAS_GPU:
        pytest.skip("CuPy finds no GPU")
    module = require_dispatched(library)
    xp = module.numpy if library == "jax" else module
    # scikit-learn's own scaler writes into its arrays, which JAX's do not allow.
    before = [] if library == "jax" else [StandardScaler(), PCA(5)]
    pipeline = make_pipeline(*before, nb.MLPClassifier((6,), random_state=0))
    expected = clone(pipeline).fit(X, Y["classes"])
    with sklearn.config_context(array_api_dispatch=True):
        theirs = xp.asarray(X)
        pipeline.fit(theirs, xp.asarray(Y["classes"]))
        probabilities, classes = pipeline.predict_proba(theirs), pipeline.predict(theirs)
        score = pipeline.score(theirs, xp.asarray(Y["classes"]))
        assert array_namespace(probabilities) is array_namespace(classes) is array_namespace(theirs)
        if library != "cupy":
            with pytest.raises(ValueError, match="must use the same namespace"):
                pipeline[-1].predict(X[:, : pipeline[-1].n_features_in_])
    host = to_host if library == "cupy" else np.asarray
    # PCA's singular value decomposition is another library's.
    np.testing.assert_allclose(host(probabilities), expected.predict_proba(X), rtol=1e-6)
    np.testing.assert_array_equal(host(classes), expected.predict(X))
    assert score == pytest.approx(expected.score(X, Y["classes"]))


@pytest.mark.parametrize("target", ["classes", "numbers"])
def test_weighting_a_sample_is_repeating_it(target):
    counts = RNG.integers(0, 4, N)
    options = {
        "hidden_layer_sizes": (6,), "solver": "sgd", "max_iter": 30, "random_state": 0,
        "shuffle": False,
    }  # fmt: skip
    model = OURS[kind_of(target)]
    weighted = model(batch_size=N, **options).fit(X, Y[target], sample_weight=counts)
    rows = np.repeat(np.arange(N), counts)
    repeated = model(batch_size=len(rows), **options).fit(X[rows], Y[target][rows])
    for first, second in zip(weighted.coefs_, repeated.coefs_, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-10, atol=1e-10)


# Beyond scikit-learn ------------------------------------------------------------------------------


def test_a_rare_class_is_found_when_classes_are_balanced():
    y = (X[:, 0] > 1.5).astype(int)
    options = {"max_iter": 50, "random_state": 0, "learning_rate_init": 0.01}
    plain = nb.MLPClassifier((4,), **options).fit(X, y)
    balanced = nb.MLPClassifier((4,), class_weight="balanced", **options).fit(X, y)
    assert balanced.predict_proba(X)[:, 1].mean() > 2 * plain.predict_proba(X)[:, 1].mean()
    weight = np.where(y == 1, N / (2 * y.sum()), N / (2 * (N - y.sum())))
    by_hand = nb.MLPClassifier((4,), **options).fit(X, y, sample_weight=weight)
    np.testing.assert_allclose(balanced.coefs_[0], by_hand.coefs_[0], rtol=1e-8)
    with pytest.raises(nb.InputError, match="class_weight: 'balanced' is not for partial_fit"):
        nb.MLPClassifier(class_weight="balanced").partial_fit(X, y, classes=[0, 1])


def test_validation_data_gives_a_curve_and_decides_early_stopping():
    seen = []
    model = nb.MLPClassifier(
        (8, 6),
        activation=["gelu", "tanh"],
        dropout=[0.1, 0.0],
        optimizer=nb.AdamW(nb.schedules.Cosine(0.02)),
        early_stopping=True,
        scoring="neg_log_loss",
        n_iter_no_change=3,
        max_iter=40,
        callbacks=lambda state: seen.append(state.epoch),
        random_state=0,
    )
    model.fit(X[:150], Y["two"][:150], X_val=X[150:], y_val=Y["two"][150:])
    assert len(model.validation_loss_curve_) == len(model.loss_curve_) == model.n_iter_
    assert seen == list(range(1, model.n_iter_ + 1))
    # The score is minus the loss, of the same data.
    np.testing.assert_allclose(model.validation_scores_, np.negative(model.validation_loss_curve_))
    assert model.best_validation_score_ == max(model.validation_scores_)
    with pytest.raises(nb.InputError, match="X_val, y_val: expected both or neither"):
        model.fit(X, Y["two"], X_val=X)


def test_more_losses_and_label_smoothing():
    outliers = X[:, 0].copy()
    outliers[::20] += 1000
    options = {"hidden_layer_sizes": (), "solver": "lbfgs", "max_iter": 100}
    scores = {
        loss: nb.MLPRegressor(loss=loss, **options).fit(X, outliers).score(X, X[:, 0])
        for loss in ("squared_error", "huber")
    }
    assert scores["huber"] > 0.9
    assert scores["squared_error"] < 0.0
    sharp = nb.MLPClassifier(random_state=0).fit(X, Y["classes"])
    smooth = nb.MLPClassifier(label_smoothing=0.3, random_state=0).fit(X, Y["classes"])
    assert smooth.predict_proba(X).max() < sharp.predict_proba(X).max()


@pytest.mark.parametrize(
    ("target", "options", "fit", "message"),
    [
        ("two", {"class_weight": {"no": np.inf, "yes": 1}}, {}, r"class_weight\['no'\]: .*got inf"),
        ("two", {"class_weight": "balance"}, {}, "class_weight: expected a dict, 'balanced' or"),
        ("multilabel", {"class_weight": {0: 1.0}}, {}, "class_weight: expected a list of dicts"),
        ("two", {"label_smoothing": 0.1}, {}, "label_smoothing: expected 0 with two classes"),
        ("two", {"activation": "rellu"}, {}, "activation: unknown name 'rellu'"),
        ("two", {"activation": ["relu"] * 3}, {}, "activation: expected a name, or one for each"),
        ("two", {"callbacks": [print, 3]}, {}, "callbacks: expected callables, got 3"),
        ("two", {}, {"X_val": X, "y_val": ["maybe"] * N}, r"y_val: expected labels .*\['maybe'\]"),
        ("two", {"solver": "lbfgs", "dropout": 0.1}, {}, "dropout: not for solver='lbfgs'"),
        ("two", {"solver": "lbfgs", "engine": "fast"}, {}, "engine: unknown name 'fast'"),
        ("two", {"solver": "lbfgs", "engine": "cuda"}, {}, "engine: 'cuda' runs on device='cuda'"),
        ("two", {"solver": "lbfgs"}, {"X_val": X, "y_val": Y["two"]}, "X_val: not for solver"),
    ],
)
def test_what_would_do_nothing_or_nonsense_is_refused(target, options, fit, message):
    with pytest.raises(nb.InputError, match=message):
        nb.MLPClassifier((4,), max_iter=2, **options).fit(X, Y[target], **fit)


def test_labels_have_weights_of_their_own():
    y = Y["multilabel"]
    tables = [{0: 1.0, 1: 3.0}, {0: 2.0, 1: 1.0}, {0: 1.0, 1: 1.0}]
    weight = np.where(y[:, 0] == 1, 3.0, 1.0) * np.where(y[:, 1] == 1, 1.0, 2.0)
    options = {"max_iter": 3, "random_state": 0}
    weighted = nb.MLPClassifier((4,), class_weight=tables, **options).fit(X, y)
    expected = nb.MLPClassifier((4,), **options).fit(X, y, sample_weight=weight)
    np.testing.assert_allclose(weighted.coefs_[0], expected.coefs_[0], rtol=1e-12)


def test_a_schedule_is_not_for_partial_fit():
    model = nb.MLPClassifier((4,), optimizer=nb.SGD(nb.schedules.Cosine(0.1)))
    with pytest.raises(nb.InputError, match="optimizer: expected a constant learning rate"):
        model.partial_fit(X, Y["two"], classes=["no", "yes"])


def test_the_validation_curve_is_that_of_the_last_fit():
    model = nb.MLPClassifier((4,), max_iter=3, warm_start=True)
    for _ in range(2):
        model.fit(X, Y["two"], X_val=X, y_val=Y["two"])
    assert len(model.validation_loss_curve_) == len(model.loss_curve_) == 6
    model.fit(X, Y["two"])
    assert not hasattr(model, "validation_loss_curve_")


def test_a_device_that_is_not_there_is_an_error():
    with pytest.raises(nb.InputError, match="device: expected 'cpu', 'cuda'"):
        nb.MLPClassifier(device="tpu").fit(X, Y["two"])


def test_scikit_learns_callbacks_see_every_epoch_and_may_stop():
    pytest.importorskip("sklearn.callback")
    seen = []

    class Watcher:
        def setup(self, estimator, context):  # noqa: ARG002
            seen.append("setup")

        def teardown(self, estimator, context):  # noqa: ARG002
            seen.append("teardown")

        def on_fit_task_begin(self, estimator, context):
            pass

        def on_fit_task_end(self, estimator, context, *, X, y, fitted_estimator):  # noqa: ARG002
            seen.append((context.task_name, fitted_estimator.score(X, y)))
            return context.task_name == "epoch" and context.task_id == 2

    model = nb.MLPClassifier((6,), max_iter=20, random_state=0).set_callbacks(Watcher())
    model.fit(X, Y["multilabel"])
    assert [entry if isinstance(entry, str) else entry[0] for entry in seen] == [
        "setup", "epoch", "epoch", "epoch", "fit", "teardown",
    ]  # fmt: skip
    assert model.n_iter_ == 3
    assert seen[-2][1] == model.score(X, Y["multilabel"])
    same = nb.MLPClassifier((6,), max_iter=3, random_state=0).fit(X, Y["multilabel"])
    np.testing.assert_array_equal(same.coefs_[0], model.coefs_[0])


# At home in its tools -----------------------------------------------------------------------------

IRIS = load_iris(return_X_y=True)


def small(**options):
    return nb.MLPClassifier((8,), solver="lbfgs", alpha=0.1, random_state=0, **options)


@pytest.mark.slow
def test_grid_search_in_two_processes():
    pipeline = make_pipeline(StandardScaler(), small())
    grid = {"mlpclassifier__alpha": [0.01, 1.0], "mlpclassifier__dropout": [0.0]}
    search = GridSearchCV(pipeline, grid, cv=3, n_jobs=2).fit(*IRIS)
    assert search.best_score_ > 0.9
    assert clone(search.best_estimator_).get_params()["mlpclassifier__device"] is None


def test_cross_validation_calibration_bagging_importance():
    assert np.mean(cross_val_predict(small(), *IRIS, cv=3) == IRIS[1]) > 0.9
    assert CalibratedClassifierCV(small(), cv=3).fit(*IRIS).score(*IRIS) > 0.9
    assert BaggingClassifier(small(), n_estimators=3, random_state=0).fit(*IRIS).score(*IRIS) > 0.9
    importance = permutation_importance(small().fit(*IRIS), *IRIS, n_repeats=3, random_state=0)
    assert importance.importances_mean.argmax() in (2, 3)
    assert cross_val_score(nb.MLPRegressor(hidden_layer_sizes=(5,), solver="lbfgs", max_iter=50),
                           *load_diabetes(return_X_y=True), cv=3).shape == (3,)  # fmt: skip


def test_feature_names_and_set_output():
    pandas = pytest.importorskip("pandas")
    names = ["a", "b", "c", "d"]
    frame = pandas.DataFrame(IRIS[0], columns=names)
    pipeline = make_pipeline(StandardScaler(), small()).set_output(transform="pandas")
    pipeline.fit(frame, IRIS[1])
    assert pipeline[-1].feature_names_in_.tolist() == names
    with pytest.warns(UserWarning, match="valid feature names"):
        pipeline[-1].predict(IRIS[0])
    with pytest.raises(ValueError, match="feature names"):
        pipeline.predict(frame[names[::-1]])


def test_sample_weights_are_routed():
    with sklearn.config_context(enable_metadata_routing=True):
        model = small().set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        weight = RNG.random(len(IRIS[1]))
        search = GridSearchCV(model, {"alpha": [0.1]}, cv=3)
        routed = search.fit(*IRIS, sample_weight=weight).best_estimator_
    expected = small().fit(*IRIS, sample_weight=weight)
    np.testing.assert_allclose(routed.coefs_[0], expected.coefs_[0], rtol=1e-8)


def test_pickles_and_joblib_files_hold_numpy_arrays(tmp_path):
    model = nb.MLPClassifier((6,), max_iter=5, random_state=0).fit(X, Y["two"])
    joblib.dump(model, tmp_path / "model")
    copies = [pickle.loads(pickle.dumps(model)), joblib.load(tmp_path / "model")]  # noqa: S301
    expected = model.predict_proba(X), model.partial_fit(X, Y["two"]).coefs_[0]
    for copy in copies:
        np.testing.assert_array_equal(copy.predict_proba(X), expected[0])
        np.testing.assert_array_equal(copy.partial_fit(X, Y["two"]).coefs_[0], expected[1])
