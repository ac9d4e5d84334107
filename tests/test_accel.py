"""scikit-learn's own neural networks, computed by nnbackend: what a program can see of it."""

import inspect
import os
import pickle
import subprocess
import sys
import warnings
from contextlib import contextmanager

import joblib
import numpy as np
import pytest
import scipy.sparse
import sklearn
from sklearn import model_selection
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.model_selection import (
    GridSearchCV,
    RandomizedSearchCV,
    cross_val_predict,
    cross_val_score,
)
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.discovery import all_estimators

import nnbackend as nb
from nnbackend import accel
from nnbackend.accel import searches
from nnbackend.accel.patching import Declined, Patches, Takeover
from nnbackend.accel.records import LEFT, Records

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

RNG = np.random.default_rng(7)
N = 130
X = RNG.standard_normal((N, 5))
Y = {
    "classes": RNG.integers(0, 3, N),
    "two": np.where(X[:, 0] > 0, "yes", "no"),
    "one class": np.zeros(N, int),
    "multilabel": (X[:, :3] > 0).astype(int),
    "number": X[:, 0] * X[:, 1],
    "numbers": X[:, :2] @ RNG.standard_normal((2, 2)),
    "counts": RNG.poisson(np.exp(0.5 * X[:, 0])).astype(float),
}
CLASSIFIED = ("classes", "two", "one class", "multilabel")
# What differs: a generator is handed over where the fit began, and without early stopping the best
# parameters are the last and not the first.
DIFFERENT = {"_random_state", "_best_coefs", "_best_intercepts"}


@pytest.fixture
def installed():
    accel.install()


@pytest.fixture(autouse=True)
def _uninstalled_at_the_end():
    yield
    accel.uninstall()


def model(target, **options):
    options = {"max_iter": 12, "batch_size": 20, "random_state": 3, **options}
    if target in CLASSIFIED:
        return MLPClassifier((6, 4), **options)
    options["loss"] = "poisson" if target == "counts" else "squared_error"
    return MLPRegressor(hidden_layer_sizes=(6, 4), **options)


def switch(is_on):
    (accel.install if is_on else accel.uninstall)()


def taken(name):
    """Return how many calls of a method the report counts as taken over."""
    part = accel.report().partition("left to")[0].partition("ended with")[0]
    return sum(int(line.split()[1]) for line in part.splitlines() if line.split()[:1] == [name])


def assert_equal_attributes(found, expected, different=DIFFERENT):
    """Check that two estimators have equal attributes, the optimizer's and private ones too."""
    assert type(found) is type(expected)
    left, right = vars(found), vars(expected)
    assert left.keys() == right.keys()
    for name in left.keys() - different:
        assert_equal(left[name], right[name], name)


