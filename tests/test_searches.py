"""Searches and validations that fit side by side: the results of scikit-learn's own."""

import gc
import logging
import pickle
import signal
import threading
import time
import warnings
import weakref

import joblib
import numpy as np
import pytest
import scipy.sparse
import scipy.stats
import sklearn
from backends import require
from sklearn import model_selection as theirs
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.datasets import make_classification, make_regression
from sklearn.decomposition import PCA
from sklearn.ensemble import BaggingClassifier
from sklearn.exceptions import FitFailedWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, make_scorer
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neural_network import MLPClassifier as TheirClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, StandardScaler

import nnbackend as nb

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*Maximum iterations:sklearn.exceptions.ConvergenceWarning"
)

X, c = make_classification(90, 6, n_informative=4, n_classes=3, random_state=0)
_, y = make_regression(90, 6, noise=5.0, random_state=0)
y = y / y.std()
WEIGHT = np.random.default_rng(0).uniform(0.5, 2.0, 90)
GROUPS = np.arange(90) % 7
GRID = {"alpha": [1e-4, 1.0], "learning_rate_init": [0.001, 0.02]}
PIPE_GRID = {"mlpclassifier__alpha": [1e-4, 1.0]}


def classifier(**options):
    return nb.MLPClassifier(
        **{"hidden_layer_sizes": 5, "max_iter": 6, "random_state": 0, **options}
    )


def pipeline(*steps, **options):
    return make_pipeline(*(steps or [StandardScaler()]), classifier(), **options)


def n_fits(search):
    return len(search.cv_results_["params"]) * search.n_splits_


def assert_equal_results(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert type(found[name]) is type(value)
        if name == "params":
            assert repr(found[name]) == repr(value)
        elif name.startswith("param_"):
            assert found[name].dtype == value.dtype
            assert repr(found[name]) == repr(value)
        else:
            assert found[name].dtype == value.dtype
            if "_time" not in name:
                np.testing.assert_array_equal(found[name], value)


def both(estimator, grid, fit=None, data=(X, c), search="GridSearchCV", n_jobs=None, **options):
    """Search with both; compare all that can be seen."""
    options = {"cv": 3, **options}
    found, expected = (
        getattr(module, search)(clone(estimator), grid, **options, **own).fit(*data, **(fit or {}))
        for module, own in ((nb, {"n_jobs": n_jobs}), (theirs, {}))
    )
    assert_equal_results(found.cv_results_, expected.cv_results_)
    seen = {name for name in vars(expected) if name.endswith("_")}
    assert {name for name in vars(found) if name.endswith("_")} == seen | {"n_fits_together_"}
    for name in seen & {"best_index_", "best_score_", "multimetric_", "n_splits_"}:
        assert getattr(found, name) == getattr(expected, name)
    if "best_params_" in seen:
        assert repr(found.best_params_) == repr(expected.best_params_)
    if "best_estimator_" in seen:
        assert repr(found.best_estimator_) == repr(expected.best_estimator_)
        np.testing.assert_array_equal(found.predict(data[0]), expected.predict(data[0]))
        assert found.refit_time_ > 0
    assert repr(found.scorer_) == repr(expected.scorer_)
    return found


def strictest(results):
    return int(np.argmin(results["mean_test_score"]))


def callable_scorer(model, X, c):
    return {"accuracy": accuracy_score(c, model.predict(X)), "size": len(model.coefs_)}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"return_train_score": True},
        {"scoring": "neg_log_loss"},
        {"scoring": ["accuracy", "f1_macro"], "refit": "f1_macro"},
        {"scoring": {"a": "accuracy", "b": make_scorer(accuracy_score)}, "refit": False},
        {"scoring": callable_scorer, "refit": "accuracy"},
        {"refit": False},
        {"refit": strictest},
        {"n_jobs": 2, "pre_dispatch": 3},
        {"n_jobs": 1},
        {"cv": theirs.ShuffleSplit(2, random_state=3)},
        {"cv": theirs.RepeatedStratifiedKFold(n_splits=2, n_repeats=2, random_state=0)},
        {"cv": list(theirs.KFold(3).split(X))},
    ],
    ids=lambda options: ",".join(options) or "defaults",
)
def test_a_grid_search_has_the_results_of_scikit_learns(options):
    found = both(classifier(), GRID, **options)
    assert found.n_fits_together_ == n_fits(found)


