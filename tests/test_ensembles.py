"""Ensembles: each member is what its fit alone gives, and the mean goes to files and graphs."""

import csv
import importlib.util
import json
import os
import pickle
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import scipy.sparse
import sklearn
from backends import require, require_dispatched
from devices import on_each_device
from sklearn.base import clone, is_classifier
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neural_network import MLPClassifier as TheirClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import nnbackend as nb
from nnbackend.device import get_device
from nnbackend.errors import DeviceError, ModelFileError
from nnbackend.io.container import digest
from nnbackend.training.checkpoint import read_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

try:
    HAS_GPU = bool(get_device("cuda"))
except DeviceError:
    HAS_GPU = False
IS_BEFORE_1_9 = importlib.util.find_spec("sklearn.callback") is None
RNG = np.random.default_rng(0)
X = RNG.standard_normal((90, 4))
Y = {
    "two": np.where(X[:, 0] + 0.5 * RNG.standard_normal(90) > 0, "yes", "no"),
    "three": np.digitize(X[:, 0], [-0.5, 0.5]) + 7,
    "multilabel": (X[:, :3] > 0).astype(int),
    "number": X[:, 0] * X[:, 1] + 0.1 * RNG.standard_normal(90),
    "numbers": X[:, :2] @ RNG.standard_normal((2, 2)),
}
MEMBER = {"hidden_layer_sizes": (6, 5), "max_iter": 8, "learning_rate_init": 0.02}


def ensemble(target, n_estimators=4, member=None, **options):
    """Return an ensemble for a target, not fitted."""
    is_regression = target.startswith("number")
    kinds = (
        (nb.EnsembleRegressor, nb.MLPRegressor)
        if is_regression
        else (nb.EnsembleClassifier, nb.MLPClassifier)
    )
    options = {"random_state": 3, **options}
    return kinds[0](kinds[1](**{**MEMBER, **(member or {})}), n_estimators, **options)


def fitted(target, *args, dtype="float64", **options):
    return ensemble(target, *args, **options).fit(X.astype(dtype), Y[target])