def assert_equal(found, expected, name):
    if hasattr(expected, "__dict__") and not isinstance(expected, np.generic | type):
        assert_equal_attributes(found, expected, set())
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), name
        for left, right in zip(found, expected, strict=True):
            assert_equal(left, right, name)
    elif isinstance(expected, np.ndarray | float) and np.asarray(expected).dtype.kind == "f":
        assert np.asarray(found).dtype == np.asarray(expected).dtype, name
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-9, err_msg=name)
    else:
        np.testing.assert_array_equal(found, expected, err_msg=name)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"solver": "sgd", "learning_rate": "invscaling", "learning_rate_init": 0.1},
        {"solver": "sgd", "learning_rate": "adaptive", "tol": 0.1, "n_iter_no_change": 1},
        {"early_stopping": True, "n_iter_no_change": 2},
        {"solver": "lbfgs"},
    ],
)
@pytest.mark.parametrize("target", Y)
def test_a_fit_leaves_what_scikit_learns_own_leaves(target, options):
    if target == "two" and "early_stopping" in options and sklearn.__version__ < "1.8":
        pytest.skip("scikit-learn 1.7 cannot score text")
    expected = model(target, **options).fit(X, Y[target])
    accel.install()
    found = model(target, **options).fit(X, Y[target])
    name = type(found).__name__
    assert taken(f"{name}.fit") == 1
    different = DIFFERENT - {"_best_coefs"} if "early_stopping" in options else DIFFERENT
    assert_equal_attributes(found, expected, different)
    np.testing.assert_allclose(found.score(X, Y[target]), expected.score(X, Y[target]), rtol=1e-9)
    predicted = found.predict(X)
    assert taken(f"{name}.predict") == 3  # two scores besides
    accel.uninstall()
    assert predicted.dtype == found.predict(X).dtype
    if target in CLASSIFIED:
        np.testing.assert_array_equal(predicted, found.predict(X))
    else:
        np.testing.assert_allclose(predicted, found.predict(X), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("is_on", [(True, False, True), (False, True, False)])
@pytest.mark.parametrize("solver", ["adam", "sgd"])
@pytest.mark.parametrize("target", ["classes", "two", "multilabel", "numbers"])
def test_partial_fit_goes_on_where_the_other_one_stopped(target, solver, is_on):
    def trained(switches):
        net = model(target, solver=solver)
        classes = {"classes": np.unique(Y[target])} if target in ("classes", "two") else {}
        if target == "multilabel":
            classes = {"classes": np.arange(3)}
        for turn in switches:
            switch(turn)
            net.partial_fit(X, Y[target], **classes)
            classes = {}
        return net

    assert_equal_attributes(trained(is_on), trained((False,) * 3))


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("is_on", [(True, False), (False, True), (True, True)])
def test_a_warm_start_goes_on_where_the_other_one_stopped(is_on, early_stopping):
    def trained(switches):
        net = model("classes", warm_start=True, early_stopping=early_stopping)
        for turn in switches:
            switch(turn)
            net.fit(X, Y["classes"])
        return net

    assert_equal_attributes(trained(is_on), trained((False, False)))


def test_a_refit_to_another_kind_of_target_leaves_nothing_of_the_first():
    def trained(*, is_on):
        switch(is_on)
        net = model("classes").fit(X, Y["classes"])
        return net.fit(X, Y["multilabel"])

    found, expected = trained(is_on=True), trained(is_on=False)
    assert_equal_attributes(found, expected)
    np.testing.assert_array_equal(found.predict(X), expected.predict(X))


@pytest.mark.parametrize("change", [{"momentum": 0.1}, {"learning_rate_init": 0.1}])
def test_a_partial_fit_with_another_optimizer_than_before_is_left_to_scikit_learn(change):
    def trained(*, is_on):
        switch(is_on)
        net = model("number", solver="sgd").partial_fit(X, Y["number"])
        return net.set_params(**change).partial_fit(X, Y["number"])

    found = trained(is_on=True)
    assert "parameters of the optimizer have changed" in accel.report()
    assert_equal_attributes(found, trained(is_on=False))


def test_classes_instances_and_subclasses_of_before_are_taken_over_and_put_back():
    class Own(MLPClassifier):
        def __init__(self, size=3):
            super().__init__((size,), max_iter=5, batch_size=20, random_state=0)
            self.size = size

    before = MLPClassifier((3,), max_iter=5, batch_size=20, random_state=0)
    methods, bound = {kind: dict(vars(kind)) for kind in (MLPClassifier, MLPRegressor)}, before.fit
    accel.install()
    before.fit(X, Y["classes"])
    own = clone(Own(3)).fit(X, Y["classes"])
    assert taken("MLPClassifier.fit") == 2
    assert_equal(own.coefs_, before.coefs_, "coefs_")
    held = before.fit
    accel.uninstall()
    assert {kind: dict(vars(kind)) for kind in methods} == methods
    counts = accel.report()
    held(X, Y["classes"])  # the method of then, now scikit-learn's
    bound(X, Y["classes"])
    assert accel.report() == counts


@pytest.mark.usefixtures("installed")
def test_what_identifies_an_estimator_stays_scikit_learns():
    net = MLPClassifier(alpha=0.1)
    assert sklearn.neural_network.MLPClassifier is MLPClassifier
    assert ("MLPClassifier", MLPClassifier) in all_estimators()
    assert MLPClassifier.__module__ == "sklearn.neural_network._multilayer_perceptron"
    assert repr(net) == "MLPClassifier(alpha=0.1)"
    assert "MLPClassifier" in net._repr_html_()
    assert "engine" not in net.get_params()
    assert list(inspect.signature(net.fit).parameters) == ["X", "y", "sample_weight"]
    assert list(inspect.signature(net.partial_fit).parameters)[-1] == "classes"
    assert net.predict.__doc__.startswith("Predict using")
    assert pickle.loads(pickle.dumps(MLPClassifier.fit)) is MLPClassifier.fit  # noqa: S301
    with sklearn.config_context(enable_metadata_routing=True):
        assert net.set_fit_request(sample_weight=True) is net
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        weighted = make_pipeline(scaler, net).fit(X, Y["two"], sample_weight=np.ones(N))
    assert weighted.score(X, Y["two"]) > 0.5


@pytest.mark.usefixtures("installed")
def test_partial_fit_exists_only_with_steps():
    assert not hasattr(MLPClassifier(solver="lbfgs"), "partial_fit")
    assert hasattr(MLPClassifier(), "partial_fit")
    assert inspect.isfunction(MLPClassifier.partial_fit)
    with pytest.raises(AttributeError, match="has no attribute 'partial_fit'"):
        MLPClassifier(solver="lbfgs").partial_fit(X, Y["two"])


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({"activation": "gelu"}, (X, Y["two"])),  # known to nnbackend alone
        ({"alpha": -1}, (X, Y["two"])),
        ({"batch_size": 0}, (X, Y["two"])),
        ({"batch_size": "all"}, (X, Y["two"])),
        ({"hidden_layer_sizes": (3, 0)}, (X, Y["two"])),
        ({}, (X, Y["two"][:-1])),
        ({}, (X * np.nan, Y["two"])),
        ({}, (X, None)),
        ({}, (X,)),
        ({}, (X, Y["number"])),
        ({}, (X, Y["two"], np.ones(3))),
        ({"early_stopping": True}, (X[:8], np.arange(8) % 2)),
        ({"early_stopping": True}, (X, np.r_[1, np.zeros(N - 1)])),
        ({"solver": "sgd", "learning_rate_init": 1e200}, (X, Y["two"])),
    ],
)
def test_errors_are_scikit_learns_own(options, arguments):
    generators, raised = [], []
    for is_on in (False, True):
        switch(is_on)
        generators.append(np.random.RandomState(0))
        net = MLPClassifier(max_iter=30).set_params(random_state=generators[-1], **options)
        with pytest.raises(Exception, match=r".") as caught, np.errstate(all="ignore"):
            net.fit(*arguments)
        raised.append((caught.type, str(caught.value)))
    assert raised[0] == raised[1]
    # As many numbers were drawn.
    assert generators[0].random() == generators[1].random()
    assert f"{raised[0][0].__name__}: " in accel.report()