def test_splits_can_be_an_iterator():
    found, expected = (
        module.GridSearchCV(classifier(), GRID, cv=iter(list(theirs.KFold(3).split(X)))).fit(X, c)
        for module in (nb, theirs)
    )
    assert_equal_results(found.cv_results_, expected.cv_results_)


@pytest.mark.parametrize(
    ("estimator", "grid"),
    [
        (
            pipeline(),
            {"mlpclassifier__alpha": [1e-4, 1.0], "standardscaler__with_mean": [True, False]},
        ),
        (
            pipeline(StandardScaler(), PCA(4, random_state=0)),
            {"pca__n_components": [2, 3], **PIPE_GRID},
        ),
        (
            pipeline(),
            {"standardscaler": [StandardScaler(), MinMaxScaler(), "passthrough"], **PIPE_GRID},
        ),
        (pipeline(StandardScaler(copy=False), MinMaxScaler(copy=False)), PIPE_GRID),
        (
            pipeline(),
            [PIPE_GRID, {"mlpclassifier": [LogisticRegression()], "mlpclassifier__C": [0.1, 1.0]}],
        ),
        (pipeline(verbose=False), {"memory": [None], **PIPE_GRID}),
        (
            make_pipeline(StandardScaler(), pipeline(PCA(3))),
            {"pipeline__pca__n_components": [2, 3]},
        ),
        (OneVsRestClassifier(classifier()), {"estimator__alpha": [0.1, 1.0]}),
    ],
    ids=range(8),
)
def test_pipelines_and_nested_parameters(estimator, grid):
    both(estimator, grid)


def test_what_is_not_ours_is_fitted_one_by_one(caplog, capsys):
    grid = [
        {"mlpclassifier__alpha": [0.1, 1.0]},
        {"mlpclassifier__solver": ["lbfgs"]},
        {"mlpclassifier": [LogisticRegression()]},
    ]
    with caplog.at_level(logging.INFO, "nnbackend"), warnings.catch_warnings():
        warnings.simplefilter("ignore", sklearn.exceptions.ConvergenceWarning)
        found = both(pipeline(), grid, verbose=1)
    text = "6 of 12 fits ran side by side, 6 one by one"
    assert found.n_fits_together_ == 6
    assert text in caplog.text
    assert text in capsys.readouterr().out


def test_without_a_model_of_ours_n_jobs_is_scikit_learns():
    pools = []

    class Seeing(LogisticRegression):
        def fit(self, X, c):
            pools.append(threading.current_thread().name)
            return super().fit(X, c)

    with joblib.parallel_config("threading", n_jobs=2):
        nb.cross_val_score(make_pipeline(StandardScaler(), Seeing()), X, c, cv=3)
        search = nb.GridSearchCV(Seeing(), {"C": [0.1, 1.0]}, cv=3, refit=False).fit(X, c)
    assert search.n_fits_together_ == 0
    assert len(pools) == 9
    assert not {"nnbackend call", threading.current_thread().name} & set(pools)
    # A setting may be ours.
    grid = {"m": [Seeing(), classifier()]}
    search = nb.GridSearchCV(Pipeline([("m", Seeing())]), grid, cv=3, refit=False).fit(X, c)
    assert search.n_fits_together_ == 3


@pytest.mark.parametrize(("solver", "tolerance"), [("adam", 1e-6), ("sgd", 1e-6)])
def test_scores_are_those_of_scikit_learns_own_networks(solver, tolerance):
    model = TheirClassifier(5, max_iter=6, random_state=0, solver=solver)
    own = classifier(solver=solver)
    options = {"cv": 3, "scoring": "neg_log_loss"}
    found = nb.GridSearchCV(own, GRID, **options).fit(X, c)
    expected = theirs.GridSearchCV(model, GRID, **options).fit(X, c)
    for name, value in expected.cv_results_.items():
        if "test_score" in name:
            np.testing.assert_allclose(found.cv_results_[name], value, atol=tolerance)


