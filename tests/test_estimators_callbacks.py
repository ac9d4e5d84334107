"""scikit-learn's callbacks on the estimators: they see what the caller passed."""

import numpy as np
import pytest
import sklearn
from backends import require, require_dispatched
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import nnbackend as nb

ScoringMonitor = pytest.importorskip("sklearn.callback").ScoringMonitor
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

RNG = np.random.default_rng(2)
X = RNG.standard_normal((120, 4))
WEIGHT = RNG.random(120)
BINARY = X[:, 0] > 0
TARGETS = {
    "labels 1 and 2": BINARY + 1,
    "text": np.where(BINARY, "yes", "no"),
    "three classes": np.digitize(X[:, 0], [-0.5, 0.5]) + 7,
    "multilabel": (X[:, :3] > 0).astype(int),
    "one output": X[:, 0] - X[:, 1],
    "two outputs": X[:, :2] @ RNG.standard_normal((2, 2)),
}


def estimator(target, **options):
    make = nb.MLPRegressor if "output" in target else nb.MLPClassifier
    options = {"max_iter": 5, "learning_rate_init": 0.05, "random_state": 0, **options}
    return make(hidden_layer_sizes=(8,), **options)


class Recorder:
    """Keeps what it is handed, and the score of the fitted estimator on that."""

    def __init__(self):
        self.passed, self.scores = [], []

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context, *, X, y, metadata, fitted_estimator):  # noqa: ARG002
        self.passed.append((X, y, metadata))
        if context.task_name == "epoch":
            self.scores.append(fitted_estimator.score(X, y, **(metadata or {})))

    def on_fit_task_end(self, estimator, context, *, X, y, metadata, fitted_estimator):  # noqa: ARG002
        # scikit-learn's logistic regression ends an iteration that it did not run without data.
        if X is not None:
            self.passed.append((X, y, metadata))
            self.scores.append(fitted_estimator.score(X, y, **(metadata or {})))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["", "weighted"])
def test_a_monitor_logs_the_models_own_score(weight, solver, target):
    y = TARGETS[target]
    scoring = "r2" if "output" in target else "accuracy"
    monitor = ScoringMonitor(scoring=scoring)
    model = estimator(target, solver=solver).set_callbacks(monitor)
    model.fit(X, y, sample_weight=weight)
    logged = {row["task_id_path"]: row[scoring] for row in monitor.get_logs().data}
    # One entry for each epoch, and one for the whole fit.
    assert len(logged) == 1 + (model.n_iter_ if solver == "adam" else 0)
    expected = model.score(X, y, sample_weight=weight)
    assert logged[(0,)] == expected
    if solver == "adam":
        assert logged[0, model.n_iter_ - 1] == expected
        short = estimator(target, max_iter=2).fit(X, y, sample_weight=weight)
        assert logged[0, 1] == short.score(X, y, sample_weight=weight)


def test_callbacks_are_handed_what_scikit_learns_own_estimators_hand_on():
    y = TARGETS["text"]
    for model in (estimator("text", early_stopping=True), LogisticRegression()):
        recorder = Recorder()
        model.set_callbacks(recorder).fit(X, y, sample_weight=WEIGHT)
        assert len(recorder.passed) > 4
        for passed, labels, metadata in recorder.passed:
            np.testing.assert_array_equal(passed, X)
            np.testing.assert_array_equal(labels, y)
            assert list(metadata) == ["sample_weight"]
            np.testing.assert_array_equal(metadata["sample_weight"], WEIGHT)


def test_an_epoch_begins_where_the_one_before_ended():
    recorder = Recorder()
    model = estimator("text").set_callbacks(recorder).fit(X, TARGETS["text"])
    ends, begins = recorder.scores[1:-1:2], recorder.scores[0:-1:2]
    assert begins[1:] == ends[:-1]
    assert recorder.scores[-1] == ends[-1] == model.score(X, TARGETS["text"])


def test_frames_and_other_libraries_arrays_come_as_they_are():
    pandas, torch = require("pandas"), require_dispatched("torch")
    frame = pandas.DataFrame(X, columns=list("abcd"))
    recorder = Recorder()
    # Without the names, which a copy in NumPy has lost, scikit-learn would warn.
    estimator("text").set_callbacks(recorder).fit(frame, pandas.Series(TARGETS["text"]))
    assert all(passed is frame for passed, _, _ in recorder.passed)
    recorder = Recorder()
    tensor, labels = torch.asarray(X), torch.asarray(TARGETS["labels 1 and 2"])
    with sklearn.config_context(array_api_dispatch=True):
        model = estimator("labels").set_callbacks(recorder).fit(tensor, labels)
        assert recorder.scores[-1] == model.score(tensor, labels)
    assert all(passed is tensor for passed, _, _ in recorder.passed)


def test_partial_fit_and_pipelines_hand_on_labels():
    recorder = Recorder()
    model = estimator("text").set_callbacks(recorder)
    for rows in (slice(0, 60), slice(60, 120)):
        model.partial_fit(X[rows], TARGETS["text"][rows], classes=["no", "yes"])
    assert recorder.scores[-1] == model.score(X[60:], TARGETS["text"][60:])
    monitor = ScoringMonitor(scoring="accuracy")
    last = estimator("text").set_callbacks(monitor)
    pipeline = make_pipeline(StandardScaler(), last).fit(X, TARGETS["text"])
    score = pipeline.score(X, TARGETS["text"])
    assert monitor.get_logs().data[0]["accuracy"] == score