def test_evaluating_an_unfitted_one_and_too_few_features_raise_scikit_learns_errors():
    fitted = model("classes").fit(X, Y["classes"])
    for net, rows in ((model("classes"), X), (fitted, X[:, :2]), (fitted, X[0])):
        texts = []
        for is_on in (False, True):
            switch(is_on)
            with pytest.raises(ValueError, match=r"fit|features|1D array") as caught:
                net.predict_proba(rows)
            texts.append((caught.type, str(caught.value)))
        assert texts[0] == texts[1]


class Doubled(MLPRegressor):
    def _init_coef(self, *arguments):
        return tuple(2 * x for x in super()._init_coef(*arguments))


def test_what_is_not_taken_over_is_computed_by_scikit_learn_and_reported_with_its_reason():
    def results():
        sparse = scipy.sparse.csr_matrix(Y["multilabel"])
        return [
            Doubled(hidden_layer_sizes=(4,), max_iter=9, random_state=0)
            .fit(X, Y["number"])
            .predict(X),
            model("multilabel").fit(X, sparse).predict(X).toarray(),
            model("number").fit(X, Y["number"]).predict(scipy.sparse.csr_matrix((2**20, 5))),
            model("number").fit(X, Y["number"], sample_weight=X[:, 0]).coefs_[0],
            model("number", max_iter=1, batch_size=N).fit(X, Y["number"]).coefs_[0],
        ]

    expected = results()
    accel.install()
    found = results()
    for left, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-12)
    report = accel.report()
    for reason in (
        "MLPRegressor.fit", "Doubled has its own _init_coef", "y is sparse",
        "was fitted to a sparse y", "at most 4 steps", "weights",
    ):  # fmt: skip
        assert reason in report.partition("left to scikit-learn")[2], reason