def test_regressors_weights_and_groups():
    model = nb.MLPRegressor(hidden_layer_sizes=5, max_iter=6, random_state=0)
    both(
        model,
        GRID,
        {"sample_weight": WEIGHT},
        (X, y),
        scoring=["r2", "neg_mean_squared_error"],
        refit="r2",
    )
    both(classifier(), GRID, {"groups": GROUPS}, cv=theirs.GroupKFold(3))
    both(pipeline(), PIPE_GRID, {"mlpclassifier__sample_weight": WEIGHT})


def test_routed_metadata():
    with sklearn.config_context(enable_metadata_routing=True):
        model = make_pipeline(
            StandardScaler().set_fit_request(sample_weight=False),
            classifier().set_fit_request(sample_weight=True),
        )
        scorer = make_scorer(accuracy_score).set_score_request(sample_weight=True)
        both(
            model, PIPE_GRID, {"sample_weight": WEIGHT, "groups": GROUPS},
            cv=theirs.GroupKFold(3), scoring=scorer,
        )  # fmt: skip


@pytest.mark.parametrize(
    "data",
    [
        (X.astype(np.float32), c),
        (X.tolist(), c.tolist()),
        (scipy.sparse.csr_array(X), c),
        None,
    ],
    ids=["float32", "lists", "sparse", "frame"],
)
def test_kinds_of_data(data):
    if data is None:
        pandas = require("pandas")
        data = pandas.DataFrame(X, columns=list("abcdef")), pandas.Series(c).map(str)
    both(classifier(), GRID, data=data)
    both(pipeline(StandardScaler(with_mean=False)), PIPE_GRID, data=data)


def test_a_randomized_search():
    distributions = {"alpha": scipy.stats.loguniform(1e-4, 1), "batch_size": [20, 30]}
    both(classifier(), distributions, search="RandomizedSearchCV", n_iter=4, random_state=5)


def test_a_fit_that_fails_has_the_error_score():
    grid = {"learning_rate_init": [0.01, 1e200], "solver": ["sgd"]}
    model = nb.MLPRegressor(hidden_layer_sizes=5, max_iter=6, random_state=0)
    with pytest.warns(FitFailedWarning, match="3 fits failed out of a total of 6"):
        both(model, grid, data=(X, y), error_score=-7.0)
    with pytest.raises(ValueError, match="non-finite"):
        nb.GridSearchCV(model, grid, cv=3, error_score="raise").fit(X, y)
    with pytest.raises(ValueError, match="All the 3 fits failed"):
        nb.GridSearchCV(model, {"alpha": [-1.0]}, cv=3).fit(X, y)
    # The next search is as good as new.
    both(classifier(), GRID)


class Counting(TransformerMixin, BaseEstimator):
    """A step that counts its fits, and the arrays that it was given."""

    fits = 0

    def __init__(self, factor=1.0):
        self.factor = factor

    def fit(self, X, y=None):  # noqa: ARG002
        Counting.fits += 1
        self.fitted_ = True
        return self

    def transform(self, X):
        return X * self.factor


@pytest.mark.parametrize("kind", ["array", "frame"])
def test_steps_before_the_last_are_fitted_once_per_fold(kind):
    data = X if kind == "array" else require("pandas").DataFrame(X)
    Counting.fits = 0
    model = make_pipeline(Counting(), classifier())
    grid = {"mlpclassifier__alpha": [0.1, 0.2, 0.3, 0.4], "counting__factor": [1.0, 2.0]}
    search = nb.GridSearchCV(model, grid, cv=3).fit(data, c)
    assert Counting.fits == 2 * 3 + 1
    assert search.best_estimator_.memory is None
    assert search.estimator is model


def test_a_step_that_cannot_be_pickled_is_fitted_each_time():
    both(pipeline(FunctionTransformer(lambda X: X + 1)), PIPE_GRID)


def test_candidates_share_the_rows_of_a_fold():
    seen = []

    class Seeing(nb.MLPClassifier):
        def fit(self, X, y):
            seen.append(X)
            return super().fit(X, y)

    model = Seeing(5, max_iter=2, random_state=0)
    nb.GridSearchCV(model, {"alpha": [0.1, 0.2, 0.3, 0.4]}, cv=3, refit=False).fit(X, c)
    assert len(seen) == 12
    assert len({id(rows) for rows in seen}) == 3


class Keeping(nb.MLPClassifier):
    """A network that keeps its data."""

    def fit(self, X, c):
        self.X_ = X
        return super().fit(X, c)