def assert_same_bits(first, second):
    for name in ("coefs_", "intercepts_"):
        for a, b in zip(getattr(first, name), getattr(second, name), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


# Members ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("target", Y)
@pytest.mark.parametrize(
    "member",
    [
        {},
        {"solver": "lbfgs"},
        {"early_stopping": True, "validation_fraction": 0.3, "dropout": 0.2},
        {"solver": "sgd", "batch_size": 7, "optimizer": "adamw"},
    ],
    ids=",".join,
)
def test_members_are_what_each_is_alone(target, member, dtype):
    model = fitted(target, member=member, dtype=dtype)
    assert len({entry.random_state for entry in model.estimators_}) == 4
    for entry in model.estimators_:
        assert_same_bits(clone(entry).fit(X.astype(dtype), Y[target]), entry)


@pytest.mark.parametrize("bootstrap", [False, True])
def test_more_members_leave_the_first_as_they_are(bootstrap):
    few, many = (fitted("three", n, bootstrap=bootstrap) for n in (2, 5))
    for first, second in zip(few.estimators_, many.estimators_, strict=False):
        assert_same_bits(first, second)
    again = fitted("three", 5, bootstrap=bootstrap)
    np.testing.assert_array_equal(again.predict_proba(X), many.predict_proba(X))
    other = fitted("three", 5, bootstrap=bootstrap, random_state=4)
    assert not np.array_equal(other.predict_proba(X), many.predict_proba(X))


def test_defaults_are_sixteen_of_the_default_estimator():
    model = nb.EnsembleClassifier().set_params(random_state=0).fit(X[:20], Y["two"][:20])
    assert len(model.estimators_) == 16
    assert model.estimators_[0].get_params() == {
        **nb.MLPClassifier().get_params(),
        "random_state": model.estimators_[0].random_state,
    }


def test_bootstrap_weights_rows_by_how_often_they_were_drawn():
    weight = np.where(np.arange(90) < 30, 0.0, RNG.random(90) + 0.5)
    model = ensemble("number", 3, bootstrap=True, random_state=np.random.RandomState(5))
    model.fit(X, Y["number"], sample_weight=weight)
    random = np.random.RandomState(5)
    for entry in model.estimators_:
        assert entry.random_state == random.randint(2**31 - 1)
        # Rows without weight are not drawn.
        counts = np.bincount(30 + random.randint(60, size=60), minlength=90)
        assert_same_bits(clone(entry).fit(X, Y["number"], sample_weight=counts * weight), entry)


def test_a_class_that_a_member_did_not_draw_is_known_to_it():
    y = np.where(np.arange(90) == 17, "rare", Y["two"])
    model = ensemble("two", 12, {"max_iter": 100}, bootstrap=True).fit(X, y)
    assert model.classes_.tolist() == ["no", "rare", "yes"]
    members = model.predict_members(X)
    assert members.shape == (12, 90, 3)
    # About a third of the members never saw the row.
    assert (members[:, 17, 1] < 0.05).any()
    np.testing.assert_allclose(model.predict_proba(X).sum(axis=1), 1.0, rtol=1e-12)


def test_early_stopping_with_a_bootstrap_and_with_validation_data():
    options = {"early_stopping": True, "validation_fraction": 0.3}
    model = ensemble("number", member=options, bootstrap=True).fit(X, Y["number"])
    assert all(entry.validation_scores_ for entry in model.estimators_)
    model.fit(X[:60], Y["number"][:60], X_val=X[60:], y_val=Y["number"][60:])
    for entry in model.estimators_:
        assert entry.best_validation_score_ == max(entry.validation_scores_)
        assert len(entry.validation_loss_curve_) == entry.n_iter_
    with pytest.raises(nb.InputError, match="X_val, y_val: expected both or neither"):
        model.fit(X, Y["number"], X_val=X)


def test_features_are_not_copied_for_every_member():
    tracemalloc = require("tracemalloc")
    rows = RNG.standard_normal((4000, 100))
    model = nb.EnsembleClassifier(
        nb.MLPClassifier((4,), max_iter=1), n_estimators=16, bootstrap=True, random_state=0
    )
    model.fit(rows[:200], rows[:200, 0] > 0)
    tracemalloc.start()
    try:
        model.fit(rows, rows[:, 0] > 0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * rows.nbytes


# Predictions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["two", "three", "multilabel"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_probabilities_are_averaged(target, dtype):
    rows = X.astype(dtype)
    model = fitted(target, dtype=dtype)
    members = np.stack([entry.predict_proba(rows) for entry in model.estimators_])
    found = model.predict_proba(rows)
    assert found.dtype == dtype
    tolerance = 4 * np.finfo(dtype).eps
    np.testing.assert_allclose(found, members.mean(axis=0), atol=tolerance)
    np.testing.assert_array_equal(model.predict_members(rows), members)
    np.testing.assert_allclose(model.predict_log_proba(rows), np.log(found), rtol=1e-6)
    if target == "multilabel":
        np.testing.assert_array_equal(model.predict(rows), found > 0.5)
    else:
        np.testing.assert_array_equal(model.predict(rows), model.classes_[found.argmax(axis=1)])


@pytest.mark.parametrize("target", ["number", "numbers"])
def test_the_deviation_is_that_of_the_members_and_the_noise(target):
    model = fitted(target)
    members = np.stack([entry.predict(X) for entry in model.estimators_])
    mean, std = model.predict(X, return_std=True)
    np.testing.assert_array_equal(mean, model.predict(X))
    np.testing.assert_allclose(mean, members.mean(axis=0), atol=1e-14)
    np.testing.assert_allclose(std, np.hypot(members.std(axis=0), model.noise_), rtol=1e-12)
    np.testing.assert_array_equal(model.predict_members(X), members)
    assert np.shape(model.noise_) == (() if target == "number" else (2,))
    spread = fitted(target, noise_folds=None)
    np.testing.assert_allclose(
        spread.predict(X, return_std=True)[1], members.std(axis=0), rtol=1e-10, atol=1e-15
    )


@pytest.mark.parametrize("bootstrap", [False, True])
def test_two_deviations_cover_new_observations(bootstrap):
    def draw(n_samples):
        rows = RNG.uniform(-2, 2, (n_samples, 1))
        return rows, np.sin(2 * rows[:, 0]) + RNG.normal(0, 0.3, n_samples)

    member = nb.MLPRegressor(hidden_layer_sizes=(30,), learning_rate_init=0.02, max_iter=300)
    model = nb.EnsembleRegressor(member, 8, bootstrap=bootstrap, random_state=0).fit(*draw(300))
    assert 0.26 < model.noise_ < 0.36
    rows, y = draw(2000)
    mean, std = model.predict(rows, return_std=True)
    assert 0.92 < np.mean(np.abs(y - mean) < 2 * std) < 0.98
    assert model.predict([[30.0]], return_std=True)[1] > 3 * std.mean()


def test_the_noise_is_found_on_rows_that_were_left_out():
    # In a tenth of the rows the target means nothing, and the weight is 0.
    y, weight = Y["number"].copy(), np.ones(90)
    y[:9], weight[:9] = 1e3, 0.0
    for bootstrap in (False, True):
        model = ensemble("number", member={"max_iter": 100}, bootstrap=bootstrap)
        assert 0.05 < model.fit(X, y, sample_weight=weight).noise_ < 2.0
    # A network that knows its rows by heart says nothing of noise on them.
    memory = nb.MLPRegressor(hidden_layer_sizes=(200,), solver="lbfgs", alpha=0.0, max_iter=2000)
    noise = RNG.standard_normal(90)
    model = nb.EnsembleRegressor(memory, 2, random_state=0).fit(X, noise)
    assert np.std(model.predict(X) - noise) < 0.1
    assert model.noise_ > 0.5


def test_without_a_row_left_out_the_noise_is_not_known():
    model = nb.EnsembleRegressor(nb.MLPRegressor(max_iter=2), 2, random_state=0)
    with pytest.warns(UserWarning, match="noise_ is unknown, and std will be NaN"):
        assert np.isnan(model.fit(X[:1], [3.0]).noise_)
    mean, std = model.predict(X, return_std=True)
    assert np.isfinite(mean).all()
    assert np.isnan(std).all()


# What goes wrong ----------------------------------------------------------------------------------


def test_members_that_diverge_are_left_out():
    rows = np.random.default_rng(0).standard_normal((60, 3))
    y = rows @ [1.0, 2.0, 3.0]
    options = {"hidden_layer_sizes": (8,), "solver": "sgd", "max_iter": 50}
    model = nb.EnsembleRegressor(
        nb.MLPRegressor(learning_rate_init=0.4, **options), 8, random_state=0
    )
    with pytest.warns(ConvergenceWarning, match="of 8 members diverged and were left out"):
        model.fit(rows, y)
    assert 0 < len(model.estimators_) < 8
    for entry in model.estimators_:
        assert_same_bits(clone(entry).fit(rows, y), entry)
    assert np.isfinite(model.predict(rows)).all()
    model.set_params(estimator__learning_rate_init=1e10)
    with pytest.raises(ValueError, match="Solver produced non-finite parameter weights"):
        model.fit(rows, y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": nb.MLPRegressor()}, "estimator: expected an nb.MLPClassifier or None, got"),
        (
            {"estimator": make_pipeline(StandardScaler(), nb.MLPClassifier())},
            "estimator: .* got Pipeline; put the ensemble at the end of the Pipeline instead",
        ),
        (
            {"estimator": TheirClassifier()},
            r"got scikit-learn's MLPClassifier; pass nb.MLPClassifier\(\*\*estimator.get_params",
        ),
        ({"n_estimators": 0}, "'n_estimators' parameter of EnsembleClassifier must be an int in"),
        ({"bootstrap": "yes"}, "'bootstrap' parameter of EnsembleClassifier must be"),
        ({"random_state": -1}, "'random_state' parameter of EnsembleClassifier must be"),
        ({"estimator": nb.MLPClassifier(alpha=-1)}, "'alpha' parameter of MLPClassifier must be"),
    ],
)
def test_what_is_no_parameter_is_refused(options, message):
    with pytest.raises(nb.InputError, match=message):
        nb.EnsembleClassifier(**options).fit(X, Y["two"])


def test_scikit_learns_networks_become_ours_as_the_error_says():
    theirs = TheirClassifier((5,), max_iter=3, alpha=0.1, random_state=0)
    member = nb.MLPClassifier(**theirs.get_params())
    assert (member.alpha, member.max_iter) == (0.1, 3)
    with pytest.warns(ConvergenceWarning):
        model = nb.EnsembleClassifier(member, 2).fit(X, Y["two"])
    assert model.predict(X).shape == (90,)


def test_noise_folds_are_at_least_two():
    with pytest.raises(nb.InputError, match=r"'noise_folds' .* must be an int in the range \[2"):
        nb.EnsembleRegressor(noise_folds=1).fit(X, Y["number"])


@pytest.mark.parametrize("method", ["predict", "predict_proba", "predict_members"])
def test_without_a_fit_there_is_no_prediction(method):
    with pytest.raises(NotFittedError, match="This EnsembleClassifier instance is not fitted"):
        getattr(nb.EnsembleClassifier(), method)(X)


def test_an_interrupt_keeps_what_the_members_have_learnt():
    def interrupt(state):
        if state.epoch == 3:
            signal.raise_signal(signal.SIGINT)

    member = {"max_iter": 400, "tol": 0.0, "n_iter_no_change": 1000, "callbacks": interrupt}
    with pytest.warns(UserWarning, match="Training interrupted by user") as caught:
        model = fitted("two", member=member)
    interrupted = [str(entry.message) for entry in caught if "interrupted" in str(entry.message)]
    assert interrupted == ["Training interrupted by user: 4 of 4 members are kept."]
    assert len(model.estimators_) == 4
    assert all(entry.n_iter_ < 400 for entry in model.estimators_)
    assert model.predict(X).shape == (90,)


# At home in scikit-learn --------------------------------------------------------------------------


@parametrize_with_checks(
    [
        nb.EnsembleClassifier(nb.MLPClassifier((8,), max_iter=60, learning_rate_init=0.02), 3),
        nb.EnsembleRegressor(
            nb.MLPRegressor(hidden_layer_sizes=(8,), max_iter=60, learning_rate_init=0.02), 3
        ),
        nb.EnsembleClassifier(nb.MLPClassifier((5,), solver="lbfgs", max_iter=50), 2),
    ]
)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:lbfgs failed")
def test_scikit_learns_checks(estimator, check):
    if "cupy" in repr(check) and not HAS_GPU:
        pytest.skip("CuPy finds no GPU")
    if "check_array_api" in repr(check):
        require_dispatched("array_api_strict")
        if is_classifier(estimator) and "numpy" not in repr(check) and IS_BEFORE_1_9:
            pytest.skip("there, this check refuses classes_ in NumPy, which text needs; 1.9 not")
    flags = require("array_api_strict").ArrayAPIStrictFlags
    with flags(
        boolean_indexing=True, data_dependent_shapes=True, enabled_extensions=("linalg", "fft")
    ):
        check(estimator)


def test_pickles_clones_sparse_rows_and_frames():
    model = fitted("three")
    copy = pickle.loads(pickle.dumps(model))  # noqa: S301
    np.testing.assert_array_equal(copy.predict_proba(X), model.predict_proba(X))
    again = clone(model).fit(scipy.sparse.csr_array(X), Y["three"])
    np.testing.assert_array_equal(
        again.predict_proba(scipy.sparse.csr_array(X)), model.predict_proba(X)
    )
    pandas = require("pandas")
    frame = pandas.DataFrame(X, columns=["a", "b", "c", "d"])
    model.fit(frame, Y["three"])
    assert model.feature_names_in_.tolist() == ["a", "b", "c", "d"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.predict(frame)
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame[["d", "c", "b", "a"]])


def test_searches_scores_and_routed_weights():
    grid = {"estimator__alpha": [0.01, 1.0], "bootstrap": [False, True]}
    search = GridSearchCV(ensemble("two", 2), grid, cv=2).fit(X, Y["two"])
    assert len(search.best_estimator_.estimators_) == 2
    scores = cross_val_score(make_pipeline(StandardScaler(), ensemble("number", 2)), X, Y["number"])
    assert scores.shape == (5,)
    weight = RNG.random(90)
    with sklearn.config_context(enable_metadata_routing=True):
        model = ensemble("two", 2).set_fit_request(sample_weight=True)
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        pipeline = make_pipeline(scaler, model).fit(X, Y["two"], sample_weight=weight)
    expected = ensemble("two", 2).fit(StandardScaler().fit_transform(X), Y["two"], weight)
    assert_same_bits(pipeline[-1].estimators_[1], expected.estimators_[1])


@pytest.mark.parametrize("library", ["torch", "array_api_strict"])
def test_arrays_of_other_libraries_go_in_and_out(library):
    module = require_dispatched(library)
    expected = {target: fitted(target) for target in ("three", "number")}
    with sklearn.config_context(array_api_dispatch=True):
        rows = module.asarray(X)
        for target, same in expected.items():
            model = ensemble(target).fit(rows, module.asarray(Y[target]))
            found = model.predict(rows)
            assert type(found) is type(rows)
            np.testing.assert_array_equal(np.asarray(found), same.predict(X))
            with pytest.raises(ValueError, match="must use the same namespace"):
                model.predict(X)
        mean, std = model.predict(rows, return_std=True)
        assert type(mean) is type(std) is type(rows)


@on_each_device
def test_members_on_a_device(device):
    tolerance = {"rtol": 1e-6, "atol": 1e-8}
    for target in ("three", "number"):
        model = fitted(target, member={"device": device})
        np.testing.assert_allclose(
            model.predict_members(X), fitted(target).predict_members(X), **tolerance
        )
    np.testing.assert_allclose(
        model.predict(X, return_std=True), fitted("number").predict(X, return_std=True), **tolerance
    )


# Files --------------------------------------------------------------------------------------------


def parts(path):
    """Return the arrays and the description in a model file."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    return safetensors.numpy.load(content), json.loads(metadata["nnbackend"])


def sealed(path, arrays, description):
    """Write a model file with the checksum of what it holds, whatever that is."""
    facts = {**description, "sha256": digest(description, arrays)}
    path.write_bytes(safetensors.numpy.save(arrays, {"nnbackend": json.dumps(facts)}))
    return path


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("target", Y)
@pytest.mark.parametrize("member", [{}, {"activation": ["tanh", "gelu"], "dropout": [0.1, 0.0]}])
def test_a_loaded_ensemble_predicts_the_same_bits(target, member, dtype, tmp_path):
    model = fitted(target, member=member, dtype=dtype)
    rows = X.astype(dtype)
    nb.save(model, tmp_path / "model.safetensors")
    back = nb.load(tmp_path / "model.safetensors")
    assert type(back) is type(model)
    assert len(back.estimators_) == back.n_estimators == 4
    assert back.predict(rows).dtype == model.predict(rows).dtype
    np.testing.assert_array_equal(back.predict(rows), model.predict(rows))
    np.testing.assert_array_equal(back.predict_members(rows), model.predict_members(rows))
    for first, second in zip(back.estimators_, model.estimators_, strict=True):
        assert_same_bits(first, second)
        assert first.get_params()["activation"] == second.get_params()["activation"]
        assert first.get_params()["dropout"] == second.get_params()["dropout"]
    if target.startswith("number"):
        np.testing.assert_array_equal(
            back.predict(rows, return_std=True), model.predict(rows, return_std=True)
        )
    else:
        np.testing.assert_array_equal(back.classes_, model.classes_)
    # It is a whole estimator: it is saved again, copied, and fitted.
    nb.save(back, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "model.safetensors").read_bytes()
    assert clone(back).set_params(estimator__max_iter=2).fit(rows, Y[target]).predict(rows).size


def test_a_pipeline_comes_back_with_its_scaler(tmp_path):
    pandas = require("pandas")
    frame = pandas.DataFrame(5 + 3 * X, columns=["a", "b", "c", "d"])
    model = make_pipeline(StandardScaler(), ensemble("number")).fit(frame, Y["number"])
    nb.save(model, tmp_path / "model")
    back = nb.load(tmp_path / "model")
    assert [name for name, _ in back.steps] == ["standardscaler", "ensembleregressor"]
    assert back[0].feature_names_in_.tolist() == ["a", "b", "c", "d"]
    np.testing.assert_allclose(
        back.predict(frame, return_std=True), model.predict(frame, return_std=True), rtol=1e-12
    )


@pytest.mark.parametrize(
    "labels",
    [
        np.array([True, False]), np.array([3, -7], "int16"), np.array([2.0, 5.0], "float32"),
        np.array(["no", "ja"]), np.array(["no", "ja"], object), np.array([0, 1]),
        np.array(["1", "2"]),
    ],
    ids=lambda labels: labels.dtype.name,
)  # fmt: skip
def test_labels_keep_their_kind(labels, tmp_path):
    model = ensemble("two", 2).fit(X, labels[(X[:, 0] > 0).astype(int)])
    nb.save(model, tmp_path / "model")
    back = nb.load(tmp_path / "model")
    assert back.classes_.dtype == model.classes_.dtype
    assert back.classes_.tolist() == model.classes_.tolist()
    assert type(back.predict(X)[0]) is type(model.predict(X)[0])


def test_an_unknown_noise_is_kept(tmp_path):
    model = nb.EnsembleRegressor(nb.MLPRegressor(max_iter=2), 2, random_state=0)
    with pytest.warns(UserWarning, match="noise_ is unknown"):
        nb.save(model.fit(X[:1], [3.0]), tmp_path / "model")
    assert np.isnan(nb.load(tmp_path / "model").noise_)


def test_what_cannot_be_saved_is_refused(tmp_path):
    for save in (nb.save, nb.export_onnx):
        with pytest.raises(nb.InputError, match="net: expected a fitted EnsembleRegressor, got"):
            save(nb.EnsembleRegressor(), tmp_path / "model.onnx")
    model = fitted("number", 2)
    model.estimators_[1].coefs_[0][0, 0] = np.nan
    with pytest.raises(nb.InputError, match="expected finite numbers, got NaN or infinity"):
        nb.save(model, tmp_path / "model")
    with pytest.raises(nb.InputError, match="estimator: expected a fitted MLPClassifier"):
        nb.from_sklearn(fitted("number", 2))
    assert not list(tmp_path.iterdir())


def test_the_parameters_are_stacked_in_an_ordinary_file(tmp_path):
    model = fitted("number", 3)
    nb.save(model, tmp_path / "model")
    arrays, description = parts(tmp_path / "model")
    assert arrays["weights.1"].shape == (3, 6, 5)
    np.testing.assert_array_equal(arrays["weights.1"][2], model.estimators_[2].coefs_[1])
    assert description["stack"] == {"n_networks": 3, "label_dtype": None, "arrays": ["noise"]}
    assert description["layer_sizes"] == [4, 6, 5, 1]


HOSTILE = {
    "no networks": lambda _arrays, facts: facts["stack"].update(n_networks=0),
    "fewer networks": lambda _arrays, facts: facts["stack"].update(n_networks=1),
    "more networks": lambda _arrays, facts: facts["stack"].update(n_networks=3),
    "2^60 networks": lambda _arrays, facts: facts["stack"].update(n_networks=2**60),
    "a number that is none": lambda _arrays, facts: facts["stack"].update(n_networks=True),
    "no number": lambda _arrays, facts: facts["stack"].pop("n_networks"),
    "a list": lambda _arrays, facts: facts.update(stack=[2]),
    "null": lambda _arrays, facts: facts.update(stack=None),
    "no stack": lambda _arrays, facts: facts.pop("stack"),
    "no list of arrays": lambda _arrays, facts: facts["stack"].pop("arrays"),
    "labels of objects": lambda _arrays, facts: facts["stack"].update(label_dtype="O8"),
    "labels of a list": lambda _arrays, facts: facts["stack"].update(label_dtype=["int64"]),
    "labels the other way": lambda _arrays, facts: facts["stack"].update(
        label_dtype="int64" if facts["stack"]["label_dtype"] is None else None
    ),
    "a larger layer": lambda _arrays, facts: facts["layer_sizes"].__setitem__(1, 2**40),
    "NaN": lambda arrays, _facts: arrays["weights.0"].__setitem__(0, np.nan),
    "an array less": lambda arrays, _facts: arrays.pop("biases.1"),
    "an array more": lambda arrays, _facts: arrays.update(more=np.zeros(3)),
    "a network less": lambda arrays, _facts: arrays.update(
        {"weights.0": arrays["weights.0"][:1].copy()}
    ),
}
HOSTILE_NUMBERS = {
    "no noise": lambda arrays, facts: (
        arrays.pop("stack.noise"), facts["stack"].update(arrays=[]),
    ),
    "more noise": lambda arrays, _facts: arrays.update({"stack.noise": np.zeros(2)}),
    "negative noise": lambda arrays, _facts: arrays.update({"stack.noise": np.full(1, -1.0)}),
    "infinite noise": lambda arrays, _facts: arrays.update({"stack.noise": np.full(1, np.inf)}),
}  # fmt: skip
HOSTILE_CLASSES = {
    "labels that are no numbers": lambda _arrays, facts: facts.update(class_names=["a", "b", "c"]),
    "labels twice": lambda _arrays, facts: facts.update(class_names=["1", "01", "2"]),
    "labels too large": lambda _arrays, facts: facts.update(class_names=["1", "2", "9" * 30]),
    "labels without an end": lambda _arrays, facts: facts.update(
        class_names=["1", "2", "9" * 9999]
    ),
    "labels that are no bools": lambda _arrays, facts: facts["stack"].update(label_dtype="bool"),
    "too few labels": lambda _arrays, facts: facts.update(class_names=["1", "2"]),
}


@pytest.mark.parametrize(
    ("target", "kind"),
    [(target, kind) for target in ("number", "three") for kind in HOSTILE]
    + [("number", kind) for kind in HOSTILE_NUMBERS]
    + [("three", kind) for kind in HOSTILE_CLASSES],
)
def test_files_that_contradict_themselves_are_refused(target, kind, tmp_path):
    path = tmp_path / "model"
    nb.save(fitted(target, 2), path)
    arrays, description = parts(path)
    del description["sha256"]
    arrays = {name: array.copy() for name, array in arrays.items()}
    assert nb.load(sealed(path, arrays, description)).n_estimators == 2
    {**HOSTILE, **HOSTILE_NUMBERS, **HOSTILE_CLASSES}[kind](arrays, description)
    with pytest.raises(ModelFileError) as caught:
        nb.load(sealed(path, arrays, description))
    message = str(caught.value)
    assert message.startswith("path: ")
    assert os.fspath(path) in message
    assert "\n" not in message
    assert len(message) < 500


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "model"
    nb.save(fitted("three", 2), path)
    content = path.read_bytes()
    for place in range(0, len(content), 11):
        path.write_bytes(content[:place])
        with pytest.raises(ModelFileError):
            nb.load(path)
        damaged = bytearray(content)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        with pytest.raises(ModelFileError):
            nb.load(path)


def test_an_ensemble_is_no_checkpoint(tmp_path):
    nb.save(fitted("number", 2), tmp_path / "model")
    net = nb.Network([4, 6, 5, 1], output="identity", dtype="float64")
    with pytest.raises(ModelFileError, match="path: expected a network, got an ensemble"):
        read_checkpoint(tmp_path / "model", net)


# The command --------------------------------------------------------------------------------------


@pytest.fixture
def folder(run, tmp_path):
    """Fill the command's folder with two models and data for each; return the models."""
    pandas = require("pandas")
    models = {}
    for target in ("two", "number"):
        with (tmp_path / f"{target}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["a", "b", "c", "d", "target"])
            rows.writerows([*row, y] for row, y in zip(X.tolist(), Y[target].tolist(), strict=True))
        frame = pandas.DataFrame(X, columns=["a", "b", "c", "d"])
        models[target] = make_pipeline(StandardScaler(), ensemble(target)).fit(frame, Y[target])
        nb.save(models[target], tmp_path / f"{target}.safetensors")
    del run
    return models


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
def test_the_command_knows_ensembles(folder, run):
    for target, model in folder.items():
        files = f"{target}.safetensors", f"{target}.csv", "--target", "target", "--json"
        _, out, _ = run("info", files[0], "--json")
        facts = json.loads(out)
        assert (facts["members"], facts["standardized"]) == (4, True)
        net = model[-1].estimators_[0]
        assert facts["parameters"] == 4 * sum(x.size for x in (*net.coefs_, *net.intercepts_))
        code, out, _ = run("evaluate", *files)
        scores = json.loads(out)
        expected = model[-1].score(model[0].transform(X), Y[target])
        assert code == 0
        assert scores["accuracy" if target == "two" else "r2"] == pytest.approx(expected)
    _, out, _ = run("predict", "two.safetensors", "two.csv", "--probabilities", "--json")
    found, rows = json.loads(out), folder["two"][0].transform(X)
    assert found["prediction"] == folder["two"][-1].predict(rows).tolist()
    np.testing.assert_allclose(
        found["probability_yes"], folder["two"][-1].predict_proba(rows)[:, 1], rtol=1e-9
    )
    _, out, _ = run("predict", "number.safetensors", "number.csv", "--json")
    found, rows = json.loads(out), folder["number"][0].transform(X)
    mean, std = folder["number"][-1].predict(rows, return_std=True)
    np.testing.assert_allclose(found["prediction"], mean, rtol=1e-9)
    np.testing.assert_allclose(found["std"], std, rtol=1e-9)
    _, out, _ = run("info", "number.safetensors", "--json")
    assert json.loads(out)["noise"] == pytest.approx([folder["number"][-1].noise_])
    code, _, err = run("predict", "number.safetensors", "number.csv", "--probabilities")
    assert code != 0
    assert "--probabilities: expected a classifier" in err


# ONNX ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("target", Y)
def test_onnxruntime_computes_what_the_ensemble_does(target, dtype, tmp_path):
    for name in ("ndonnx", "onnx", "onnxruntime", "spox"):
        require(name)
    import onnx
    import onnxruntime

    rows = (5 + 3 * X).astype(dtype)
    member = {"activation": ["gelu", "elu"]}
    model = make_pipeline(StandardScaler(), ensemble(target, member=member)).fit(rows, Y[target])
    path = tmp_path / "model.onnx"
    nb.export_onnx(model, path)
    onnx.checker.check_model(path, full_check=True)
    graph = onnx.load(path).graph
    # One graph, whose size does not grow with the members.
    assert {tuple(x.dims) for x in graph.initializer} >= {(4, 4, 6), (4, 6), (4, 6, 5)}
    assert sum(node.op_type == "MatMul" for node in graph.node) == 3
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    tolerance = {"float32": 1e-5, "float64": 1e-12}[dtype]
    for n_samples in (1, 2, 90):
        found = dict(zip(names, session.run(None, {"X": rows[:n_samples]}), strict=True))
        if target.startswith("number"):
            mean, std = model.predict(rows[:n_samples], return_std=True)
            expected = {"prediction": mean, "std": std}
        else:
            probability = model.predict_proba(rows[:n_samples])
            label = probability > 0.5 if target == "multilabel" else probability.argmax(axis=1)
            expected = {"label": label.astype(np.int64), "probabilities": probability}
        assert list(found) == list(expected)
        for name, values in expected.items():
            assert (found[name].dtype, found[name].shape) == (values.dtype, values.shape)
            np.testing.assert_allclose(found[name], values, rtol=tolerance, atol=tolerance)


# The benchmark ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_benchmark_writes_what_it_measured(tmp_path, capsys):
    path = Path(__file__).resolve().parent.parent / "benchmarks" / "ensembles.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.main(["--quick", "--output", str(tmp_path / "record.json")]) == 0
    record = json.loads((tmp_path / "record.json").read_text())
    assert set(record["seconds"]) == {"diabetes", "quality", "breast_cancer"}
    printed = capsys.readouterr().out
    for found in record["uncertainty"].values():
        for way, figures in found["summary"].items():
            splits = [split["coverage"] for split in found["splits"][way]]
            assert figures["coverage"]["mean"] == pytest.approx(np.mean(splits))
            assert f"{figures['coverage']['mean']:.3f}" in printed
    assert record["environment"]["numpy"] == np.__version__