@pytest.mark.usefixtures("installed")
def test_a_sparse_matrix_is_taken_over_where_it_is_small():
    dense = model("two").fit(X, Y["two"])
    found = model("two").fit(scipy.sparse.csr_matrix(X), Y["two"])
    assert_equal(found.coefs_, dense.coefs_, "coefs_")
    assert taken("MLPClassifier.fit") == 2
    found.predict(scipy.sparse.csr_matrix((2**23, 5)))
    assert "large sparse matrix" in accel.report()


def test_warnings_come_from_where_scikit_learns_come():
    origins = []
    for is_on in (False, True):
        switch(is_on)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("error")
            warnings.filterwarnings("always", category=ConvergenceWarning, module="sklearn")
            model("two").fit(X, Y["two"])
        origins.append([(w.category, str(w.message), w.filename) for w in caught])
    assert len(origins[0]) == 1
    assert origins[0] == origins[1]


def test_a_warning_that_is_an_error_leaves_a_fitted_estimator():
    left = []
    for is_on in (False, True):
        switch(is_on)
        left.append(model("two"))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ConvergenceWarning):
                left[-1].fit(X, Y["two"])
    assert_equal_attributes(left[1], left[0])


@pytest.mark.usefixtures("installed")
def test_searches_of_scikit_learn_find_the_same():
    def searched():
        net = make_pipeline(StandardScaler(), model("classes"))
        grid = {"mlpclassifier__alpha": [1e-4, 1.0]}
        return GridSearchCV(net, grid, cv=3).fit(X, Y["classes"]).cv_results_["mean_test_score"]

    found = searched()
    assert taken("MLPClassifier.fit") == 7
    accel.uninstall()
    np.testing.assert_allclose(found, searched(), rtol=1e-12)


@pytest.mark.usefixtures("installed")
def test_threads_are_taken_over():
    with joblib.parallel_config("threading", n_jobs=2):
        scores = cross_val_score(model("two"), X, Y["two"], cv=4)
    assert taken("MLPClassifier.fit") == 4
    accel.uninstall()
    np.testing.assert_array_equal(scores, cross_val_score(model("two"), X, Y["two"], cv=4))


def searching(**options):
    net = make_pipeline(StandardScaler(), model("classes", **options))
    grid = {
        "mlpclassifier": [net[-1], model("classes", activation="tanh")],
        "mlpclassifier__alpha": [1e-4, 1.0],
    }
    return net, grid


SEARCHES = {
    "grid": lambda n_jobs: GridSearchCV(*searching(), cv=3, n_jobs=n_jobs),
    "random": lambda n_jobs: RandomizedSearchCV(
        *searching(), n_iter=4, cv=3, n_jobs=n_jobs, random_state=0,
        scoring=["accuracy", "f1_micro"], refit="accuracy", return_train_score=True,
    ),
    "direct": lambda n_jobs: GridSearchCV(
        model("classes"), {"alpha": [1e-4, 1.0], "solver": ["lbfgs", "adam"]}, cv=3, n_jobs=n_jobs
    ),
}  # fmt: skip


@pytest.fixture
def meetings(monkeypatch):
    """Return a list to which each search and validation that is taken over adds its counts."""
    found = []

    @contextmanager
    def counted(**options):
        with nb.side_by_side(**options) as calls:
            yield calls
        found.append((calls.n_together, calls.n_calls))

    monkeypatch.setattr(searches, "side_by_side", counted)
    return found