@pytest.mark.parametrize("steps", [(), (MinMaxScaler(),)], ids=["model", "pipeline"])
def test_the_rows_of_folds_are_dropped_before_the_refit(steps):
    taken = []

    class Seeing(Keeping):
        def fit(self, X, c):
            gc.collect()
            alive = sum(rows() is not None for rows in taken)
            if len(X) == 90:
                assert alive == 0
            taken.append(weakref.ref(X))
            return super().fit(X, c)

    model = make_pipeline(*steps, Seeing(5, max_iter=2, random_state=0))
    search = nb.GridSearchCV(model, {"seeing__alpha": [0.1, 1.0]}, cv=3).fit(X, c)
    assert len(taken) == 7
    kept = search.best_estimator_[-1].X_
    np.testing.assert_array_equal(kept, X if not steps else MinMaxScaler().fit_transform(X))


def test_fit_times_are_those_of_the_fits():
    grid = {"alpha": list(np.logspace(-4, 0, 20))}
    start = time.perf_counter()
    search = nb.GridSearchCV(classifier(max_iter=30), grid, cv=3, refit=False).fit(X, c)
    seconds = time.perf_counter() - start
    # Two threads or more: the waiting of 60 fits for one another would be far more.
    assert 0 < 3 * search.cv_results_["mean_fit_time"].sum() < 8 * seconds


@pytest.mark.parametrize("function", ["cross_validate", "cross_val_score", "cross_val_predict"])
def test_validations(function):
    found, expected = (getattr(module, function)(pipeline(), X, c, cv=4) for module in (nb, theirs))
    if function == "cross_validate":
        assert list(found) == list(expected)
        found, expected = found["test_score"], expected["test_score"]
    np.testing.assert_array_equal(found, expected)


def test_cross_validate_of_searches_shares_all_fits():
    options = {"cv": 2, "return_estimator": True, "return_indices": True}
    found = nb.cross_validate(nb.GridSearchCV(pipeline(), PIPE_GRID, cv=3), X, c, **options)
    expected = theirs.cross_validate(
        theirs.GridSearchCV(pipeline(), PIPE_GRID, cv=3), X, c, **options
    )
    np.testing.assert_array_equal(found["test_score"], expected["test_score"])
    for search, other in zip(found["estimator"], expected["estimator"], strict=True):
        assert_equal_results(search.cv_results_, other.cv_results_)
        assert search.n_fits_together_ == 6


def test_an_inner_search_that_fails_does_not_end_the_outer_validation():
    model = nb.GridSearchCV(classifier(), {"alpha": [0.1, -1.0]}, cv=3, error_score="raise")
    with pytest.raises(ValueError, match=r"All the 2 fits failed(.|\n)*alpha"):
        nb.cross_validate(model, X, c, cv=2)
    scores = []
    for module in (nb, theirs):
        search = module.GridSearchCV(classifier(), {"max_iter": [0, 3]}, cv=3, error_score="raise")
        # Only the search whose grid is wrong fails.
        grid = Pipeline([("search", search)])
        with pytest.warns(FitFailedWarning):
            search = module.GridSearchCV(
                grid,
                {"search__param_grid": [{"max_iter": [0, 3]}, {"max_iter": [2, 3]}]},
                cv=2,
                error_score=-1.0,
            ).fit(X, c)
        scores.append(search.cv_results_["mean_test_score"])
    np.testing.assert_array_equal(*scores)


def test_scikit_learns_own_programs_share_fits_within_a_with_statement():
    programs = [
        lambda: theirs.GridSearchCV(classifier(), GRID, cv=3).fit(X, c).predict_proba(X),
        lambda: theirs.learning_curve(pipeline(), X, c, cv=3)[2],
        lambda: theirs.permutation_test_score(classifier(), X, c, n_permutations=3, random_state=0)[
            1
        ],
        lambda: BaggingClassifier(classifier(), 4, random_state=0).fit(X, c).predict_proba(X),
        lambda: OneVsRestClassifier(classifier()).fit(X, c).predict_proba(X),
    ]
    for program in programs:
        expected = program()
        with nb.side_by_side() as calls:
            found = program()
        np.testing.assert_array_equal(found, expected)
        assert calls.n_together > 1


def test_warnings_are_those_of_the_fits_alone():
    def messages(module):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            filters = list(warnings.filters)
            module.GridSearchCV(pipeline(), PIPE_GRID, cv=3).fit(X, c)
            assert warnings.filters == filters
        return sorted(str(w.message) for w in caught)

    assert messages(nb) == messages(theirs) != []


def test_what_is_refitted_is_left_to_itself():
    backends = []

    class Seeing(BaggingClassifier):
        def fit(self, X, c):
            backends.append(type(joblib.parallel.get_active_backend()[0]))
            return super().fit(X, c)

    model = Seeing(classifier(), 3, random_state=0)
    search = nb.GridSearchCV(model, {"max_samples": [0.5, 1.0]}, cv=2).fit(X, c)
    assert backends[-1] is type(joblib.parallel.get_active_backend()[0])
    assert search.n_fits_together_ == 4


def test_callers_code_has_the_callers_error_state_and_one_thread_at_a_time():
    busy = threading.Lock()
    states = []

    def scorer(model, X, c):
        assert busy.acquire(blocking=False)
        states.append((np.geterr()["over"], sklearn.get_config()["display"]))
        time.sleep(0.001)
        busy.release()
        return model.score(X, c)

    with np.errstate(over="raise"), sklearn.config_context(display="text"):
        nb.GridSearchCV(classifier(), GRID, cv=3, scoring=scorer, error_score="raise").fit(X, c)
    assert states == [("raise", "text")] * 12


@pytest.fixture
def no_collection():
    # Python ignores an interrupt that comes while it collects, in a callback of JAX's.
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def interrupt_soon(seconds):
    main = threading.main_thread().ident
    threading.Timer(seconds, signal.pthread_kill, (main, signal.SIGINT)).start()


def wait_for_calls():
    for thread in threading.enumerate():
        if thread.name == "nnbackend call":
            thread.join(20)
            assert not thread.is_alive()


@pytest.mark.usefixtures("no_collection")
@pytest.mark.filterwarnings("ignore:Training interrupted")
def test_an_interrupt_ends_a_search_in_training():
    model = classifier(max_iter=10**6, tol=0, n_iter_no_change=10**6)
    interrupt_soon(0.5)
    with pytest.raises(KeyboardInterrupt):
        nb.GridSearchCV(model, GRID, cv=3).fit(X, c)
    wait_for_calls()
    both(classifier(), GRID)


@pytest.mark.usefixtures("no_collection")
def test_an_interrupt_ends_a_search_in_the_callers_code():
    leave, seconds = threading.Event(), []

    def scorer(_model, _X, _c):
        interrupt_soon(0.2)
        start = time.perf_counter()
        leave.wait(60)
        seconds.append(time.perf_counter() - start)
        return 0.0

    with pytest.raises(KeyboardInterrupt):
        nb.GridSearchCV(classifier(), GRID, cv=3, scoring=scorer).fit(X, c)
    # The scorer goes on; what else there was does not.
    assert seconds == []
    leave.set()
    wait_for_calls()
    assert len(seconds) == 1


def test_searches_are_estimators_of_scikit_learn():
    search = nb.GridSearchCV(classifier(), GRID, cv=3)
    other = theirs.GridSearchCV(classifier(), GRID, cv=3)
    assert repr(search) == repr(other)
    assert clone(search).get_params(deep=False).keys() == other.get_params(deep=False).keys()
    assert sklearn.utils.get_tags(search) == sklearn.utils.get_tags(other)
    assert isinstance(search, theirs.GridSearchCV)
    fitted = search.fit(X, c)
    again = pickle.loads(pickle.dumps(fitted))  # noqa: S301
    np.testing.assert_array_equal(again.predict_proba(X), fitted.predict_proba(X))
    random = nb.RandomizedSearchCV(classifier(), GRID)
    assert clone(random).get_params(deep=False)["n_iter"] == 10


def test_fitted_pipelines_of_a_search_can_be_pickled():
    fitted = nb.GridSearchCV(pipeline(FunctionTransformer()), PIPE_GRID, cv=3).fit(X, c)
    again = pickle.loads(pickle.dumps(fitted))  # noqa: S301
    np.testing.assert_array_equal(again.predict(X), fitted.predict(X))