@pytest.mark.parametrize("n_jobs", [None, 2])
@pytest.mark.parametrize("kind", SEARCHES)
def test_the_networks_of_a_search_train_side_by_side_to_equal_results(kind, n_jobs, meetings):
    expected = SEARCHES[kind](None).fit(X, Y["classes"])
    accel.install()
    search = SEARCHES[kind](n_jobs)
    assert search.fit(X, Y["classes"]) is search
    assert meetings == [(6 if kind == "direct" else 12, 12)]
    assert taken(f"{type(search).__name__}.fit") == 1
    assert taken("MLPClassifier.fit") == 13
    assert search.cv_results_.keys() == expected.cv_results_.keys()
    assert search.best_index_ == expected.best_index_
    for name, values in expected.cv_results_.items():
        if "score" in name and "time" not in name:
            np.testing.assert_allclose(search.cv_results_[name], values, rtol=1e-9, err_msg=name)
    best, expected_best = search.best_estimator_, expected.best_estimator_
    if kind != "direct":
        best, expected_best = best[-1], expected_best[-1]
    assert_equal_attributes(best, expected_best)


@pytest.mark.usefixtures("installed")
def test_a_fitted_search_is_read_where_there_is_no_nnbackend(tmp_path):
    search = SEARCHES["grid"](2).fit(X, Y["classes"])
    (tmp_path / "search").write_bytes(pickle.dumps((search, X)))
    code = (
        "import pickle, sys; sys.modules['nnbackend'] = None\n"
        "search, X = pickle.load(open('search', 'rb'))\n"
        "pickle.dump(search.predict(X), open('back', 'wb'))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=60)
    back = pickle.loads((tmp_path / "back").read_bytes())  # noqa: S301
    np.testing.assert_array_equal(back, search.predict(X))


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_the_networks_of_validations_train_side_by_side(n_jobs, meetings):
    net = make_pipeline(StandardScaler(), model("numbers"))

    def results(n_jobs):
        arguments = {"estimator": net, "X": X, "y": Y["numbers"], "cv": 3, "n_jobs": n_jobs}
        return [
            cross_val_predict(**arguments),
            cross_val_score(**arguments),
            model_selection.cross_validate(**arguments)["test_score"],
        ]

    expected = results(None)
    accel.install()
    found = results(n_jobs)
    assert meetings == [(3, 3)] * 3
    assert (taken("cross_validate"), taken("cross_val_predict")) == (2, 1)
    for left, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-8)


@pytest.mark.parametrize(
    ("estimator", "grid", "reason"),
    [
        (LogisticRegression(), {"C": [1.0]}, "LogisticRegression is not one of"),
        (model("two"), {"alpha": [1.0], "random_state": [0]}, ""),
        (model("two", solver="lbfgs"), {"alpha": [1.0]}, "trains one network after another"),
        (
            make_pipeline(StandardScaler(), model("two")),
            [{}, {"mlpclassifier": [model("two"), LogisticRegression()]}],
            "LogisticRegression is not one of",
        ),
    ],
)
def test_searches_for_other_estimators_are_left_to_scikit_learn(estimator, grid, reason, meetings):
    accel.install()
    GridSearchCV(estimator, grid, cv=3).fit(X, Y["two"])
    assert len(meetings) == (not reason)
    assert reason in accel.report()


@pytest.mark.usefixtures("installed")
def test_a_backend_that_the_program_has_chosen_runs_a_search(meetings):
    for backend in ("threading", "sequential"):
        with joblib.parallel_config(backend):
            SEARCHES["grid"](2).fit(X, Y["classes"])
    assert not meetings
    assert "the program has chosen joblib's ThreadingBackend" in accel.report()
    with joblib.parallel_config(n_jobs=2):
        SEARCHES["grid"](None).fit(X, Y["classes"])
    assert meetings == [(12, 12)]
    with nb.side_by_side() as calls:
        SEARCHES["grid"](None).fit(X, Y["classes"])
    assert calls.n_together == 12


def test_errors_of_a_search_are_scikit_learns_own_and_happen_once():
    raised, counts = [], []
    for is_on in (False, True):
        switch(is_on)
        scored = []

        def scorer(*arguments, scored=scored):
            scored.append(arguments)
            raise ValueError("no score")

        for options, arguments in (
            ({"scoring": scorer, "error_score": "raise"}, (X, Y["two"])),
            ({}, (X, Y["two"][:-1])),
            ({"cv": "three"}, (X, Y["two"])),
            ({"error_score": "raise"}, (X, Y["number"])),
            ({"estimator__alpha": -1.0}, (X, Y["two"])),
        ):
            search = GridSearchCV(model("two"), {"tol": [0.0]}, cv=3).set_params(**options)
            with pytest.raises(Exception, match=r".") as caught:
                search.fit(*arguments)
            raised.append((caught.type, str(caught.value).partition("Traceback")[0]))
        counts.append(len(scored))
    assert raised[:5] == raised[5:]
    assert counts[1] <= 3
    assert "GridSearchCV.fit" in accel.report().partition("ended with an error")[2]


@pytest.mark.usefixtures("installed")
def test_a_pickle_is_read_and_trained_on_where_there_is_no_nnbackend(tmp_path):
    net = model("two").fit(X, Y["two"])
    (tmp_path / "net").write_bytes(pickle.dumps((net, X, Y["two"])))
    code = (
        "import pickle, sys; sys.modules['nnbackend'] = None\n"
        "net, X, y = pickle.load(open('net', 'rb'))\n"
        "probabilities = net.predict_proba(X)\n"
        "pickle.dump((probabilities, net.partial_fit(X, y)), open('back', 'wb'))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=60)
    probabilities, back = pickle.loads((tmp_path / "back").read_bytes())  # noqa: S301
    np.testing.assert_allclose(net.predict_proba(X), probabilities, rtol=1e-9)
    assert_equal_attributes(back, net.partial_fit(X, Y["two"]))
    assert taken("MLPClassifier.partial_fit") == 1


def test_installing_twice_and_the_other_names_of_it():
    accel.patch_sklearn()
    accel.install()
    model("two").fit(X, Y["two"])
    accel.load_ipython_extension(None)
    assert taken("MLPClassifier.fit") == 1, "a second install begins nothing anew"
    accel.unload_ipython_extension(None)
    model("two").fit(X, Y["two"])
    assert taken("MLPClassifier.fit") == 1
    accel.unpatch_sklearn()
    accel.install()
    assert accel.report() == "nnbackend.accel: nothing was called that it takes over"


def test_a_replacement_by_someone_else_stays(monkeypatch):
    accel.install()
    ours = MLPRegressor.predict

    def predict(self, X):
        return ours(self, X)

    monkeypatch.setattr(MLPRegressor, "predict", predict)
    accel.uninstall()
    assert MLPRegressor.predict is predict
    assert model("number").fit(X, Y["number"]).predict(X).shape == (N,)


def test_a_function_is_replaced_wherever_it_was_imported():
    def run(y_true, y_pred):
        if len(y_true) > 2:
            raise Declined("they are many")
        return "ours", y_pred

    original = accuracy_score
    patches = Patches([Takeover("sklearn.metrics", "accuracy_score", run)])
    patches.install()
    try:
        for function in (accuracy_score, sklearn.metrics.accuracy_score):
            assert function([1, 0], y_pred=[1, 1]) == ("ours", [1, 1])
        assert accuracy_score([1, 0, 0], [1, 0, 0]) == 1.0
        assert inspect.signature(accuracy_score) == inspect.signature(original)
    finally:
        patches.uninstall()
    assert accuracy_score is original
    assert sklearn.metrics.accuracy_score is original
    assert "they are many" in patches.records.text()


def test_an_error_that_is_no_refusal_is_raised_and_counted():
    def run(*arguments):
        raise MemoryError(*arguments[:1])

    patches = Patches([Takeover("sklearn.metrics", "accuracy_score", run)])
    patches.install()
    try:
        with pytest.raises(MemoryError, match="one"):
            accuracy_score("one", [1])
    finally:
        patches.uninstall()
    assert "MemoryError" in patches.records.text().partition("ended with an error")[2]


def test_reasons_with_ever_other_values_do_not_pile_up():
    records = Records()
    for number in range(1000):
        records.add(LEFT, "f", 0.0, f"it is {number}")
    lines = records.text().splitlines()
    assert len(lines) < 300
    assert sum(int(line.split()[1]) for line in lines if line.startswith("  f")) == 1000


SCRIPT = """
import sys
from sklearn.neural_network import MLPClassifier
assert __name__ == "__main__" and sys.modules["__main__"].MLPClassifier is MLPClassifier
import beside
class Own(MLPClassifier):
    pass
import pickle
X = [[0.0, 1.0], [1.0, 0.0]] * 20
net = pickle.loads(pickle.dumps(Own((2,), max_iter=9, batch_size=10, tol=0.0).fit(X, [0, 1] * 20)))
print(sys.argv, net.predict(X[:2]).shape)
"""


def command(tmp_path, *arguments):
    (tmp_path / "folder").mkdir(exist_ok=True)
    (tmp_path / "folder" / "beside.py").write_text("")
    (tmp_path / "folder" / "program.py").write_text(SCRIPT)
    (tmp_path / "folder" / "exits.py").write_text(SCRIPT + "sys.exit(7)")
    (tmp_path / "folder" / "fails.py").write_text(SCRIPT + "1 / 0")
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "nnbackend.accel", *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.path.dirname(os.path.dirname(nb.__file__))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_runs_a_script_as_python_does_and_reports_at_the_end(tmp_path):
    done = command(tmp_path, "--report", "folder/fails.py", "--report", "a b")
    assert done.returncode == 1
    assert done.stdout == "['folder/fails.py', '--report', 'a b'] (2,)\n"
    error, _, report = done.stderr.partition("ZeroDivisionError: division by zero\n")
    assert "Traceback" in error
    assert "took over 2 of 2 calls" in report
    assert [line.split()[:2] for line in report.splitlines()[-2:]] == [
        ["MLPClassifier.fit", "1"], ["MLPClassifier.predict", "1"],
    ]  # fmt: skip


@pytest.mark.slow
def test_the_command_runs_modules_and_code_and_keeps_exit_codes(tmp_path):
    done = command(tmp_path, "folder/exits.py")
    assert (done.returncode, done.stderr) == (7, "")
    done = command(tmp_path, "-m", "folder.program", "-m")
    assert done.returncode == 1
    assert "No module named 'beside'" in done.stderr
    code = "import sys; sys.path.insert(0, 'folder'); import program; print(sys.argv, __name__)"
    done = command(tmp_path, "--report", "-c", code.replace("import program;", ""), "x")
    assert done.stdout == "['-c', 'x'] __main__\n"
    assert "nothing was called" in done.stderr
    done = command(tmp_path, "-m", "json.tool", "--help")
    assert done.returncode == 0
    assert "json.tool" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "got nothing"),
        (("-m",), "expected a module after -m"),
        (("--fast", "x.py"), "got --fast"),
        (("missing.py",), "cannot open 'missing.py'"),
    ],
)
def test_the_command_refuses_what_it_cannot_run(arguments, message, monkeypatch, capsys):
    import runpy

    monkeypatch.setattr(sys, "argv", ["accel", *arguments])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("nnbackend.accel", run_name="__main__")
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_an_unknown_scikit_learn_is_left_as_it_is():
    program = """
import warnings
from sklearn.neural_network import MLPRegressor
inner = MLPRegressor.partial_fit
def partial_fit(self, X, y):
    fitted = inner(self, X, y)
    del fitted._optimizer
    return fitted
MLPRegressor.partial_fit = partial_fit
import nnbackend.accel
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    nnbackend.accel.install()
print(*(warning.message for warning in caught))
print(MLPRegressor(max_iter=5).fit([[0.0], [1.0]], [0.0, 1.0]).n_iter_)
print(nnbackend.accel.report())
"""
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "nothing is taken over" in done.stdout
    assert "\n5\n" in done.stdout
    assert "nothing was called that it takes over" in done.stdout
